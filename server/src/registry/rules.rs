//! The rules of all kinds, as values: metadata, the two parts of an object, and which kind's own rules apply.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Endpoints, Event, Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};
use minisvc_proto::{ApiError, Cause, Object, ObjectKey, Revision, path::Target};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{
    Part, Ranges, endpoints, field::Field, is_unset, join_token, meta, namespace, node_credential, nodes,
    pod, service, slice, workload,
};

/// Makes the object fit the collection that it is sent to: kind, namespace and a name (given, or made from generateName). Answers
/// its key.
pub fn admit(target: &Target, object: &mut Object) -> Result<ObjectKey, ApiError> {
    let resource = target.resource;
    for (field, want) in [("apiVersion", resource.api_version()), ("kind", resource.kind.to_owned())] {
        let have = object.0.get(field).cloned();
        if is_unset(have.as_ref()) {
            object.0.insert(field.into(), want.into());
        } else if have.as_ref().and_then(Value::as_str) != Some(&want) {
            let have = have.unwrap_or_default();
            return Err(ApiError::bad_request(format!("{field} is {have}, but this path takes \"{want}\"")));
        }
    }
    match (&target.namespace, object.namespace()) {
        (Some(path), Some(own)) if path != own => {
            let message = format!(
                "the namespace of the provided object does not match the namespace sent on the request: \"{own}\" and \"{path}\""
            );
            return Err(ApiError::bad_request(message));
        }
        (Some(path), _) => drop(object.metadata_mut().insert("namespace".into(), path.as_str().into())),
        (None, _) if resource.is_namespaced() => {
            return Err(ApiError::bad_request("an empty namespace may not be set during creation"));
        }
        (None, _) => drop(object.metadata_mut().remove("namespace")),
    }
    if object.name().is_empty() {
        let prefix = object.str_at("/metadata/generateName").unwrap_or("").to_owned();
        if prefix.is_empty() {
            let cause = Cause::required("metadata.name", "name or generateName is required");
            return Err(ApiError::invalid(resource, "", vec![cause]));
        }
        let suffix = random_suffix();
        object.metadata_mut().insert("name".into(), format!("{prefix}{suffix}").into());
    }
    object.key().ok_or_else(|| ApiError::bad_request("the object has no name"))
}

/// Five random characters, without vowels, as Kubernetes draws them, so that no word comes of it.
pub fn random_suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..5).map(|_| char::from(LETTERS[rand::random_range(0..LETTERS.len())])).collect()
}

/// What only the server may say of a new object.
pub fn stamp_new(object: &mut Object) {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let has_spec = object.0.contains_key("spec");
    let meta = object.metadata_mut();
    for field in ["resourceVersion", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"] {
        meta.remove(field);
    }
    meta.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    meta.insert("creationTimestamp".into(), now.into());
    if has_spec {
        meta.insert("generation".into(), 1.into());
    }
}

/// Whether the version in `new` (none means any) is the stored one; 400 if it is no version.
pub fn has_version(new: &Object, stored: Revision) -> Result<bool, ApiError> {
    match new.str_at("/metadata/resourceVersion").unwrap_or("") {
        "" => Ok(true),
        text => text
            .parse::<Revision>()
            .map(|r| r == stored)
            .map_err(|_| ApiError::bad_request(format!("metadata.resourceVersion: {text:?} is no version"))),
    }
}

/// The part that this write may not change, and the server's own metadata, keep their stored values.
pub fn keep_other_part(old: &Object, new: &mut Object, part: Part) {
    match part {
        Part::Main | Part::Binding => {
            if part == Part::Main {
                restore(&old.0, &mut new.0, "status");
            }
            if let Some(meta) = old.metadata() {
                for field in [
                    "uid",
                    "creationTimestamp",
                    "generation",
                    "resourceVersion",
                    "deletionTimestamp",
                    "deletionGracePeriodSeconds",
                ] {
                    restore(meta, new.metadata_mut(), field);
                }
            }
        }
        Part::Status => {
            let status = new.0.remove("status");
            *new = old.clone();
            if let Some(status) = status {
                new.0.insert("status".into(), status);
            }
        }
    }
}

fn restore(from: &serde_json::Map<String, Value>, to: &mut serde_json::Map<String, Value>, field: &str) {
    match from.get(field) {
        Some(value) => drop(to.insert(field.into(), value.clone())),
        None => drop(to.remove(field)),
    }
}

/// A changed spec is a new generation.
pub fn bump_generation(old: &Object, new: &mut Object) {
    if old.0.get("spec") != new.0.get("spec") {
        let next = old.generation() + 1;
        new.metadata_mut().insert("generation".into(), next.into());
    }
}

