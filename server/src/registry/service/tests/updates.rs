//! Changes: what is kept, what a change of type drops, what may not change.

use super::*;

fn update(old: &Object, spec: Value) -> Result<Object, Vec<String>> {
    write(Some(old), spec, &dual_ranges(), &[])
}

fn node_ports_of(service: &Object) -> Vec<u64> {
    spec(service, "ports").items().filter_map(|p| p.child("nodePort").value?.as_u64()).collect()
}

/// A manifest of each type.
fn manifests() -> Vec<(&'static str, Value)> {
    let ports = json!([{"port": 80, "name": "web"}, {"port": 53, "name": "dns", "protocol": "UDP"}]);
    vec![
        ("ClusterIP", json!({"ports": ports, "selector": {"app": "a"}})),
        ("headless", json!({"clusterIP": "None", "ports": ports, "selector": {"app": "a"}})),
        ("NodePort", json!({"type": "NodePort", "ports": ports, "selector": {"app": "a"}})),
        ("LoadBalancer", json!({"type": "LoadBalancer", "ports": ports, "selector": {"app": "a"}})),
        (
            "LoadBalancer of its own nodes",
            json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerClass": "a/b", "ports": ports, "selector": {"app": "a"}}),
        ),
        ("dual", json!({"ipFamilyPolicy": "RequireDualStack", "ports": ports, "selector": {"app": "a"}})),
        (
            "ExternalName",
            json!({"type": "ExternalName", "externalName": "a.example", "ports": ports, "selector": {"app": "a"}}),
        ),
    ]
}

#[test]
fn the_original_manifest_applies_again() {
    for (what, manifest) in manifests() {
        let made = created(manifest.clone());
        assert_eq!(update(&made, manifest).unwrap(), made, "{what}");
        assert_eq!(update(&made, spec_of(&made)).unwrap(), made, "{what}");
    }
}

