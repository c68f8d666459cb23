use serde_json::json;

use super::*;

fn service(spec: Value) -> Object {
    let json = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"}, "spec": spec});
    serde_json::from_value(json).unwrap()
}

fn ranges() -> (ServiceRange, NodePortRange) {
    (
        ServiceRange::new("10.96.0.0/16".parse::<ipnet::IpNet>().unwrap()).unwrap(),
        NodePortRange::new(30000..=32767).unwrap(),
    )
}

fn faults(spec: Value) -> Vec<String> {
    let mut s = service(spec);
    set_defaults(&mut s);
    let (ips, ports) = ranges();
    validate(None, &s, &ips, &ports).iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_left_out_is_filled_as_kubernetes_fills_it() {
    let mut s = service(json!({"ports": [{"port": 80}], "custom": 1}));
    set_defaults(&mut s);
    assert_eq!(
        Value::Object(spec(&s).unwrap().clone()),
        json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "custom": 1,
            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
    );
    let mut s = service(
        json!({"type": "NodePort", "sessionAffinity": "ClientIP", "ports": [{"port": 1, "targetPort": ""}]}),
    );
    set_defaults(&mut s);
    assert_eq!(s.str_at("/spec/externalTrafficPolicy"), Some("Cluster"));
    assert_eq!(s.pointer("/spec/sessionAffinityConfig/clientIP/timeoutSeconds"), Some(&json!(10800)));
    assert_eq!(s.pointer("/spec/ports/0/targetPort"), Some(&json!(1)));
}

#[test]
fn each_fault_names_its_field_and_the_rule() {
    for (spec, expected) in [
        (json!({}), "spec.ports: Required value"),
        (
            json!({"ports": [{"port": 0, "targetPort": 80}]}),
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 80}]}),
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30080}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"type": "Magic", "ports": [{"port": 80}]}),
            "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (json!({"ports": [{"port": 80, "name": "a"}, {"port": 81}]}), "spec.ports[1].name: Required value"),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}),
            "spec.ports[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"type": "NodePort", "clusterIP": "None", "ports": [{"port": 80}]}),
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for NodePort services",
        ),
        (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
        (
            json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
            "spec.ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"TCP\", \"UDP\"",
        ),
        (
            json!({"clusterIP": "10.96.0.10", "ports": [{"port": 80}]}),
            "spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP 10.96.0.10: it is the address of the cluster's DNS",
        ),
        (
            json!({"clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.8"], "ports": [{"port": 80}]}),
            "spec.clusterIPs[0]: Invalid value: \"10.96.7.8\": first value must match `clusterIP`",
        ),
        (
            json!({"ipFamilyPolicy": "RequireDualStack", "ports": [{"port": 80}]}),
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
        (
            json!({"ipFamilies": ["IPv6"], "ports": [{"port": 80}]}),
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            json!({"type": "NodePort", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
            "spec.externalTrafficPolicy: Invalid value: \"Local\": only Cluster can be had: every node forwards to the pods of all nodes",
        ),
        (
            json!({"externalTrafficPolicy": "Cluster", "ports": [{"port": 80}]}),
            "spec.externalTrafficPolicy: Invalid value: \"Cluster\": may only be set for externally-accessible services",
        ),
        (
            json!({"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "", "ports": [{"port": 80}]}),
            "spec.externalIPs: Forbidden: addresses that are not the nodes' own are not supported: use type NodePort",
        ),
        (
            json!({"type": "ExternalName", "externalName": "a_b"}),
            "spec.externalName: Invalid value: \"a_b\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ),
    ] {
        assert_eq!(faults(spec.clone()), [expected], "{spec}");
    }
    assert!(faults(json!({"clusterIP": "10.97.0.1", "ports": [{"port": 80}]}))[0].contains("10.96.0.0/16"));
    for good in [
        json!({"clusterIP": "None"}),
        json!({"type": "ExternalName", "externalName": "db.example.com."}),
        json!({"ipFamilyPolicy": "PreferDualStack", "ports": [{"port": 80}]}),
        json!({"ports": [{"port": 53, "name": "a"}, {"port": 53, "protocol": "UDP", "name": "b", "targetPort": "dns-udp"}]}),
    ] {
        assert_eq!(faults(good.clone()), Vec::<String>::new(), "{good}");
    }
}

#[test]
fn tcp_and_udp_of_one_port_share_a_node_port_and_named_values_are_kept() {
    let (ips, ports) = ranges();
    let mut s = service(json!({"type": "NodePort", "ports": [
        {"port": 53, "protocol": "UDP", "name": "u"}, {"port": 53, "protocol": "TCP", "name": "t"},
        {"port": 80, "name": "w", "nodePort": 30086}]}));
    allocate(&mut s, &ips, &ports, || 0, |_| false).unwrap();
    let held = reservations(&s);
    assert_eq!(
        held.iter().map(String::as_str).collect::<Vec<_>>(),
        ["/reserved/clusterips/10.96.1.1", "/reserved/nodeports/30086", "/reserved/nodeports/30087"]
    );
    let mut headless = service(json!({"clusterIP": "None"}));
    allocate(&mut headless, &ips, &ports, || 0, |_| true).unwrap();
    assert!(reservations(&headless).is_empty());
}

#[test]
fn the_original_manifest_applies_again_and_a_type_change_drops_what_depends_on_the_type() {
    let old = service(json!({"type": "NodePort", "clusterIP": "10.96.1.1", "clusterIPs": ["10.96.1.1"],
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30100}]}));
    let mut again = service(json!({"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}]}));
    inherit(&old, &mut again);
    assert_eq!(reservations(&again), reservations(&old));

    let mut plain =
        service(json!({"type": "ClusterIP", "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30100}]}));
    inherit(&old, &mut plain);
    assert_eq!(reservations(&plain), BTreeSet::from(["/reserved/clusterips/10.96.1.1".to_owned()]));

    let mut external =
        service(json!({"type": "ExternalName", "externalName": "x.y", "clusterIP": "10.96.1.1"}));
    inherit(&old, &mut external);
    assert!(reservations(&external).is_empty());
}
