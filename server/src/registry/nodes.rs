//! Node: each gets a part of the pod range of each family, and keeps it.

use std::collections::BTreeSet;

use ipnet::IpNet;
use minisvc_proto::{Cause, Object, selector::is_label_key};
use serde_json::{Value, json};

use super::{field::Field, is_unset};
use crate::alloc::{Full, PodRange};

/// What a taint may do to a pod.
pub const EFFECTS: [&str; 3] = ["NoExecute", "NoSchedule", "PreferNoSchedule"];
const PREFIX: &str = "/reserved/podcidrs/";

/// What a node may have a part of: the first family's range, and the second's where there is one.
#[derive(Clone, Copy, Debug)]
pub struct Pods<'r> {
    /// IPv4.
    pub first: &'r PodRange,
    /// IPv6.
    pub second: Option<&'r PodRange>,
}

impl Pods<'_> {
    fn of(&self, cidr: IpNet) -> Option<&PodRange> {
        if cidr.addr().is_ipv4() { Some(self.first) } else { self.second }
    }
}

/// The parts of the pod ranges that a node names: `spec.podCIDRs`, or `spec.podCIDR` alone.
/// [pkg/apis/core/v1/conversion.go, Convert_v1_NodeSpec_To_core_NodeSpec]
fn cidrs(node: &Object) -> Vec<String> {
    let list = node.pointer("/spec/podCIDRs").and_then(Value::as_array);
    let list: Vec<String> = list.into_iter().flatten().filter_map(|c| Some(c.as_str()?.to_owned())).collect();
    let first = node.str_at("/spec/podCIDR").filter(|c| !c.is_empty());
    if list.is_empty() { first.map(str::to_owned).into_iter().collect() } else { list }
}

/// A write that leaves ranges out keeps them.
pub fn inherit(old: &Object, new: &mut Object) {
    let kept = cidrs(old);
    let single = new.pointer("/spec/podCIDR");
    let agrees = is_unset(single) || single.and_then(Value::as_str) == kept.first().map(String::as_str);
    if agrees && kept.starts_with(&cidrs(new)) {
        set(new, &kept);
    }
}

