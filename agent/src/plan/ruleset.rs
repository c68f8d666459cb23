//! The state of all services in one family, and what a change of some of them means for the kernel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use super::{
    Proto, Scope, ServiceKey, ServicePlan, ServicePort,
    claims::{Claimant, Claims},
    diff::between,
    elements::{Elements, Id, Key, Op, Value},
    groups::{Adopted, Group, Ids},
    udp::{Reach, UdpAddress, reach, stale},
};

/// A port's ClusterIP, protocol and number, and whose endpoints are meant.
type GroupKey = (IpAddr, Proto, u16, Scope);

/// What a batch does, and what must be looked after outside of the services' own elements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In the order of [`super::diff`].
    pub ops: Vec<Op>,
    /// UDP addresses that are new, are gone, or have lost an endpoint or a source: flows there may be translated wrongly or not at all.
    pub stale_udp: BTreeSet<UdpAddress>,
    /// Endpoints with affinity that are gone: their clients' entries go, too.
    pub forgotten: BTreeSet<(Id, u16)>,
}

/// One service as it is in the kernel.
#[derive(Clone, Debug, Default)]
struct Applied {
    ports: Vec<ServicePort>,
    elements: Elements,
    groups: BTreeMap<GroupKey, Group>,
}

/// The state of all services in one family: plans have ports of this family alone.
#[derive(Clone, Debug, Default)]
pub struct Ruleset {
    services: BTreeMap<ServiceKey, Applied>,
    claims: Claims,
    ids: Ids,
    adopted: Adopted,
}

impl Ruleset {
    /// A state without services that knows what is in the kernel: services that come with the first update keep their ids, slots and
    /// numbers.
    pub fn adopting(kernel: &Elements) -> Self {
        let adopted = Adopted::read(kernel);
        Ruleset { ids: adopted.ids(), adopted, ..Ruleset::default() }
    }

    /// Replaces the plans of the touched services and says what must change. Others are looked at only where they want the same address.
    pub fn update(&mut self, touched: &[(ServiceKey, Option<ServicePlan>)]) -> Changes {
        // The last word on a service counts.
        let mut work: BTreeMap<ServiceKey, Option<Vec<ServicePort>>> = BTreeMap::new();
        for (key, plan) in touched {
            work.insert(key.clone(), plan.as_ref().map(|plan| plan.ports.clone()));
        }
        for key in self.settle_claims(&work) {
            let known = self.services.get(&key).map(|applied| &applied.ports);
            work.entry(key).or_insert_with(|| known.cloned());
        }
        // All give up what they have before any takes: an address may move from one to another.
        let before: Vec<Applied> = work.keys().filter_map(|key| self.services.remove(key)).collect();
        let mut old: BTreeMap<GroupKey, Group> =
            before.iter().flat_map(|a| a.groups.iter().map(|(key, group)| (*key, group.clone()))).collect();
        let mut after = Vec::new();
        for (key, ports) in work {
            let Some(ports) = ports else { continue };
            let mut applied = Applied::default();
            for port in &ports {
                self.render(&key, port, &mut old, &mut applied);
            }
            applied.ports = ports;
            after.push(key.clone());
            self.services.insert(key, applied);
        }
        for id in old.values().map(|group| group.id).chain(self.adopted.rest()) {
            self.ids.free(id);
        }
        let after: Vec<&Applied> = after.iter().filter_map(|key| self.services.get(key)).collect();
        let before: Vec<&Applied> = before.iter().collect();
        Changes {
            ops: between(&elements(&before), &elements(&after)),
            stale_udp: stale(&granted(&before), &granted(&after)),
            forgotten: forgotten(&before, &after),
        }
    }

    /// Every element of every service.
    pub fn elements(&self) -> Elements {
        self.services.values().flat_map(|a| a.elements.clone()).collect()
    }

