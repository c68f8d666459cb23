//! What a node may write into the objects that it may write. Pure: what is there comes in.

use std::net::IpAddr;

use ipnet::IpNet;
use minisvc_proto::{ApiError, Cause, Object, Resource, resource::EVENTS};
use serde_json::Value;

/// What is known when a node writes.
pub struct Facts<'a> {
    /// Which node.
    pub me: &'a str,
    /// The addresses that other nodes have who are heard: address and node.
    pub taken: &'a [(IpAddr, String)],
    /// The ranges of its pods, one a family.
    pub pods: Vec<IpNet>,
    /// Ranges that belong to no machine: those of pods and of services.
    pub ranges: Vec<IpNet>,
}

/// The IP addresses that a node says it has.
pub fn addresses(node: &Object) -> impl Iterator<Item = (usize, IpAddr)> {
    let all = node.pointer("/status/addresses").and_then(Value::as_array);
    all.into_iter().flatten().enumerate().filter_map(|(i, a)| Some((i, a["address"].as_str()?.parse().ok()?)))
}

/// The ranges that its pods' addresses are from.
pub fn pod_ranges(node: &Object) -> Vec<IpNet> {
    let all = node.pointer("/spec/podCIDRs").and_then(Value::as_array);
    all.into_iter().flatten().filter_map(|cidr| cidr.as_str()?.parse().ok()).collect()
}

/// 403 or 422 if a node may not make `new` of `old` (`None`: of nothing).
pub fn check(
    facts: &Facts<'_>,
    resource: &Resource,
    old: Option<&Object>,
    new: &Object,
) -> Result<(), ApiError> {
    match resource.kind {
        "Event" => event(facts.me, old, new),
        "Pod" => faulty(resource, new, pod_addresses(facts, old, new)),
        "Node" => {
            let mut faults = node_addresses(facts, old, new);
            if old.is_none() {
                faults.extend(new_node(new));
            }
            faulty(resource, new, faults)
        }
        _ => Ok(()),
    }
}

fn faulty(resource: &Resource, new: &Object, faults: Vec<Cause>) -> Result<(), ApiError> {
    if faults.is_empty() { Ok(()) } else { Err(ApiError::invalid(resource, new.name(), faults)) }
}

/// A pod's addresses are where services lead to: those of the node's own range, not of somebody else's pods or machines.
fn pod_addresses(facts: &Facts<'_>, old: Option<&Object>, new: &Object) -> Vec<Cause> {
    let all = |pod: &Object| -> Vec<(String, String)> {
        let one = pod.str_at("/status/podIP").map(|ip| ("status.podIP".to_owned(), ip.to_owned()));
        let list = pod.pointer("/status/podIPs").and_then(Value::as_array);
        let list = list.into_iter().flatten().enumerate().filter_map(|(i, entry)| {
            Some((format!("status.podIPs[{i}].ip"), entry["ip"].as_str()?.to_owned()))
        });
        one.into_iter().chain(list).filter(|(_, ip)| !ip.is_empty()).collect()
    };
    let had = old.map(all).unwrap_or_default();
    let is_own = |ip: &str| ip.parse().is_ok_and(|ip: IpAddr| facts.pods.iter().any(|r| r.contains(&ip)));
    let ranges: Vec<String> = facts.pods.iter().map(ToString::to_string).collect();
    let rule = if ranges.is_empty() {
        format!("node {} has no range of pods yet", facts.me)
    } else {
        format!("is not in {}, the range of the pods of node {}", ranges.join(" or "), facts.me)
    };
    let new = all(new).into_iter().filter(|entry| !had.contains(entry) && !is_own(&entry.1));
    new.map(|(field, ip)| Cause::invalid(field, ip, &rule)).collect()
}

/// A node tells what it saw itself, and changes what it told itself.
fn event(me: &str, old: Option<&Object>, new: &Object) -> Result<(), ApiError> {
    let is_mine = |event: &Object| event.str_at("/source/host") == Some(me);
    if is_mine(new) && old.is_none_or(is_mine) {
        return Ok(());
    }
    let why = format!("node {me} may write events that name it as their source.host, and no others");
    Err(ApiError::forbidden(&EVENTS, new.name(), &why))
}

/// Its pods' range, its taints and whether it takes pods is for the server and administrators to say.
fn new_node(new: &Object) -> Option<Cause> {
    let spec = new.0.get("spec").and_then(Value::as_object)?;
    let field = spec.iter().find(|(_, value)| !value.is_null())?.0;
    Some(Cause::forbidden(format!("spec.{field}"), "a node may not say this of itself"))
}

