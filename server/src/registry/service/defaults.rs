//! What the user left out. [pkg/apis/core/v1/defaults.go]

use std::net::IpAddr;

use minisvc_proto::Object;
use serde_json::{Map, Value, json};

use super::{EXTERNAL_NAME, LOAD_BALANCER, is_reachable_from_outside, ports_mut, type_of};

const DEFAULT_AFFINITY_SECONDS: u64 = 10800;

/// Fields of the spec, and of a port, in which emptiness says no more than absence does.
const EMPTY_IS_ABSENT: [&str; 13] = [
    "type",
    "clusterIP",
    "clusterIPs",
    "ipFamilies",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "sessionAffinity",
    "nodePort",
    "targetPort",
];
/// Fields in which only `null` is absence: an empty text is a text.
const NULL_IS_ABSENT: [&str; 7] = [
    "allocateLoadBalancerNodePorts",
    "internalTrafficPolicy",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "sessionAffinityConfig",
    "trafficDistribution",
    "appProtocol",
];

fn set_default(map: &mut Map<String, Value>, field: &str, value: impl Into<Value>) {
    map.entry(field).or_insert_with(|| value.into());
}

/// Fills what the user left out; families come later (`families`), since they depend on the cluster.
pub fn set_defaults(service: &mut Object) {
    tidy(service.spec_mut());
    let spec = service.spec_mut();
    set_default(spec, "type", "ClusterIP");
    set_default(spec, "sessionAffinity", "None");
    match spec.get("sessionAffinity").and_then(Value::as_str) {
        Some("None") => drop(spec.remove("sessionAffinityConfig")),
        Some("ClientIP") => {
            let seconds =
                spec.get("sessionAffinityConfig").and_then(|c| c.pointer("/clientIP/timeoutSeconds"));
            if seconds.is_none_or(Value::is_null) {
                let config = json!({"clientIP": {"timeoutSeconds": DEFAULT_AFFINITY_SECONDS}});
                spec.insert("sessionAffinityConfig".into(), config);
            }
        }
        _ => {}
    }
    match type_of(service) {
        // Kubernetes set it in the past, and does not show it since. [storage.go, defaultOnReadInternalTrafficPolicy]
        EXTERNAL_NAME => drop(service.spec_mut().remove("internalTrafficPolicy")),
        kind => {
            let load_balancer = kind == LOAD_BALANCER;
            let spec = service.spec_mut();
            set_default(spec, "internalTrafficPolicy", "Cluster");
            if load_balancer {
                set_default(spec, "allocateLoadBalancerNodePorts", true);
            }
        }
    }
    if is_reachable_from_outside(service) {
        set_default(service.spec_mut(), "externalTrafficPolicy", "Cluster");
    }
    for port in ports_mut(service) {
        drop_empty(port);
        port.retain(|field, value| field != "protocol" || !is_empty(value));
        set_default(port, "protocol", "TCP");
        if let Some(number) = port.get("port").cloned() {
            set_default(port, "targetPort", number);
        }
    }
}

/// Takes away what says nothing, and writes addresses in the one form in which they are compared and reserved.
fn tidy(spec: &mut Map<String, Value>) {
    drop_empty(spec);
    for field in ["clusterIP", "clusterIPs", "externalIPs"] {
        match spec.get_mut(field) {
            Some(Value::Array(list)) => list.iter_mut().for_each(canonical),
            Some(one) => canonical(one),
            None => {}
        }
    }
    // Kubernetes takes ranges with blanks around them, which were once cut out of a comma separated text.
    for range in spec.get_mut("loadBalancerSourceRanges").and_then(Value::as_array_mut).into_iter().flatten()
    {
        if let Some(text) = range.as_str().filter(|t| t.trim() != *t) {
            *range = text.trim().into();
        }
    }
}

fn drop_empty(map: &mut Map<String, Value>) {
    map.retain(|field, value| {
        let field = field.as_str();
        let absent = (EMPTY_IS_ABSENT.contains(&field) && is_empty(value))
            || (NULL_IS_ABSENT.contains(&field) && value.is_null());
        !absent
    });
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Number(number) => number.as_u64() == Some(0),
        Value::Bool(_) | Value::Object(_) => false,
    }
}

fn canonical(ip: &mut Value) {
    if let Some(parsed) = ip.as_str().and_then(|text| text.parse::<IpAddr>().ok()) {
        *ip = parsed.to_string().into();
    }
}
