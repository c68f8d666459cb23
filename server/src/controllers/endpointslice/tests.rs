use std::collections::BTreeSet;

use minisvc_proto::resource::{PODS, SERVICES};
use proptest::prelude::*;

use super::*;
use crate::controllers::slices::{MANAGED_BY, MAX_ENDPOINTS, SERVICE_NAME};

pub fn service(spec: Value) -> Object {
    let mut s = Object::new(&SERVICES, Some("default"), "web");
    s.metadata_mut().insert("uid".into(), "s1".into());
    s.0.insert("spec".into(), spec);
    s
}

pub fn web() -> Object {
    service(json!({"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}))
}

pub fn web_pod(name: &str, ready: bool, port: u16) -> Object {
    let mut p = Object::new(&PODS, Some("default"), name);
    p.metadata_mut().insert("uid".into(), format!("u-{name}").into());
    p.metadata_mut().insert("labels".into(), json!({"app": "web"}));
    let container = json!({"name": "c", "ports": [{"name": "http", "containerPort": port}]});
    p.0.insert("spec".into(), json!({"nodeName": "n1", "containers": [container]}));
    let status = if ready { "True" } else { "False" };
    let conditions = json!([{"type": "Ready", "status": status}]);
    p.0.insert("status".into(), json!({"podIP": "10.244.0.2", "conditions": conditions}));
    p
}

fn zone(node: &str) -> Option<&'static str> {
    (node == "n1").then_some("z1")
}

/// The slices after the actions were carried out.
pub fn apply(slices: &[Arc<Object>], actions: Vec<Action>) -> Vec<Arc<Object>> {
    let mut all: BTreeMap<String, Arc<Object>> =
        slices.iter().map(|s| (s.name().to_owned(), Arc::clone(s))).collect();
    for action in actions {
        match action {
            Action::Create(o) => assert!(all.insert(o.name().to_owned(), Arc::new(o)).is_none()),
            Action::Update(o) => assert!(all.insert(o.name().to_owned(), Arc::new(o)).is_some()),
            Action::Delete { key, .. } => assert!(all.remove(&key.name).is_some()),
            Action::UpdateStatus(o) => panic!("a slice has no status: {o:?}"),
        }
    }
    all.into_values().collect()
}

pub fn converge(service: &Object, pods: &[Object], slices: &[Arc<Object>]) -> Vec<Arc<Object>> {
    let pods: Vec<_> = pods.iter().cloned().map(Arc::new).collect();
    let after = apply(slices, reconcile(service, &pods, slices, zone));
    assert_eq!(reconcile(service, &pods, &after, zone), Vec::new(), "a second run has nothing to do");
    after
}

#[test]
fn a_slice_says_what_its_pod_does() {
    let slices = converge(&web(), &[web_pod("a", true, 8080)], &[]);
    let [slice] = slices.as_slice() else { panic!("{slices:?}") };
    assert_eq!((slice.label(SERVICE_NAME), slice.label(MANAGED_BY)), (Some("web"), Some(MANAGER)));
    assert_eq!((slice.label(HEADLESS), slice.str_at("/addressType")), (None, Some("IPv4")));
    assert_eq!(slice.controller().unwrap().uid, "s1");
    assert_eq!(slice.pointer("/ports/0/port"), Some(&8080.into()));
    assert_eq!(slice.str_at("/endpoints/0/nodeName"), Some("n1"));
    assert_eq!(slice.str_at("/endpoints/0/zone"), Some("z1"));
    assert_eq!(slice.str_at("/endpoints/0/targetRef/uid"), Some("u-a"));
}

#[test]
fn an_address_that_no_slice_may_hold_keeps_nobody_else_out() {
    let mut pods = vec![web_pod("good", true, 8080)];
    for (i, ip) in
        ["rubbish", "127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "fd00::1", ""].iter().enumerate()
    {
        let mut p = web_pod(&format!("bad-{i}"), true, 8080);
        p.status_mut().insert("podIP".into(), (*ip).into());
        pods.push(p);
    }
    let slices = converge(&web(), &pods, &[]);
    let endpoints = slices[0].pointer("/endpoints").and_then(Value::as_array).unwrap();
    assert_eq!((slices.len(), endpoints.len()), (1, 1), "{endpoints:?}");
    assert_eq!(endpoints[0]["targetRef"]["name"], "good");
}

#[test]
fn conditions_follow_readiness_deletion_and_publishing() {
    for (ready, terminating, publish, expected) in [
        (true, false, false, (true, true)),
        (false, false, false, (false, false)),
        (true, true, false, (false, true)),
        (false, false, true, (true, false)),
    ] {
        let mut s = web();
        s.spec_mut().insert("publishNotReadyAddresses".into(), publish.into());
        let mut p = web_pod("a", ready, 80);
        if terminating {
            p.metadata_mut().insert("deletionTimestamp".into(), "2026-01-01T00:00:00Z".into());
        }
        let slices = converge(&s, &[p], &[]);
        let c = slices[0].pointer("/endpoints/0/conditions").unwrap();
        assert_eq!(
            (c["ready"].as_bool(), c["serving"].as_bool()),
            (Some(expected.0), Some(expected.1)),
            "{ready} {terminating} {publish}"
        );
        assert_eq!(c["terminating"], terminating);
    }
}

#[test]
fn pods_that_ended_or_lack_the_port_are_left_out_and_other_numbers_stand_apart() {
    let mut ended = web_pod("ended", true, 80);
    ended.status_mut().insert("phase".into(), "Failed".into());
    let mut unnamed = web_pod("unnamed", true, 80);
    unnamed.spec_mut().insert("containers".into(), json!([{"name": "c"}]));
    let pods = [ended, unnamed, web_pod("a", true, 80), web_pod("b", true, 81)];
    assert_eq!(converge(&web(), &pods, &[]).len(), 2);
}

#[test]
fn a_named_port_is_of_the_service_s_protocol() {
    let mut pod = web_pod("a", true, 80);
    let ports =
        json!([{"name": "sig", "containerPort": 1}, {"name": "sig", "containerPort": 2, "protocol": "SCTP"}]);
    pod.spec_mut().insert("containers".into(), json!([{"name": "c", "ports": ports}]));
    for (protocol, number) in [("TCP", 1), ("SCTP", 2)] {
        let port = json!({"port": 36412, "protocol": protocol, "targetPort": "sig"});
        let service = service(json!({"selector": {"app": "web"}, "ports": [port]}));
        let slices = converge(&service, std::slice::from_ref(&pod), &[]);
        assert_eq!(slices[0].0["ports"], json!([{"name": "", "port": number, "protocol": protocol}]));
    }
}

#[test]
fn what_follows_a_selector_goes_with_it_and_hand_made_slices_stay() {
    let mut hand_made = Object::new(&minisvc_proto::resource::ENDPOINT_SLICES, Some("default"), "web-mine");
    hand_made.metadata_mut().insert("labels".into(), json!({SERVICE_NAME: "web"}));
    let mine = Arc::new(hand_made);
    let slices = converge(&web(), &[web_pod("a", true, 80)], &[Arc::clone(&mine)]);
    assert_eq!(slices.len(), 2);
    for spec in [
        json!({"ports": [{"port": 80}]}),
        json!({"ports": [{"port": 80}], "selector": {}}),
        json!({"type": "ExternalName", "externalName": "a.example", "selector": {"app": "web"}}),
    ] {
        assert_eq!(converge(&service(spec), &[web_pod("a", true, 80)], &slices), [Arc::clone(&mine)]);
    }
}

#[test]
fn a_headless_service_may_have_no_ports_and_its_pods_names() {
    let headless =
        |ports: Value| service(json!({"clusterIP": "None", "selector": {"app": "web"}, "ports": ports}));
    let mut pods = [web_pod("a", true, 80), web_pod("b", true, 80), web_pod("c", true, 80)];
    for (pod, subdomain) in pods.iter_mut().zip(["web", "other"]) {
        pod.spec_mut().insert("hostname".into(), "me".into());
        pod.spec_mut().insert("subdomain".into(), subdomain.into());
    }
    let slices = converge(&headless(json!([])), &pods, &[]);
    assert_eq!((slices[0].label(HEADLESS), slices[0].pointer("/ports")), (Some(""), Some(&json!([]))));
    let hosts: Vec<_> = (0..3).map(|i| slices[0].str_at(&format!("/endpoints/{i}/hostname"))).collect();
    assert_eq!(hosts, [Some("me"), None, None]);
    // With a port that a pod lacks, the pod has nothing to offer.
    assert_eq!(converge(&headless(json!([{"port": 1, "targetPort": "gone"}])), &pods, &slices), []);
}

#[test]
fn hints_say_for_which_zone_and_node_an_endpoint_is_meant() {
    let hinted = |distribution: &str, node: &str, ready: bool| {
        let mut s = web();
        if !distribution.is_empty() {
            s.spec_mut().insert("trafficDistribution".into(), distribution.into());
        }
        let mut p = web_pod("a", ready, 80);
        p.spec_mut().insert("nodeName".into(), node.into());
        converge(&s, &[p], &[])[0].pointer("/endpoints/0/hints").cloned()
    };
    let zones = json!([{"name": "z1"}]);
    assert_eq!(hinted("", "n1", true), None);
    assert_eq!(hinted("example.com/other", "n1", true), None);
    for close in ["PreferClose", "PreferSameZone"] {
        assert_eq!(hinted(close, "n1", true), Some(json!({"forZones": zones})));
        assert_eq!(hinted(close, "n2", true), None, "a node without a zone");
        assert_eq!(hinted(close, "n1", false), None, "not ready");
    }
    let nodes = |n: &str| json!([{"name": n}]);
    let node = "PreferSameNode";
    assert_eq!(hinted(node, "n1", true), Some(json!({"forZones": zones, "forNodes": nodes("n1")})));
    assert_eq!(hinted(node, "n2", true), Some(json!({"forNodes": nodes("n2")})));
    // They go with the field.
    let mut s = web();
    s.spec_mut().insert("trafficDistribution".into(), node.into());
    let slices = converge(&s, &[web_pod("a", true, 80)], &[]);
    assert_eq!(converge(&web(), &[web_pod("a", true, 80)], &slices)[0].pointer("/endpoints/0/hints"), None);
}

#[test]
fn each_family_has_slices_of_its_own() {
    let both = json!({"selector": {"app": "web"}, "ports": [{"port": 80}], "ipFamilies": ["IPv4", "IPv6"]});
    let mut pods = [web_pod("a", true, 80), web_pod("b", true, 80), web_pod("c", true, 80)];
    let ips = |list: &[&str]| -> Value { list.iter().map(|ip| json!({"ip": ip})).collect() };
    pods[0].status_mut().insert("podIPs".into(), ips(&["10.244.0.2", "fd00::2"]));
    // Rubbish in one family costs the other nothing.
    pods[1].status_mut().insert("podIPs".into(), ips(&["10.244.0.3", "fe80::1"]));
    let seen = |slices: &[Arc<Object>]| -> Vec<(String, usize)> {
        let count = |s: &Object| s.pointer("/endpoints").and_then(Value::as_array).unwrap().len();
        slices.iter().map(|s| (s.str_at("/addressType").unwrap().to_owned(), count(s))).collect()
    };
    let slices = converge(&service(both.clone()), &pods, &[]);
    let mut sorted = seen(&slices);
    sorted.sort();
    assert_eq!(sorted, [("IPv4".into(), 3), ("IPv6".into(), 1)]);
    let six = slices.iter().find(|s| s.str_at("/addressType") == Some("IPv6")).unwrap();
    assert_eq!(six.str_at("/endpoints/0/addresses/0"), Some("fd00::2"));
    let mut one = both;
    one["ipFamilies"] = json!(["IPv4"]);
    assert_eq!(seen(&converge(&service(one), &pods, &slices)), [("IPv4".into(), 3)]);
}

#[test]
fn a_slice_is_full_at_a_hundred_and_a_change_touches_the_slice_that_has_it() {
    let pods: Vec<_> = (0..201).map(|n| web_pod(&format!("p{n:03}"), true, 80)).collect();
    let slices = converge(&web(), &pods, &[]);
    let sizes = |slices: &[Arc<Object>]| -> Vec<usize> {
        slices.iter().map(|s| s.pointer("/endpoints").and_then(Value::as_array).unwrap().len()).collect()
    };
    assert_eq!(sizes(&slices), [100, 100, 1]);
    let mut changed = pods;
    changed[150] = web_pod("p150", false, 80);
    let changed: Vec<_> = changed.into_iter().map(Arc::new).collect();
    let actions = reconcile(&web(), &changed, &slices, zone);
    let [Action::Update(touched)] = actions.as_slice() else { panic!("{actions:?}") };
    assert_eq!(touched.name(), slices[1].name());
}

#[test]
fn slices_of_a_former_service_of_the_name_are_replaced() {
    let slices = converge(&web(), &[web_pod("a", true, 80)], &[]);
    let mut again = web();
    again.metadata_mut().insert("uid".into(), "s2".into());
    let after = converge(&again, &[web_pod("a", true, 80)], &slices);
    assert_eq!(after.len(), 1);
    assert_eq!(after[0].controller().unwrap().uid, "s2");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn any_change_converges_with_each_pod_in_one_slice(
        before in proptest::collection::btree_map(0_u16..260, any::<bool>(), 0..260),
        after in proptest::collection::btree_map(0_u16..260, any::<bool>(), 0..260),
    ) {
        let pods = |set: &BTreeMap<u16, bool>| -> Vec<Object> {
            set.iter().map(|(n, ready)| web_pod(&format!("p{n}"), *ready, 80 + n % 2)).collect()
        };
        let slices = converge(&web(), &pods(&before), &[]);
        let slices = converge(&web(), &pods(&after), &slices);
        let mut seen = BTreeSet::new();
        for slice in &slices {
            let endpoints = slice.pointer("/endpoints").unwrap().as_array().unwrap();
            prop_assert!(!endpoints.is_empty() && endpoints.len() <= MAX_ENDPOINTS);
            for e in endpoints {
                prop_assert!(seen.insert(e["targetRef"]["name"].as_str().unwrap().to_owned()));
            }
        }
        prop_assert_eq!(seen, after.keys().map(|n| format!("p{n}")).collect::<BTreeSet<_>>());
    }
}
