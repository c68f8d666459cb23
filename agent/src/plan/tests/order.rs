//! Random services with every field, changed at random: what the kernel has is right after each change, and never wrong in between.

use proptest::{collection::vec, prelude::*};

use super::*;

const EXTERNAL: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    IpAddr::V4(Ipv4Addr::new(203, 0, 113, 2)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 11)),
];
/// Some of them overlap.
const RANGES: [&str; 4] = ["198.51.100.0/24", "198.51.100.128/25", "10.244.0.0/16", "198.51.100.0/25"];
const CLIENTS: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 100)),
];

/// Endpoints of the cluster, of which some are this node's, and some of which drain.
fn endpoints() -> impl Strategy<Value = (Backends, Backends)> {
    // More than 64 now and then: slots are then more than endpoints.
    let many = prop_oneof![6 => vec((1u8..10, 0u8..6), 0..6), 1 => vec((1u8..90, 0u8..6), 60..90)];
    many.prop_map(|list| {
        let some = |is: fn(u8) -> bool| -> BTreeSet<Pod> {
            list.iter().filter(|(_, how)| is(*how)).map(|(n, _)| pod(*n)).collect()
        };
        let choose = |active: BTreeSet<Pod>, draining: BTreeSet<Pod>| {
            if active.is_empty() {
                Backends { active: draining, draining: [].into() }
            } else {
                Backends { draining: &draining - &active, active }
            }
        };
        let cluster = choose(some(|how| how < 4), some(|how| how >= 4));
        let local = choose(some(|how| how == 0 || how == 1), some(|how| how == 4));
        (cluster, local)
    })
}

fn scope() -> impl Strategy<Value = Scope> {
    prop_oneof![Just(Scope::Cluster), Just(Scope::Local)]
}

fn some_of<T: Copy + Ord + std::fmt::Debug>(all: &'static [T]) -> impl Strategy<Value = BTreeSet<T>> {
    proptest::sample::subsequence(all, 0..=all.len()).prop_map(|some| some.into_iter().collect())
}

/// Services want the same addresses now and then, and a service that is made anew has another age.
fn port(service: u8, number: u16) -> impl Strategy<Value = ServicePort> {
    let policies = (scope(), scope(), prop_oneof![Just(None), Just(Some(60)), Just(Some(10_800))]);
    let addresses = (some_of(&EXTERNAL), some_of(&EXTERNAL), proptest::option::of(30_000u16..30_003));
    let ranges = proptest::option::of(some_of(&RANGES));
    (endpoints(), policies, addresses, ranges, 0i64..3).prop_map(
        move |((cluster, local), (internal, external, affinity), addresses, ranges, since)| ServicePort {
            since,
            internal,
            external,
            affinity,
            external_ips: addresses.0,
            load_balancer_ips: addresses.1,
            node_port: addresses.2,
            source_ranges: ranges.map(|ranges| ranges.into_iter().map(range).collect()),
            cluster,
            local,
            ..ServicePort::new(Ipv4Addr::new(10, 96, 0, service).into(), Proto::Udp, number)
        },
    )
}

type Step = Vec<(ServiceKey, Option<ServicePlan>)>;

fn step() -> impl Strategy<Value = Step> {
    let one = (0u8..4).prop_flat_map(|service| {
        let ports = vec(prop_oneof![port(service, 53), port(service, 54)], 0..3).prop_map(|mut ports| {
            // A service has an age, and a port once.
            let since = ports.first().map_or(0, |p| p.since);
            for port in &mut ports {
                port.since = since;
            }
            ports.dedup_by_key(|p| p.port);
            ServicePlan { ports }
        });
        let ports = proptest::option::weighted(0.85, ports);
        ports.prop_map(move |plan| (key(service), plan))
    });
    vec(one, 1..3)
}