    /// Where UDP flows to an address may lead; `None` if no service has the address.
    pub fn udp_reach(&self, address: UdpAddress) -> Option<Reach> {
        let key = key_of(address);
        let applied = self.services.get(self.claims.holder(&key)?)?;
        if !applied.elements.contains_key(&key) {
            return None;
        }
        let has_it = |port: &&ServicePort| match address {
            UdpAddress::Service(_, n) => port.port == n,
            UdpAddress::NodePort(n) => port.node_port == Some(n),
        };
        applied.ports.iter().filter(has_it).find_map(|port| reach(port).remove(&address))
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

    /// Gives addresses to services; returns those that have won or lost one.
    fn settle_claims(
        &mut self,
        work: &BTreeMap<ServiceKey, Option<Vec<ServicePort>>>,
    ) -> BTreeSet<ServiceKey> {
        let (mut moved, mut asked) = (BTreeSet::new(), Vec::new());
        for (key, ports) in work {
            let had = self.services.get(key).map(|a| wants(&a.ports)).unwrap_or_default();
            let wanted = ports.as_deref().map(wants).unwrap_or_default();
            for address in had.difference(&wanted) {
                self.claims.release(&address.1, key, &mut moved);
            }
            asked.extend(wanted.difference(&had).map(|(since, address)| {
                let claimant: Claimant = (*since, key.clone());
                (address.clone(), claimant)
            }));
        }
        for (address, by) in &asked {
            self.claims.claim(address, by, &mut moved);
        }
        moved
    }

    fn render(
        &mut self,
        owner: &ServiceKey,
        port: &ServicePort,
        old: &mut BTreeMap<GroupKey, Group>,
        out: &mut Applied,
    ) {
        let holds = |key: &Key| self.claims.holder(key) == Some(owner);
        let own = Key::Service(port.cluster_ip, port.proto, port.port);
        if !holds(&own) {
            return;
        }
        let addresses: Vec<Key> =
            outer(port).filter(|key| *key != own && holds(key) && !out.elements.contains_key(key)).collect();
        let has_cluster_ip = holds(&Key::ClusterIp(port.cluster_ip));
        let (has_cluster, has_local) = (!port.cluster.active.is_empty(), !port.local.active.is_empty());
        let outside: Vec<Key> = match port.external {
            // Where there is nothing at all, the address itself refuses.
            Scope::Local if has_cluster => addresses.iter().filter_map(from_outside).collect(),
            _ => Vec::new(),
        };
        let mut group = |scope, leads: &[Key]| {
            let key = (port.cluster_ip, port.proto, port.port, scope);
            let known = old.remove(&key).or_else(|| self.adopted.take(leads));
            let mut group = known.or_else(|| Some(Group::new(self.ids.take()?)))?;
            let value = group.place(&port.backends(scope).active, port.affinity);
            group.write(&mut out.elements);
            out.groups.insert(key, group);
            Some(value)
        };
        // A set of endpoints stands in the kernel only where something leads to it.
        let own_scope = [own.clone()];
        let is_internal = |scope| own_scope.iter().filter(move |_| port.internal == scope);
        let cluster_leads: Vec<Key> = is_internal(Scope::Cluster).chain(&addresses).cloned().collect();
        let local_leads: Vec<Key> = is_internal(Scope::Local).chain(&outside).cloned().collect();
        let cluster = (!cluster_leads.is_empty()).then(|| group(Scope::Cluster, &cluster_leads)).flatten();
        let local = match (local_leads.is_empty(), has_local, has_cluster) {
            (true, ..) => None,
            (false, false, true) => Some(Value::Drop),
            (false, ..) => group(Scope::Local, &local_leads),
        };
        for (value, leads) in [(cluster, cluster_leads), (local, local_leads)] {
            if let Some(value) = value {
                out.elements.extend(leads.into_iter().map(|key| (key, value)));
            }
        }
        if has_cluster_ip {
            out.elements.insert(Key::ClusterIp(port.cluster_ip), Value::Present);
        }
        for ip in &port.load_balancer_ips {
            let (Some(ranges), true) =
                (&port.source_ranges, addresses.contains(&Key::Service(*ip, port.proto, port.port)))
            else {
                continue;
            };
            out.elements.insert(Key::Guarded(*ip, port.proto, port.port), Value::Present);
            // An interval of the kernel's must not overlap with another.
            let ranges = IpNet::aggregate(&ranges.iter().copied().collect());
            let allowed = ranges.into_iter().map(|range| Key::Allowed(*ip, port.proto, port.port, range));
            out.elements.extend(allowed.map(|key| (key, Value::Present)));
        }
    }
}

/// The addresses of a port that are not its ClusterIP.
fn outer(port: &ServicePort) -> impl Iterator<Item = Key> {
    let ips: BTreeSet<&IpAddr> = port.external_ips.union(&port.load_balancer_ips).collect();
    let services = ips.into_iter().map(|ip| Key::Service(*ip, port.proto, port.port));
    services.chain(port.node_port.map(|n| Key::NodePort(port.proto, n)))
}

fn from_outside(key: &Key) -> Option<Key> {
    match key {
        Key::Service(ip, proto, port) => Some(Key::OutsideService(*ip, *proto, *port)),
        Key::NodePort(proto, port) => Some(Key::OutsideNodePort(*proto, *port)),
        _ => None,
    }
}

/// The addresses that a service would have, and since when.
fn wants(ports: &[ServicePort]) -> BTreeSet<(i64, Key)> {
    let keys = ports.iter().flat_map(|port| {
        let own = Key::Service(port.cluster_ip, port.proto, port.port);
        let all = outer(port).chain([own, Key::ClusterIp(port.cluster_ip)]);
        all.map(|key| (port.since, key))
    });
    keys.collect()
}

fn key_of(address: UdpAddress) -> Key {
    match address {
        UdpAddress::Service(ip, port) => Key::Service(ip, Proto::Udp, port),
        UdpAddress::NodePort(port) => Key::NodePort(Proto::Udp, port),
    }
}

fn elements<'a>(services: &[&'a Applied]) -> Vec<(&'a Key, &'a Value)> {
    let mut all: Vec<_> = services.iter().flat_map(|applied| &applied.elements).collect();
    all.sort_unstable_by(|a, b| a.0.cmp(b.0));
    all
}

/// What the UDP addresses lead to that services have, not only want.
fn granted(services: &[&Applied]) -> BTreeMap<UdpAddress, Reach> {
    let mut out = BTreeMap::new();
    for applied in services {
        let all = applied.ports.iter().flat_map(reach);
        for (address, reach) in all.filter(|(address, _)| applied.elements.contains_key(&key_of(*address))) {
            // The first port has it, should two of a service want the same.
            out.entry(address).or_insert(reach);
        }
    }
    out
}

fn forgotten(before: &[&Applied], after: &[&Applied]) -> BTreeSet<(Id, u16)> {
    let groups = |services: &[&Applied]| -> BTreeMap<Id, BTreeMap<super::Pod, u16>> {
        let all = services.iter().flat_map(|applied| applied.groups.values());
        all.filter(|group| !group.numbers.is_empty()).map(|group| (group.id, group.numbers.clone())).collect()
    };
    let (before, after) = (groups(before), groups(after));
    let mut out = BTreeSet::new();
    for (id, old) in before {
        let kept = after.get(&id);
        let gone = old.into_iter().filter(|(pod, n)| kept.and_then(|k| k.get(pod)) != Some(n));
        out.extend(gone.map(|(_, n)| (id, n)));
    }
    out
}
