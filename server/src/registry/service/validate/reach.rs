//! Who reaches the service, and which endpoints they reach: policies, and what belongs to a load balancer.

use ipnet::IpNet;
use minisvc_proto::{Cause, Object, selector::is_label_key};

use super::ports::not_in_range;
use crate::registry::{
    Ranges,
    field::Field,
    service::{
        LOAD_BALANCER, has_health_check, is_reachable_from_outside, node_ports, port_number, spec, type_of,
    },
};

/// The annotation from before there was a field.
const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";
const ONLY_LOAD_BALANCERS: &str = "may only be used when `type` is 'LoadBalancer'";
const POLICIES: [&str; 2] = ["Cluster", "Local"];
const DISTRIBUTIONS: [&str; 3] = ["PreferClose", "PreferSameNode", "PreferSameZone"];

pub fn faults(old: Option<&Object>, new: &Object, ranges: &Ranges, faults: &mut Vec<Cause>) {
    let external = spec(new, "externalTrafficPolicy");
    if is_reachable_from_outside(new) {
        faults.extend(external.one_of(&POLICIES));
    } else if external.value.is_some() {
        faults.push(external.invalid("may only be set for externally-accessible services"));
    }
    faults.extend(spec(new, "internalTrafficPolicy").one_of(&POLICIES));
    faults.extend(spec(new, "trafficDistribution").one_of(&DISTRIBUTIONS));
    health_check(old, new, ranges, faults);
    load_balancer(old, new, faults);
}

fn health_check(old: Option<&Object>, new: &Object, ranges: &Ranges, faults: &mut Vec<Cause>) {
    let port = spec(new, "healthCheckNodePort");
    if !port.is_set() {
        return;
    }
    if !has_health_check(new) {
        faults.push(
            port.invalid(
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            ),
        );
        return;
    }
    let before = old.filter(|old| has_health_check(old)).map(|old| spec(old, "healthCheckNodePort"));
    if let Some(before) = before.filter(Field::is_set) {
        if before.value != port.value {
            faults.push(port.forbidden("field is immutable"));
        }
        return;
    }
    match port_number(port.value).filter(|n| ranges.node_ports.contains(*n)) {
        None => faults.push(port.invalid(&not_in_range(ranges))),
        Some(n) if node_ports(new).any(|own| own == n) => {
            faults.push(port.invalid("provided port is already allocated"));
        }
        Some(_) => {}
    }
}

fn load_balancer(old: Option<&Object>, new: &Object, faults: &mut Vec<Cause>) {
    let is_one = |service: &Object| type_of(service) == LOAD_BALANCER;
    // The path is the field's; Kubernetes says `spec.LoadBalancerSourceRanges`, which nobody finds in a manifest.
    let sources = spec(new, "loadBalancerSourceRanges");
    if sources.is_set() && !is_one(new) {
        faults.push(sources.forbidden(ONLY_LOAD_BALANCERS));
    }
    for source in sources.items() {
        if source.text().parse::<IpNet>().is_err() {
            faults.push(source.invalid("must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"));
        }
    }
    // Taken and not obeyed, it would leave open what somebody meant to close.
    if new.annotations().contains_key(SOURCE_RANGES_ANNOTATION) {
        let path = format!("metadata.annotations[{SOURCE_RANGES_ANNOTATION}]");
        faults.push(Cause::forbidden(path, "not supported, use spec.loadBalancerSourceRanges"));
    }
    let give = spec(new, "allocateLoadBalancerNodePorts");
    if give.value.is_some() && !is_one(new) {
        faults.push(give.forbidden(ONLY_LOAD_BALANCERS));
    }
    let class = spec(new, "loadBalancerClass");
    if is_one(new) {
        if let Some(before) = old.filter(|old| is_one(old)).map(|old| spec(old, "loadBalancerClass"))
            && before.value != class.value
        {
            faults.push(class.invalid("may not change once set"));
        }
        if class.value.is_some() && !is_label_key(class.text()) {
            faults.push(class.invalid("must be a name such as example.com/internal-vip"));
        }
    } else if class.value.is_some() {
        faults.push(class.forbidden(ONLY_LOAD_BALANCERS));
    }
}