/// Every packet that could be of interest.
fn packets() -> Vec<Packet> {
    let services = (0u8..4).map(|n| IpAddr::from(Ipv4Addr::new(10, 96, 0, n)));
    let to: Vec<IpAddr> = services.chain(EXTERNAL).collect();
    let to = to.into_iter().flat_map(|ip| [(Some(ip), 53), (Some(ip), 54)]);
    let to: Vec<_> = to.chain((30_000..30_003).map(|n| (None, n))).collect();
    let pods = [(pod(200).0, false), (pod(201).0, false)];
    let from: Vec<_> = CLIENTS.map(|ip| (ip, true)).into_iter().chain(pods).collect();
    let packet =
        |(from, is_from_outside), (to, port)| Packet { from, is_from_outside, to, proto: Proto::Udp, port };
    from.iter().flat_map(|from| to.iter().map(|to| packet(*from, *to))).collect()
}

/// By whom a packet may be served, and whether it is refused where it is not.
fn allowed(last: &BTreeMap<ServiceKey, Option<ServicePlan>>, packet: Packet) -> Fate {
    let mut wanting: Vec<_> = (last.iter())
        .flat_map(|(key, plan)| plan.iter().flat_map(move |plan| plan.ports.iter().map(move |p| (key, p))))
        .filter(|(_, p)| match packet.to {
            Some(ip) => {
                p.port == packet.port
                    && (p.cluster_ip == ip
                        || p.external_ips.contains(&ip)
                        || p.load_balancer_ips.contains(&ip))
            }
            None => p.node_port == Some(packet.port),
        })
        .collect();
    wanting.sort_by_key(|(key, p)| (p.since, *key));
    let Some((_, port)) = wanting.first() else { return Fate::Unknown };
    let is_own = packet.to == Some(port.cluster_ip);
    if let (Some(ip), Some(ranges)) = (packet.to, &port.source_ranges)
        && port.load_balancer_ips.contains(&ip)
        && !ranges.iter().any(|range| range.contains(&packet.from))
    {
        return Fate::Dropped;
    }
    let scope = match (is_own, packet.is_from_outside) {
        (true, _) => port.internal,
        (false, true) => port.external,
        (false, false) => Scope::Cluster,
    };
    match (port.backends(scope).active.is_empty(), port.cluster.active.is_empty()) {
        (false, _) => {
            let shares = port.backends(scope).active.iter().map(|pod| (*pod, 0)).collect();
            Fate::Served(shares, port.affinity)
        }
        (true, false) => Fate::Dropped,
        (true, true) => Fate::Rejected,
    }
}

fn without_shares(fate: Fate) -> Fate {
    match fate {
        Fate::Served(pods, affinity) => {
            Fate::Served(pods.into_keys().map(|pod| (pod, 0)).collect(), affinity)
        }
        other => other,
    }
}

fn served(fate: &Fate) -> Option<&BTreeMap<Pod, u32>> {
    if let Fate::Served(pods, _) = fate { Some(pods) } else { None }
}

