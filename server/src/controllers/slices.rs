//! Endpoints into EndpointSlices, whoever they come from: few slices, few writes, the same answer for the same state. Pure.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use minisvc_proto::{Object, resource::ENDPOINT_SLICES};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::action::{Action, is_controlled_by, owned_by};
use crate::alloc::Family;

/// The label that names a slice's service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that names a slice's writer.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// The label of what belongs to a service without a cluster IP.
pub const HEADLESS: &str = "service.kubernetes.io/headless";
/// How many endpoints a slice holds.
pub const MAX_ENDPOINTS: usize = 100;

/// The slices of a service that one controller writes.
pub struct Frame<'a> {
    /// The service.
    pub service: &'a Object,
    /// Whose they are: they go with it.
    pub owner: &'a Object,
    /// The controller's value of [`MANAGED_BY`].
    pub manager: &'static str,
    /// By what an endpoint is known again in a slice that exists.
    pub id: fn(&Value) -> Option<&str>,
    /// Sets labels and annotations besides those that say whose the slice is.
    pub decorate: &'a dyn Fn(&mut Object),
}

/// Endpoints that should be, by family and ports: a slice has one of each.
#[derive(Default)]
pub struct Wanted {
    groups: BTreeMap<String, Group>,
}

struct Group {
    family: Family,
    ports: Value,
    endpoints: HashMap<String, Value>,
}

impl Wanted {
    /// One more; of two with one id the first counts.
    pub fn add(&mut self, family: Family, ports: &Value, id: &str, endpoint: Value) {
        let group = self.groups.entry(group_key(family.name(), ports)).or_insert_with(|| Group {
            family,
            ports: ports.clone(),
            endpoints: HashMap::new(),
        });
        group.endpoints.entry(id.to_owned()).or_insert(endpoint);
    }
}

fn group_key(family: &str, ports: &Value) -> String {
    // Slices of IPv4 had their names before there were others.
    if family == "IPv4" { ports.to_string() } else { format!("{family} {ports}") }
}

/// Whether the controller of this name made the slice.
pub fn is_made_by(slice: &Object, manager: &str) -> bool {
    slice.label(MANAGED_BY) == Some(manager)
}

/// The deletion of every slice that the controller of this name made.
pub fn remove(slices: &[Arc<Object>], manager: &str) -> Vec<Action> {
    slices.iter().filter(|s| is_made_by(s, manager)).filter_map(|s| Action::delete(s)).collect()
}

/// The writes that make the slices of this frame hold exactly what is wanted. An endpoint stays in the slice that has it. `slices`
/// are those labelled with the service's name, of all writers.
pub fn fit(frame: &Frame<'_>, wanted: Wanted, slices: &[Arc<Object>]) -> Vec<Action> {
    let mut wanted = wanted.groups;
    let mut actions = Vec::new();
    let mut taken: BTreeSet<String> = slices.iter().map(|s| s.name().to_owned()).collect();
    let mut rooms: BTreeMap<String, Vec<Slot>> = BTreeMap::new();
    let ours = slices.iter().filter(|s| is_made_by(s, frame.manager) && s.deletion_timestamp().is_none());
    for slice in ours {
        let family = slice.str_at("/addressType").unwrap_or("IPv4");
        let key = group_key(family, slice.pointer("/ports").unwrap_or(&Value::Array(Vec::new())));
        let kept = match wanted.get_mut(&key) {
            Some(group) if is_controlled_by(slice, frame.owner) => {
                keep(slice, frame.id, &mut group.endpoints)
            }
            _ => Vec::new(),
        };
        if kept.is_empty() {
            actions.extend(Action::delete(slice));
        } else {
            rooms.entry(key).or_default().push(Slot { slice: Some(Arc::clone(slice)), endpoints: kept });
        }
    }

    for (key, mut group) in wanted {
        let mut slots = rooms.remove(&key).unwrap_or_default();
        let mut fresh: Vec<Value> = std::mem::take(&mut group.endpoints).into_values().collect();
        fresh.sort_by_cached_key(sort_key);
        for endpoint in fresh {
            match slots.iter_mut().find(|s| s.endpoints.len() < MAX_ENDPOINTS) {
                Some(slot) => slot.endpoints.push(endpoint),
                None => slots.push(Slot { slice: None, endpoints: vec![endpoint] }),
            }
        }
        for mut slot in slots {
            slot.endpoints.sort_by_cached_key(sort_key);
            actions.extend(slot.into_action(frame, &key, &group, &mut taken));
        }
    }
    actions
}

/// A slice to be: one that exists, or a new one.
struct Slot {
    slice: Option<Arc<Object>>,
    endpoints: Vec<Value>,
}

impl Slot {
    fn into_action(
        self,
        frame: &Frame<'_>,
        key: &str,
        group: &Group,
        taken: &mut BTreeSet<String>,
    ) -> Option<Action> {
        let endpoints = Value::Array(self.endpoints);
        let Some(old) = self.slice else {
            let name = free_name(frame.service.name(), key, taken);
            let mut new = Object::new(&ENDPOINT_SLICES, frame.service.namespace(), &name);
            label(&mut new, frame);
            new.metadata_mut().insert("ownerReferences".into(), owned_by(frame.owner));
            new.0.insert("addressType".into(), group.family.name().into());
            new.0.insert("ports".into(), group.ports.clone());
            new.0.insert("endpoints".into(), endpoints);
            return Some(Action::Create(new));
        };
        let mut new = (*old).clone();
        new.0.insert("endpoints".into(), endpoints);
        label(&mut new, frame);
        (new != *old).then_some(Action::Update(new))
    }
}

fn label(slice: &mut Object, frame: &Frame<'_>) {
    (frame.decorate)(slice);
    set_label(slice, SERVICE_NAME, Some(frame.service.name()));
    set_label(slice, MANAGED_BY, Some(frame.manager));
}

/// Sets a label, or takes it away.
pub fn set_label(object: &mut Object, key: &str, value: Option<&str>) {
    if object.label(key) == value {
        return;
    }
    let labels =
        object.metadata_mut().entry("labels").or_insert_with(|| Value::Object(serde_json::Map::new()));
    if let Some(labels) = labels.as_object_mut() {
        match value {
            Some(value) => drop(labels.insert(key.to_owned(), value.into())),
            None => drop(labels.remove(key)),
        }
    }
}

/// The endpoints of this slice that are still wanted, as they should be now; they are taken out of `wanted`.
fn keep(slice: &Object, id: fn(&Value) -> Option<&str>, wanted: &mut HashMap<String, Value>) -> Vec<Value> {
    let old = slice.pointer("/endpoints").and_then(Value::as_array);
    old.into_iter().flatten().filter_map(id).filter_map(|id| wanted.remove(id)).collect()
}

/// Names follow from the content: a reconcile that runs twice on the same state asks for the same slice twice, not for two.
fn free_name(service: &str, group: &str, taken: &mut BTreeSet<String>) -> String {
    let digest = Sha256::digest(group);
    let hash = format!("{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2]);
    // One number more than there are names: one of them is free.
    let name = (0..=taken.len()).map(|n| format!("{service}-{hash}-{n}")).find(|n| !taken.contains(n));
    let name = name.unwrap_or_default();
    taken.insert(name.clone());
    name
}

fn sort_key(endpoint: &Value) -> (String, String, String) {
    let text = |pointer| endpoint.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
    (text("/targetRef/name"), text("/targetRef/uid"), text("/addresses/0"))
}
