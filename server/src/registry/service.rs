//! Service: defaults, rules, and the values that are reserved with it.
//!
//! A write passes through the rooms in this order: `defaults` (what is left out), `inherit` (what an update keeps and what a
//! change of type drops), `families` (which address families it has), `validate` (every fault), `allocate` (addresses and
//! ports). Rules from Kubernetes: pkg/apis/core/v1/defaults.go, pkg/apis/core/validation/validation.go,
//! pkg/registry/core/service/{strategy.go, storage/alloc.go, storage/storage.go}.

mod allocate;
mod defaults;
mod families;
mod inherit;
mod status;
mod validate;

use minisvc_proto::Object;
use serde_json::{Map, Value};

use super::field::Field;

pub use self::{
    allocate::{allocate, already_taken, reservations},
    defaults::set_defaults,
    families::settle,
    inherit::inherit,
    status::{set_status_defaults, validate_status},
    validate::{is_port_name, validate},
};

const CLUSTER_IP: &str = "ClusterIP";
const EXTERNAL_NAME: &str = "ExternalName";
const LOAD_BALANCER: &str = "LoadBalancer";
const NODE_PORT: &str = "NodePort";
/// The `clusterIP` of a headless service.
const NONE: &str = "None";

fn spec<'a>(service: &'a Object, field: &str) -> Field<'a> {
    Field::of(service, "spec").child(field)
}

fn type_of(service: &Object) -> &str {
    match spec(service, "type").text() {
        "" => CLUSTER_IP,
        named => named,
    }
}

fn has_cluster_ip(service: &Object) -> bool {
    type_of(service) != EXTERNAL_NAME
}

fn has_node_ports(service: &Object) -> bool {
    matches!(type_of(service), NODE_PORT | LOAD_BALANCER)
}

/// Whether every node answers a load balancer's question for its own endpoints. [pkg/api/service, NeedsHealthCheck]
fn has_health_check(service: &Object) -> bool {
    type_of(service) == LOAD_BALANCER && spec(service, "externalTrafficPolicy").text() == "Local"
}

/// Whether somebody outside of the cluster can reach it. [pkg/api/service, ExternallyAccessible]
fn is_reachable_from_outside(service: &Object) -> bool {
    has_node_ports(service) || (type_of(service) == CLUSTER_IP && spec(service, "externalIPs").is_set())
}

fn is_headless(service: &Object) -> bool {
    has_cluster_ip(service) && spec(service, "clusterIP").text() == NONE
}

/// The texts of a list in the spec.
fn texts<'a>(service: &'a Object, field: &str) -> Vec<&'a str> {
    spec(service, field).items().map(|item| item.text()).collect()
}

fn port_number(value: Option<&Value>) -> Option<u16> {
    value.and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)
}

/// The service's ports, where there are any.
fn ports_mut(service: &mut Object) -> impl Iterator<Item = &mut Map<String, Value>> {
    let list = service.spec_mut().get_mut("ports").and_then(Value::as_array_mut);
    list.into_iter().flatten().filter_map(Value::as_object_mut)
}

/// The node ports that it names or holds.
fn node_ports(service: &Object) -> impl Iterator<Item = u16> {
    let ports: Vec<Option<u16>> =
        spec(service, "ports").items().map(|p| port_number(p.child("nodePort").value)).collect();
    ports.into_iter().flatten()
}

#[cfg(test)]
mod tests;
