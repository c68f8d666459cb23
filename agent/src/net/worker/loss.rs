//! What somebody else took away: found by comparing, put back, and told.

use std::{collections::BTreeSet, net::IpAddr, os::fd::AsFd};

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::{
    AddressFamily,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};

use super::{
    super::{
        LinkName, NetError, Repaired,
        kernel::{Link, Refused},
        links,
        routes::{self, Route, Way},
    },
    Worker,
};

impl Worker {
    /// Puts back what somebody else has taken away; a link that goes down takes its routes along.
    pub(super) async fn restore(&mut self) -> Result<(), NetError> {
        let lost = self.lost().await?;
        self.missing.extend(lost.names);
        if self.dns_address().await? {
            self.missing.insert(format!("address {} on lo", self.config.dns_ip));
        }
        if let Some(link) = self.netlink.link(&self.node_link.name).await? {
            self.node_link = link;
        }
        self.tunnel_is_known = false;
        let mut result = self.ask_ways(true).await;
        for route in self.own_routes() {
            result = result.and(routes::put(&self.netlink, &route).await);
        }
        for (name, pod) in self.pods.iter_mut().filter(|(name, _)| lost.pods.contains(*name)) {
            let (mtu, node_ip) = (self.node_link.mtu, self.config.node_ip);
            let netns = pod.netns.as_fd();
            match links::attach(&self.netlink, mtu, node_ip, name, pod.ip, netns).await {
                Ok(index) => pod.link = index,
                Err(error) => result = result.and(Err(error)),
            }
        }
        result = result.and(self.set_routes().await);
        if result.is_ok() && !self.missing.is_empty() {
            let repaired = Repaired { missing: std::mem::take(&mut self.missing) };
            tracing::warn!("{repaired}");
            // Nobody may be listening.
            let _ = self.tell.repairs.send(repaired);
        }
        result
    }

    /// What should be there and is not.
    async fn lost(&self) -> Result<Lost, NetError> {
        let mut lost = Lost::default();
        let links = self.netlink.handle.link().get().execute();
        let links: Vec<_> = links.try_collect().await.refused("list", "links")?;
        let links: BTreeSet<(u32, String)> =
            links.iter().map(Link::from).map(|link| (link.index, link.name)).collect();
        let neighbours = self.netlink.handle.neighbours().get().set_address_family(AddressFamily::Inet);
        let neighbours: Vec<_> = neighbours.execute().try_collect().await.refused("list", "neighbours")?;
        let neighbours: BTreeSet<_> = neighbours.iter().filter_map(permanent).collect();
        let there = routes::list(&self.netlink).await?;
        let there: BTreeSet<Route> = there.into_iter().filter_map(|found| found.route).collect();
        let mut wanted: Vec<Route> = self.own_routes().into();
        wanted.extend(self.routed.values().cloned());
        for (name, pod) in &self.pods {
            if !links.contains(&(pod.link, name.to_string())) {
                // Its routes and neighbours went along.
                lost.names.push(format!("link {name} of the pod {}", pod.ip));
                lost.pods.insert(name.clone());
                continue;
            }
            if !neighbours.contains(&(pod.link, pod.ip.into())) {
                lost.names.push(format!("neighbour {} on {name}", pod.ip));
                lost.pods.insert(name.clone());
            }
            let way = Way::Link { link: pod.link, source: self.config.node_ip };
            let route = Route { to: Ipv4Net::from(pod.ip), way };
            if !there.contains(&route) {
                lost.pods.insert(name.clone());
            }
            wanted.push(route);
        }
        let gone = wanted.iter().filter(|r| !there.contains(r));
        lost.names.extend(gone.map(|r| format!("route to {}", r.to)));
        if let Some(tunnel) = &self.tunnel {
            lost.names.extend(tunnel.lost(&self.netlink).await?);
        }
        Ok(lost)
    }
}

#[derive(Default)]
struct Lost {
    /// Named for people.
    names: Vec<String>,
    /// The links of pods that something is missing of.
    pods: BTreeSet<LinkName>,
}

/// The link and the address of a neighbour that never expires.
fn permanent(message: &NeighbourMessage) -> Option<(u32, IpAddr)> {
    let ip = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        _ => None,
    })?;
    (message.header.state == NeighbourState::Permanent).then_some((message.header.ifindex, ip))
}
