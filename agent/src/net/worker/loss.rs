//! What somebody else took away: found by comparing, put back, and told.

use std::{collections::BTreeSet, net::IpAddr, os::fd::AsFd};

use futures::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
};

use super::{
    super::{
        LinkName, NetError, Repaired,
        kernel::{Link, Refused},
        links,
        routes::{self, Route},
    },
    Worker,
};

impl Worker {
    /// Puts back what somebody else has taken away; a link that goes down takes its routes along.
    pub(super) async fn restore(&mut self) -> Result<(), NetError> {
        let lost = self.lost().await?;
        self.missing.extend(lost.names);
        for ip in self.dns_addresses().await? {
            self.missing.insert(format!("address {ip} on lo"));
        }
        if let Some(link) = self.netlink.link(&self.node_link.name).await? {
            self.node_link = link;
        }
        self.tunnel_is_known = false;
        let back = self.ways_back().await;
        if let Ok(true) = back {
            self.missing.insert("the way of answers back through other nodes".into());
        }
        let mut result = back.map(drop).and(self.ask_ways(true).await);
        for route in self.own_routes() {
            result = result.and(routes::put(&self.netlink, &route).await);
        }
        for (name, pod) in self.pods.iter_mut().filter(|(name, _)| lost.pods.contains(*name)) {
            let (mtu, netns) = (self.node_link.mtu, pod.netns.as_fd());
            match links::attach(&self.netlink, mtu, &self.config, name, pod.ip, netns).await {
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
        let mut neighbours = BTreeSet::new();
        let second = self.config.family6.map(|_| AddressFamily::Inet6);
        for family in [Some(AddressFamily::Inet), second].into_iter().flatten() {
            let all = self.netlink.handle.neighbours().get().set_address_family(family).execute();
            let all: Vec<_> = all.try_collect().await.refused("list", "neighbours")?;
            neighbours.extend(all.iter().filter_map(permanent));
        }
        let there: BTreeSet<Route> =
            self.routes().await?.into_iter().filter_map(|found| found.route).collect();
        let mut wanted: Vec<Route> = self.own_routes();
        wanted.extend(self.routed.values().cloned());
        for (name, pod) in &self.pods {
            if !links.contains(&(pod.link, name.to_string())) {
                // Its routes and neighbours went along.
                lost.names.push(format!("link {name} of the pod {}", pod.ip));
                lost.pods.insert(name.clone());
                continue;
            }
            for route in links::host_routes(&self.config, pod.link, pod.ip) {
                let ip = route.to.addr();
                if !neighbours.contains(&(pod.link, ip)) {
                    lost.names.push(format!("neighbour {ip} on {name}"));
                    lost.pods.insert(name.clone());
                }
                if !there.contains(&route) {
                    lost.pods.insert(name.clone());
                }
                wanted.push(route);
            }
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
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })?;
    (message.header.state == NeighbourState::Permanent).then_some((message.header.ifindex, ip))
}
