//! What the kernel holds for each shape of a service on one node of three, as text.

use std::fmt::Write;

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use serde_json::{Value as Json, json};

use super::*;

fn here() -> Viewpoint {
    let others = ["192.0.2.12", "192.0.2.13", "2001:db8::12", "2001:db8::13"];
    Viewpoint {
        node: "node-1".into(),
        zone: None,
        addresses: ["192.0.2.11", "2001:db8::11"].map(|ip| ip.parse().unwrap()).into(),
        others: others.map(|ip| ip.parse().unwrap()).into(),
    }
}

/// Endpoints on the nodes with these numbers, at a port for each of the service's.
fn slices(nodes: &[u8], ports: &Json) -> Vec<EndpointSlice> {
    let ports: Vec<Json> = (ports.as_array().into_iter().flatten())
        .map(|p| json!({"name": p["name"].as_str().unwrap_or(""), "protocol": p["protocol"].as_str().unwrap_or("TCP"),
            "port": p["targetPort"].as_i64().unwrap_or(8080)}))
        .collect();
    let slice = |family: &str, ip: fn(u8) -> String| {
        let endpoints: Vec<Json> =
            (nodes.iter()).map(|n| json!({"addresses": [ip(*n)], "nodeName": format!("node-{n}")})).collect();
        let slice = json!({"addressType": family, "endpoints": endpoints, "ports": ports});
        serde_json::from_value(slice).unwrap()
    };
    let v4 = |n| format!("10.244.{n}.2");
    vec![slice("IPv4", v4), slice("IPv6", |n| format!("fd69:6d69:6e6a:{n}::2"))]
}

fn element(out: &mut String, key: &Key, value: Value) {
    let (set, key) = match key {
        Key::Slot(id, slot) => ("ep", format!("{} . {slot}", id.0)),
        Key::Endpoint(id, n) => ("sticky_ep", format!("{} . {n}", id.0)),
        Key::Choice(id, slot) => ("choice", format!("{} . {slot}", id.0)),
        Key::ClusterIp(ip) => ("cluster_ips", ip.to_string()),
        Key::Allowed(ip, proto, port, range) => ("allowed", format!("{ip} . {proto} . {port} . {range}")),
        Key::Guarded(ip, proto, port) => ("guarded", format!("{ip} . {proto} . {port}")),
        Key::OutsideService(ip, proto, port) => ("svc_outside", format!("{ip} . {proto} . {port}")),
        Key::OutsideNodePort(proto, port) => ("np_outside", format!("{proto} . {port}")),
        Key::Service(ip, proto, port) => ("svc", format!("{ip} . {proto} . {port}")),
        Key::NodePort(proto, port) => ("np", format!("{proto} . {port}")),
        other => panic!("{other:?} is no service's"),
    };
    write!(out, "{set:<11} {key}").unwrap();
    match value {
        Value::Port { id, slots: 0, .. } => writeln!(out, " : {}, reject", id.0),
        Value::Port { id, slots, affinity: None } => writeln!(out, " : {}, 1 of {slots}", id.0),
        Value::Port { id, slots, affinity: Some(seconds) } => {
            writeln!(out, " : {}, 1 of {slots}, same for {seconds} s", id.0)
        }
        Value::Drop => writeln!(out, " : drop"),
        Value::Pod(ip, port) => writeln!(out, " : {ip} . {port}"),
        Value::Number(n) => writeln!(out, " : {n}"),
        Value::Present | Value::Zone(_) | Value::Mark(_) => writeln!(out),
    }
    .unwrap();
}

fn text(service: &Json, nodes: &[u8]) -> String {
    let typed: Service = serde_json::from_value(service.clone()).unwrap();
    let slices = slices(nodes, &service["spec"]["ports"]);
    let plan = plan_service(&typed, &slices.iter().collect::<Vec<_>>(), &here());
    let mut out = String::new();
    for (family, name) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
        let ports = plan.ports.iter().filter(|p| Family::of(p.cluster_ip) == family).cloned().collect();
        let mut rules = Ruleset::default();
        rules.update(&[(key(1), Some(ServicePlan { ports }))]);
        let elements = rules.elements();
        if !elements.is_empty() {
            writeln!(out, "table {name} minisvc").unwrap();
        }
        for (key, value) in &elements {
            element(&mut out, key, *value);
        }
    }
    out
}