/// Each id is one port's, in one scope.
fn ids_are_of_one_port(elements: &Elements, last: &BTreeMap<ServiceKey, Option<ServicePlan>>) {
    let mut own: BTreeMap<Id, (IpAddr, u16)> = BTreeMap::new();
    for port in last.values().flatten().flat_map(|plan| &plan.ports) {
        let key = Key::Service(port.cluster_ip, port.proto, port.port);
        if let Some(Value::Port { id, .. }) = elements.get(&key) {
            assert_eq!(own.insert(*id, (port.cluster_ip, port.port)), None, "{key:?}");
        }
    }
    let used =
        elements.values().filter_map(|v| if let Value::Port { id, .. } = v { Some(*id) } else { None });
    let used: BTreeSet<Id> = used.collect();
    let filled = elements.keys().filter_map(|key| match key {
        Key::Slot(id, _) | Key::Choice(id, _) | Key::Endpoint(id, _) => Some(*id),
        _ => None,
    });
    let filled: BTreeSet<Id> = filled.collect();
    assert!(filled.is_subset(&used), "{filled:?} of {used:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_change_is_right_and_no_prefix_of_it_is_wrong(steps in vec(step(), 1..16)) {
        let (mut rules, mut kernel) = (Ruleset::default(), Elements::new());
        let mut last: BTreeMap<ServiceKey, Option<ServicePlan>> = BTreeMap::new();
        let mut numbers: BTreeMap<(Id, u16), Pod> = BTreeMap::new();
        let packets = packets();
        for step in steps {
            let before = kernel.clone();
            let changes = rules.update(&step);
            last.extend(step);
            let after = rules.elements();
            let fates: Vec<_> = packets.iter().map(|p| (fate(&before, *p), fate(&after, *p))).collect();
            for op in &changes.ops {
                apply(&mut kernel, std::slice::from_ref(op));
                for (packet, (old, new)) in packets.iter().zip(&fates) {
                    // Not served, or served by exactly those that had it before, or will have it.
                    let now = fate(&kernel, *packet);
                    let now = served(&now);
                    prop_assert!(now.is_none() || now == served(old) || now == served(new), "{:?} after {:?}", packet, op);
                }
            }
            prop_assert_eq!(&kernel, &after);
            prop_assert_eq!(diff(&before, &after), changes.ops);
            for (packet, (_, new)) in packets.iter().zip(fates) {
                prop_assert_eq!(without_shares(new), allowed(&last, *packet), "{:?}", packet);
            }
            ids_are_of_one_port(&kernel, &last);
            // A client's entry leads to the same pod for as long as it is not told to go.
            for gone in &changes.forgotten {
                prop_assert!(numbers.remove(gone).is_some(), "{:?} was not there", gone);
            }
            let now: BTreeMap<_, _> = kernel.iter().filter_map(|(k, v)| match (k, v) {
                (Key::Endpoint(id, n), Value::Pod(ip, port)) => Some(((*id, *n), (*ip, *port))),
                _ => None,
            }).collect();
            for (number, pod) in &numbers {
                prop_assert_eq!(now.get(number), Some(pod));
            }
            numbers = now;
        }
        // What an earlier agent left is taken over as it is.
        let all: Vec<_> = last.into_iter().collect();
        let mut adopted = Ruleset::adopting(&kernel);
        adopted.update(&all);
        prop_assert_eq!(adopted.elements(), kernel);
    }

    #[test]
    fn flows_are_looked_at_wherever_they_may_have_become_wrong(steps in vec(step(), 1..12)) {
        let mut rules = Ruleset::default();
        let addresses: Vec<UdpAddress> = packets().iter().map(|p| match p.to {
            Some(ip) => UdpAddress::Service(ip, p.port),
            None => UdpAddress::NodePort(p.port),
        }).collect();
        for step in steps {
            let before: Vec<_> = addresses.iter().map(|a| rules.udp_reach(*a)).collect();
            let stale = rules.update(&step).stale_udp;
            for (packet, (address, before)) in packets().iter().zip(addresses.iter().zip(before)) {
                let after = rules.udp_reach(*address);
                prop_assert_eq!(before == after && stale.contains(address), false, "{:?}", address);
                let origin = if packet.is_from_outside { Origin::Outside } else { Origin::Inside };
                let right = |reach: &Option<Reach>| {
                    reach.as_ref().map(|r| r.of(packet.from, origin).cloned().unwrap_or_default())
                };
                let (before, after) = (right(&before), right(&after));
                let is_wrong = match (&before, &after) {
                    (Some(before), Some(after)) => !before.is_subset(after),
                    (before, after) => before.is_some() != after.is_some(),
                };
                prop_assert!(!is_wrong || stale.contains(address), "{:?} {:?}", address, packet);
                // Whom new connections reach, old ones may lead to.
                if let Fate::Served(pods, _) = fate(&rules.elements(), *packet) {
                    let after = after.unwrap_or_default();
                    prop_assert!(pods.keys().all(|pod| after.contains(pod)), "{:?}", packet);
                }
            }
        }
    }
}
