mod families;
mod faults;
mod updates;
mod walk;

use std::collections::BTreeSet;

use minisvc_proto::Object;
use serde_json::{Value, json};

use super::*;
use crate::registry::{
    Ranges,
    testing::{dual_ranges, ranges},
};

fn service(spec: Value) -> Object {
    let json = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"}, "spec": spec});
    serde_json::from_value(json).unwrap()
}

/// What the registry does with a write before it is committed, with nothing taken but `others`.
fn write(old: Option<&Object>, spec: Value, ranges: &Ranges, others: &[&str]) -> Result<Object, Vec<String>> {
    let mut new = service(spec);
    if let Some(status) = old.and_then(|old| old.0.get("status")) {
        new.0.insert("status".into(), status.clone());
    }
    set_defaults(&mut new);
    if let Some(old) = old {
        inherit(old, &mut new);
    }
    settle(old, &mut new, ranges);
    let faults = validate(old, &new, ranges);
    if !faults.is_empty() {
        return Err(faults.iter().map(|f| format!("{} {f}", f.reason)).collect());
    }
    let mut next = 0;
    let random = || {
        next += 1;
        next - 1
    };
    let mine = old.map(reservations).unwrap_or_default();
    let taken = |r: &str| !mine.contains(r) && others.contains(&r);
    allocate(&mut new, ranges, random, taken).map_err(|e| vec![e.to_string()])?;
    let again = validate(Some(&new), &new, ranges);
    assert_eq!(again, [], "what is stored is valid: {new:?}");
    Ok(new)
}

fn created(spec: Value) -> Object {
    write(None, spec, &dual_ranges(), &[]).unwrap()
}

fn spec_of(service: &Object) -> Value {
    service.0["spec"].clone()
}

/// The spec with these fields changed; `null` takes a field away.
fn with(service: &Object, changes: Value) -> Value {
    let mut spec = spec_of(service);
    for (field, value) in changes.as_object().unwrap() {
        if value.is_null() {
            spec.as_object_mut().unwrap().remove(field);
        } else {
            spec[field] = value.clone();
        }
    }
    spec
}

fn held(service: &Object) -> BTreeSet<String> {
    reservations(service)
}