/// Every fault of a node's own fields.
pub fn validate(old: Option<&Object>, new: &Object, ranges: Pods<'_>) -> Vec<Cause> {
    let mut faults = cidr_faults(new, ranges);
    let kept = old.map(cidrs).unwrap_or_default();
    if !cidrs(new).starts_with(&kept) {
        let why = format!("may not change once set (it is {})", kept.join(", "));
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

/// The parts of each family. [pkg/apis/core/validation/validation.go, ValidateNode]
fn cidr_faults(node: &Object, ranges: Pods<'_>) -> Vec<Cause> {
    let (wanted, mut faults) = (cidrs(node), Vec::new());
    let field = |i: usize| if i == 0 { "spec.podCIDR".to_owned() } else { format!("spec.podCIDRs[{i}]") };
    let single = node.str_at("/spec/podCIDR").filter(|c| !c.is_empty());
    if let (Some(single), Some(first)) =
        (single, wanted.first().filter(|first| Some(first.as_str()) != single))
    {
        let why = format!("must be the first of spec.podCIDRs, {first}");
        faults.push(Cause::invalid("spec.podCIDR", single, &why));
    }
    let mut families = BTreeSet::new();
    for (i, text) in wanted.iter().enumerate() {
        let cidr = text.parse::<IpNet>().ok();
        let range = cidr.map_or(Some(ranges.first), |cidr| ranges.of(cidr));
        let Some(range) = range else {
            faults.push(Cause::invalid(field(i), text.as_str(), "this cluster has no IPv6 pod range"));
            continue;
        };
        if !cidr.is_some_and(|cidr| range.is_part(cidr)) {
            let (len, net) = (range.part_len(), range.net());
            let why = format!("must be a /{len} of the cluster's pod range {net}, or left out");
            faults.push(Cause::invalid(field(i), text.as_str(), &why));
        } else if i == 0 && range.net().addr().is_ipv6() {
            faults.push(Cause::invalid(field(i), text.as_str(), "the first range of a node is of IPv4"));
        } else if !families.insert(range.net().addr().is_ipv4()) {
            let why = "may hold at most one range of each family";
            faults.push(Cause::invalid("spec.podCIDRs", wanted.join(","), why));
        }
    }
    faults
}

/// The ranges as keys of the store.
pub fn reservations(node: &Object) -> BTreeSet<String> {
    cidrs(node).into_iter().map(|cidr| format!("{PREFIX}{cidr}")).collect()
}

/// Gives a node the first free part of each range of which it names none.
pub fn allocate(node: &mut Object, ranges: Pods<'_>, taken: impl Fn(&str) -> bool) -> Result<(), Full> {
    let mut chosen = cidrs(node);
    for range in [Some(ranges.first), ranges.second].into_iter().flatten().skip(chosen.len()) {
        chosen.push(range.pick(|part| taken(&format!("{PREFIX}{part}")))?.to_string());
    }
    set(node, &chosen);
    Ok(())
}

/// Whether a node lacks its part of a range that the cluster has.
pub fn lacks(node: &Object, ranges: Pods<'_>) -> bool {
    cidrs(node).len() < 1 + usize::from(ranges.second.is_some())
}

/// A range of the node's that is no part of the cluster's, as it comes of other settings of the server.
pub fn stranger(node: &Object, ranges: Pods<'_>) -> Option<String> {
    let is_part = |text: &String| {
        text.parse::<IpNet>().is_ok_and(|cidr| ranges.of(cidr).is_some_and(|range| range.is_part(cidr)))
    };
    cidrs(node).into_iter().find(|cidr| !is_part(cidr))
}

fn set(node: &mut Object, cidrs: &[String]) {
    let Some(first) = cidrs.first() else { return };
    let spec = node.spec_mut();
    spec.insert("podCIDR".into(), first.as_str().into());
    spec.insert("podCIDRs".into(), json!(cidrs));
}

/// The fault of naming the range of another node.
pub fn already_taken(reservation: &str) -> Option<Cause> {
    let cidr = reservation.strip_prefix(PREFIX)?;
    let field = if cidr.contains(':') { "spec.podCIDRs[1]" } else { "spec.podCIDR" };
    Some(Cause::invalid(field, cidr, "is already the pod range of another node"))
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::NODES;

    use super::*;

    fn node(cidrs: &[&str]) -> Object {
        let mut node = Object::new(&NODES, None, "n1");
        match cidrs {
            [] => {}
            [one] => drop(node.spec_mut().insert("podCIDR".into(), (*one).into())),
            all => drop(node.spec_mut().insert("podCIDRs".into(), json!(all))),
        }
        node
    }

    fn range(net: &str) -> PodRange {
        PodRange::new(net.parse::<IpNet>().unwrap()).unwrap()
    }

    fn judge(old: Option<&[&str]>, new: &[&str], ranges: Pods<'_>) -> String {
        let old = old.map(node);
        let mut new = node(new);
        if let Some(old) = &old {
            inherit(old, &mut new);
        }
        let faults = validate(old.as_ref(), &new, ranges);
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn the_ranges_are_of_the_cluster_and_stay() {
        let (first, second) = (range("10.244.0.0/16"), range("fd00:1::/48"));
        let (single, dual) =
            (Pods { first: &first, second: None }, Pods { first: &first, second: Some(&second) });
        let (a, b) = ("10.244.7.0/24", "10.244.8.0/24");
        let (a6, b6) = ("fd00:1:0:7::/64", "fd00:1:0:8::/64");
        let old = |cidrs| Some(cidrs);
        for (ranges, old, new, expected) in [
            (single, None, &[][..], ""),
            (single, None, &[a], ""),
            (
                single,
                None,
                &["10.0.0.0/24"],
                "spec.podCIDR: Invalid value: \"10.0.0.0/24\": must be a /24 of",
            ),
            (single, None, &["rubbish"], "spec.podCIDR: Invalid value: \"rubbish\": must be a /24 of"),
            (
                single,
                None,
                &[a, a6],
                "spec.podCIDRs[1]: Invalid value: \"fd00:1:0:7::/64\": this cluster has no IPv6",
            ),
            (
                single,
                old(&[a][..]),
                &[b],
                "spec.podCIDR: Forbidden: may not change once set (it is 10.244.7.0/24)",
            ),
            (dual, None, &[a, a6], ""),
            (dual, None, &[a], ""),
            (
                dual,
                None,
                &[a, "fd00:1::/48"],
                "spec.podCIDRs[1]: Invalid value: \"fd00:1::/48\": must be a /64 of",
            ),
            (dual, None, &[a6], "spec.podCIDR: Invalid value: \"fd00:1:0:7::/64\": the first range"),
            (
                dual,
                None,
                &[a, b],
                "spec.podCIDRs: Invalid value: \"10.244.7.0/24,10.244.8.0/24\": may hold at most one",
            ),
            (dual, old(&[a]), &[a, a6], ""),
            (dual, old(&[a, a6]), &[a], ""),
            (dual, old(&[a, a6]), &[], ""),
            (dual, old(&[a, a6]), &[a, b6], "spec.podCIDR: Forbidden: may not change once set"),
        ] {
            let text = judge(old, new, ranges);
            assert!(text.starts_with(expected) && text.is_empty() == expected.is_empty(), "{new:?}: {text}");
        }
        let mut again = node(&[]);
        inherit(&node(&[a, a6]), &mut again);
        assert_eq!(cidrs(&again), [a, a6]);
        let mut unequal = node(&[a, a6]);
        unequal.spec_mut().insert("podCIDR".into(), b.into());
        let faults = validate(None, &unequal, dual);
        assert!(faults[0].to_string().contains("must be the first of spec.podCIDRs"), "{faults:?}");
    }

    #[test]
    fn the_first_free_part_of_each_range_is_given() {
        let (first, second) = (range("10.244.0.0/16"), range("fd00:1::/48"));
        let taken = ["/reserved/podcidrs/10.244.0.0/24", "/reserved/podcidrs/fd00:1::/64"];
        let mut n = node(&[]);
        allocate(&mut n, Pods { first: &first, second: None }, |r| taken.contains(&r)).unwrap();
        assert_eq!(n.pointer("/spec/podCIDRs"), Some(&json!(["10.244.1.0/24"])));
        assert_eq!(reservations(&n), BTreeSet::from(["/reserved/podcidrs/10.244.1.0/24".to_owned()]));
        // A cluster that gets its second family later on.
        let dual = Pods { first: &first, second: Some(&second) };
        assert!(lacks(&n, dual) && stranger(&n, dual).is_none());
        allocate(&mut n, dual, |r| taken.contains(&r)).unwrap();
        assert_eq!(n.pointer("/spec/podCIDRs"), Some(&json!(["10.244.1.0/24", "fd00:1:0:1::/64"])));
        assert_eq!(reservations(&n).len(), 2);
        assert!(!lacks(&n, dual) && stranger(&n, dual).is_none());
        // And loses it again.
        assert_eq!(stranger(&n, Pods { first: &first, second: None }).as_deref(), Some("fd00:1:0:1::/64"));
        assert_eq!(already_taken("/reserved/podcidrs/fd00:1::/64").unwrap().field, "spec.podCIDRs[1]");
    }
}
