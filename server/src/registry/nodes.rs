//! Node: each gets a part of the pod range, and keeps it.

use std::collections::BTreeSet;

use ipnet::Ipv4Net;
use minisvc_proto::{Cause, Object, selector::is_label_key};
use serde_json::json;

use super::{field::Field, is_unset};
use crate::alloc::{Full, PodRange};

/// What a taint may do to a pod.
pub const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
const PREFIX: &str = "/reserved/podcidrs/";

fn cidr(node: &Object) -> &str {
    node.str_at("/spec/podCIDR").unwrap_or("")
}

/// A write that leaves the range out keeps it.
pub fn inherit(old: &Object, new: &mut Object) {
    if !cidr(old).is_empty() && is_unset(new.pointer("/spec/podCIDR")) {
        let kept = cidr(old).to_owned();
        set(new, &kept);
    }
}

/// Every fault of a node's own fields.
pub fn validate(old: Option<&Object>, new: &Object, range: &PodRange) -> Vec<Cause> {
    let mut faults = Vec::new();
    let wanted = cidr(new);
    if !wanted.is_empty() && !wanted.parse::<Ipv4Net>().is_ok_and(|c| range.is_part(c)) {
        let why = format!("must be a /24 of the cluster's pod range {}, or left out", range.net());
        faults.push(Cause::invalid("spec.podCIDR", wanted, &why));
    }
    if let Some(old) = old.map(cidr).filter(|c| !c.is_empty() && *c != wanted) {
        let why = format!("may not change once set (it is {old})");
        faults.push(Cause::forbidden("spec.podCIDR", &why));
    }
    let mut seen = BTreeSet::new();
    for taint in Field::of(new, "spec").child("taints").items() {
        let (key, effect) = (taint.child("key"), taint.child("effect"));
        if !is_label_key(key.text()) {
            faults.push(key.invalid("must be the key of a label, such as example.com/dedicated"));
        }
        if effect.is_set() {
            faults.extend(effect.one_of(&EFFECTS));
        } else {
            faults.push(effect.required(""));
        }
        if !seen.insert((key.text(), effect.text())) {
            faults.push(Cause::duplicate(&taint.path, taint.value.cloned().unwrap_or_default()));
        }
    }
    faults
}

/// The range as a key of the store.
pub fn reservations(node: &Object) -> BTreeSet<String> {
    Some(cidr(node)).filter(|c| !c.is_empty()).map(|c| format!("{PREFIX}{c}")).into_iter().collect()
}

/// Gives a node that names no range the first free one.
pub fn allocate(node: &mut Object, range: &PodRange, taken: impl Fn(&str) -> bool) -> Result<(), Full> {
    let mut chosen = cidr(node).to_owned();
    if chosen.is_empty() {
        chosen = range.pick(|part| taken(&format!("{PREFIX}{part}")))?.to_string();
    }
    set(node, &chosen);
    Ok(())
}

fn set(node: &mut Object, cidr: &str) {
    let spec = node.spec_mut();
    spec.insert("podCIDR".into(), cidr.into());
    spec.insert("podCIDRs".into(), json!([cidr]));
}

/// The fault of naming the range of another node.
pub fn already_taken(reservation: &str) -> Option<Cause> {
    let cidr = reservation.strip_prefix(PREFIX)?;
    Some(Cause::invalid("spec.podCIDR", cidr, "is already the pod range of another node"))
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::NODES;

    use super::*;

    fn node(cidr: &str) -> Object {
        let mut node = Object::new(&NODES, None, "n1");
        if !cidr.is_empty() {
            node.spec_mut().insert("podCIDR".into(), cidr.into());
        }
        node
    }

    #[test]
    fn the_range_is_of_the_cluster_and_stays() {
        let range = PodRange::new("10.244.0.0/16".parse().unwrap()).unwrap();
        for (old, new, expected) in [
            (None, "", None),
            (None, "10.244.7.0/24", None),
            (None, "10.0.0.0/24", Some("spec.podCIDR: Invalid value: \"10.0.0.0/24\": must be a /24 of")),
            (None, "rubbish", Some("spec.podCIDR: Invalid value: \"rubbish\": must be a /24 of")),
            (
                Some("10.244.7.0/24"),
                "10.244.8.0/24",
                Some("spec.podCIDR: Forbidden: may not change once set"),
            ),
        ] {
            let faults = validate(old.map(node).as_ref(), &node(new), &range);
            let text = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            assert!(expected.map_or(text.is_empty(), |e| text.starts_with(e)), "{new}: {text}");
        }
        let mut again = node("");
        inherit(&node("10.244.7.0/24"), &mut again);
        assert_eq!(cidr(&again), "10.244.7.0/24");
    }

    #[test]
    fn the_first_free_range_is_given() {
        let range = PodRange::new("10.244.0.0/16".parse().unwrap()).unwrap();
        let mut n = node("");
        allocate(&mut n, &range, |r| r == "/reserved/podcidrs/10.244.0.0/24").unwrap();
        assert_eq!(n.pointer("/spec/podCIDRs"), Some(&json!(["10.244.1.0/24"])));
        assert_eq!(reservations(&n), BTreeSet::from(["/reserved/podcidrs/10.244.1.0/24".to_owned()]));
    }
}
