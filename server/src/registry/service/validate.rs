//! Every fault of a service. [pkg/apis/core/validation/validation.go, ValidateService and ValidateServiceUpdate]

mod addresses;
mod ports;
mod reach;

use minisvc_proto::{Cause, Object};

use super::{
    CLUSTER_IP, EXTERNAL_NAME, LOAD_BALANCER, NODE_PORT, families, has_cluster_ip, is_headless, spec,
};
use crate::registry::{Ranges, field::Field, meta};

pub(super) use self::addresses::own_range;
pub use self::ports::is_port_name;

/// Every fault of a service that has its defaults, each with its field.
pub fn validate(old: Option<&Object>, new: &Object, ranges: &Ranges) -> Vec<Cause> {
    if Field::of(new, "spec").value.is_none() {
        return vec![Cause::required("spec", "")];
    }
    let mut faults = Vec::new();
    faults.extend(spec(new, "type").one_of(&[CLUSTER_IP, EXTERNAL_NAME, LOAD_BALANCER, NODE_PORT]));
    if !spec(new, "ports").is_set() && !is_headless(new) && has_cluster_ip(new) {
        faults.push(spec(new, "ports").required(""));
    }
    ports::faults(old, new, ranges, &mut faults);
    meta::labels(&spec(new, "selector"), &mut faults);
    affinity(new, &mut faults);
    faults.extend(families::faults(old, new, ranges));
    addresses::faults(old, new, ranges, &mut faults);
    reach::faults(old, new, ranges, &mut faults);
    faults
}

fn affinity(new: &Object, faults: &mut Vec<Cause>) {
    let affinity = spec(new, "sessionAffinity");
    faults.extend(affinity.one_of(&["ClientIP", "None"]));
    if affinity.text() == "ClientIP" {
        let seconds = spec(new, "sessionAffinityConfig").child("clientIP").child("timeoutSeconds");
        if !seconds.number().is_some_and(|s| (1..=86400).contains(&s)) {
            faults.push(seconds.invalid("must be greater than 0 and less than 86400"));
        }
    }
}