#[test]
fn each_type_becomes_each_other_by_patch_and_by_manifest() {
    for (from, before) in manifests() {
        for (to, after) in manifests() {
            let mut old = created(before.clone());
            if type_of(&old) == LOAD_BALANCER {
                old.0.insert("status".into(), json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}));
            }
            let fresh = created(after.clone());
            // A client that reads, changes what the new type is about, and writes the whole.
            let mut patched = spec_of(&old);
            for field in
                ["type", "externalName", "externalTrafficPolicy", "loadBalancerClass", "ipFamilyPolicy"]
            {
                if let Some(value) = after.get(field) {
                    patched[field] = value.clone();
                }
            }
            patched["type"] = type_of(&fresh).into();
            // From ExternalName a headless one has to be asked for.
            if is_headless(&fresh) {
                patched["clusterIP"] = "None".into();
                patched.as_object_mut().unwrap().remove("clusterIPs");
            }
            let headless_changes =
                is_headless(&old) != is_headless(&fresh) && has_cluster_ip(&old) && has_cluster_ip(&fresh);
            for (how, spec) in [("manifest", after.clone()), ("patch", patched)] {
                let what = format!("{from} to {to} by {how}");
                match update(&old, spec) {
                    Ok(new) => {
                        // A headless service without a word on it stays one, where its type allows.
                        let kept = is_headless(&old) && type_of(&fresh) == CLUSTER_IP;
                        assert!(!headless_changes || kept, "{what}: {new:?}");
                        assert_eq!(type_of(&new), type_of(&fresh), "{what}");
                        assert_eq!(node_ports_of(&new).len(), node_ports_of(&fresh).len(), "{what}");
                        assert_eq!(
                            new.pointer("/status/loadBalancer").is_some(),
                            type_of(&old) == LOAD_BALANCER && type_of(&new) == LOAD_BALANCER,
                            "{what}"
                        );
                        if has_cluster_ip(&old) && has_cluster_ip(&new) {
                            let ip = |s: &Object| s.str_at("/spec/clusterIP").map(str::to_owned);
                            assert_eq!(ip(&new), ip(&old), "{what}");
                        }
                        assert_eq!(new.pointer("/spec/selector"), Some(&json!({"app": "a"})), "{what}");
                    }
                    Err(faults) if headless_changes => {
                        assert!(faults[0].contains("spec.clusterIPs[0]"), "{what}: {faults:?}");
                    }
                    Err(faults) => {
                        let class = "FieldValueInvalid spec.loadBalancerClass: Invalid value: ";
                        let both = type_of(&old) == LOAD_BALANCER && type_of(&fresh) == LOAD_BALANCER;
                        assert!(
                            both && faults.len() == 1 && faults[0].starts_with(class),
                            "{what}: {faults:?}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn ports_keep_their_node_port_by_name() {
    let old = created(json!({"type": "NodePort", "ports": [
        {"port": 80, "name": "web"}, {"port": 443, "name": "tls"}, {"port": 53, "name": "dns", "protocol": "UDP"}]}));
    let [web, tls, dns] = node_ports_of(&old)[..] else { panic!("{old:?}") };
    let turned = json!({"type": "NodePort", "ports": [
        {"port": 5353, "name": "dns", "protocol": "UDP"}, {"port": 8080, "name": "web"}, {"port": 25, "name": "mail"}]});
    let new = update(&old, turned).unwrap();
    let now = node_ports_of(&new);
    assert_eq!((now[0], now[1]), (dns, web));
    assert!(![web, tls, dns].contains(&now[2]), "{now:?}");
    assert!(!held(&new).contains(&format!("/reserved/nodeports/{tls}")));
    // A number that another port takes by name is not kept for the first.
    let swapped = json!({"type": "NodePort", "ports": [{"port": 80, "name": "web"}, {"port": 443, "name": "tls", "nodePort": web}]});
    let new = update(&old, swapped).unwrap();
    assert_eq!(node_ports_of(&new)[1], web);
    assert_ne!(node_ports_of(&new)[0], web);
    let edited = json!({"type": "NodePort", "ports": [{"port": 80, "name": "web", "nodePort": 31000}]});
    assert_eq!(node_ports_of(&update(&old, edited).unwrap()), [31000]);
}

#[test]
fn a_wish_that_the_new_type_has_no_place_for_is_a_fault() {
    let node_port = created(json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30100}]}));
    let local =
        created(json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerClass": "a/b",
        "loadBalancerSourceRanges": ["192.0.2.0/24"], "ports": [{"port": 80}]}));
    let health = local.pointer("/spec/healthCheckNodePort").unwrap().as_u64().unwrap();
    for (old, change, expected) in [
        (&node_port, json!({"type": "ClusterIP", "ports": [{"port": 80, "nodePort": 30101}]}), "FieldValueForbidden spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'".to_owned()),
        (&node_port, json!({"type": "ClusterIP", "externalTrafficPolicy": "Local"}), "FieldValueInvalid spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services".to_owned()),
        (&node_port, json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.96.9.9"}), "FieldValueForbidden spec.clusterIPs: Forbidden: may not be set for ExternalName services".to_owned()),
        (&local, json!({"healthCheckNodePort": 30999}), "FieldValueForbidden spec.healthCheckNodePort: Forbidden: field is immutable".to_owned()),
        (&local, json!({"externalTrafficPolicy": "Cluster", "healthCheckNodePort": 30999}), "FieldValueInvalid spec.healthCheckNodePort: Invalid value: 30999: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'".to_owned()),
        (&local, json!({"loadBalancerClass": "c/d"}), "FieldValueInvalid spec.loadBalancerClass: Invalid value: \"c/d\": may not change once set".to_owned()),
        (&local, json!({"loadBalancerClass": null}), "FieldValueInvalid spec.loadBalancerClass: Invalid value: null: may not change once set".to_owned()),
        (&local, json!({"type": "NodePort"}), "FieldValueForbidden spec.loadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'".to_owned()),
    ] {
        assert_eq!(update(old, with(old, change.clone())).unwrap_err(), [expected], "{change}");
    }
    // What was only sent back goes.
    let open = with(&local, json!({"type": "NodePort", "loadBalancerSourceRanges": null}));
    let new = update(&local, open).unwrap();
    for field in ["healthCheckNodePort", "loadBalancerClass", "allocateLoadBalancerNodePorts"] {
        assert_eq!(spec(&new, field).value, None, "{field}");
    }
    assert!(!held(&new).contains(&format!("/reserved/nodeports/{health}")));
    assert_eq!(node_ports_of(&new), node_ports_of(&local));
    let cluster = update(&local, with(&local, json!({"externalTrafficPolicy": "Cluster"}))).unwrap();
    assert_eq!(cluster.pointer("/spec/healthCheckNodePort"), None);
}

#[test]
fn a_load_balancer_gives_its_node_ports_back_when_it_wants_none() {
    let manifest = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
    let old = created(manifest.clone());
    assert_eq!(node_ports_of(&old).len(), 1);
    let without = with(&service(manifest), json!({"allocateLoadBalancerNodePorts": false}));
    assert_eq!(node_ports_of(&update(&old, without).unwrap()).len(), 0);
    // Who sends them back keeps them.
    let sent_back = with(&old, json!({"allocateLoadBalancerNodePorts": false}));
    assert_eq!(node_ports_of(&update(&old, sent_back).unwrap()), node_ports_of(&old));
}