/// Defaults and what a write inherits from the stored object.
pub fn prepare(old: Option<&Object>, new: &mut Object, ranges: &Ranges) {
    if old.is_none() {
        // What a new object's status says is the server's business; a node speaks for itself.
        match new.kind() {
            "Node" | "Event" => {}
            "Pod" => drop(new.0.insert("status".into(), json!({"phase": "Pending"}))),
            _ => drop(new.0.remove("status")),
        }
    }
    match (new.kind(), old) {
        ("Service", old) => {
            // Defaults first: ports are recognised by name and protocol.
            service::set_defaults(new);
            if let Some(old) = old {
                service::inherit(old, new);
            }
            service::settle(old, new, ranges);
        }
        ("Node", Some(old)) => nodes::inherit(old, new),
        ("Pod", old) => {
            pod::set_defaults(new);
            if let Some(old) = old {
                pod::inherit(old, new);
            }
        }
        ("Deployment" | "ReplicaSet", _) => workload::set_defaults(new),
        ("EndpointSlice", _) => slice::set_defaults(new),
        ("Endpoints", _) => endpoints::set_defaults(new),
        ("Namespace", old) => namespace::set_defaults(new, old.is_none()),
        ("JoinToken", Some(old)) => join_token::inherit(old, new),
        _ => {}
    }
}

/// Every fault of the object, each with its field.
pub fn validate(old: Option<&Object>, new: &Object, ranges: &Ranges) -> Vec<Cause> {
    let mut faults = meta::validate(new);
    if let Some(fault) = wrong_type(new) {
        faults.push(fault);
        return faults;
    }
    faults.extend(match new.kind() {
        "Service" => service::validate(old, new, ranges),
        "Node" => nodes::validate(old, new, ranges.pods()),
        "Pod" => pod::validate(old, new),
        "Deployment" | "ReplicaSet" => workload::validate(old, new),
        "EndpointSlice" => slice::validate(old, new),
        "Endpoints" => endpoints::validate(new),
        "Event" => event_namespace(new).into_iter().collect(),
        "JoinToken" => join_token::validate(old, new),
        "NodeCredential" => node_credential::validate(new),
        _ => Vec::new(),
    });
    faults
}

/// Defaults of a status that is written.
pub fn prepare_status(new: &mut Object) {
    if new.kind() == "Service" {
        service::set_status_defaults(new);
    }
}

/// Every fault of a status that is written, or of a binding.
pub fn validate_status(new: &Object, ranges: &Ranges) -> Vec<Cause> {
    if let Some(fault) = wrong_type(new) {
        return vec![fault];
    }
    if new.kind() == "Service" { service::validate_status(new, ranges) } else { Vec::new() }
}

/// The first field whose value is of another type than its kind says.
pub fn wrong_type(object: &Object) -> Option<Cause> {
    fn check<T: DeserializeOwned>(object: &Object) -> Option<Cause> {
        let error = serde_path_to_error::deserialize::<_, T>(&object.0).err()?;
        Some(Cause {
            reason: "FieldValueTypeInvalid".into(),
            message: format!("Invalid value: {}", error.inner()),
            field: error.path().to_string(),
        })
    }
    match object.kind() {
        "Service" => check::<Service>(object),
        "Pod" => check::<Pod>(object),
        "Node" => check::<Node>(object),
        "Namespace" => check::<Namespace>(object),
        "Event" => check::<Event>(object),
        "EndpointSlice" => check::<EndpointSlice>(object),
        "Endpoints" => check::<Endpoints>(object),
        "Deployment" => check::<Deployment>(object),
        "ReplicaSet" => check::<ReplicaSet>(object),
        _ => None,
    }
}

/// An event stands in the namespace of what it is about; what is in no namespace has its events in `default`.
/// [pkg/apis/core/validation/events.go]
fn event_namespace(event: &Object) -> Option<Cause> {
    let about = Field::of(event, "involvedObject").child("namespace");
    let own = event.namespace().unwrap_or("default");
    let wanted = if about.text().is_empty() { "default" } else { about.text() };
    (own != wanted).then(|| about.invalid("does not match event.namespace"))
}

/// What the object holds in the store besides itself.
pub fn reservations(object: &Object) -> BTreeSet<String> {
    match object.kind() {
        "Service" => service::reservations(object),
        "Node" => nodes::reservations(object),
        _ => BTreeSet::new(),
    }
}

/// Gives the object what it needs and does not name.
pub fn allocate(object: &mut Object, ranges: &Ranges, taken: impl Fn(&str) -> bool) -> Result<(), ApiError> {
    match object.kind() {
        "Service" => service::allocate(object, ranges, rand::random, taken).map_err(ApiError::internal),
        "Node" => nodes::allocate(object, ranges.pods(), taken).map_err(ApiError::internal),
        _ => Ok(()),
    }
}

/// The fault of naming what somebody else holds, in the words that clients look for.
pub fn already_taken(object: &Object, reservation: &str) -> Cause {
    nodes::already_taken(reservation).unwrap_or_else(|| service::already_taken(object, reservation))
}