/// Other nodes send to a node's address, and take packets from it.
fn node_addresses(facts: &Facts<'_>, old: Option<&Object>, new: &Object) -> Vec<Cause> {
    let had: Vec<IpAddr> = old.into_iter().flat_map(addresses).map(|(_, ip)| ip).collect();
    let fault = |(i, ip): (usize, IpAddr)| {
        let field = format!("status.addresses[{i}].address");
        if let Some((_, node)) = facts.taken.iter().find(|(taken, _)| *taken == ip) {
            let why = format!("is already the address of node {node}, which is there");
            return Some(Cause::invalid(field, ip.to_string(), &why));
        }
        let in_range = |range: &IpNet| range.contains(&ip);
        if ip.is_unspecified() || ip.is_multicast() || facts.ranges.iter().any(in_range) {
            return Some(Cause::invalid(field, ip.to_string(), "is no address that a machine can have here"));
        }
        None
    };
    // What stands already is not judged anew: an administrator may have put it there.
    addresses(new).filter(|(_, ip)| !had.contains(ip)).filter_map(fault).collect()
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::{NODES, PODS};
    use serde_json::json;

    use super::*;

    fn judge(old: Option<&Object>, new: &Object) -> String {
        let facts = Facts {
            me: "n1",
            taken: &[("10.0.0.2".parse().unwrap(), "n2".to_owned())],
            pods: ["10.244.1.0/24", "fd00:1:0:1::/64"].map(|r| r.parse().unwrap()).to_vec(),
            ranges: ["10.244.0.0/16", "10.96.0.0/16", "fd00:1::/48"].map(|r| r.parse().unwrap()).to_vec(),
        };
        let resource = new.resource().unwrap();
        check(&facts, resource, old, new)
            .map_or_else(|e| format!("{}: {}", e.code, e.message), |()| String::new())
    }

    #[test]
    fn a_node_tells_events_of_its_own_alone() {
        let event = |host: Value| {
            let mut event = Object::new(&EVENTS, Some("a"), "e");
            event.0.insert("source".into(), json!({"component": "minisvc-agent", "host": host}));
            event
        };
        let (mine, other, nobodys) = (event(json!("n1")), event(json!("n2")), event(Value::Null));
        for (old, new, may) in [
            (None, &mine, true),
            (None, &other, false),
            (None, &nobodys, false),
            (Some(&mine), &mine, true),
            (Some(&mine), &other, false),
            (Some(&other), &mine, false),
            (Some(&nobodys), &mine, false),
        ] {
            let said = judge(old, new);
            assert_eq!(said.is_empty(), may, "{said}");
            assert!(may || said.starts_with("403: events \"e\" is forbidden: node n1 may write"), "{said}");
        }
    }

    #[test]
    fn a_nodes_pods_have_addresses_of_its_own_range() {
        let pod = |status: Value| {
            let mut pod = Object::new(&PODS, Some("a"), "p");
            pod.0.insert("status".into(), status);
            pod
        };
        let list = |ip: &str| json!({"podIP": "10.244.1.2", "podIPs": [{"ip": "10.244.1.2"}, {"ip": ip}]});
        for (status, fault) in [
            (json!({"phase": "Running"}), ""),
            (json!({"podIP": "10.244.1.2", "podIPs": [{"ip": "10.244.1.2"}]}), ""),
            (
                json!({"podIP": "10.244.2.2"}),
                "status.podIP: Invalid value: \"10.244.2.2\": is not in 10.244.1.0/24",
            ),
            (json!({"podIP": "10.0.0.1"}), "status.podIP: Invalid value"),
            (json!({"podIP": "fd00::1"}), "status.podIP: Invalid value"),
            (json!({"podIP": "somewhere"}), "status.podIP: Invalid value"),
            (list("127.0.0.1"), "status.podIPs[1].ip: Invalid value"),
            (list("fd00:1:0:1::2"), ""),
            (
                list("fd00:1:0:2::2"),
                "is not in 10.244.1.0/24 or fd00:1:0:1::/64, the range of the pods of node n1",
            ),
        ] {
            let said = judge(Some(&pod(json!({}))), &pod(status.clone()));
            assert!(said.contains(fault) && said.is_empty() == fault.is_empty(), "{status}: {said}");
            // What stands already may stay.
            assert_eq!(judge(Some(&pod(status.clone())), &pod(status)), "");
        }
    }

    #[test]
    fn a_new_node_says_nothing_of_its_range_or_taints() {
        let mut node = Object::new(&NODES, None, "n1");
        assert_eq!(judge(None, &node), "");
        node.spec_mut();
        assert_eq!(judge(None, &node), "");
        for (field, value) in
            [("podCIDR", json!("10.244.7.0/24")), ("taints", json!([])), ("unschedulable", json!(false))]
        {
            let mut node = node.clone();
            node.spec_mut().insert(field.into(), value);
            let said = judge(None, &node);
            assert!(said.starts_with("422") && said.contains(&format!("spec.{field}: Forbidden")), "{said}");
            // The status alone is written later on.
            assert_eq!(judge(Some(&node), &node), "");
        }
    }

    #[test]
    fn a_node_claims_no_address_of_another_one_nor_of_pods_and_services() {
        let node = |ips: &[&str]| {
            let mut node = Object::new(&NODES, None, "n1");
            let all: Vec<Value> = ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
            node.status_mut().insert("addresses".into(), all.into());
            node
        };
        let old = node(&["10.0.0.1"]);
        for (ips, fault) in [
            (vec!["10.0.0.1"], ""),
            (vec!["10.0.0.9", "n1"], ""),
            (
                vec!["10.0.0.1", "10.0.0.2"],
                "status.addresses[1].address: Invalid value: \"10.0.0.2\": is already the address of node n2",
            ),
            (vec!["0.0.0.0"], "is no address that a machine can have"),
            (vec!["224.0.0.1"], "is no address that a machine can have"),
            (vec!["10.244.3.4"], "is no address that a machine can have"),
            (vec!["10.96.0.1"], "is no address that a machine can have"),
            (vec!["10.0.0.9", "fd00:2::9"], ""),
            (
                vec!["10.0.0.9", "fd00:1:0:7::9"],
                "status.addresses[1].address: Invalid value: \"fd00:1:0:7::9\": is no address",
            ),
        ] {
            let said = judge(Some(&old), &node(&ips));
            assert!(said.contains(fault) && said.is_empty() == fault.is_empty(), "{ips:?}: {said}");
        }
        let both = node(&["10.0.0.1", "10.0.0.2"]);
        assert_eq!(judge(Some(&both), &both), "");
    }
}
