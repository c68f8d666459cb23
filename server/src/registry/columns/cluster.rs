//! Namespaces, nodes, how nodes join, and events.

use jiff::Timestamp;
use minisvc_proto::Object;
use serde_json::Value;

use super::{NONE, Printer, age, condition, items, number_at, or_none, text_at};
use crate::{conditions::MOST_SILENT, registry::join_token};

pub const NAMESPACE: Printer = Printer {
    columns: &[("Name", "string", 0), ("Status", "string", 0), ("Age", "string", 0)],
    cells: |o, now| {
        vec![o.name().into(), o.str_at("/status/phase").unwrap_or("Active").into(), age::of(o, now).into()]
    },
};

pub const NODE: Printer = Printer {
    columns: &[
        ("Name", "string", 0),
        ("Status", "string", 0),
        ("Roles", "string", 0),
        ("Age", "string", 0),
        ("Version", "string", 0),
        ("Internal-IP", "string", 1),
        ("External-IP", "string", 1),
        ("OS-Image", "string", 1),
        ("Kernel-Version", "string", 1),
        ("Container-Runtime", "string", 1),
        ("Peers", "string", 1),
        ("External-Source", "string", 1),
    ],
    cells: node,
};

/// How a node reaches the others, or what their pods see of its clients, as its agent says: so many of each kind.
fn counts(node: &Object, field: &str, kinds: &[&str]) -> Value {
    let count = |kind: &str| {
        // Not all names are told of many.
        let counted = node.pointer(&format!("/status/{field}/counts/{kind}")).and_then(Value::as_u64);
        counted.unwrap_or_else(|| items(node, &format!("/status/{field}/{kind}")).count() as u64)
    };
    let told = kinds.iter().map(|kind| (kind, count(kind))).filter(|(_, n)| *n > 0);
    or_none(told.map(|(kind, n)| format!("{n} {kind}")).collect::<Vec<_>>().join(", "))
}

fn node(o: &Object, now: Timestamp) -> Vec<Value> {
    let mut status = match condition(o, "Ready") {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    let ready = items(o, "/status/conditions").find(|c| c["type"] == "Ready");
    if ready.is_some_and(|c| c["reason"] == MOST_SILENT) {
        // Its pods stay where they are: `describe` says why.
        status.push(',');
        status.push_str(MOST_SILENT);
    }
    if o.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    let roles: Vec<String> = o
        .labels()
        .into_iter()
        .filter_map(|(k, v)| match k.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role.to_owned()),
            None => (k == "kubernetes.io/role").then_some(v),
        })
        .filter(|role| !role.is_empty())
        .collect();
    let address = |kind: &str| {
        let found = items(o, "/status/addresses").find(|a| a["type"] == kind);
        Value::from(found.and_then(|a| a["address"].as_str()).unwrap_or(NONE))
    };
    let unknown =
        |pointer: &str| Value::from(o.str_at(pointer).filter(|s| !s.is_empty()).unwrap_or("<unknown>"));
    vec![
        o.name().into(),
        status.into(),
        or_none(roles.join(",")),
        age::of(o, now).into(),
        o.str_at("/status/nodeInfo/kubeletVersion").unwrap_or("").into(),
        address("InternalIP"),
        address("ExternalIP"),
        unknown("/status/nodeInfo/osImage"),
        unknown("/status/nodeInfo/kernelVersion"),
        unknown("/status/nodeInfo/containerRuntimeVersion"),
        counts(o, "peers", &["direct", "vxlan", "unreachable"]),
        counts(o, "externalSources", &["kept", "masqueraded"]),
    ]
}

pub const JOIN_TOKEN: Printer = Printer {
    columns: &[
        ("ID", "string", 0),
        ("Uses", "string", 0),
        ("Expires", "string", 0),
        ("Age", "string", 0),
        ("Description", "string", 0),
    ],
    cells: |o, now| {
        let uses = join_token::uses(o);
        let uses = join_token::limit(o).map_or_else(|| uses.to_string(), |limit| format!("{uses}/{limit}"));
        let expires = match join_token::end(o) {
            None => "never".to_owned(),
            Some(_) if join_token::is_expired(o, now) => "expired".to_owned(),
            Some(end) => format!("in {}", age::human(end.as_second() - now.as_second())),
        };
        let description = o.str_at("/spec/description").unwrap_or("");
        vec![o.name().into(), uses.into(), expires.into(), age::of(o, now).into(), description.into()]
    },
};

pub const NODE_CREDENTIAL: Printer = Printer {
    columns: &[
        ("Name", "string", 0),
        ("Identity", "string", 0),
        ("Joined-With", "string", 0),
        ("Expires", "string", 0),
        ("Age", "string", 0),
    ],
    cells: |o, now| {
        let expires: Option<Timestamp> = o.str_at("/spec/expires").and_then(|t| t.parse().ok());
        let expires = match expires.map(|end| end.as_second() - now.as_second()) {
            None => NONE.to_owned(),
            Some(..=0) => "expired".to_owned(),
            Some(left) => format!("in {}", age::human(left)),
        };
        let (identity, token) = (text_at(o, "/spec/identity"), text_at(o, "/spec/joinedWith"));
        vec![o.name().into(), identity, token, expires.into(), age::of(o, now).into()]
    },
};

pub const EVENT: Printer = Printer {
    columns: &[
        ("Last Seen", "string", 0),
        ("Type", "string", 0),
        ("Reason", "string", 0),
        ("Object", "string", 0),
        ("Subobject", "string", 1),
        ("Source", "string", 1),
        ("Message", "string", 0),
        ("First Seen", "string", 1),
        ("Count", "string", 1),
        ("Name", "string", 1),
    ],
    cells: event,
};

fn event(o: &Object, now: Timestamp) -> Vec<Value> {
    // Newer writers fill eventTime and a series, older ones the two timestamps and a count.
    let first = [o.str_at("/firstTimestamp"), o.str_at("/eventTime")].into_iter().flatten().next();
    let last =
        [o.str_at("/series/lastObservedTime"), o.str_at("/lastTimestamp")].into_iter().flatten().next();
    let count = [number_at(o, "/series/count"), number_at(o, "/count")].into_iter().find(|n| *n > 0);
    let component = [o.str_at("/source/component"), o.str_at("/reportingComponent")];
    let component = component.into_iter().flatten().find(|c| !c.is_empty()).unwrap_or("");
    let host = [o.str_at("/source/host"), o.str_at("/reportingInstance")];
    let host = host.into_iter().flatten().find(|h| !h.is_empty());
    let source = host.map_or_else(|| component.to_owned(), |host| format!("{component}, {host}"));
    let kind = o.str_at("/involvedObject/kind").unwrap_or("").to_lowercase();
    let object = match o.str_at("/involvedObject/name").filter(|n| !n.is_empty()) {
        Some(name) => format!("{kind}/{name}"),
        None => kind,
    };
    vec![
        age::since(last.or(first), now).into(),
        o.str_at("/type").unwrap_or("").into(),
        o.str_at("/reason").unwrap_or("").into(),
        object.into(),
        text_at(o, "/involvedObject/fieldPath"),
        source.into(),
        o.str_at("/message").unwrap_or("").trim().into(),
        age::since(first.or(last), now).into(),
        count.unwrap_or(1).into(),
        o.name().into(),
    ]
}
