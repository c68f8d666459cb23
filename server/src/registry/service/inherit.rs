//! What an update keeps of the stored service, and what a change of type drops.
//! [pkg/registry/core/service/strategy.go, dropTypeDependentFields; storage/storage.go, patchAllocatedValues]

use std::collections::{BTreeMap, BTreeSet};

use minisvc_proto::Object;
use serde_json::{Value, json};

use super::{
    LOAD_BALANCER, has_cluster_ip, has_health_check, has_node_ports, is_reachable_from_outside, node_ports,
    port_number, ports_mut, spec, type_of,
};

/// What the user left out keeps its stored value, so that applying the original manifest again succeeds; what the new type
/// has no use for goes, where the user only sent back what stood there. Both services have their defaults.
pub fn inherit(old: &Object, new: &mut Object) {
    drop_sent_back(old, new);
    keep_allocated(old, new);
    follow_the_edited_address(old, new);
}

fn same(old: &Object, new: &Object, field: &str) -> bool {
    spec(old, field).value == spec(new, field).value
}

fn drop_sent_back(old: &Object, new: &mut Object) {
    let left = |had: bool, has: bool| had && !has;
    let balanced = |service: &Object| type_of(service) == LOAD_BALANCER;
    let addresses = left(has_cluster_ip(old), has_cluster_ip(new));
    let load_balancer = left(balanced(old), balanced(new));
    let checked = left(has_health_check(old), has_health_check(new));
    let reachable = left(is_reachable_from_outside(old), is_reachable_from_outside(new));
    if addresses && same(old, new, "clusterIP") && same(old, new, "clusterIPs") {
        new.spec_mut().remove("clusterIP");
        new.spec_mut().remove("clusterIPs");
    }
    for (field, gone) in [
        ("ipFamilies", addresses),
        ("ipFamilyPolicy", addresses),
        ("healthCheckNodePort", checked),
        ("allocateLoadBalancerNodePorts", load_balancer),
        ("loadBalancerClass", load_balancer),
        ("externalTrafficPolicy", reachable),
    ] {
        if gone && same(old, new, field) {
            new.spec_mut().remove(field);
        }
    }
    if left(has_node_ports(old), has_node_ports(new)) {
        // Ports may have come, gone and changed their names; a node port that is new is a wish, and a fault.
        let held: BTreeSet<u16> = node_ports(old).collect();
        if node_ports(new).all(|port| held.contains(&port)) {
            for port in ports_mut(new) {
                port.remove("nodePort");
            }
        }
    }
    if !balanced(new)
        && let Some(status) = new.0.get_mut("status").and_then(Value::as_object_mut)
    {
        status.remove("loadBalancer");
    }
}

fn keep_allocated(old: &Object, new: &mut Object) {
    let mut keep = Vec::new();
    if has_cluster_ip(old) && has_cluster_ip(new) {
        keep.extend(["clusterIP", "clusterIPs"]);
    }
    if has_health_check(old) && has_health_check(new) {
        keep.push("healthCheckNodePort");
    }
    for field in keep {
        if let Some(value) = spec(old, field).value.cloned() {
            new.spec_mut().entry(field).or_insert(value);
        }
    }
    // Whoever asks for none and names none gives back those that there are.
    let wanted = spec(new, "allocateLoadBalancerNodePorts").value != Some(&Value::Bool(false));
    if !(wanted && has_node_ports(old) && has_node_ports(new)) {
        return;
    }
    let named: BTreeSet<u16> = node_ports(new).collect();
    let held: BTreeMap<&str, &Value> = spec(old, "ports")
        .items()
        .filter_map(|port| Some((port.child("name").text(), port.child("nodePort").value?)))
        .filter(|(_, value)| port_number(Some(value)).is_some_and(|port| !named.contains(&port)))
        .collect();
    for port in ports_mut(new) {
        let name = port.get("name").and_then(Value::as_str).unwrap_or("");
        if let Some(value) = held.get(name) {
            port.entry("nodePort").or_insert_with(|| (*value).clone());
        }
    }
}

/// The older of the two fields was edited, the newer one only sent back: it follows. [storage.go, normalizeClusterIPs]
fn follow_the_edited_address(old: &Object, new: &mut Object) {
    if !same(old, new, "clusterIP") && same(old, new, "clusterIPs") {
        new.spec_mut().remove("clusterIPs");
    }
}

/// Who names one address means a list of it.
pub fn one_address(service: &mut Object) {
    if let (Some(ip), None) = (spec(service, "clusterIP").value, spec(service, "clusterIPs").value) {
        let list = json!([ip]);
        service.spec_mut().insert("clusterIPs".into(), list);
    }
}
