//! The state of all services, and what a change of some of them means for the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Pod, Proto, ServiceKey, ServicePlan, ServicePort,
    elements::{Elements, Id, Key, Op, Value, diff},
    slots::{place, slots_for},
};

type PortKey = (IpAddr, Proto, u16);

/// Endpoints with affinity have numbers of 12 bits; 0 is none.
const MOST_NUMBERS: u16 = 4095;

/// An address at which UDP flows may be translated to pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UdpAddress {
    /// A ClusterIP and its port.
    Service(IpAddr, u16),
    /// A nodePort, at any address of the node.
    NodePort(u16),
}

/// What a batch does, and what must be looked after outside of the services' own elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In the order of [`diff`].
    pub ops: Vec<Op>,
    /// UDP addresses that are new, are gone, or have lost an endpoint: flows there may be translated wrongly or not at all.
    pub stale_udp: BTreeSet<UdpAddress>,
    /// Endpoints with affinity that are gone: their clients' entries go, too.
    pub forgotten: BTreeSet<(Id, u16)>,
}

/// One service port as it is in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PortState {
    id: Id,
    slots: Vec<Pod>,
    node_port: Option<u16>,
    /// Stable numbers, with affinity only.
    numbers: BTreeMap<Pod, u16>,
    /// Serve while they end, and get nothing new.
    draining: BTreeSet<Pod>,
}

impl PortState {
    fn new(id: Id) -> Self {
        PortState {
            id,
            slots: Vec::new(),
            node_port: None,
            numbers: BTreeMap::new(),
            draining: BTreeSet::new(),
        }
    }

    /// Whom flows may lead to.
    fn serving(&self) -> BTreeSet<Pod> {
        self.slots.iter().chain(&self.draining).copied().collect()
    }
}

#[derive(Clone, Debug, Default)]
struct Applied {
    elements: Elements,
    ports: BTreeMap<PortKey, PortState>,
}

/// The state of all services.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    services: BTreeMap<ServiceKey, Applied>,
    /// Whose the addresses and nodePorts are; two services never share one.
    owners: BTreeMap<Key, ServiceKey>,
    ids: BTreeSet<Id>,
    last_id: u32,
    /// Ports that an earlier agent programmed, until their services come.
    adopted: BTreeMap<PortKey, PortState>,
}

impl Ruleset {
    /// A state without services that knows what is in the kernel: services that come keep their ids, slots and numbers.
    pub fn adopting(kernel: &Elements) -> Self {
        let mut by_id: BTreeMap<Id, PortState> = BTreeMap::new();
        let mut keys: BTreeMap<PortKey, Id> = BTreeMap::new();
        for (key, value) in kernel {
            if let (Key::Service(ip, proto, port), Value::Port { id, .. }) = (key, value)
                && (1..=Id::MAX).contains(&id.0)
                && !by_id.contains_key(id)
            {
                keys.insert((*ip, *proto, *port), *id);
                by_id.insert(*id, PortState::new(*id));
            }
        }
        // A slot is worth keeping only where all before it are known, too; the order of keys sees to that.
        for (key, value) in kernel {
            match (key, value) {
                (Key::Endpoint(id, number), Value::Pod(ip, port)) => {
                    if let Some(state) = by_id.get_mut(id) {
                        state.numbers.insert((*ip, *port), *number);
                    }
                }
                (Key::Slot(id, slot), Value::Pod(ip, port)) => {
                    if let Some(state) = by_id.get_mut(id).filter(|p| p.slots.len() == *slot as usize) {
                        state.slots.push((*ip, *port));
                    }
                }
                (Key::Choice(id, slot), Value::Number(number)) => {
                    if let Some(state) = by_id.get_mut(id).filter(|p| p.slots.len() == *slot as usize)
                        && let Some((pod, _)) = state.numbers.iter().find(|(_, n)| *n == number)
                    {
                        state.slots.push(*pod);
                    }
                }
                _ => {}
            }
        }
        let adopted: BTreeMap<_, _> =
            keys.into_iter().filter_map(|(key, id)| Some((key, by_id.remove(&id)?))).collect();
        let ids: BTreeSet<Id> = adopted.values().map(|p| p.id).collect();
        let last_id = ids.last().map_or(0, |id| id.0);
        Ruleset { ids, last_id, adopted, ..Ruleset::default() }
    }

