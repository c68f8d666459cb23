use super::*;

fn plan(service: u8, affinity: Option<u32>, endpoints: &[u8]) -> ServicePlan {
    ServicePlan {
        ports: vec![ServicePort {
            node_port: Some(30000 + u16::from(service)),
            affinity,
            cluster: Backends { active: pods(endpoints), draining: [].into() },
            ..ServicePort::new(Ipv4Addr::new(10, 96, 0, service).into(), Proto::Udp, 80)
        }],
    }
}

const NODE_PORT: UdpAddress = UdpAddress::NodePort(30001);

fn flows_of_node_port(rules: &Ruleset) -> Option<BTreeSet<Pod>> {
    rules.udp_reach(NODE_PORT).map(|reach| reach.outside)
}

#[test]
fn removing_an_endpoint_fills_the_hole_and_names_what_is_stale() {
    let mut rules = Ruleset::default();
    rules.update(&[(key(1), Some(plan(1, None, &[1, 2, 3, 4])))]);
    let changes = rules.update(&[(key(1), Some(plan(1, None, &[1, 3, 4])))]);
    // The count at two addresses, the hole (each delete, add), the last slot (delete).
    assert_eq!(changes.ops.len(), 7);
    let stale = [UdpAddress::Service(Ipv4Addr::new(10, 96, 0, 1).into(), 80), NODE_PORT];
    assert_eq!(changes.stale_udp, BTreeSet::from(stale));
    // One that drains keeps its flows, and loses them when it is gone.
    let with = |endpoints: &[u8], draining: &[u8]| {
        let mut plan = plan(1, None, endpoints);
        plan.ports[0].cluster.draining = pods(draining);
        [(key(1), Some(plan))]
    };
    assert_eq!(rules.update(&with(&[1, 3], &[4])).stale_udp, BTreeSet::new());
    assert_eq!(flows_of_node_port(&rules), Some(pods(&[1, 3, 4])));
    assert_eq!(rules.update(&with(&[1, 3], &[])).stale_udp, BTreeSet::from(stale));
    assert_eq!(rules.update(&with(&[1, 3, 4], &[])).stale_udp, BTreeSet::new());
    // One more endpoint makes no flow wrong.
    let changes = rules.update(&[(key(1), Some(plan(1, None, &[1, 2, 3, 4])))]);
    assert_eq!(changes.stale_udp, BTreeSet::new());
    assert_eq!(flows_of_node_port(&rules), Some(pods(&[1, 2, 3, 4])));
}

#[test]
fn an_endpoint_that_takes_anothers_slot_leaves_the_address_alone_for_others_to_see() {
    let mut rules = Ruleset::default();
    rules.update(&[(key(1), Some(plan(1, None, &[1, 2])))]);
    let ops = rules.update(&[(key(1), Some(plan(1, None, &[1, 3])))]).ops;
    // Nothing leads to a slot while it is empty.
    let kinds: Vec<_> = ops
        .iter()
        .map(|op| match op {
            Op::Delete(Key::NodePort(..)) => "-np",
            Op::Delete(Key::Service(..)) => "-svc",
            Op::Delete(Key::Slot(..)) => "-slot",
            Op::Add(Key::Slot(..), _) => "+slot",
            Op::Add(Key::Service(..), _) => "+svc",
            Op::Add(Key::NodePort(..), _) => "+np",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(kinds, ["-np", "-svc", "-slot", "+slot", "+svc", "+np"]);
}

#[test]
fn an_address_may_move_between_services_in_one_batch() {
    let (mut rules, mut kernel) = (Ruleset::default(), Elements::new());
    apply(&mut kernel, &rules.update(&[(key(2), Some(plan(1, None, &[1, 2])))]).ops);
    // s1 sorts before s2, which gives the address up.
    let batch = [(key(1), Some(plan(1, None, &[2, 3]))), (key(2), None)];
    apply(&mut kernel, &rules.update(&batch).ops);
    assert_eq!(kernel, rules.elements());
    assert_eq!(flows_of_node_port(&rules), Some(pods(&[2, 3])));
}

#[test]
fn the_older_service_has_what_two_want_and_the_other_gets_it_afterwards() {
    let (mut rules, mut kernel) = (Ruleset::default(), Elements::new());
    let ip = IpAddr::from(Ipv4Addr::new(203, 0, 113, 1));
    let mut update = |service: u8, since: i64, is_there: bool| {
        let mut plan = plan(service, None, &[service]);
        plan.ports[0].since = since;
        plan.ports[0].external_ips = [ip].into();
        apply(&mut kernel, &rules.update(&[(key(service), is_there.then_some(plan))]).ops);
        assert_eq!(kernel, rules.elements());
        rules.udp_reach(UdpAddress::Service(ip, 80)).map(|reach| reach.outside)
    };
    assert_eq!(update(2, 20, true), Some(pods(&[2])));
    assert_eq!(update(3, 30, true), Some(pods(&[2])));
    assert_eq!(update(1, 10, true), Some(pods(&[1])));
    assert_eq!(update(1, 10, false), Some(pods(&[2])));
    assert_eq!(update(2, 20, false), Some(pods(&[3])));
    assert_eq!(update(3, 30, false), None);
}

#[test]
fn affinity_comes_and_goes_and_clients_keep_their_endpoint_when_its_time_changes() {
    let mut rules = Ruleset::default();
    let mut ids = BTreeSet::new();
    let mut numbers = |rules: &Ruleset| {
        let elements = rules.elements();
        let leads = elements.iter().filter_map(|(key, value)| match value {
            Value::Port { id, .. } => Some((key.clone(), *id)),
            _ => None,
        });
        // One id at the ClusterIP and at the nodePort: a client stays wherever it calls.
        assert_eq!(leads.clone().count(), 2);
        ids.extend(leads.map(|(_, id)| id));
        assert_eq!(ids.len(), 1);
        let numbers = elements.iter().filter_map(|(key, value)| match (key, value) {
            (Key::Endpoint(_, n), Value::Pod(ip, port)) => Some((*n, (*ip, *port))),
            _ => None,
        });
        numbers.collect::<BTreeMap<_, _>>()
    };
    rules.update(&[(key(1), Some(plan(1, None, &[1, 2])))]);
    assert_eq!(numbers(&rules), BTreeMap::new());
    assert_eq!(rules.update(&[(key(1), Some(plan(1, Some(60), &[1, 2])))]).forgotten, BTreeSet::new());
    let first = numbers(&rules);
    assert_eq!(first.len(), 2);
    let changes = rules.update(&[(key(1), Some(plan(1, Some(10_800), &[1, 2])))]);
    assert_eq!((changes.forgotten, numbers(&rules)), (BTreeSet::new(), first.clone()));
    // The time alone: two addresses, each deleted and added.
    assert_eq!(changes.ops.len(), 4);
    rules.update(&[(key(1), Some(plan(1, Some(10_800), &[1, 2, 3])))]);
    assert!(first.iter().all(|(n, pod)| numbers(&rules).get(n) == Some(pod)));
    let gone = rules.update(&[(key(1), Some(plan(1, None, &[1, 2])))]).forgotten;
    assert_eq!((gone.len(), numbers(&rules)), (3, BTreeMap::new()));
}
