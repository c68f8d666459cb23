//! Endpoints that somebody made by hand for a service without a selector, as the EndpointSlices that the nodes follow. Pure.
//! [KEP-752, pkg/controller/endpointslicemirroring]

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

use minisvc_proto::Object;
use serde_json::{Map, Value, json};

use super::{
    action::Action,
    endpoints, endpointslice,
    slices::{self, Frame, Wanted},
};
use crate::{alloc::Family, registry::special_address};

/// The value of [`slices::MANAGED_BY`] of what is made here.
pub const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
/// How many addresses of a subset are mirrored.
pub const CAPACITY: usize = 1000;
/// How many ports a slice may have.
const MAX_PORTS: usize = 100;
/// The label with which Endpoints ask not to be mirrored.
pub const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// The annotation of Endpoints that are nobody's addresses but a lock.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that say nothing about the copy.
const NOT_COPIED: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];

/// What mirroring comes to.
#[derive(Debug, Default, PartialEq)]
pub struct Mirrored {
    /// The writes it wants.
    pub actions: Vec<Action>,
    /// Addresses that no packet can be sent to.
    pub invalid: usize,
    /// Addresses that are too many.
    pub too_many: usize,
}

impl Mirrored {
    /// What users are told of addresses that were left out: how many, the event's reason, and the rest of its message.
    pub fn complaints(&self) -> impl Iterator<Item = (usize, &'static str, &'static str)> {
        [
            (self.invalid, "InvalidIPAddress", "invalid IP addresses are not mirrored to EndpointSlices"),
            (
                self.too_many,
                "TooManyAddressesToMirror",
                "addresses are not mirrored to EndpointSlices: at most 1000 of a subset with at most 100 ports are",
            ),
        ]
        .into_iter()
        .filter(|(count, ..)| *count > 0)
    }
}

/// Whether the object is a lock of leader election, which only looks like Endpoints.
pub fn is_lock(endpoints: &Object) -> bool {
    endpoints.metadata().and_then(|m| m.get("annotations")?.get(LEADER)).is_some()
}

fn is_mirrored(endpoints: &Object) -> bool {
    endpoints.deletion_timestamp().is_none()
        && endpoints.label(SKIP) != Some("true")
        && !is_lock(endpoints)
        && !endpoints::is_ours(endpoints)
}

fn takes_mirrored(service: &Object) -> bool {
    service.deletion_timestamp().is_none()
        && endpointslice::selector(service).is_none()
        && service.str_at("/spec/type") != Some("ExternalName")
}

/// The writes that make the mirrored slices of a service say what its Endpoints do. `slices` are those labelled with the service's
/// name, of all writers.
pub fn reconcile(service: Option<&Object>, endpoints: Option<&Object>, slices: &[Arc<Object>]) -> Mirrored {
    let (Some(service), Some(endpoints)) =
        (service.filter(|s| takes_mirrored(s)), endpoints.filter(|e| is_mirrored(e)))
    else {
        return Mirrored { actions: slices::remove(slices, MANAGER), ..Mirrored::default() };
    };
    let mut out = Mirrored::default();
    let mut wanted = Wanted::default();
    for subset in endpoints.pointer("/subsets").and_then(Value::as_array).into_iter().flatten() {
        mirror(subset, &mut wanted, &mut out);
    }
    let frame = Frame {
        service,
        owner: endpoints,
        manager: MANAGER,
        id: |endpoint| endpoint.pointer("/addresses/0")?.as_str(),
        decorate: &|slice| decorate(slice, endpoints),
    };
    out.actions = slices::fit(&frame, wanted, slices);
    out
}

fn mirror(subset: &Value, wanted: &mut Wanted, out: &mut Mirrored) {
    let list = |field: &str| subset.get(field).and_then(Value::as_array).into_iter().flatten();
    let ports = ports(list("ports"));
    let mut seen: HashSet<IpAddr> = HashSet::new();
    for (address, ready) in
        list("addresses").map(|a| (a, true)).chain(list("notReadyAddresses").map(|a| (a, false)))
    {
        let ip = address.get("ip").and_then(Value::as_str).and_then(|ip| ip.parse::<IpAddr>().ok());
        let Some(ip) = ip.map(|ip| ip.to_canonical()).filter(|ip| special_address(*ip).is_none()) else {
            out.invalid += 1;
            continue;
        };
        if seen.contains(&ip) {
            continue;
        }
        if seen.len() >= CAPACITY || ports.is_none() {
            out.too_many += 1;
            continue;
        }
        seen.insert(ip);
        let mut endpoint = json!({"addresses": [ip.to_string()], "conditions": {"ready": ready}});
        for field in ["hostname", "nodeName", "targetRef"] {
            if let Some(value) = address.get(field).filter(|v| !v.is_null() && *v != "") {
                endpoint[field] = value.clone();
            }
        }
        if let Some(ports) = &ports {
            wanted.add(Family::of(ip), ports, &ip.to_string(), endpoint);
        }
    }
}

/// The ports as a slice has them: of two with one name the first. `None` if they are too many for a slice.
fn ports<'a>(list: impl Iterator<Item = &'a Value>) -> Option<Value> {
    let mut names = BTreeSet::new();
    let mut out = Vec::new();
    for port in list {
        let name = port.get("name").and_then(Value::as_str).unwrap_or("");
        if !names.insert(name) {
            continue;
        }
        let mut copy = json!({
            "name": name, "port": port.get("port"),
            "protocol": port.get("protocol").and_then(Value::as_str).unwrap_or("TCP"),
        });
        if let Some(app) = port.get("appProtocol").filter(|a| !a.is_null()) {
            copy["appProtocol"] = app.clone();
        }
        out.push(copy);
    }
    (out.len() <= MAX_PORTS).then_some(Value::Array(out))
}

/// Labels and annotations are those of the Endpoints.
fn decorate(slice: &mut Object, endpoints: &Object) {
    let mut annotations = endpoints.annotations();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    let meta = slice.metadata_mut();
    let mut labels: Map<String, Value> = endpoints.labels().into_iter().map(|(k, v)| (k, v.into())).collect();
    labels.remove(slices::HEADLESS);
    meta.insert("labels".into(), labels.into());
    if annotations.is_empty() {
        meta.remove("annotations");
    } else {
        meta.insert("annotations".into(), json!(annotations));
    }
}

#[cfg(test)]
mod tests;
