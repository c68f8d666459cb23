//! What an event touches.

use super::*;

fn object(json: serde_json::Value) -> Arc<Object> {
    Arc::new(serde_json::from_value(json).unwrap())
}

fn service(name: &str, port: u16, rev: u64) -> Arc<Object> {
    object(serde_json::json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "default", "resourceVersion": rev.to_string()},
        "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": port}]}, "status": {"seen": rev}}))
}

fn slice(name: &str, service: &str) -> Arc<Object> {
    object(
        serde_json::json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "default", "resourceVersion": "9", "labels": {SERVICE_LABEL: service}},
        "endpoints": []}),
    )
}

fn key(name: &str) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: name.into() }
}

#[test]
fn a_status_change_moves_the_revision_and_touches_nothing() {
    let mut world = World::default();
    world.reset_services(Revision(3), vec![service("web", 80, 3)]);
    assert_eq!(world.take_dirty(), BTreeSet::from([key("web")]));
    world.service_event(EventType::Modified, &service("web", 80, 4));
    assert_eq!((world.take_dirty().len(), world.services_seen), (0, Revision(4)));
    world.service_event(EventType::Modified, &service("web", 81, 5));
    assert_eq!(world.take_dirty(), BTreeSet::from([key("web")]));
}

fn balanced(ingress: &serde_json::Value) -> Arc<Object> {
    object(serde_json::json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "lb", "namespace": "default", "resourceVersion": "5"},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.8", "ports": [{"port": 80}]},
        "status": {"loadBalancer": {"ingress": ingress}}}))
}

#[test]
fn a_load_balancers_status_and_the_label_that_gives_a_service_away_touch_it() {
    let mut world = World::default();
    let one = serde_json::json!([{"ip": "192.0.2.1"}]);
    for (ingress, touched) in [(&serde_json::json!([]), 1), (&one, 1), (&one, 0)] {
        world.service_event(EventType::Modified, &balanced(ingress));
        assert_eq!(world.take_dirty().len(), touched, "{ingress}");
    }
    let mut given_away = (*balanced(&one)).clone();
    let labels = serde_json::json!({"service.kubernetes.io/service-proxy-name": "mine"});
    given_away.metadata_mut().insert("labels".into(), labels);
    world.service_event(EventType::Modified, &given_away);
    assert_eq!(world.take_dirty(), BTreeSet::from([key("lb")]));
}

#[test]
fn a_node_that_moves_touches_what_looks_different_from_there_and_no_more() {
    let ips = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
    let at = |zone: &str, others: &[&str]| Viewpoint {
        node: "here".into(),
        zone: Some(zone.into()),
        addresses: ips(&["192.0.2.1"]),
        others: ips(others),
    };
    let mut world = World::default();
    let hinted = object(
        serde_json::json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "api-1", "namespace": "default", "labels": {SERVICE_LABEL: "api"}},
        "endpoints": [{"addresses": ["10.244.1.2"], "hints": {"forZones": [{"name": "z"}]}}]}),
    );
    world.reset_slices(Revision(1), vec![slice("web-1", "web"), hinted]);
    let lb = balanced(&serde_json::json!([{"ip": "192.0.2.2"}]));
    world.reset_services(Revision(1), vec![service("web", 80, 1), service("api", 80, 1), lb]);
    world.look_from(at("z", &[]));
    world.take_dirty();
    world.look_from(at("y", &[]));
    assert_eq!(world.take_dirty(), BTreeSet::from([key("api")]));
    world.look_from(at("y", &["192.0.2.3"]));
    assert_eq!(world.take_dirty(), BTreeSet::new());
    world.look_from(at("y", &["192.0.2.2", "192.0.2.3"]));
    assert_eq!(world.take_dirty(), BTreeSet::from([key("lb")]));
}

#[test]
fn a_slice_that_moves_or_goes_touches_both_services() {
    let mut world = World::default();
    world.reset_slices(Revision(1), vec![slice("web-1", "web")]);
    world.take_dirty();
    world.slice_event(EventType::Modified, &slice("web-1", "api"));
    assert_eq!(world.take_dirty(), BTreeSet::from([key("api"), key("web")]));
    world.reset_slices(Revision(20), vec![]);
    assert_eq!(world.take_dirty(), BTreeSet::from([key("api")]));
}

#[test]
fn what_this_node_knows_of_its_own_pods_counts_before_their_slices_say_it() {
    let endpoint = |uid: &str, node: &str| {
        serde_json::json!({"addresses": ["10.244.1.2"], "nodeName": node,
            "targetRef": {"kind": "Pod", "uid": uid}, "conditions": {"ready": true, "serving": true}})
    };
    let named = |name: &str, endpoints: &[serde_json::Value]| {
        let mut slice = (*slice(name, "web")).clone();
        slice.0.insert("endpoints".into(), endpoints.into());
        slice
    };
    let mut world = World::of(&"here".parse().unwrap());
    let one = named("web-1", &[endpoint("a", "here"), endpoint("b", "here"), endpoint("c", "there")]);
    world.reset_slices(Revision(1), vec![one.into(), slice("api-1", "api")]);
    let mut all = (*service("all", 80, 1)).clone();
    all.spec_mut().insert("publishNotReadyAddresses".into(), true.into());
    world.reset_services(Revision(1), vec![service("web", 80, 1), all.into()]);
    let mut published = named("all-1", &[endpoint("a", "here")]);
    published.metadata_mut().insert("labels".into(), serde_json::json!({SERVICE_LABEL: "all"}));
    world.slice_event(EventType::Added, &published);
    world.take_dirty();
    let ready = |world: &World, name: &str| {
        let (_, slices) = world.service(&key(name)).unwrap();
        let all = slices.iter().flat_map(|slice| &slice.endpoints);
        all.map(|e| {
            let conditions = e.conditions.as_ref().unwrap();
            (conditions.ready == Some(true), conditions.serving == Some(true))
        })
        .collect::<Vec<_>>()
    };
    let (yes, no) = ((true, true), (false, false));
    assert_eq!(ready(&world, "web"), [yes, yes, yes]);
    let down = |uids: &[&str]| uids.iter().map(|uid| (*uid).to_owned()).collect::<BTreeSet<_>>();

    // Of another node's pod nothing is known here.
    world.set_down(down(&["a", "c", "unknown"]));
    assert_eq!(world.take_dirty(), BTreeSet::from([key("all"), key("web")]));
    assert_eq!((ready(&world, "web"), ready(&world, "all")), (vec![no, yes, yes], vec![yes]));
    world.set_down(down(&["b", "a"]));
    world.take_dirty();
    assert_eq!(ready(&world, "web"), [no, no, yes]);
    // A slice that knows less does not bring it back.
    world.slice_event(EventType::Modified, &named("web-1", &[endpoint("a", "here")]));
    assert_eq!((ready(&world, "web"), world.names("a"), world.names("b")), (vec![no], true, false));
    world.set_down(down(&["b"]));
    assert_eq!(ready(&world, "web"), [yes]);
    world.reset_slices(Revision(9), vec![]);
    assert!(!world.names("a"));
}

#[test]
fn a_new_list_drops_what_it_lacks() {
    let mut world = World::default();
    assert!(!world.is_complete());
    world.reset_services(Revision(1), vec![service("web", 80, 1), service("api", 80, 1)]);
    world.reset_slices(Revision(1), vec![]);
    assert!(world.is_complete());
    world.take_dirty();
    world.reset_services(Revision(8), vec![service("web", 80, 1)]);
    assert_eq!(world.take_dirty(), BTreeSet::from([key("api")]));
    assert!(world.service(&key("api")).is_none());
}