    /// Replaces the plans of the touched services and says what must change. Others are not looked at.
    pub fn update(&mut self, touched: &[(ServiceKey, Option<ServicePlan>)]) -> Changes {
        // The last word on a service counts.
        let touched: BTreeMap<&ServiceKey, Option<&ServicePlan>> =
            touched.iter().map(|(key, plan)| (key, plan.as_ref())).collect();
        // All give up what they have before any takes: an address may move from one to another.
        let mut before: BTreeMap<&ServiceKey, Applied> = BTreeMap::new();
        let mut old: BTreeMap<PortKey, PortState> = BTreeMap::new();
        for key in touched.keys() {
            let Some(applied) = self.services.remove(*key) else { continue };
            for element in applied.elements.keys() {
                self.owners.remove(element);
            }
            old.extend(applied.ports.iter().map(|(k, p)| (*k, p.clone())));
            before.insert(key, applied);
        }
        let nothing = Elements::new();
        let (mut gone, mut new) = (Vec::new(), Vec::new());
        for (key, plan) in &touched {
            let mut applied = Applied::default();
            for port in plan.iter().flat_map(|plan| &plan.ports) {
                self.render(key, port, &mut old, &mut applied);
            }
            let was = before.get(*key).map_or(&nothing, |a| &a.elements);
            let ops = diff(was, &applied.elements);
            let (deletes, adds): (Vec<_>, Vec<_>) =
                ops.into_iter().partition(|op| matches!(op, Op::Delete(_)));
            gone.extend(deletes);
            new.extend(adds);
            if plan.is_some() {
                self.services.insert((*key).clone(), applied);
            }
        }
        for port in old.values() {
            self.ids.remove(&port.id);
        }
        gone.sort_by(|a, b| b.key().cmp(a.key()));
        new.sort_by(|a, b| a.key().cmp(b.key()));
        gone.append(&mut new);
        let known = ports(before.values());
        let now = ports(touched.keys().filter_map(|key| self.services.get(*key)));
        Changes { ops: gone, stale_udp: stale(&known, &now), forgotten: forgotten(&known, &now) }
    }

    /// Every element of every service.
    pub fn elements(&self) -> Elements {
        self.services.values().flat_map(|a| a.elements.clone()).collect()
    }

    /// The endpoints that UDP flows to an address may be translated to, those that are draining included; `None` if no service has the address.
    pub fn udp_endpoints(&self, address: UdpAddress) -> Option<BTreeSet<(IpAddr, u16)>> {
        let key = match address {
            UdpAddress::Service(ip, port) => Key::Service(ip, Proto::Udp, port),
            UdpAddress::NodePort(port) => Key::NodePort(Proto::Udp, port),
        };
        let applied = self.services.get(self.owners.get(&key)?)?;
        let port = applied.ports.iter().find(|((ip, proto, port), state)| match address {
            UdpAddress::Service(..) => key == Key::Service(*ip, *proto, *port),
            UdpAddress::NodePort(n) => *proto == Proto::Udp && state.node_port == Some(n),
        });
        Some(port?.1.serving())
    }

    /// Counts of slots and seconds of all service ports with affinity.
    pub fn affinities(&self) -> BTreeSet<(u32, u32)> {
        let values = self.services.values().flat_map(|a| a.elements.values());
        values
            .filter_map(|value| match value {
                Value::Port { slots, affinity: Some(seconds), .. } => Some((*slots, *seconds)),
                _ => None,
            })
            .collect()
    }

