//! Objects as rows: the columns that kubectl prints for each kind, decided by the server. Pure: the time comes in.
//! Titles, order and texts follow pkg/printers/internalversion/printers.go.

mod age;
mod cluster;
mod network;
mod workloads;

use jiff::Timestamp;
use minisvc_proto::{
    Object, Resource,
    table::{Column, Row, Table},
};
use serde_json::{Value, json};

/// What a row carries besides its cells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// The object's metadata.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// How a kind is shown.
struct Printer {
    columns: &'static [(&'static str, &'static str, i32)],
    cells: fn(&Object, Timestamp) -> Vec<Value>,
}

fn printer(resource: &Resource) -> Printer {
    match resource.kind {
        "Namespace" => cluster::NAMESPACE,
        "Node" => cluster::NODE,
        "Event" => cluster::EVENT,
        "Pod" => workloads::POD,
        "Deployment" => workloads::DEPLOYMENT,
        "ReplicaSet" => workloads::REPLICA_SET,
        "Service" => network::SERVICE,
        "JoinToken" => cluster::JOIN_TOKEN,
        "NodeCredential" => cluster::NODE_CREDENTIAL,
        "EndpointSlice" => network::ENDPOINT_SLICE,
        "Endpoints" => network::ENDPOINTS,
        _ => PLAIN,
    }
}

/// Name and age: for kinds without columns of their own.
const PLAIN: Printer = Printer {
    columns: &[("Name", "string", 0), ("Age", "string", 0)],
    cells: |o, now| vec![o.name().into(), age::of(o, now).into()],
};

/// A table of objects of one kind, as of a time. `with_columns` is false for all but the first table of a watch.
pub fn table<'a>(
    resource: &Resource,
    objects: impl IntoIterator<Item = &'a Object>,
    include: Include,
    with_columns: bool,
    now: Timestamp,
) -> Table {
    let printer = printer(resource);
    let columns = printer.columns.iter().filter(|_| with_columns).map(|(name, kind, priority)| Column {
        name: (*name).to_owned(),
        kind: (*kind).to_owned(),
        format: if *name == "Name" { "name".into() } else { String::new() },
        description: String::new(),
        priority: *priority,
    });
    let mut table = Table::new(columns.collect());
    table.rows = objects
        .into_iter()
        .map(|o| Row { cells: (printer.cells)(o, now), object: included(o, include) })
        .collect();
    table
}

fn included(object: &Object, include: Include) -> Option<Object> {
    match include {
        Include::None => None,
        Include::Object => Some(object.clone()),
        Include::Metadata => {
            let metadata = Value::Object(object.metadata().cloned().unwrap_or_default());
            let partial = json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
            });
            partial.as_object().cloned().map(Object)
        }
    }
}

const NONE: &str = "<none>";

/// The text, or `<none>` for an empty one.
fn or_none(text: String) -> Value {
    if text.is_empty() { NONE.into() } else { text.into() }
}

/// A string at a pointer, or `<none>`.
fn text_at(object: &Object, pointer: &str) -> Value {
    or_none(object.str_at(pointer).unwrap_or("").to_owned())
}

/// A whole number at a pointer, or 0.
fn number_at(object: &Object, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// The elements of an array at a pointer.
fn items<'a>(object: &'a Object, pointer: &str) -> impl DoubleEndedIterator<Item = &'a Value> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// The status of a condition.
fn condition<'a>(object: &'a Object, kind: &str) -> Option<&'a str> {
    items(object, "/status/conditions").find(|c| c["type"] == kind)?["status"].as_str()
}

/// The first three, and how many more there are.
fn first_few(all: &[String]) -> Value {
    const SHOWN: usize = 3;
    if all.is_empty() {
        return "<unset>".into();
    }
    let shown = all.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(",");
    if all.len() > SHOWN { format!("{shown} + {} more...", all.len() - SHOWN).into() } else { shown.into() }
}

#[cfg(test)]
mod tests;
