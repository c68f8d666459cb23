use super::*;
use crate::controllers::endpointslice::tests::{service, web, web_pod};

/// What the service's Endpoints are after a reconcile; a second one must have nothing to do.
fn after(service: &Object, pods: &[Object], before: Option<&Object>) -> Option<Object> {
    let pods: Vec<_> = pods.iter().cloned().map(Arc::new).collect();
    let now = match reconcile(service, &pods, before) {
        Some(Action::Create(new)) => {
            assert!(before.is_none());
            Some(new)
        }
        Some(Action::Update(new)) => {
            assert!(before.is_some());
            Some(new)
        }
        Some(Action::Delete { .. }) => None,
        Some(other) => panic!("{other:?}"),
        None => before.cloned(),
    };
    assert_eq!(reconcile(service, &pods, now.as_ref()), None, "a second run has nothing to do");
    now
}

fn at(ip: &str, mut pod: Object) -> Object {
    pod.status_mut().insert("podIP".into(), ip.into());
    pod
}

fn ips(endpoints: &Object, list: &str) -> Vec<String> {
    let subsets = endpoints.pointer("/subsets").and_then(Value::as_array).into_iter().flatten();
    let all = subsets.filter_map(|s| s[list].as_array()).flatten();
    all.map(|a| a["ip"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn they_say_what_the_slices_do() {
    let mut terminating = at("10.244.0.4", web_pod("d", true, 80));
    terminating.metadata_mut().insert("deletionTimestamp".into(), "2026-01-01T00:00:00Z".into());
    let mut ended = at("10.244.0.5", web_pod("e", true, 80));
    ended.status_mut().insert("phase".into(), "Failed".into());
    let pods = [
        at("10.244.0.10", web_pod("b", true, 80)),
        at("10.244.0.9", web_pod("a", true, 80)),
        at("10.244.0.3", web_pod("c", false, 80)),
        terminating,
        ended,
    ];
    let mut labelled = web();
    labelled.metadata_mut().insert("labels".into(), json!({"team": "blue"}));
    let made = after(&labelled, &pods, None).unwrap();
    assert_eq!(
        (made.name(), made.label("team"), made.label(MANAGED_BY)),
        ("web", Some("blue"), Some(MANAGER))
    );
    assert_eq!(
        made.pointer("/subsets"),
        Some(&json!([{
            "addresses": [
                {"ip": "10.244.0.9", "nodeName": "n1", "targetRef": {"kind": "Pod", "namespace": "default", "name": "a", "uid": "u-a"}},
                {"ip": "10.244.0.10", "nodeName": "n1", "targetRef": {"kind": "Pod", "namespace": "default", "name": "b", "uid": "u-b"}},
            ],
            "notReadyAddresses": [
                {"ip": "10.244.0.3", "nodeName": "n1", "targetRef": {"kind": "Pod", "namespace": "default", "name": "c", "uid": "u-c"}},
            ],
            "ports": [{"port": 80, "protocol": "TCP"}],
        }]))
    );
    let mut publishing = labelled;
    publishing.spec_mut().insert("publishNotReadyAddresses".into(), true.into());
    let made = after(&publishing, &pods, Some(&made)).unwrap();
    assert_eq!(ips(&made, "addresses"), ["10.244.0.3", "10.244.0.4", "10.244.0.9", "10.244.0.10"]);
    let made = after(&publishing, &[], Some(&made)).unwrap();
    assert_eq!(made.0.get("subsets"), None);
}

#[test]
fn other_port_numbers_are_another_subset_and_the_first_family_counts() {
    let mut six = web_pod("c", true, 81);
    six.status_mut().insert("podIPs".into(), json!([{"ip": "10.244.0.4"}, {"ip": "fd00::4"}]));
    let pods = [at("10.244.0.2", web_pod("a", true, 80)), at("10.244.0.3", web_pod("b", true, 81)), six];
    let made = after(&web(), &pods, None).unwrap();
    assert_eq!(made.pointer("/subsets").unwrap().as_array().unwrap().len(), 2);
    let mut second = web();
    second.spec_mut().insert("ipFamilies".into(), json!(["IPv6", "IPv4"]));
    assert_eq!(ips(&after(&second, &pods, Some(&made)).unwrap(), "addresses"), ["fd00::4"]);
    let headless = service(json!({"clusterIP": "None", "selector": {"app": "web"}}));
    let made = after(&headless, &pods[..1], Some(&made)).unwrap();
    assert_eq!((made.label(HEADLESS), made.pointer("/subsets/0/ports")), (Some(""), None));
}

#[test]
fn at_most_a_thousand_addresses_the_ready_ones_first_and_of_each_subset_its_share() {
    let pods = |ready: usize, not_ready: usize| -> Vec<Object> {
        let all = (0..ready + not_ready).map(|n| {
            let port = if n % 4 == 0 { 81 } else { 80 };
            at(&format!("10.244.{}.{}", n / 200, n % 200 + 1), web_pod(&format!("p{n}"), n < ready, port))
        });
        all.collect()
    };
    let shape = |e: &Object| (ips(e, "addresses").len(), ips(e, "notReadyAddresses").len());
    let over = |e: &Object| e.annotations().get(OVER_CAPACITY).cloned();
    let made = after(&web(), &pods(600, 400), None).unwrap();
    assert_eq!((shape(&made), over(&made)), ((600, 400), None));
    let made = after(&web(), &pods(800, 800), Some(&made)).unwrap();
    assert_eq!((shape(&made), over(&made).as_deref()), ((800, 200), Some("truncated")));
    let made = after(&web(), &pods(2000, 10), Some(&made)).unwrap();
    assert_eq!((shape(&made), over(&made).as_deref()), ((1000, 0), Some("truncated")));
    let share =
        |i: usize| made.pointer(&format!("/subsets/{i}/addresses")).unwrap().as_array().unwrap().len();
    assert_eq!((share(0), share(1)), (750, 250));
    let made = after(&web(), &pods(3, 0), Some(&made)).unwrap();
    assert_eq!((shape(&made), over(&made)), ((3, 0), None));
}

#[test]
fn those_of_a_service_without_a_selector_are_their_makers() {
    let pod = [web_pod("a", true, 80)];
    let made = after(&web(), &pod, None).unwrap();
    let bare = service(json!({"ports": [{"port": 80}]}));
    assert_eq!(after(&bare, &pod, Some(&made)), None, "what followed the selector goes with it");
    let mut own = Object::new(&ENDPOINTS, Some("default"), "web");
    own.0.insert("subsets".into(), json!([{"addresses": [{"ip": "192.0.2.1"}]}]));
    assert_eq!(after(&bare, &pod, Some(&own)), Some(own.clone()));
    assert_eq!(ips(&after(&web(), &pod, Some(&own)).unwrap(), "addresses"), ["10.244.0.2"]);
}