    fn render(
        &mut self,
        owner: &ServiceKey,
        port: &ServicePort,
        old: &mut BTreeMap<PortKey, PortState>,
        out: &mut Applied,
    ) {
        let id_key = (port.cluster_ip, port.proto, port.port);
        let service = Key::Service(port.cluster_ip, port.proto, port.port);
        if !self.own(service.clone(), owner) {
            return;
        }
        let state = old.remove(&id_key).or_else(|| self.adopted.remove(&id_key));
        let Some(id) = state.as_ref().map(|s| s.id).or_else(|| self.new_id()) else {
            self.owners.remove(&service);
            return;
        };
        let most = if port.affinity.is_some() { usize::from(MOST_NUMBERS) } else { usize::MAX };
        let endpoints: BTreeSet<Pod> = port.cluster.active.iter().take(most).copied().collect();
        let (slots, numbers) = state.map(|s| (s.slots, s.numbers)).unwrap_or_default();
        let count = slots_for(endpoints.len() as u32, slots.len() as u32);
        let slots = place(&slots, &endpoints, count);
        let numbers = port.affinity.map(|_| number(&numbers, &endpoints)).unwrap_or_default();
        for (slot, pod) in (0u32..).zip(&slots) {
            match numbers.get(pod) {
                Some(n) => out.elements.insert(Key::Choice(id, slot), Value::Number(*n)),
                None => out.elements.insert(Key::Slot(id, slot), Value::Pod(pod.0, pod.1)),
            };
        }
        for (pod, n) in &numbers {
            out.elements.insert(Key::Endpoint(id, *n), Value::Pod(pod.0, pod.1));
        }
        let value = Value::Port { id, slots: count, affinity: port.affinity };
        out.elements.insert(service, value);
        let address = Key::ClusterIp(port.cluster_ip);
        if self.own(address.clone(), owner) {
            out.elements.insert(address, Value::Present);
        }
        let node_port = port.node_port.filter(|n| self.own(Key::NodePort(port.proto, *n), owner));
        if let Some(n) = node_port {
            out.elements.insert(Key::NodePort(port.proto, n), value);
        }
        let draining = port.cluster.draining.clone();
        out.ports.insert(id_key, PortState { id, slots, node_port, numbers, draining });
    }

    /// Takes an address for a service, unless another has it: then the other keeps it.
    fn own(&mut self, key: Key, owner: &ServiceKey) -> bool {
        self.owners.entry(key).or_insert_with(|| owner.clone()) == owner
    }

    /// A free id, not one that was freed just now. `None`: a million service ports.
    fn new_id(&mut self) -> Option<Id> {
        if self.ids.len() as u32 == Id::MAX {
            return None;
        }
        loop {
            self.last_id = self.last_id % Id::MAX + 1;
            if self.ids.insert(Id(self.last_id)) {
                return Some(Id(self.last_id));
            }
        }
    }
}

/// Numbers for the endpoints: those that have one keep it, and a freed one is not given again at once.
fn number(before: &BTreeMap<Pod, u16>, endpoints: &BTreeSet<Pod>) -> BTreeMap<Pod, u16> {
    let mut used: BTreeSet<u16> = before.values().copied().collect();
    let mut last = used.last().copied().unwrap_or(0);
    let mut numbers = BTreeMap::new();
    for pod in endpoints {
        if let Some(n) = before.get(pod) {
            numbers.insert(*pod, *n);
        }
    }
    if endpoints.len() + before.len() >= usize::from(MOST_NUMBERS) {
        used = numbers.values().copied().collect();
    }
    for pod in endpoints {
        if !numbers.contains_key(pod) {
            loop {
                last = last % MOST_NUMBERS + 1;
                if used.insert(last) {
                    break;
                }
            }
            numbers.insert(*pod, last);
        }
    }
    numbers
}

type Ports<'s> = BTreeMap<PortKey, &'s PortState>;

fn ports<'s>(services: impl Iterator<Item = &'s Applied>) -> Ports<'s> {
    services.flat_map(|applied| applied.ports.iter().map(|(key, port)| (*key, port))).collect()
}

fn stale(before: &Ports<'_>, after: &Ports<'_>) -> BTreeSet<UdpAddress> {
    let mut out = BTreeSet::new();
    let all: BTreeSet<&PortKey> = before.keys().chain(after.keys()).collect();
    for key in all {
        let (ip, Proto::Udp, port) = *key else { continue };
        let (old, new) = (before.get(key), after.get(key));
        let lost = match (old, new) {
            (Some(old), Some(new)) => {
                old.slots.is_empty() != new.slots.is_empty() || !old.serving().is_subset(&new.serving())
            }
            _ => true,
        };
        if lost {
            out.insert(UdpAddress::Service(ip, port));
        }
        let node_ports = [old.and_then(|p| p.node_port), new.and_then(|p| p.node_port)];
        if lost || node_ports[0] != node_ports[1] {
            out.extend(node_ports.into_iter().flatten().map(UdpAddress::NodePort));
        }
    }
    out
}

fn forgotten(before: &Ports<'_>, after: &Ports<'_>) -> BTreeSet<(Id, u16)> {
    let mut out = BTreeSet::new();
    for (key, old) in before {
        let kept = after.get(key).map(|new| &new.numbers);
        let gone = old.numbers.iter().filter(|(pod, n)| kept.and_then(|k| k.get(pod)) != Some(n));
        out.extend(gone.map(|(_, n)| (old.id, *n)));
    }
    out
}
