//! Nodes.

use jiff::Timestamp;
use minisvc_proto::Object;
use serde_json::Value;

use super::{Page, Related, age, labels, scalar, time};

pub fn describe(page: &mut Page, node: &Object, related: &Related, now: Timestamp) {
    labels(page, node);
    page.field("CreationTimestamp", &time(node.pointer("/metadata/creationTimestamp")));
    let unschedulable = node.pointer("/spec/unschedulable") == Some(&Value::Bool(true));
    page.field("Unschedulable", if unschedulable { "true" } else { "false" });
    let list = |at: &str| node.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
    let rows: Vec<Vec<String>> = list("/status/conditions")
        .iter()
        .map(|c| {
            let text = |field: &str| c[field].as_str().unwrap_or_default().to_owned();
            vec![
                text("type"),
                text("status"),
                time(c.get("lastTransitionTime")),
                text("reason"),
                text("message"),
            ]
        })
        .collect();
    page.heading("Conditions");
    page.underlined_table(2, &["Type", "Status", "LastTransitionTime", "Reason", "Message"], &rows);
    page.heading("Addresses");
    for address in list("/status/addresses") {
        page.indented_field(2, address["type"].as_str().unwrap_or("?"), &scalar(address.get("address")));
    }
    for (title, at) in [
        ("Capacity", "/status/capacity"),
        ("Allocatable", "/status/allocatable"),
        ("System Info", "/status/nodeInfo"),
    ] {
        let Some(map) = node.pointer(at).and_then(Value::as_object).filter(|m| !m.is_empty()) else {
            continue;
        };
        page.heading(title);
        for (key, value) in map.iter().filter(|(_, v)| v.as_str().is_none_or(|s| !s.is_empty())) {
            page.indented_field(2, key, &scalar(Some(value)));
        }
    }
    page.line(0, &format!("PodCIDR:  {}", scalar(node.pointer("/spec/podCIDR"))));
    let all = list("/spec/podCIDRs");
    if all.len() > 1 {
        let all: Vec<&str> = all.iter().filter_map(Value::as_str).collect();
        page.line(0, &format!("PodCIDRs:  {}", all.join(",")));
    }
    peers(page, node);
    let ended = |p: &&Object| matches!(p.str_at("/status/phase"), Some("Succeeded" | "Failed"));
    let pods: Vec<&Object> = related.pods.iter().filter(|p| !ended(p)).collect();
    page.line(0, &format!("Non-terminated Pods:  ({} in total)", pods.len()));
    let rows: Vec<Vec<String>> = pods
        .iter()
        .map(|p| {
            let phase = if p.deletion_timestamp().is_some() {
                "Terminating"
            } else {
                p.str_at("/status/phase").unwrap_or("Pending")
            };
            vec![
                p.namespace().unwrap_or_default().to_owned(),
                p.name().to_owned(),
                phase.to_owned(),
                scalar(p.pointer("/status/podIP")),
                age(p.pointer("/metadata/creationTimestamp"), now),
            ]
        })
        .collect();
    if !rows.is_empty() {
        page.underlined_table(2, &["Namespace", "Name", "Status", "IP", "Age"], &rows);
    }
}

/// Which way leads from this node to each of the others, and what pods there see of clients outside that call this node. Of many
/// nodes the agent tells some names, and how many there are.
fn peers(page: &mut Page, node: &Object) {
    let names = |at: &str| -> Vec<&str> {
        let names = node.pointer(at).and_then(Value::as_array);
        names.into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let [kept, hidden] = ["kept", "masqueraded"].map(|how| names(&format!("/status/externalSources/{how}")));
    let seen = |name: &str| match name {
        name if kept.contains(&name) => "their own address",
        name if hidden.contains(&name) => "this node (masqueraded)",
        _ => "<unknown>",
    };
    let told = |way: &str, what: &str| {
        let names = names(&format!("/status/peers/{way}"));
        let counted = node.pointer(&format!("/status/peers/counts/{way}")).and_then(Value::as_u64);
        let unnamed = counted.unwrap_or(0).saturating_sub(names.len() as u64);
        let row = |name: &str, seen: &str| vec![name.to_owned(), what.to_owned(), seen.to_owned()];
        let mut rows: Vec<Vec<String>> = names.iter().map(|name| row(name, seen(name))).collect();
        if unnamed > 0 {
            rows.push(row(&format!("and {unnamed} more"), ""));
        }
        rows
    };
    let rows = [
        told("direct", "direct, on the same network"),
        told("vxlan", "VXLAN, across a router (not encrypted)"),
        told("unreachable", "none: this node has no VXLAN, its agent's log says why"),
    ]
    .concat();
    if !rows.is_empty() {
        page.heading("Peers");
        page.underlined_table(2, &["Node", "Way to its pods", "Clients outside are seen as"], &rows);
    }
}
