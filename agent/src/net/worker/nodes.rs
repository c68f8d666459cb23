//! The other nodes: which way leads to each, and the routes and the tunnel for it.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc};

use ipnet::Ipv4Net;

use super::{
    super::{
        NetError, NodeRoute, ROUTE_PROTOCOL, Way as PeerWay, peers,
        routes::{self, Route, Way},
        tunnel::Tunnel,
        tunnel_address,
    },
    Worker,
};

impl Worker {
    fn others(&self) -> impl Iterator<Item = &NodeRoute> {
        self.nodes.iter().flatten().filter(|n| n.ip != self.config.node_ip)
    }

    /// Asks the kernel for the ways to nodes; `anew`: to all of them, else to those that nobody has asked for yet.
    pub(super) async fn ask_ways(&mut self, anew: bool) -> Result<(), NetError> {
        let (mut ways, mut result) = (BTreeMap::new(), Ok(()));
        for ip in self.others().map(|n| n.ip) {
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

    /// The nodes that are reached through the tunnel: their addresses inside and outside.
    fn tunnelled(&self) -> BTreeMap<Ipv4Addr, Ipv4Addr> {
        let is_vxlan = |n: &&NodeRoute| self.known_ways.get(&n.ip) == Some(&PeerWay::Vxlan);
        self.others().filter(is_vxlan).map(|n| (tunnel_address(n.pod_cidr), n.ip)).collect()
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
            Some(tunnel) => tunnel.add(&self.netlink, &nodes).await,
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
        let mut wanted: BTreeMap<Ipv4Net, Route> = BTreeMap::new();
        let mut ways = BTreeMap::new();
        for node in self.others() {
            let to = node.pod_cidr.trunc();
            let known = self.known_ways.get(&node.ip).copied().unwrap_or(PeerWay::Unreachable);
            let (told, way) = match (known, &self.tunnel) {
                (PeerWay::Direct, _) => (known, Way::Node { via: node.ip, link: self.node_link.index }),
                (PeerWay::Vxlan, Some(tunnel)) => {
                    let (via, source) =
                        (tunnel_address(to), tunnel_address(self.config.local_pod_cidr.trunc()));
                    (known, Way::Tunnel { via, link: tunnel.link, source })
                }
                // By the default route, pods' packets would go to strangers.
                _ => (PeerWay::Unreachable, Way::Unreachable),
            };
            ways.insert(node.name.clone(), told);
            wanted.insert(to, Route { to, way });
        }
        self.routed.clone_from(&wanted);
        for found in routes::list(&self.netlink).await? {
            if found.protocol != ROUTE_PROTOCOL || found.to == self.config.local_pod_cidr.trunc() {
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
        self.tell.ways.send_if_modified(|told| {
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
        result
    }
}
