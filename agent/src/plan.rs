//! What the kernel should hold for each Service, decided without touching it.

mod elements;
mod ruleset;
mod slots;

use std::{collections::BTreeSet, net::Ipv4Addr};

use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::util::intstr::IntOrString,
};

pub use elements::{Elements, Id, Key, Op, Value, diff};
pub use ruleset::{Changes, Ruleset, UdpAddress};
pub use slots::{BIG_FIRST, BIG_LAST, EXACT};

/// Transport protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proto {
    /// 6.
    Tcp,
    /// 17.
    Udp,
}

impl Proto {
    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Proto::Tcp => 6,
            Proto::Udp => 17,
        }
    }

    fn parse(text: Option<&str>) -> Option<Proto> {
        match text.unwrap_or("TCP") {
            "TCP" => Some(Proto::Tcp),
            "UDP" => Some(Proto::Udp),
            _ => None,
        }
    }
}

impl std::fmt::Display for Proto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "TCP",
            Proto::Udp => "UDP",
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

/// One port of a service with the endpoints that may get its traffic now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The service's address.
    pub cluster_ip: Ipv4Addr,
    /// Its protocol.
    pub proto: Proto,
    /// Its port.
    pub port: u16,
    /// The port on every node, if any.
    pub node_port: Option<u16>,
    /// Seconds for which a client address stays with its endpoint after its last new connection.
    pub affinity: Option<u32>,
    /// Pod addresses and ports.
    pub endpoints: BTreeSet<(Ipv4Addr, u16)>,
    /// Those that get nothing new and still serve while they end: what they have, they keep.
    pub draining: BTreeSet<(Ipv4Addr, u16)>,
}

/// All ports of one service. A headless service or an ExternalName has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// In the order of the Service.
    pub ports: Vec<ServicePort>,
}

/// Plans one service from its slices: ready endpoints; if there are none, those that serve while they terminate.
pub fn plan_service(service: &Service, slices: &[&EndpointSlice]) -> ServicePlan {
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
        let (endpoints, draining) = endpoints(slices, name, proto, port.target_port.as_ref(), number);
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0);
        let port = ServicePort { cluster_ip, proto, port: number, node_port, affinity, endpoints, draining };
        plan.ports.push(port);
    }
    plan
}

type Pods = BTreeSet<(Ipv4Addr, u16)>;

/// The pods that get what is new, and those that only keep what they have.
fn endpoints(
    slices: &[&EndpointSlice],
    name: &str,
    proto: Proto,
    target: Option<&IntOrString>,
    port: u16,
) -> (Pods, Pods) {
    let (mut ready, mut draining) = (Pods::new(), Pods::new());
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
            let addresses = endpoint.addresses.iter().filter_map(|a| a.parse().ok());
            if is_ready {
                ready.extend(addresses.map(|a| (a, number)));
            } else if serving && terminating {
                draining.extend(addresses.map(|a| (a, number)));
            }
        }
    }
    if ready.is_empty() { (draining, Pods::new()) } else { (ready, draining) }
}

#[cfg(test)]
mod tests;
