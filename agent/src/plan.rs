//! What the kernel should hold for each Service, decided without touching it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::util::intstr::IntOrString,
};

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
    /// Seconds of session affinity by client address. Carried for the renderer; not rendered yet.
    pub affinity: Option<u32>,
    /// Pod addresses and ports.
    pub endpoints: BTreeSet<(Ipv4Addr, u16)>,
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
        let endpoints =
            endpoints(slices, port.name.as_deref().unwrap_or(""), proto, port.target_port.as_ref(), number);
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0);
        plan.ports.push(ServicePort { cluster_ip, proto, port: number, node_port, affinity, endpoints });
    }
    plan
}

fn endpoints(
    slices: &[&EndpointSlice],
    name: &str,
    proto: Proto,
    target: Option<&IntOrString>,
    port: u16,
) -> BTreeSet<(Ipv4Addr, u16)> {
    let (mut ready, mut draining) = (BTreeSet::new(), BTreeSet::new());
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
    if ready.is_empty() { draining } else { ready }
}

/// Key of an element of one of the kernel's maps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `svc`: address, protocol, port.
    Service(Ipv4Addr, Proto, u16),
    /// `np`: protocol, nodePort.
    NodePort(Proto, u16),
    /// `ep`: address, protocol, port, slot.
    Endpoint(Ipv4Addr, Proto, u16, u32),
    /// `npep`: protocol, nodePort, slot.
    NodePortEndpoint(Proto, u16, u32),
    /// `cluster_ips`.
    ClusterIp(Ipv4Addr),
}

/// What an element maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// Number of endpoints; 0 rejects.
    Class(u32),
    /// A pod's address and port.
    Pod(Ipv4Addr, u16),
    /// Sets map to nothing.
    Present,
}

/// The elements of one or more services.
pub type Elements = BTreeMap<Key, Value>;

/// One change of one element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The element is not there: put it.
    Add(Key, Value),
    /// The element is there: take it away.
    Delete(Key),
}

type PortKey = (Ipv4Addr, Proto, u16);

#[derive(Clone, Debug, Default)]
struct Applied {
    elements: Elements,
    slots: BTreeMap<PortKey, Vec<(Ipv4Addr, u16)>>,
}

/// What a batch does, and which UDP endpoints have stopped serving which addresses by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Deletes first, so that a key that changes hands is free when it is added.
    pub ops: Vec<Op>,
    /// Pods that UDP flows may still be translated to.
    pub stale_udp: BTreeSet<(Ipv4Addr, u16)>,
}

/// The state of all services, with the slot each endpoint stands in.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    services: BTreeMap<ServiceKey, Applied>,
}

impl Ruleset {
    /// Replaces the plans of the touched services and says what must change. Others are not looked at.
    pub fn update(&mut self, touched: &[(ServiceKey, Option<ServicePlan>)]) -> Changes {
        let (mut deletes, mut adds) = (BTreeSet::new(), Elements::new());
        let mut stale_udp = BTreeSet::new();
        for (key, plan) in touched {
            let before = self.services.remove(key).unwrap_or_default();
            let after = plan.as_ref().map(|p| render(p, &before)).unwrap_or_default();
            for (port, slots) in before.slots.iter().filter(|((_, proto, _), _)| *proto == Proto::Udp) {
                let kept = after.slots.get(port);
                stale_udp.extend(slots.iter().filter(|s| kept.is_none_or(|k| !k.contains(s))).copied());
            }
            for (k, v) in &before.elements {
                if after.elements.get(k) != Some(v) {
                    // Added by an earlier plan of the same batch: it never reached the kernel.
                    if adds.remove(k).is_none() {
                        deletes.insert(k.clone());
                    }
                }
            }
            for (k, v) in &after.elements {
                if before.elements.get(k) != Some(v) {
                    adds.insert(k.clone(), *v);
                }
            }
            if plan.is_some() {
                self.services.insert(key.clone(), after);
            }
        }
        let mut ops: Vec<Op> = deletes.into_iter().map(Op::Delete).collect();
        ops.extend(adds.into_iter().map(|(k, v)| Op::Add(k, v)));
        Changes { ops, stale_udp }
    }

    /// Every element of every service.
    pub fn elements(&self) -> Elements {
        self.services.values().flat_map(|a| a.elements.clone()).collect()
    }
}

fn render(plan: &ServicePlan, before: &Applied) -> Applied {
    let mut out = Applied::default();
    for p in &plan.ports {
        let id = (p.cluster_ip, p.proto, p.port);
        let slots = place(before.slots.get(&id).map_or(&[][..], Vec::as_slice), &p.endpoints);
        let class = Value::Class(slots.len() as u32);
        out.elements.insert(Key::ClusterIp(p.cluster_ip), Value::Present);
        out.elements.insert(Key::Service(p.cluster_ip, p.proto, p.port), class);
        if let Some(node_port) = p.node_port {
            out.elements.insert(Key::NodePort(p.proto, node_port), class);
        }
        for (slot, (ip, port)) in (0u32..).zip(&slots) {
            let pod = Value::Pod(*ip, *port);
            out.elements.insert(Key::Endpoint(p.cluster_ip, p.proto, p.port, slot), pod);
            if let Some(node_port) = p.node_port {
                out.elements.insert(Key::NodePortEndpoint(p.proto, node_port, slot), pod);
            }
        }
        out.slots.insert(id, slots);
    }
    out
}

/// Keeps endpoints where they stand: a hole takes a new endpoint, else the last one.
fn place(before: &[(Ipv4Addr, u16)], wanted: &BTreeSet<(Ipv4Addr, u16)>) -> Vec<(Ipv4Addr, u16)> {
    let mut new: Vec<_> = wanted.iter().filter(|e| !before.contains(e)).copied().collect();
    new.reverse();
    let mut slots = before.to_vec();
    let mut i = 0;
    while i < slots.len() {
        if !wanted.contains(&slots[i]) {
            if let Some(e) = new.pop() {
                slots[i] = e;
            } else {
                slots.swap_remove(i);
                continue;
            }
        }
        i += 1;
    }
    slots.extend(new.into_iter().rev());
    slots
}

#[cfg(test)]
mod tests;
