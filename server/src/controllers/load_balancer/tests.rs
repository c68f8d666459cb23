use super::*;
use crate::controllers::endpointslice::tests::service;

fn balancer() -> Object {
    service(
        json!({"type": "LoadBalancer", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}),
    )
}

fn node(name: &str, ips: &[&str]) -> Object {
    let mut n = Object::new(&minisvc_proto::resource::NODES, None, name);
    let addresses = ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip}));
    let addresses: Vec<_> = addresses.chain([json!({"type": "Hostname", "address": name})]).collect();
    let ready = json!([{"type": "Ready", "status": "True"}]);
    n.0.insert("status".into(), json!({"addresses": addresses, "conditions": ready}));
    n
}

fn nodes() -> Vec<Object> {
    vec![node("n1", &["10.0.0.1", "fd00::1"]), node("n2", &["10.0.0.2", "fd00::2"])]
}

fn verdict(service: &Object, nodes: &[Object], slices: &[Arc<Object>]) -> (Vec<String>, String) {
    let nodes: Vec<_> = nodes.iter().cloned().map(Arc::new).collect();
    let Verdict { ingress, condition: c } = decide(service, None, nodes.iter(), slices);
    (ingress.iter().map(ToString::to_string).collect(), format!("{} {} {}", c.status, c.reason, c.message))
}

#[test]
fn the_addresses_are_those_of_the_nodes_that_can_answer() {
    let mut service = balancer();
    let mut all = nodes();
    let allocated = "True Allocated ".to_owned();
    assert_eq!(verdict(&service, &all, &[]), (vec!["10.0.0.1".into(), "10.0.0.2".into()], allocated.clone()));
    service.spec_mut().insert("ipFamilies".into(), json!(["IPv6", "IPv4"]));
    assert_eq!(verdict(&service, &all, &[]).0, ["fd00::1", "fd00::2", "10.0.0.1", "10.0.0.2"]);
    service.spec_mut().remove("ipFamilies");
    all[0].0.insert("status".into(), json!({"conditions": [{"type": "Ready", "status": "Unknown"}]}));
    assert_eq!(verdict(&service, &all, &[]).0, ["10.0.0.2"]);
    all[1].metadata_mut().insert("labels".into(), json!({EXCLUDED: ""}));
    assert_eq!(verdict(&service, &all, &[]), (vec![], allocated));
}

#[test]
fn a_port_that_a_program_has_keeps_its_node_out() {
    let service = balancer();
    let mut all = nodes();
    let taken = |port: u16, protocol: &str, service: &str| json!([{"protocol": protocol, "port": port, "service": service}]);
    for (said, out) in [
        (taken(80, "TCP", "default/web"), true),
        (taken(80, "UDP", "default/web"), false),
        (taken(81, "TCP", "default/web"), false),
        (taken(80, "TCP", "default/other"), false),
        (json!("rubbish"), false),
        (json!([{"port": -1, "service": "default/web"}, 3]), false),
    ] {
        all[0].status_mut().insert("loadBalancerPortsTaken".into(), said.clone());
        let (ingress, condition) = verdict(&service, &all, &[]);
        assert_eq!(ingress.len(), if out { 1 } else { 2 }, "{said}");
        let words = if out {
            "True PortTakenOnNodes A program there has a port of this service: n1 (TCP 80)"
        } else {
            "True Allocated "
        };
        assert_eq!(condition, words);
    }
    for node in &mut all {
        node.status_mut().insert("loadBalancerPortsTaken".into(), taken(53, "UDP", "default/web"));
    }
    let (ingress, condition) = verdict(&service, &all, &[]);
    assert!(ingress.is_empty() && condition.starts_with("False PortTaken A program"), "{condition}");
}

#[test]
fn under_policy_local_the_nodes_with_endpoints_answer() {
    let mut service = balancer();
    service.spec_mut().insert("externalTrafficPolicy".into(), "Local".into());
    let slice = |conditions: Value| {
        let mut s = Object::new(&minisvc_proto::resource::ENDPOINT_SLICES, Some("default"), "web-0");
        s.metadata_mut().insert("labels".into(), json!({SERVICE_NAME: "web"}));
        s.0.insert(
            "endpoints".into(),
            json!([{"addresses": ["10.244.1.2"], "nodeName": "n2", "conditions": conditions}]),
        );
        Arc::new(s)
    };
    assert_eq!(verdict(&service, &nodes(), &[]).0, [""; 0]);
    for (conditions, there) in [
        (json!({"ready": true}), true),
        (json!({}), true),
        (json!({"ready": false, "serving": true, "terminating": true}), true),
        (json!({"ready": false, "serving": false, "terminating": true}), false),
        (json!({"ready": false}), false),
    ] {
        let expected: &[&str] = if there { &["10.0.0.2"] } else { &[] };
        assert_eq!(verdict(&service, &nodes(), &[slice(conditions.clone())]).0, expected, "{conditions}");
    }
}

#[test]
fn a_rival_is_named_and_what_was_said_is_taken_back() {
    let mut service = balancer();
    let other = ObjectKey::namespaced(&minisvc_proto::resource::SERVICES, "blue", "first");
    let all: Vec<_> = nodes().into_iter().map(Arc::new).collect();
    let free = decide(&service, None, all.iter(), &[]);
    assert!(apply(&mut service, &free, "t1") && !apply(&mut service, &free, "t2"));
    assert_eq!(
        service.pointer("/status/loadBalancer/ingress/0"),
        Some(&json!({"ip": "10.0.0.1", "ipMode": "VIP", "ports": [
        {"port": 80, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}))
    );
    let refused = decide(&service, Some((("TCP".into(), 80), other)), all.iter(), &[]);
    assert_eq!(refused.condition.message, "TCP port 80 of the nodes belongs to the load balancer blue/first");
    assert!(apply(&mut service, &refused, "t3"));
    assert_eq!(service.pointer("/status/loadBalancer"), Some(&json!({})));
    apply(&mut service, &free, "t4");
    service.spec_mut().insert("type".into(), "ClusterIP".into());
    assert!(withdraw(&mut service) && !withdraw(&mut service));
    assert_eq!(service.0["status"], json!({"conditions": []}));
}
