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

fn plan(service: u8, endpoints: &[u8]) -> ServicePlan {
    let endpoints = endpoints.iter().map(|e| (Ipv4Addr::new(10, 244, 0, *e), 8080)).collect();
    ServicePlan {
        ports: vec![ServicePort {
            cluster_ip: Ipv4Addr::new(10, 96, 0, service),
            proto: Proto::Udp,
            port: 80,
            node_port: Some(30000 + u16::from(service)),
            affinity: None,
            endpoints,
        }],
    }
}

fn key(service: u8) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: format!("s{service}") }
}

proptest! {
    #[test]
    fn incremental_updates_reach_what_the_ruleset_says(
        steps in vec((0u8..4, proptest::option::of(vec(1u8..12, 0..8))), 1..40)
    ) {
        let (mut rules, mut kernel) = (Ruleset::default(), Elements::new());
        let mut last = BTreeMap::new();
        for (service, endpoints) in steps {
            let desired = endpoints.map(|e| plan(service, &e));
            apply(&mut kernel, &rules.update(&[(key(service), desired.clone())]).ops);
            last.insert(key(service), desired);
            prop_assert_eq!(&kernel, &rules.elements());
        }
        // Full planning from nothing: the same endpoints, whatever slots they stand in.
        let mut full = Ruleset::default();
        full.update(&last.into_iter().collect::<Vec<_>>());
        let full = full.elements();
        prop_assert_eq!(full.keys().collect::<Vec<_>>(), kernel.keys().collect::<Vec<_>>());
        let pods = |e: &Elements| {
            let mut pods: Vec<_> = e.iter().map(|(k, v)| match k {
                Key::Endpoint(ip, proto, port, _) => format!("{ip} {proto:?} {port} {v:?}"),
                Key::NodePortEndpoint(proto, port, _) => format!("{proto:?} {port} {v:?}"),
                other => format!("{other:?} {v:?}"),
            }).collect();
            pods.sort();
            pods
        };
        prop_assert_eq!(pods(&full), pods(&kernel));
    }
}

#[test]
fn removing_an_endpoint_moves_the_last_slot_into_the_hole_and_names_the_stale_udp_pod() {
    let mut rules = Ruleset::default();
    rules.update(&[(key(1), Some(plan(1, &[1, 2, 3, 4])))]);
    let changes = rules.update(&[(key(1), Some(plan(1, &[1, 3, 4])))]);
    // Per address: class (delete, add), the hole (delete, add), the last slot (delete).
    assert_eq!(changes.ops.len(), 10);
    assert_eq!(changes.stale_udp, BTreeSet::from([(Ipv4Addr::new(10, 244, 0, 2), 8080)]));
}
