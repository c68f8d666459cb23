//! Load balancers without a cloud: a service of type LoadBalancer answers on the nodes' own addresses, and its status lists them. Pure.

pub mod claimants;

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use minisvc_proto::{Object, ObjectKey};
use serde_json::{Value, json};

use self::claimants::Port;
use super::{endpointslice, slices::SERVICE_NAME};
use crate::{
    alloc::Family,
    conditions::{self, Condition},
};

/// The condition that says whether the service has its ports.
pub const CONDITION: &str = "PortsAllocated";
/// Nodes with this label are in no load balancer. [staging/src/k8s.io/api/core/v1/well_known_labels.go]
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Whether this controller serves the service: one of another class is somebody else's.
pub fn is_managed(service: &Object) -> bool {
    let class = service.str_at("/spec/loadBalancerClass").unwrap_or("");
    service.str_at("/spec/type") == Some("LoadBalancer")
        && class.is_empty()
        && service.deletion_timestamp().is_none()
}

/// Whether only nodes with endpoints of their own answer.
pub fn is_local(service: &Object) -> bool {
    service.str_at("/spec/externalTrafficPolicy") == Some("Local")
}

/// What a load balancer depends on of a node: two states that differ elsewhere make no difference.
pub fn facts(node: &Object) -> (bool, Vec<&Value>) {
    let fields = ["/status/addresses", "/status/loadBalancerPortsTaken"];
    let all = fields.iter().filter_map(|f| node.pointer(f)).collect();
    (is_usable(node), all)
}

fn is_usable(node: &Object) -> bool {
    conditions::is_true(node, "Ready")
        && node.label(EXCLUDED).is_none()
        && node.deletion_timestamp().is_none()
}

/// What the status of a service should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The addresses at which it answers.
    pub ingress: Vec<IpAddr>,
    /// Whether it has its ports.
    pub condition: Condition,
}

/// Decides for a service that is managed. `rival` has a port that it wants, `nodes` are all there are, `slices` those labelled with
/// the service's name.
pub fn decide<'a>(
    service: &Object,
    rival: Option<(Port, ObjectKey)>,
    nodes: impl Iterator<Item = &'a Arc<Object>>,
    slices: &[Arc<Object>],
) -> Verdict {
    let condition = |status, reason, message: String| Condition { kind: CONDITION, status, reason, message };
    if let Some(((protocol, port), other)) = rival {
        let owner = format!("{}/{}", other.namespace.unwrap_or_default(), other.name);
        let message = format!("{protocol} port {port} of the nodes belongs to the load balancer {owner}");
        return Verdict { ingress: Vec::new(), condition: condition("False", "PortConflict", message) };
    }
    let local = is_local(service).then(|| serving_nodes(slices));
    let me = format!("{}/{}", service.namespace().unwrap_or("default"), service.name());
    let (mut answering, mut taken): (Vec<&Object>, Vec<String>) = (Vec::new(), Vec::new());
    for node in nodes.filter(|n| is_usable(n)) {
        let ports = taken_ports(service, node, &me);
        if !ports.is_empty() {
            taken.push(format!("{} ({})", node.name(), ports.join(", ")));
        } else if local.as_ref().is_none_or(|l| l.contains(node.name())) {
            answering.push(node);
        }
    }
    let families = endpointslice::families(service);
    let of = |family: &Family| -> Vec<IpAddr> {
        answering.iter().flat_map(|n| addresses(n).filter(|ip| Family::of(*ip) == *family)).collect()
    };
    let ingress: Vec<IpAddr> = families.iter().flat_map(of).collect();
    let condition = if taken.is_empty() {
        condition("True", "Allocated", String::new())
    } else {
        let message = format!("A program there has a port of this service: {}", taken.join(", "));
        let none = answering.is_empty() && local.is_none();
        if none {
            condition("False", "PortTaken", message)
        } else {
            condition("True", "PortTakenOnNodes", message)
        }
    };
    Verdict { ingress, condition }
}

/// `InternalIP`s, in the order of the node.
fn addresses(node: &Object) -> impl Iterator<Item = IpAddr> {
    let all = node.pointer("/status/addresses").and_then(Value::as_array);
    let own = all.into_iter().flatten().filter(|a| a["type"] == "InternalIP");
    own.filter_map(|a| a["address"].as_str()?.parse().ok())
}

/// The ports of the service that its agent says a program of the machine has: `TCP 80`.
fn taken_ports(service: &Object, node: &Object, me: &str) -> Vec<String> {
    let wanted = claimants::ports(service);
    let said = node.pointer("/status/loadBalancerPortsTaken").and_then(Value::as_array);
    let own = said.into_iter().flatten().filter(|entry| entry["service"] == me);
    let ports: BTreeSet<Port> = own
        .filter_map(|e| Some((e["protocol"].as_str()?.to_owned(), u16::try_from(e["port"].as_u64()?).ok()?)))
        .collect();
    ports.intersection(&wanted).map(|(protocol, port)| format!("{protocol} {port}")).collect()
}

/// The nodes with endpoints that get traffic: the ready ones, or those that serve while they end. [KEP-1669]
fn serving_nodes(slices: &[Arc<Object>]) -> BTreeSet<&str> {
    let endpoints = slices.iter().filter(|s| s.label(SERVICE_NAME).is_some());
    let endpoints = endpoints.filter_map(|s| s.pointer("/endpoints")?.as_array()).flatten();
    endpoints
        .filter(|e| {
            let is = |name: &str| e["conditions"][name].as_bool();
            let ready = is("ready").unwrap_or(true);
            ready || (is("serving").unwrap_or(ready) && is("terminating").unwrap_or(false))
        })
        .filter_map(|e| e["nodeName"].as_str())
        .collect()
}

/// Writes the verdict into the service's status; answers whether anything changed.
pub fn apply(service: &mut Object, verdict: &Verdict, now: &str) -> bool {
    let ports = claimants::ports(service).into_iter();
    let ports: Vec<Value> =
        ports.map(|(protocol, port)| json!({"port": port, "protocol": protocol})).collect();
    let entry = |ip: &IpAddr| json!({"ip": ip.to_string(), "ipMode": "VIP", "ports": ports});
    let ingress: Vec<Value> = verdict.ingress.iter().map(entry).collect();
    let balancer = if ingress.is_empty() { json!({}) } else { json!({"ingress": ingress}) };
    let set = conditions::set(service, &verdict.condition, now);
    if service.pointer("/status/loadBalancer").unwrap_or(&json!({})) == &balancer {
        return set;
    }
    service.status_mut().insert("loadBalancer".into(), balancer);
    true
}

/// Takes what this controller said out of the status of a service that it does not serve (any more); answers whether there was any.
pub fn withdraw(service: &mut Object) -> bool {
    let said = conditions::remove(service, CONDITION);
    let stale = service.str_at("/spec/type") != Some("LoadBalancer")
        && service.status_mut().get("loadBalancer").is_some_and(|b| *b != json!({}));
    if stale {
        service.status_mut().remove("loadBalancer");
    }
    said || stale
}

#[cfg(test)]
mod tests;
