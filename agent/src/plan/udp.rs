//! UDP flows as services see them: a flow has no end, so the kernel must be told when what it remembers of one is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{Backends, Pod, Proto, Scope, ServicePort};

/// An address at which UDP flows may be translated to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UdpAddress {
    /// Any address of a service, and its port.
    Service(IpAddr, u16),
    /// A nodePort, at any address of the node.
    NodePort(u16),
}

/// Where flows to an address may lead: those that are there may go on to endpoints that get nothing new.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// For pods and nodes.
    pub inside: BTreeSet<Pod>,
    /// For everybody else.
    pub outside: BTreeSet<Pod>,
    /// Who may use it at all, but for the node itself, which always may; `None`: everybody.
    pub sources: Option<BTreeSet<IpNet>>,
}

impl Reach {
    /// The endpoints that flows from an address may lead to.
    pub fn of(&self, from: IpAddr, origin: Origin) -> Option<&BTreeSet<Pod>> {
        let is_let_in =
            self.sources.as_ref().is_none_or(|ranges| ranges.iter().any(|range| range.contains(&from)));
        match origin {
            Origin::Node => Some(&self.inside),
            Origin::Inside => is_let_in.then_some(&self.inside),
            Origin::Outside => is_let_in.then_some(&self.outside),
        }
    }

    /// Whether a flow that was right before may be wrong now.
    fn lacks_some_of(&self, before: &Self) -> bool {
        let shuts_some_out = match (&before.sources, &self.sources) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(before), Some(now)) => before != now,
        };
        shuts_some_out || !before.inside.is_subset(&self.inside) || !before.outside.is_subset(&self.outside)
    }

    fn is_empty(&self) -> bool {
        self.inside.is_empty() && self.outside.is_empty()
    }
}

/// Where a flow comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This node itself.
    Node,
    /// A pod, or another node.
    Inside,
    /// Anywhere else.
    Outside,
}

impl Backends {
    fn serving(&self) -> BTreeSet<Pod> {
        self.active.union(&self.draining).copied().collect()
    }
}

/// Where flows to the addresses of a port may lead.
pub(super) fn reach(port: &ServicePort) -> BTreeMap<UdpAddress, Reach> {
    let mut out = BTreeMap::new();
    if port.proto != Proto::Udp {
        return out;
    }
    let serving = |scope| port.backends(scope).serving();
    let plain = Reach { inside: serving(Scope::Cluster), outside: serving(port.external), sources: None };
    let guarded = Reach { sources: port.source_ranges.clone(), ..plain.clone() };
    if let Some(n) = port.node_port {
        out.insert(UdpAddress::NodePort(n), plain.clone());
    }
    out.extend(port.external_ips.iter().map(|ip| (UdpAddress::Service(*ip, port.port), plain.clone())));
    let balanced = port.load_balancer_ips.iter();
    out.extend(balanced.map(|ip| (UdpAddress::Service(*ip, port.port), guarded.clone())));
    let internal = serving(port.internal);
    let internal = Reach { inside: internal.clone(), outside: internal, sources: None };
    out.insert(UdpAddress::Service(port.cluster_ip, port.port), internal);
    out
}

/// The addresses at which flows may be translated wrongly or not at all after a change.
pub(super) fn stale(
    before: &BTreeMap<UdpAddress, Reach>,
    after: &BTreeMap<UdpAddress, Reach>,
) -> BTreeSet<UdpAddress> {
    let all: BTreeSet<&UdpAddress> = before.keys().chain(after.keys()).collect();
    let is_stale = |address: &UdpAddress| match (before.get(address), after.get(address)) {
        (Some(old), Some(new)) => old.is_empty() != new.is_empty() || new.lacks_some_of(old),
        _ => true,
    };
    all.into_iter().filter(|address| is_stale(address)).copied().collect()
}
