//! What a load balancer says of itself. [validation.go, ValidateLoadBalancerStatus]

use minisvc_proto::{Cause, Object, names::check_dns_subdomain};
use serde_json::Value;

use super::{LOAD_BALANCER, families::ip_address, type_of, validate::own_range};
use crate::registry::{Ranges, field::Field};

const MODES: [&str; 2] = ["Proxy", "VIP"];

/// An address without a mode is one that arrives as it was sent.
pub fn set_status_defaults(service: &mut Object) {
    let ingress = service.0.get_mut("status").and_then(|s| s.pointer_mut("/loadBalancer/ingress"));
    for one in ingress.and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut) {
        let absent = |field: &str| one.get(field).is_none_or(|v| v.is_null() || v.as_str() == Some(""));
        if !absent("ip") && absent("ipMode") {
            one.insert("ipMode".into(), "VIP".into());
        }
    }
}

/// Every fault of a service's status.
pub fn validate_status(service: &Object, ranges: &Ranges) -> Vec<Cause> {
    let ingress = Field::of(service, "status").child("loadBalancer").child("ingress");
    if type_of(service) != LOAD_BALANCER {
        let why = "may only be used when `spec.type` is 'LoadBalancer'";
        return ingress.is_set().then(|| ingress.forbidden(why)).into_iter().collect();
    }
    let mut faults = Vec::new();
    for one in ingress.items() {
        let (ip, host, mode) = (one.child("ip"), one.child("hostname"), one.child("ipMode"));
        if ip.is_set() {
            match ip_address(ip.text()) {
                Err(rule) => faults.push(ip.invalid(rule)),
                Ok(address) => faults.extend(own_range(address, ranges).map(|rule| ip.invalid(&rule))),
            }
            faults.extend(mode.one_of(&MODES));
        } else if mode.is_set() {
            faults.push(mode.forbidden("may not be specified when `ip` is not set"));
        }
        if host.is_set() {
            if ip_address(host.text()).is_ok() {
                faults.push(host.invalid("must be a DNS name, not an IP address"));
            } else if let Err(rule) = check_dns_subdomain(host.text()) {
                faults.push(host.invalid(rule.0));
            }
        }
    }
    faults
}
