use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use proptest::{collection::vec, prelude::*};

use super::*;

fn apply(state: &mut Elements, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Delete(k) => assert!(state.remove(k).is_some(), "delete of an absent element {k:?}"),
            Op::Add(k, v) => assert!(state.insert(k.clone(), *v).is_none(), "add of a present element {k:?}"),
        }
    }
}

fn pod(n: u8) -> (IpAddr, u16) {
    (Ipv4Addr::new(10, 244, 0, n).into(), 8080)
}

fn plan(service: u8, affinity: Option<u32>, endpoints: &[u8]) -> ServicePlan {
    ServicePlan {
        ports: vec![ServicePort {
            node_port: Some(30000 + u16::from(service)),
            affinity,
            cluster: Backends { active: endpoints.iter().map(|e| pod(*e)).collect(), draining: [].into() },
            ..ServicePort::new(Ipv4Addr::new(10, 96, 0, service).into(), Proto::Udp, 80)
        }],
    }
}

fn key(service: u8) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: format!("s{service}") }
}

/// What a client meets: for each address the share of every pod, and the affinity.
type Meaning = BTreeMap<String, (Option<u32>, BTreeMap<(IpAddr, u16), u32>)>;

fn meaning(elements: &Elements) -> Meaning {
    let mut out = Meaning::new();
    for (key, value) in elements {
        let Value::Port { id, slots, affinity } = value else { continue };
        let mut shares = BTreeMap::new();
        for slot in 0..*slots {
            let number = match elements.get(&Key::Choice(*id, slot)) {
                Some(Value::Number(n)) => Some(*n),
                _ => None,
            };
            let at = number.map_or(Key::Slot(*id, slot), |n| Key::Endpoint(*id, n));
            let Some(Value::Pod(ip, port)) = elements.get(&at) else {
                panic!("slot {slot} of {key:?} leads nowhere")
            };
            *shares.entry((*ip, *port)).or_default() += 1;
        }
        assert_eq!(
            affinity.is_some(),
            *slots > 0 && elements.contains_key(&Key::Choice(*id, 0)) || affinity.is_some()
        );
        out.insert(format!("{key:?}"), (*affinity, shares));
    }
    out
}

