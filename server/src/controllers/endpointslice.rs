//! EndpointSlices from a Service and its pods.

use std::{collections::BTreeMap, sync::Arc};

use minisvc_proto::{Object, selector::LabelSelector};
use serde_json::{Value, json};

use super::{
    action::Action,
    pod,
    slices::{self, Frame, HEADLESS, Wanted},
};
use crate::alloc::Family;

/// The value of [`slices::MANAGED_BY`] of what is made here.
pub const MANAGER: &str = "endpointslice-controller.minisvc.io";

/// The service's selector, unless it has none (then its endpoints are somebody else's business).
pub fn selector(service: &Object) -> Option<LabelSelector> {
    let map = service.pointer("/spec/selector")?.as_object()?;
    let map: BTreeMap<String, String> =
        map.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
    (!map.is_empty() && service.str_at("/spec/type") != Some("ExternalName"))
        .then(|| LabelSelector::from_map(&map))
}

/// Whether this service's pods get addresses of their own in DNS instead of one of the service.
pub fn is_headless(service: &Object) -> bool {
    service.str_at("/spec/clusterIP") == Some("None")
}

/// The families in which a service has endpoints, the primary first.
pub fn families(service: &Object) -> Vec<Family> {
    let names = service.pointer("/spec/ipFamilies").and_then(Value::as_array);
    let mut all: Vec<_> = names.into_iter().flatten().filter_map(|n| Family::named(n.as_str()?)).collect();
    if all.is_empty() {
        all.push(Family::V4);
    }
    all
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
    let Some(selector) = selector(service) else {
        // Nobody follows those pods any more, and their addresses will be other pods'. Slices that a user made stay.
        return slices::remove(slices, MANAGER);
    };
    // Pods whose named ports resolve differently stand in different slices.
    let mut wanted = Wanted::default();
    let families = families(service);
    for p in pods.iter().filter(|p| selector.matches(&p.labels()) && !pod::is_ended(p)) {
        let Some(ports) = ports(service, p) else { continue };
        for family in &families {
            let Some(address) = pod::address(p, *family) else { continue };
            wanted.add(*family, &ports, p.uid(), endpoint(service, p, address, &zone));
        }
    }
    let headless = is_headless(service);
    let frame = Frame {
        service,
        owner: service,
        manager: MANAGER,
        id: |endpoint| endpoint.pointer("/targetRef/uid")?.as_str(),
        // Labels of users on our slices stay.
        decorate: &|slice| slices::set_label(slice, HEADLESS, headless.then_some("")),
    };
    slices::fit(&frame, wanted, slices)
}

fn has_ports(service: &Object) -> bool {
    service.pointer("/spec/ports").and_then(Value::as_array).is_some_and(|p| !p.is_empty())
}

/// The service's ports as this pod has them; a named port that it lacks is left out. `None` if it lacks all that the service has.
pub fn ports(service: &Object, p: &Object) -> Option<Value> {
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
    let resolved: Vec<Value> = ports.filter_map(resolve).collect();
    (!resolved.is_empty() || !has_ports(service)).then_some(Value::Array(resolved))
}

/// The name that a pod has of its own under a headless service: it takes both fields.
pub fn hostname<'a>(service: &Object, p: &'a Object) -> Option<&'a str> {
    let host = p.str_at("/spec/hostname").filter(|h| !h.is_empty())?;
    (p.str_at("/spec/subdomain") == Some(service.name())).then_some(host)
}

/// Whether the service wants its pods' addresses before they are ready.
pub fn publishes_not_ready(service: &Object) -> bool {
    service.pointer("/spec/publishNotReadyAddresses").and_then(Value::as_bool).unwrap_or(false)
}

/// The pod as `targetRef` names it.
pub fn target_ref(p: &Object) -> Value {
    json!({"kind": "Pod", "namespace": p.namespace().unwrap_or("default"), "name": p.name(), "uid": p.uid()})
}

fn endpoint<'a>(
    service: &Object,
    p: &Object,
    address: &str,
    zone: impl Fn(&str) -> Option<&'a str>,
) -> Value {
    let lost = pod::is_given_up(p);
    let publish = publishes_not_ready(service) && !lost;
    let (serving, terminating) = (pod::is_ready(p) && !lost, pod::is_terminating(p));
    let mut out = json!({
        "addresses": [address],
        "conditions": {
            "ready": publish || (serving && !terminating), "serving": serving, "terminating": terminating,
        },
        "targetRef": target_ref(p),
    });
    if let Some(node) = pod::node(p) {
        let zone = zone(node).filter(|z| !z.is_empty());
        out["nodeName"] = node.into();
        if let Some(zone) = zone {
            out["zone"] = zone.into();
        }
        if out["conditions"]["ready"] == true
            && let Some(hints) = hints(service, node, zone)
        {
            out["hints"] = hints;
        }
    }
    if let Some(host) = hostname(service, p) {
        out["hostname"] = host.into();
    }
    out
}

/// Whom an endpoint is meant for first. A node uses hints when every ready endpoint has one. [KEP-3015]
fn hints(service: &Object, node: &str, zone: Option<&str>) -> Option<Value> {
    let by_node = match service.str_at("/spec/trafficDistribution")? {
        "PreferSameNode" => true,
        "PreferSameZone" | "PreferClose" => false,
        _ => return None,
    };
    let mut hints = serde_json::Map::new();
    if let Some(zone) = zone {
        hints.insert("forZones".into(), json!([{"name": zone}]));
    }
    if by_node {
        hints.insert("forNodes".into(), json!([{"name": node}]));
    }
    (!hints.is_empty()).then_some(Value::Object(hints))
}

#[cfg(test)]
pub(super) mod tests;
