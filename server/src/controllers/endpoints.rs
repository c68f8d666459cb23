//! The Endpoints object of a service with a selector: what its slices say, for those who still read the older kind. Pure.
//! [pkg/controller/endpoint]

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use minisvc_proto::{Object, ObjectKey, resource::ENDPOINTS};
use serde_json::{Map, Value, json};

use super::{
    action::Action,
    endpointslice, pod,
    slices::{HEADLESS, set_label},
};

/// The label that names the writer of Endpoints.
pub const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`] of what is made here.
pub const MANAGER: &str = "endpoint-controller";
/// How many addresses the object has at most; the slices have all.
pub const CAPACITY: usize = 1000;
/// The annotation that says that there are more.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// Whether this controller made the object.
pub fn is_ours(endpoints: &Object) -> bool {
    endpoints.label(MANAGED_BY) == Some(MANAGER)
}

/// The Endpoints of a service: they have its name.
pub fn key(service: &ObjectKey) -> ObjectKey {
    ObjectKey { resource: &ENDPOINTS, ..service.clone() }
}

/// The write that brings the Endpoints of a service in line with its pods. `pods` are of the service's namespace. A service without
/// a selector leaves those that somebody else made to them.
pub fn reconcile(service: &Object, pods: &[Arc<Object>], endpoints: Option<&Object>) -> Option<Action> {
    if service.deletion_timestamp().is_some() {
        return None;
    }
    let Some(selector) = endpointslice::selector(service) else {
        return endpoints.filter(|e| is_ours(e)).and_then(Action::delete);
    };
    let family = endpointslice::families(service)[0];
    let publish = endpointslice::publishes_not_ready(service);
    let mut subsets: BTreeMap<String, Subset> = BTreeMap::new();
    for p in pods.iter().filter(|p| selector.matches(&p.labels()) && !pod::is_ended(p)) {
        // The older kind knows no pods that serve while they end.
        if pod::is_terminating(p) && (!publish || pod::is_given_up(p)) {
            continue;
        }
        let (Some(ports), Some(ip)) = (endpointslice::ports(service, p), pod::address(p, family)) else {
            continue;
        };
        let Ok(parsed) = ip.parse() else { continue };
        let subset = subsets.entry(ports.to_string()).or_insert_with(|| Subset::new(ports));
        let list = if publish || pod::is_ready(p) { &mut subset.ready } else { &mut subset.not_ready };
        list.insert((parsed, p.uid().to_owned()), address(service, p, ip));
    }
    let truncated = truncate(&mut subsets);
    let mut new =
        endpoints.cloned().unwrap_or_else(|| Object::new(&ENDPOINTS, service.namespace(), service.name()));
    new.metadata_mut().insert("labels".into(), json!(service.labels()));
    set_label(&mut new, MANAGED_BY, Some(MANAGER));
    set_label(&mut new, HEADLESS, endpointslice::is_headless(service).then_some(""));
    annotate(&mut new, truncated);
    let subsets: Vec<Value> = subsets.into_values().map(Subset::into_value).collect();
    if subsets.is_empty() {
        new.0.remove("subsets");
    } else {
        new.0.insert("subsets".into(), subsets.into());
    }
    match endpoints {
        None => Some(Action::Create(new)),
        Some(old) if *old != new => Some(Action::Update(new)),
        Some(_) => None,
    }
}

/// Addresses with the same ports, in the order of the addresses.
struct Subset {
    ports: Value,
    ready: BTreeMap<(IpAddr, String), Value>,
    not_ready: BTreeMap<(IpAddr, String), Value>,
}

impl Subset {
    fn new(ports: Value) -> Self {
        Subset { ports, ready: BTreeMap::new(), not_ready: BTreeMap::new() }
    }

    fn into_value(self) -> Value {
        let mut out = Map::new();
        for (field, list) in [("addresses", self.ready), ("notReadyAddresses", self.not_ready)] {
            if !list.is_empty() {
                out.insert(field.into(), list.into_values().collect());
            }
        }
        // Here a port without a name has none; in a slice its name is empty.
        let unnamed = |mut port: Value| {
            if port["name"] == ""
                && let Some(port) = port.as_object_mut()
            {
                port.remove("name");
            }
            port
        };
        if let Value::Array(ports) = self.ports
            && !ports.is_empty()
        {
            out.insert("ports".into(), ports.into_iter().map(unnamed).collect());
        }
        Value::Object(out)
    }
}

fn address(service: &Object, p: &Object, ip: &str) -> Value {
    let mut out = json!({"ip": ip, "targetRef": endpointslice::target_ref(p)});
    if let Some(node) = pod::node(p) {
        out["nodeName"] = node.into();
    }
    if let Some(host) = endpointslice::hostname(service, p) {
        out["hostname"] = host.into();
    }
    out
}

/// Takes out what is over the capacity: those that are not ready first, and of each subset its share. Answers whether there was any.
fn truncate(subsets: &mut BTreeMap<String, Subset>) -> bool {
    let sum = |list: fn(&Subset) -> usize, subsets: &BTreeMap<String, Subset>| -> usize {
        subsets.values().map(list).sum()
    };
    let (ready, not_ready) = (sum(|s| s.ready.len(), subsets), sum(|s| s.not_ready.len(), subsets));
    if ready + not_ready <= CAPACITY {
        return false;
    }
    let room = CAPACITY.saturating_sub(ready);
    for subset in subsets.values_mut() {
        cut(&mut subset.ready, CAPACITY, ready);
        cut(&mut subset.not_ready, room, not_ready);
    }
    subsets.retain(|_, s| !s.ready.is_empty() || !s.not_ready.is_empty());
    true
}

/// Leaves a list its share of `room` for `total`.
fn cut<K: Ord + Clone, V>(list: &mut BTreeMap<K, V>, room: usize, total: usize) {
    if total > room {
        let share = list.len() * room / total;
        if let Some(first) = list.keys().nth(share).cloned() {
            list.split_off(&first);
        }
    }
}

fn annotate(endpoints: &mut Object, truncated: bool) {
    let annotations = endpoints.metadata_mut().entry("annotations").or_insert_with(|| json!({}));
    let Some(map) = annotations.as_object_mut() else { return };
    if truncated {
        map.insert(OVER_CAPACITY.into(), "truncated".into());
    } else {
        map.remove(OVER_CAPACITY);
    }
    if map.is_empty() {
        endpoints.metadata_mut().remove("annotations");
    }
}

#[cfg(test)]
mod tests;
