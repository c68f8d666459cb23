//! EndpointSlices from a Service and its pods.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use minisvc_proto::{Object, resource::ENDPOINT_SLICES, selector::LabelSelector};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    action::{Action, is_controlled_by, owned_by},
    pod,
};

/// The label that names a slice's service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The label that names a slice's writer.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
/// Our value of [`MANAGED_BY`].
pub const MANAGER: &str = "endpointslice-controller.minisvc.io";
/// How many endpoints a slice holds.
pub const MAX_ENDPOINTS: usize = 100;

/// The service's selector, unless it has none (then its endpoints are somebody else's business).
pub fn selector(service: &Object) -> Option<LabelSelector> {
    let map = service.pointer("/spec/selector")?.as_object()?;
    let map: BTreeMap<String, String> =
        map.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
    (!map.is_empty() && service.str_at("/spec/type") != Some("ExternalName"))
        .then(|| LabelSelector::from_map(&map))
}

/// Whether this controller made the slice.
pub fn is_ours(slice: &Object) -> bool {
    slice.label(MANAGED_BY) == Some(MANAGER)
}

/// The writes that bring the service's slices in line with its pods. `pods` are of the service's namespace, `slices` those
/// labelled with the service's name.
/// `zone` knows the zones of nodes.
pub fn reconcile<'a>(
    service: &Object,
    pods: &[Arc<Object>],
    slices: &[Arc<Object>],
    zone: impl Fn(&str) -> Option<&'a str>,
) -> Vec<Action> {
    if service.deletion_timestamp().is_some() {
        return Vec::new();
    }
    let ours = |s: &&Arc<Object>| is_ours(s);
    let Some(selector) = selector(service) else {
        // Slices that a user made stay; what we made for a former selector or type goes with an ExternalName only.
        let external = service.str_at("/spec/type") == Some("ExternalName");
        return slices.iter().filter(ours).filter(|_| external).filter_map(|s| Action::delete(s)).collect();
    };

    // Pods whose named ports resolve differently stand in different slices.
    let mut wanted: BTreeMap<String, Group> = BTreeMap::new();
    for p in pods.iter().filter(|p| selector.matches(&p.labels()) && !pod::is_ended(p)) {
        let Some(address) = pod::ip(p) else { continue };
        let ports = resolve_ports(service, p);
        if ports.is_empty() && has_ports(service) {
            continue;
        }
        let ports = Value::Array(ports);
        let group =
            wanted.entry(ports.to_string()).or_insert_with(|| Group { ports, endpoints: HashMap::new() });
        group.endpoints.insert(p.uid().to_owned(), endpoint(service, p, address, &zone));
    }

    let mut actions = Vec::new();
    let mut taken: BTreeSet<String> = slices.iter().map(|s| s.name().to_owned()).collect();
    let mut rooms: BTreeMap<String, Vec<Slot>> = BTreeMap::new();
    for slice in slices.iter().filter(ours).filter(|s| s.deletion_timestamp().is_none()) {
        let key = slice.pointer("/ports").map_or_else(|| "[]".to_owned(), Value::to_string);
        let kept = match wanted.get_mut(&key) {
            Some(group) if is_controlled_by(slice, service) => keep(slice, &mut group.endpoints),
            _ => Vec::new(),
        };
        if kept.is_empty() {
            actions.extend(Action::delete(slice));
        } else {
            rooms.entry(key).or_default().push(Slot { slice: Some(Arc::clone(slice)), endpoints: kept });
        }
    }

    for (key, group) in wanted {
        let mut slots = rooms.remove(&key).unwrap_or_default();
        let mut fresh: Vec<Value> = group.endpoints.into_values().collect();
        fresh.sort_by_cached_key(sort_key);
        for endpoint in fresh {
            match slots.iter_mut().find(|s| s.endpoints.len() < MAX_ENDPOINTS) {
                Some(slot) => slot.endpoints.push(endpoint),
                None => slots.push(Slot { slice: None, endpoints: vec![endpoint] }),
            }
        }
        for mut slot in slots {
            slot.endpoints.sort_by_cached_key(sort_key);
            actions.extend(slot.into_action(service, &key, &group.ports, &mut taken));
        }
    }
    actions
}

/// Endpoints with the same ports, by the pod's uid.
struct Group {
    ports: Value,
    endpoints: HashMap<String, Value>,
}

/// A slice to be: one that exists, or a new one.
struct Slot {
    slice: Option<Arc<Object>>,
    endpoints: Vec<Value>,
}

