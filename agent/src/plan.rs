//! What the kernel should hold for each Service, decided without touching it.

mod claims;
mod diff;
mod elements;
mod endpoints;
mod family;
mod groups;
mod ruleset;
mod service;
mod slots;
mod udp;

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

pub use diff::diff;
pub use elements::{Elements, Id, Key, Op, Value};
pub use family::{Families, Family};
pub use ruleset::{Changes, Ruleset};
pub use service::{are_planned_alike, balanced_addresses, has_hints, plan_service};
pub use slots::{BIG_FIRST, BIG_LAST, EXACT};
pub use udp::{Origin, Reach, UdpAddress};

/// Transport protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proto {
    /// 6.
    Tcp,
    /// 17.
    Udp,
    /// 132.
    Sctp,
}

impl Proto {
    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Proto::Tcp => 6,
            Proto::Udp => 17,
            Proto::Sctp => 132,
        }
    }

    fn parse(text: Option<&str>) -> Option<Proto> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Proto::Tcp),
            "UDP" => Some(Proto::Udp),
            "SCTP" => Some(Proto::Sctp),
            _ => None,
        }
    }
}

impl std::fmt::Display for Proto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "TCP",
            Proto::Udp => "UDP",
            Proto::Sctp => "SCTP",
        })
    }
}

/// Which service: namespace and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

/// A pod's address and port.
pub type Pod = (IpAddr, u16);

/// Where a plan is for: a node, as services see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Viewpoint {
    /// The node's name.
    pub node: String,
    /// Its label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Its addresses, of both families: a load balancer without a cloud answers there.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of all other nodes: what a load balancer has there is theirs to answer.
    pub others: BTreeSet<IpAddr>,
}

/// Whose endpoints get traffic: `internalTrafficPolicy` and `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// Those of all nodes.
    #[default]
    Cluster,
    /// Those of this node.
    Local,
}

impl Scope {
    fn parse(text: Option<&str>) -> Scope {
        if text == Some("Local") { Scope::Local } else { Scope::Cluster }
    }
}

/// The endpoints of one scope. [pkg/proxy/topology.go, KEP-1669]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backends {
    /// They get what is new: the ready ones, or if there are none, those that serve while they terminate.
    pub active: BTreeSet<Pod>,
    /// They get nothing new and still serve, while they end or because others are nearer: what they have, they keep.
    pub draining: BTreeSet<Pod>,
}

/// One port of a service, in one IP family, with the endpoints that may get its traffic now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// When the service was made, in seconds since 1970: where several want an address, the oldest has it.
    pub since: i64,
    /// The service's address.
    pub cluster_ip: IpAddr,
    /// Its protocol.
    pub proto: Proto,
    /// Its port.
    pub port: u16,
    /// The port on every node, if any.
    pub node_port: Option<u16>,
    /// Addresses of `externalIPs`, for everybody.
    pub external_ips: BTreeSet<IpAddr>,
    /// Addresses of the load balancer at which this node answers: its own, if the load balancer lists it, and such as no node has.
    pub load_balancer_ips: BTreeSet<IpAddr>,
    /// Who may use the load balancer's addresses; `None`: everybody.
    pub source_ranges: Option<BTreeSet<IpNet>>,
    /// Seconds for which a client address stays with its endpoint after its last new connection.
    pub affinity: Option<u32>,
    /// For what comes from pods and nodes to the service's address.
    pub internal: Scope,
    /// For what comes from outside to any other address. Pods and nodes meet [`Scope::Cluster`] there.
    pub external: Scope,
    /// The endpoints of [`Scope::Cluster`].
    pub cluster: Backends,
    /// The endpoints of [`Scope::Local`].
    pub local: Backends,
}

impl ServicePort {
    /// A port without endpoints that is reached at the service's address alone.
    pub fn new(cluster_ip: IpAddr, proto: Proto, port: u16) -> Self {
        ServicePort {
            since: 0,
            cluster_ip,
            proto,
            port,
            node_port: None,
            external_ips: BTreeSet::new(),
            load_balancer_ips: BTreeSet::new(),
            source_ranges: None,
            affinity: None,
            internal: Scope::Cluster,
            external: Scope::Cluster,
            cluster: Backends::default(),
            local: Backends::default(),
        }
    }

    /// The endpoints of a scope.
    pub fn backends(&self, scope: Scope) -> &Backends {
        match scope {
            Scope::Cluster => &self.cluster,
            Scope::Local => &self.local,
        }
    }
}

/// All ports of one service. A headless service or an ExternalName has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// In the order of the Service.
    pub ports: Vec<ServicePort>,
}

#[cfg(test)]
mod tests;
