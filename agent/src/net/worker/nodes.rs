//! The other nodes: which way leads to each, and the routes and the tunnel for it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    super::{
        NetError, NodeRoute, ROUTE_PROTOCOL, Way as PeerWay, peers,
        routes::{self, Route, Way},
        tunnel::Tunnel,
        tunnel_address, tunnel_address6, way_back,
    },
    Worker,
};
use crate::source;

/// Another node in one family.
struct Peer<'w> {
    node: &'w NodeRoute,
    /// Its address.
    ip: IpAddr,
    /// Its pods.
    pods: IpNet,
    /// Its address inside the tunnel.
    inside: IpAddr,
}

impl Worker {
    fn others(&self) -> impl Iterator<Item = &NodeRoute> {
        self.nodes.iter().flatten().filter(|n| n.ip != self.config.node_ip)
    }

    /// The other nodes in each family that this one has.
    fn peers(&self) -> impl Iterator<Item = Peer<'_>> {
        let first = self.others().map(|node| Peer {
            node,
            ip: node.ip.into(),
            pods: IpNet::V4(node.pod_cidr.trunc()),
            inside: tunnel_address(node.pod_cidr).into(),
        });
        let both = self.config.family6.is_some();
        let second = self.others().filter_map(move |node| {
            let family = node.family6.filter(|_| both)?;
            Some(Peer {
                node,
                ip: family.ip.into(),
                pods: IpNet::V6(family.pod_cidr.trunc()),
                inside: tunnel_address6(family.pod_cidr).into(),
            })
        });
        first.chain(second)
    }

    /// Asks the kernel for the ways to nodes; `anew`: to all of them, else to those that nobody has asked for yet.
    pub(super) async fn ask_ways(&mut self, anew: bool) -> Result<(), NetError> {
        let (mut ways, mut result) = (BTreeMap::new(), Ok(()));
        for ip in self.peers().map(|peer| peer.ip) {
            let before = self.known_ways.get(&ip).copied();
            let way = match before {
                Some(way) if !anew => way,
                _ => match routes::look_up(&self.netlink, ip).await {
                    Ok(answer) => peers::decide(answer, self.node_link.index, before),
                    Err(error) => {
                        result = result.and(Err(error));
                        peers::decide(None, self.node_link.index, before)
                    }
                },
            };
            ways.insert(ip, way);
        }
        self.known_ways = ways;
        result
    }

    /// The nodes that are reached through the tunnel in a family: their addresses inside, and those outside, which are of IPv4.
    fn tunnelled(&self) -> BTreeMap<IpAddr, Ipv4Addr> {
        let is_vxlan = |peer: &Peer<'_>| self.known_ways.get(&peer.ip) == Some(&PeerWay::Vxlan);
        self.peers().filter(is_vxlan).map(|peer| (peer.inside, peer.node.ip)).collect()
    }

    /// Opens the tunnel if a node is reached through it or sends through it.
    async fn open_tunnel(&mut self) -> Result<(), NetError> {
        let nodes = self.tunnelled();
        if nodes.is_empty() && !self.others().any(|n| n.tunnels) {
            return Ok(());
        }
        if !self.tunnel_is_known || self.tunnel.is_none() {
            self.tunnel = None;
            self.tunnel = Tunnel::open(&self.netlink, &self.config, &self.node_link).await?;
            self.tunnel_is_known = true;
        }
        match &mut self.tunnel {
            Some(tunnel) => {
                let added = tunnel.add(&self.netlink, &nodes).await;
                added
                    .and(way_back::put(&self.netlink, source::Way::Tunnel, &tunnel.as_link()).await.map(drop))
            }
            None => Ok(()),
        }
    }

    /// Takes away of the tunnel what nobody uses any more, once no route leads there.
    async fn trim_tunnel(&mut self) -> Result<(), NetError> {
        let nodes = self.tunnelled();
        if !nodes.is_empty() || self.others().any(|n| n.tunnels) {
            return match &mut self.tunnel {
                Some(tunnel) => tunnel.retain(&self.netlink, &nodes).await,
                None => Ok(()),
            };
        }
        if self.tunnel.is_some() || !self.tunnel_is_known {
            Tunnel::close(&self.netlink).await?;
            self.tunnel = None;
            self.tunnel_is_known = true;
        }
        Ok(())
    }

    /// Routes the pod ranges of all nodes that were told, and says which way.
    pub(super) async fn set_routes(&mut self) -> Result<(), NetError> {
        if self.nodes.is_none() {
            return Ok(());
        }
        let mut result = self.ask_ways(false).await;
        result = result.and(self.open_tunnel().await);
        let mut wanted: BTreeMap<IpNet, Route> = BTreeMap::new();
        // By family.
        let mut ways = [BTreeMap::new(), BTreeMap::new()];
        for peer in self.peers() {
            let to = peer.pods;
            let known = self.known_ways.get(&peer.ip).copied().unwrap_or(PeerWay::Unreachable);
            let (told, way) = match (known, &self.tunnel) {
                (PeerWay::Direct, _) => (known, Way::Node { via: peer.ip, link: self.node_link.index }),
                (PeerWay::Vxlan, Some(tunnel)) => {
                    let source = self.own_inside(peer.ip);
                    (known, Way::Tunnel { via: peer.inside, link: tunnel.link, source })
                }
                // By the default route, pods' packets would go to strangers.
                _ => (PeerWay::Unreachable, Way::Unreachable),
            };
            ways[usize::from(peer.ip.is_ipv6())].insert(peer.node.name.clone(), told);
            wanted.insert(to, Route { to, way });
        }
        self.routed.clone_from(&wanted);
        let own = self.own_pods();
        for found in self.routes().await? {
            if found.protocol != ROUTE_PROTOCOL || own.contains(&found.to) {
                continue;
            }
            let Some(Route { way: Way::Node { .. } | Way::Tunnel { .. } | Way::Unreachable, .. }) =
                &found.route
            else {
                continue;
            };
            match wanted.get(&found.to) {
                Some(route) if found.route.as_ref() == Some(route) => drop(wanted.remove(&found.to)),
                Some(route) => {
                    let replaced = routes::replace(&self.netlink, route).await;
                    if replaced.is_ok() {
                        wanted.remove(&found.to);
                    }
                    result = result.and(replaced);
                }
                None => result = result.and(routes::remove(&self.netlink, &found).await),
            }
        }
        for route in wanted.values() {
            result = result.and(routes::put(&self.netlink, route).await);
        }
        result = result.and(self.trim_tunnel().await);
        for (decided, ways) in self.tell.ways.iter().zip(ways) {
            decided.send_if_modified(|told| {
                let is_new = **told != ways;
                if is_new {
                    let lost = ways.values().filter(|way| **way == PeerWay::Unreachable).count();
                    if lost > 0 {
                        tracing::error!(
                            nodes = lost,
                            "pods of nodes on other networks are not reached: has this kernel VXLAN (module vxlan)?"
                        );
                    }
                    *told = Arc::new(ways);
                }
                is_new
            });
        }
        result
    }

    /// This node's address inside the tunnel, of the family of an address.
    fn own_inside(&self, like: IpAddr) -> IpAddr {
        match (like, self.config.family6) {
            (IpAddr::V6(_), Some(family)) => tunnel_address6(family.local_pod_cidr.trunc()).into(),
            _ => tunnel_address(self.config.local_pod_cidr.trunc()).into(),
        }
    }
}