type Step = (u8, Option<(Option<u32>, Vec<u8>)>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let affinity = prop_oneof![Just(None), Just(Some(60)), Just(Some(10_800))];
    // More than 64 endpoints now and then: slots are then more than endpoints.
    let endpoints = prop_oneof![4 => vec(1u8..12, 0..8), 1 => vec(1u8..90, 60..90)];
    vec((0u8..4, proptest::option::of((affinity, endpoints))), 1..25)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn incremental_updates_reach_what_full_planning_does(steps in steps()) {
        let (mut rules, mut kernel) = (Ruleset::default(), Elements::new());
        let mut last = BTreeMap::new();
        let mut numbers: BTreeMap<(Id, u16), (IpAddr, u16)> = BTreeMap::new();
        for (service, desired) in steps {
            let desired = desired.map(|(affinity, endpoints)| plan(service, affinity, &endpoints));
            let changes = rules.update(&[(key(service), desired.clone())]);
            apply(&mut kernel, &changes.ops);
            last.insert(key(service), desired);
            prop_assert_eq!(&kernel, &rules.elements());
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
        // From nothing, and from what an earlier agent left.
        let all: Vec<_> = last.into_iter().collect();
        let mut full = Ruleset::default();
        full.update(&all);
        let by_pod = |m: Meaning| m.into_iter()
            .map(|(k, (a, shares))| (k, (a, shares.into_keys().collect::<BTreeSet<_>>())))
            .collect::<BTreeMap<_, _>>();
        prop_assert_eq!(by_pod(meaning(&full.elements())), by_pod(meaning(&kernel)));
        let mut adopted = Ruleset::adopting(&kernel);
        adopted.update(&all);
        prop_assert_eq!(adopted.elements(), kernel);
    }
}

#[test]
fn removing_an_endpoint_fills_the_hole_and_names_what_is_stale() {
    let mut rules = Ruleset::default();
    rules.update(&[(key(1), Some(plan(1, None, &[1, 2, 3, 4])))]);
    let changes = rules.update(&[(key(1), Some(plan(1, None, &[1, 3, 4])))]);
    // The count at two addresses, the hole (each delete, add), the last slot (delete).
    assert_eq!(changes.ops.len(), 7);
    let stale = [UdpAddress::Service(Ipv4Addr::new(10, 96, 0, 1).into(), 80), UdpAddress::NodePort(30001)];
    assert_eq!(changes.stale_udp, BTreeSet::from(stale));
    // One that drains keeps its flows, and loses them when it is gone.
    let with = |endpoints: &[u8], draining: &[u8]| {
        let mut plan = plan(1, None, endpoints);
        plan.ports[0].cluster.draining = draining.iter().map(|n| pod(*n)).collect();
        [(key(1), Some(plan))]
    };
    assert_eq!(rules.update(&with(&[1, 3], &[4])).stale_udp, BTreeSet::new());
    assert_eq!(rules.udp_endpoints(stale[1]), Some([1, 3, 4].map(pod).into()));
    assert_eq!(rules.update(&with(&[1, 3], &[])).stale_udp, BTreeSet::from(stale));
    assert_eq!(rules.update(&with(&[1, 3, 4], &[])).stale_udp, BTreeSet::new());
    // One more endpoint makes no flow wrong.
    let changes = rules.update(&[(key(1), Some(plan(1, None, &[1, 2, 3, 4])))]);
    assert_eq!(changes.stale_udp, BTreeSet::new());
    assert_eq!(rules.udp_endpoints(stale[1]), Some([1, 2, 3, 4].map(pod).into()));
}

#[test]
fn an_address_may_move_between_services_in_one_batch() {
    let (mut rules, mut kernel) = (Ruleset::default(), Elements::new());
    apply(&mut kernel, &rules.update(&[(key(2), Some(plan(1, None, &[1, 2])))]).ops);
    // s1 sorts before s2, which gives the address up.
    let batch = [(key(1), Some(plan(1, None, &[2, 3]))), (key(2), None)];
    apply(&mut kernel, &rules.update(&batch).ops);
    assert_eq!(kernel, rules.elements());
    assert_eq!(rules.udp_endpoints(UdpAddress::NodePort(30001)), Some([2, 3].map(pod).into()));
    // Who comes second gets nothing while the first is there.
    apply(&mut kernel, &rules.update(&[(key(0), Some(plan(1, None, &[9])))]).ops);
    assert_eq!(rules.udp_endpoints(UdpAddress::NodePort(30001)), Some([2, 3].map(pod).into()));
    apply(&mut kernel, &rules.update(&[(key(0), None)]).ops);
    assert_eq!(kernel, rules.elements());
}

#[test]
fn who_ends_and_still_serves_keeps_what_it_has_and_gets_more_only_when_nobody_else_is_there() {
    let service =
        serde_json::json!({"spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80, "protocol": "UDP"}]}});
    let service: Service = serde_json::from_value(service).unwrap();
    let endpoint = |n: u8, ready: bool, serving: bool| {
        serde_json::json!({"addresses": [pod(n).0.to_string()],
            "conditions": {"ready": ready, "serving": serving, "terminating": !ready}})
    };
    let planned = |endpoints: &[serde_json::Value]| {
        let slice = serde_json::json!({"addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "", "port": 8080, "protocol": "UDP"}]});
        let slice: EndpointSlice = serde_json::from_value(slice).unwrap();
        let port = plan_service(&service, &[&slice], &Viewpoint::default()).ports.remove(0);
        (port.cluster.active, port.cluster.draining)
    };
    let (ready, ending, ended) =
        (endpoint(1, true, true), endpoint(2, false, true), endpoint(3, false, false));
    let set = |pods: &[u8]| pods.iter().map(|n| pod(*n)).collect::<BTreeSet<_>>();
    assert_eq!(planned(&[ready, ending.clone(), ended.clone()]), (set(&[1]), set(&[2])));
    assert_eq!(planned(&[ending, ended]), (set(&[2]), set(&[])));
}
