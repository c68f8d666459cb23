//! What the kernel should hold for each Service, decided without touching it.

mod elements;
mod family;
mod ruleset;
mod slots;

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::util::intstr::IntOrString,
};

pub use elements::{Elements, Id, Key, Op, Value, diff};
pub use family::{Families, Family};
pub use ruleset::{Changes, Ruleset, UdpAddress};
pub use slots::{BIG_FIRST, BIG_LAST, EXACT};

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
    /// They get nothing new and still serve while they end: what they have, they keep.
    pub draining: BTreeSet<Pod>,
}

/// One port of a service, in one IP family, with the endpoints that may get its traffic now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
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
    /// Who may use the load balancer's addresses; everybody if this is empty.
    pub source_ranges: BTreeSet<IpNet>,
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
            cluster_ip,
            proto,
            port,
            node_port: None,
            external_ips: BTreeSet::new(),
            load_balancer_ips: BTreeSet::new(),
            source_ranges: BTreeSet::new(),
            affinity: None,
            internal: Scope::Cluster,
            external: Scope::Cluster,
            cluster: Backends::default(),
            local: Backends::default(),
        }
    }
}

/// All ports of one service. A headless service or an ExternalName has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// In the order of the Service.
    pub ports: Vec<ServicePort>,
}

/// Plans one service from its slices, as a node should serve it.
pub fn plan_service(service: &Service, slices: &[&EndpointSlice], here: &Viewpoint) -> ServicePlan {
    let mut plan = ServicePlan::default();
    let Some(spec) = &service.spec else { return plan };
    if spec.type_.as_deref() == Some("ExternalName") {
        return plan;
    }
    let Some(cluster_ip) = spec.cluster_ip.as_deref().and_then(|ip| ip.parse().ok()) else { return plan };
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok()).unwrap_or(10_800)
    });
    for port in spec.ports.iter().flatten() {
        let (Some(proto), Ok(number)) = (Proto::parse(port.protocol.as_deref()), u16::try_from(port.port))
        else {
            continue;
        };
        let name = port.name.as_deref().unwrap_or("");
        let (cluster, local) = backends(slices, name, proto, port.target_port.as_ref(), number, here);
        plan.ports.push(ServicePort {
            node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0),
            affinity,
            internal: Scope::parse(spec.internal_traffic_policy.as_deref()),
            external: Scope::parse(spec.external_traffic_policy.as_deref()),
            cluster,
            local,
            ..ServicePort::new(cluster_ip, proto, number)
        });
    }
    plan
}

/// The endpoints of all nodes, and those of this one.
fn backends(
    slices: &[&EndpointSlice],
    name: &str,
    proto: Proto,
    target: Option<&IntOrString>,
    port: u16,
    here: &Viewpoint,
) -> (Backends, Backends) {
    let (mut cluster, mut local) = (Backends::default(), Backends::default());
    for slice in slices.iter().filter(|s| s.address_type == "IPv4") {
        let matching = slice.ports.iter().flatten().find(|p| {
            p.name.as_deref().unwrap_or("") == name && Proto::parse(p.protocol.as_deref()) == Some(proto)
        });
        let Some(matching) = matching else { continue };
        // A slice port without a number means "all ports": then the service says which.
        let number = matching.port.or(match target {
            Some(IntOrString::Int(n)) if *n != 0 => Some(*n),
            _ => Some(i32::from(port)),
        });
        let Some(number) = number.and_then(|n| u16::try_from(n).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.as_ref();
            let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let serving = conditions.and_then(|c| c.serving).unwrap_or(is_ready);
            let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
            let pods = endpoint.addresses.iter().filter_map(|a| Some((a.parse().ok()?, number)));
            let is_here = endpoint.node_name.as_ref() == Some(&here.node);
            for pod in pods {
                for backends in [Some(&mut cluster), is_here.then_some(&mut local)].into_iter().flatten() {
                    if is_ready {
                        backends.active.insert(pod);
                    } else if serving && terminating {
                        backends.draining.insert(pod);
                    }
                }
            }
        }
    }
    for backends in [&mut cluster, &mut local] {
        if backends.active.is_empty() {
            backends.active = std::mem::take(&mut backends.draining);
        }
    }
    (cluster, local)
}

#[cfg(test)]
mod tests;
