//! What `up` and the relay ask the server, with the administrator's kubeconfig that it printed.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::Arc,
};

use minisvc_proto::{
    Object, Resource,
    client::{Client, Informer, InformerEvent, Kubeconfig, ListParams},
    path::Target,
    watch::EventType,
};
use serde_json::Value;

/// A client for a kubeconfig file.
pub fn connect(path: &Path) -> anyhow::Result<Client> {
    Ok(Client::from_kubeconfig(&Kubeconfig::load(path)?)?)
}

/// Calls `changed` with all objects of a kind, at first and after every change, for ever: a server that is away is waited for,
/// and what was learnt stays true meanwhile.
pub async fn follow(client: &Client, resource: &'static Resource, mut changed: impl FnMut(Vec<&Object>)) {
    let target = Target::collection(resource, None);
    let mut events = Informer::spawn(client.clone(), target, ListParams::default());
    let mut known = BTreeMap::new();
    while let Some(event) = events.recv().await {
        apply(&mut known, event);
        changed(known.values().map(AsRef::as_ref).collect());
    }
}

fn apply(known: &mut BTreeMap<String, Arc<Object>>, event: InformerEvent) {
    match event {
        InformerEvent::Reset(_, objects) => {
            *known = objects.into_iter().map(|o| (o.uid().to_owned(), o)).collect();
        }
        InformerEvent::Changed(event) => match event.kind {
            EventType::Added | EventType::Modified => {
                known.insert(event.object.uid().to_owned(), Arc::new(event.object));
            }
            EventType::Deleted => {
                known.remove(event.object.uid());
            }
            EventType::Bookmark | EventType::Error => {}
        },
    }
}

/// Name and address of a node, if it is Ready.
pub fn ready_node(node: &Object) -> Option<(String, Ipv4Addr)> {
    let conditions = node.pointer("/status/conditions")?.as_array()?;
    conditions.iter().find(|c| c["type"] == "Ready" && c["status"] == "True")?;
    let addresses = node.pointer("/status/addresses")?.as_array()?;
    let address =
        addresses.iter().find(|a| a["type"] == "InternalIP")?.get("address").and_then(Value::as_str)?;
    Some((node.name().to_owned(), address.parse().ok()?))
}

/// The IPv6 address of a node that has one.
pub fn second_address(node: &Object) -> Option<Ipv6Addr> {
    let addresses = node.pointer("/status/addresses")?.as_array()?;
    let mut internal = addresses.iter().filter(|a| a["type"] == "InternalIP");
    internal.find_map(|a| a["address"].as_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_ready_node_with_an_address_serves() {
        let node = |ready: &str| -> Object {
            serde_json::from_value(json!({"metadata": {"name": "a"}, "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "addresses": [{"type": "InternalIP", "address": "192.168.77.11"}]}}))
            .unwrap()
        };
        assert_eq!(ready_node(&node("True")), Some(("a".to_owned(), "192.168.77.11".parse().unwrap())));
        assert_eq!(ready_node(&node("Unknown")), None);
    }
}