#[test]
fn what_is_left_out_is_filled_as_kubernetes_fills_it() {
    let mut s = service(json!({"ports": [{"port": 80}], "custom": 1, "externalTrafficPolicy": "",
        "loadBalancerClass": null, "clusterIPs": [], "healthCheckNodePort": 0}));
    set_defaults(&mut s);
    settle(None, &mut s, &ranges());
    assert_eq!(
        spec_of(&s),
        json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "custom": 1,
            "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
            "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
    );
    let node_port = created(
        json!({"type": "NodePort", "sessionAffinity": "ClientIP", "ports": [{"port": 1, "targetPort": ""}]}),
    );
    assert_eq!(node_port.str_at("/spec/externalTrafficPolicy"), Some("Cluster"));
    assert_eq!(node_port.pointer("/spec/sessionAffinityConfig/clientIP/timeoutSeconds"), Some(&json!(10800)));
    assert_eq!(node_port.pointer("/spec/ports/0/targetPort"), Some(&json!(1)));
    let reached = created(json!({"externalIPs": ["192.0.2.1"], "ports": [{"port": 1}]}));
    assert_eq!(reached.str_at("/spec/externalTrafficPolicy"), Some("Cluster"));
    let balanced = created(json!({"type": "LoadBalancer", "ports": [{"port": 1}],
        "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}, "loadBalancerSourceRanges": [" 192.0.2.0/24 "]}));
    assert_eq!(balanced.pointer("/spec/allocateLoadBalancerNodePorts"), Some(&json!(true)));
    assert_eq!(balanced.pointer("/spec/sessionAffinityConfig"), None, "there is no affinity to configure");
    assert_eq!(balanced.str_at("/spec/loadBalancerSourceRanges/0"), Some("192.0.2.0/24"));
    let name = created(json!({"type": "ExternalName", "externalName": "db.example.com"}));
    assert_eq!(
        spec_of(&name),
        json!({"type": "ExternalName", "externalName": "db.example.com", "sessionAffinity": "None"})
    );
}

#[test]
fn protocols_of_one_port_share_a_node_port_and_named_values_are_kept() {
    let dns = created(json!({"type": "NodePort", "ports": [
        {"port": 53, "protocol": "UDP", "name": "u"}, {"port": 53, "protocol": "TCP", "name": "t"},
        {"port": 53, "protocol": "SCTP", "name": "s"}, {"port": 80, "name": "w", "nodePort": 30086}]}));
    assert_eq!(
        held(&dns).iter().map(String::as_str).collect::<Vec<_>>(),
        ["/reserved/clusterips/10.96.1.1", "/reserved/nodeports/30086", "/reserved/nodeports/30087"]
    );
    // The number that would be shared is this protocol's already.
    let crossed = created(json!({"type": "NodePort", "ports": [
        {"port": 53, "protocol": "TCP", "name": "t", "nodePort": 30100},
        {"port": 54, "protocol": "UDP", "name": "v", "nodePort": 30100}, {"port": 53, "protocol": "UDP", "name": "u"}]}));
    assert_ne!(crossed.pointer("/spec/ports/2/nodePort"), Some(&json!(30100)));
    assert!(held(&created(json!({"clusterIP": "None"}))).is_empty());
}

#[test]
fn a_load_balancer_has_a_health_check_port_where_its_policy_is_local_and_node_ports_unless_it_wants_none() {
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let made = created(local.clone());
    let (port, health) = (made.pointer("/spec/ports/0/nodePort"), made.pointer("/spec/healthCheckNodePort"));
    assert!(port.is_some() && health.is_some() && port != health, "{made:?}");
    assert!(held(&made).contains(&format!("/reserved/nodeports/{}", health.unwrap())));

    let named = created(with(&service(local.clone()), json!({"healthCheckNodePort": 30090})));
    assert!(held(&named).contains("/reserved/nodeports/30090"));
    let bare = created(with(&service(local), json!({"allocateLoadBalancerNodePorts": false})));
    assert_eq!(bare.pointer("/spec/ports/0/nodePort"), None);
    assert!(bare.pointer("/spec/healthCheckNodePort").is_some());
    let wished = created(json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false,
        "ports": [{"port": 80, "name": "a", "nodePort": 30091}, {"port": 81, "name": "b"}]}));
    assert_eq!(wished.pointer("/spec/ports/0/nodePort"), Some(&json!(30091)));
    assert_eq!(wished.pointer("/spec/ports/1/nodePort"), None);
}

#[test]
fn an_exhausted_pool_says_which() {
    let small = Ranges {
        node_ports: crate::alloc::NodePortRange::new(30000..=30000).unwrap(),
        services: crate::registry::testing::services("10.96.0.0/28"),
        ..ranges()
    };
    let node_port = json!({"type": "NodePort", "ports": [{"port": 80}]});
    let full = write(None, node_port.clone(), &small, &["/reserved/nodeports/30000"]).unwrap_err();
    assert_eq!(full, ["failed to allocate a nodePort: range is full"]);
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let full = write(None, local, &small, &[]).unwrap_err();
    assert_eq!(full, ["failed to allocate a HealthCheck NodePort: range is full"]);
    let all: Vec<String> = (1..15).map(|i| format!("/reserved/clusterips/10.96.0.{i}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let full = write(None, node_port, &small, &all).unwrap_err();
    assert_eq!(full, ["failed to allocate a serviceIP: range is full"]);
}

#[test]
fn what_a_load_balancer_says_of_itself_is_checked() {
    let mut balanced = created(json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
    let mut faults = |ingress: Value| {
        balanced.0.insert("status".into(), json!({"loadBalancer": {"ingress": ingress}}));
        set_status_defaults(&mut balanced);
        let faults = validate_status(&balanced, &dual_ranges());
        (balanced.0["status"].clone(), faults.iter().map(|f| format!("{} {f}", f.reason)).collect::<Vec<_>>())
    };
    let (status, none) = faults(
        json!([{"ip": "192.0.2.1"}, {"hostname": "lb.example.com"}, {"ip": "2001:db8::1", "ipMode": "Proxy"}]),
    );
    assert_eq!(none, Vec::<String>::new());
    assert_eq!(
        (&status["loadBalancer"]["ingress"][0]["ipMode"], &status["loadBalancer"]["ingress"][1]),
        (&json!("VIP"), &json!({"hostname": "lb.example.com"}))
    );
    let at = "status.loadBalancer.ingress[0]";
    for (ingress, expected) in [
        (
            json!({"ip": "300.1.1.1"}),
            format!(
                "FieldValueInvalid {at}.ip: Invalid value: \"300.1.1.1\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
            ),
        ),
        (
            json!({"ip": "10.96.0.10"}),
            format!(
                "FieldValueInvalid {at}.ip: Invalid value: \"10.96.0.10\": may not be in the cluster's service range (10.96.0.0/16)"
            ),
        ),
        (
            json!({"ip": "192.0.2.1", "ipMode": "Nat"}),
            format!(
                "FieldValueNotSupported {at}.ipMode: Unsupported value: \"Nat\": supported values: \"Proxy\", \"VIP\""
            ),
        ),
        (
            json!({"hostname": "lb", "ipMode": "VIP"}),
            format!("FieldValueForbidden {at}.ipMode: Forbidden: may not be specified when `ip` is not set"),
        ),
        (
            json!({"hostname": "192.0.2.1"}),
            format!(
                "FieldValueInvalid {at}.hostname: Invalid value: \"192.0.2.1\": must be a DNS name, not an IP address"
            ),
        ),
    ] {
        assert_eq!(faults(json!([ingress])).1, [expected]);
    }
    let mut inner = created(json!({"ports": [{"port": 80}]}));
    inner.0.insert("status".into(), json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}));
    assert_eq!(
        validate_status(&inner, &ranges())[0].to_string(),
        "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"
    );
}