impl Slot {
    fn into_action(
        self,
        service: &Object,
        group: &str,
        ports: &Value,
        taken: &mut BTreeSet<String>,
    ) -> Option<Action> {
        let headless = service.str_at("/spec/clusterIP") == Some("None");
        let endpoints = Value::Array(self.endpoints);
        if let Some(old) = self.slice {
            let labelled = old.labels().contains_key("service.kubernetes.io/headless") == headless;
            if labelled && old.pointer("/endpoints") == Some(&endpoints) {
                return None;
            }
            let mut new = (*old).clone();
            new.0.insert("endpoints".into(), endpoints);
            set_labels(&mut new, service, headless);
            return Some(Action::Update(new));
        }
        let name = free_name(service.name(), group, taken);
        let mut new = Object::new(&ENDPOINT_SLICES, service.namespace(), &name);
        set_labels(&mut new, service, headless);
        new.metadata_mut().insert("ownerReferences".into(), owned_by(service));
        new.0.insert("addressType".into(), "IPv4".into());
        new.0.insert("ports".into(), ports.clone());
        new.0.insert("endpoints".into(), endpoints);
        Some(Action::Create(new))
    }
}

/// Labels of users on our slices stay.
fn set_labels(slice: &mut Object, service: &Object, headless: bool) {
    let mut labels = slice.labels();
    labels.insert(SERVICE_NAME.into(), service.name().to_owned());
    labels.insert(MANAGED_BY.into(), MANAGER.to_owned());
    if headless {
        labels.insert("service.kubernetes.io/headless".into(), String::new());
    } else {
        labels.remove("service.kubernetes.io/headless");
    }
    slice.metadata_mut().insert("labels".into(), json!(labels));
}

/// The endpoints of this slice that are still wanted, as they should be now; they are taken out of `wanted`.
fn keep(slice: &Object, wanted: &mut HashMap<String, Value>) -> Vec<Value> {
    let old = slice.pointer("/endpoints").and_then(Value::as_array);
    let uids = old.into_iter().flatten().filter_map(|e| e.pointer("/targetRef/uid")?.as_str());
    uids.filter_map(|uid| wanted.remove(uid)).collect()
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

fn sort_key(endpoint: &Value) -> (String, String) {
    let text = |pointer| endpoint.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
    (text("/targetRef/name"), text("/targetRef/uid"))
}

fn has_ports(service: &Object) -> bool {
    service.pointer("/spec/ports").and_then(Value::as_array).is_some_and(|p| !p.is_empty())
}

/// The service's ports as this pod has them; a named port that it lacks is left out.
fn resolve_ports(service: &Object, p: &Object) -> Vec<Value> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let resolve = |port: &Value| {
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
        let number = match port.get("targetPort") {
            Some(Value::String(name)) if name.parse::<u16>().is_ok_and(|n| n != 0) => name.parse().ok()?,
            Some(Value::String(name)) if !name.is_empty() => pod::named_port(p, name, protocol)?,
            Some(Value::Number(n)) if n.as_u64() != Some(0) => u16::try_from(n.as_u64()?).ok()?,
            _ => u16::try_from(port.get("port")?.as_u64()?).ok()?,
        };
        let name = port.get("name").and_then(Value::as_str).unwrap_or("");
        let mut out = json!({"name": name, "port": number, "protocol": protocol});
        if let Some(app) = port.get("appProtocol") {
            out["appProtocol"] = app.clone();
        }
        Some(out)
    };
    ports.filter_map(resolve).collect()
}

fn endpoint<'a>(
    service: &Object,
    p: &Object,
    address: &str,
    zone: impl Fn(&str) -> Option<&'a str>,
) -> Value {
    let publish = service.pointer("/spec/publishNotReadyAddresses").and_then(Value::as_bool).unwrap_or(false);
    let (serving, terminating) = (pod::is_ready(p), pod::is_terminating(p));
    let mut out = json!({
        "addresses": [address],
        "conditions": {
            "ready": publish || (serving && !terminating), "serving": serving, "terminating": terminating,
        },
        "targetRef": {
            "kind": "Pod", "namespace": p.namespace().unwrap_or("default"), "name": p.name(), "uid": p.uid(),
        },
    });
    if let Some(node) = pod::node(p) {
        out["nodeName"] = node.into();
        if let Some(zone) = zone(node) {
            out["zone"] = zone.into();
        }
    }
    // A pod's own name under a headless service needs both.
    if let (Some(host), Some(sub)) = (p.str_at("/spec/hostname"), p.str_at("/spec/subdomain"))
        && sub == service.name()
    {
        out["hostname"] = host.into();
    }
    out
}

#[cfg(test)]
mod tests;