#[track_caller]
fn check(shape: &str, spec: Json, status: Json, nodes: &[u8]) {
    let mut service = json!({"spec": spec, "status": status});
    let spec = service["spec"].as_object_mut().unwrap();
    spec.entry("clusterIP").or_insert(json!("10.96.0.1"));
    spec.entry("ports").or_insert(json!([{"port": 80}]));
    let text = text(&service, nodes);
    insta::with_settings!({
        snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true,
        description => service.to_string(),
    }, { insta::assert_snapshot!(shape, text) });
}

const NONE: Json = Json::Null;

#[test]
fn cluster_ip() {
    check("cluster_ip", json!({}), NONE, &[1, 2, 3]);
    check("no_endpoints", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}), NONE, &[]);
    let ports = json!([{"name": "web", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
        {"name": "dns-tcp", "port": 53, "targetPort": 5353}, {"name": "sig", "port": 53, "protocol": "SCTP"}]);
    check("several_ports", json!({"ports": ports}), NONE, &[1, 2]);
    let both = json!({"clusterIPs": ["10.96.0.1", "fd69:6d69:6e69:ffff::1"], "ipFamilies": ["IPv4", "IPv6"],
        "type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]});
    check("dual_stack", both, NONE, &[1, 2]);
    check(
        "affinity",
        json!({"sessionAffinity": "ClientIP", "type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}),
        NONE,
        &[1, 2],
    );
}

#[test]
fn sctp() {
    let ports = json!([{"name": "sig", "port": 36412, "nodePort": 30412, "protocol": "SCTP"},
        {"name": "sig-tcp", "port": 36412, "nodePort": 30412}]);
    let both = json!({"type": "NodePort", "clusterIPs": ["10.96.0.1", "fd69:6d69:6e69:ffff::1"],
        "ipFamilies": ["IPv4", "IPv6"], "ports": ports});
    check("sctp", both, NONE, &[1, 2]);
    let everything = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP",
        "loadBalancerSourceRanges": ["198.51.100.0/24"], "externalIPs": ["203.0.113.7"],
        "ports": [{"port": 36412, "nodePort": 30412, "protocol": "SCTP"}]});
    let ingress = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.11"}]}});
    check("sctp_everywhere", everything, ingress, &[1, 2]);
}

#[test]
fn without_rules() {
    check("headless", json!({"clusterIP": "None"}), NONE, &[1, 2]);
    check("external_name", json!({"type": "ExternalName", "externalName": "example.com"}), NONE, &[]);
}

#[test]
fn policies() {
    let node_port = |internal: &str, external: &str| {
        json!({"type": "NodePort", "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
            "ports": [{"port": 80, "nodePort": 30080}]})
    };
    check("node_port", node_port("Cluster", "Cluster"), NONE, &[1, 2]);
    check("node_port_local", node_port("Cluster", "Local"), NONE, &[1, 2]);
    check("node_port_local_elsewhere", node_port("Cluster", "Local"), NONE, &[2]);
    check("node_port_local_nowhere", node_port("Cluster", "Local"), NONE, &[]);
    check("internal_local", json!({"internalTrafficPolicy": "Local"}), NONE, &[1, 2]);
    check("internal_local_elsewhere", json!({"internalTrafficPolicy": "Local"}), NONE, &[2]);
    check("internal_local_nowhere", json!({"internalTrafficPolicy": "Local"}), NONE, &[]);
    check("both_local", node_port("Local", "Local"), NONE, &[1, 2]);
}

#[test]
fn addresses_for_others() {
    check("external_ips", json!({"externalIPs": ["203.0.113.1", "2001:db8::1"]}), NONE, &[1, 2]);
    let ingress = |ips: &[&str]| {
        let ips: Vec<Json> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        json!({"loadBalancer": {"ingress": ips}})
    };
    let balanced = |external: &str, ranges: &[&str]| {
        json!({"type": "LoadBalancer", "externalTrafficPolicy": external, "loadBalancerSourceRanges": ranges,
            "ports": [{"port": 80, "nodePort": 30080}]})
    };
    let nodes = ingress(&["192.0.2.11", "192.0.2.12"]);
    check("load_balancer", balanced("Cluster", &[]), nodes.clone(), &[1, 2]);
    let ranges = ["198.51.100.0/25", "198.51.100.128/25", "10.244.0.0/16"];
    check("load_balancer_ranges", balanced("Cluster", &ranges), nodes.clone(), &[1, 2]);
    check("load_balancer_local", balanced("Local", &[]), nodes, &[1, 2]);
    check("load_balancer_of_others", balanced("Local", &[]), ingress(&["203.0.113.7"]), &[2]);
}
