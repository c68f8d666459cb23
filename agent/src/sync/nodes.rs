//! The other nodes: routes to their pods, and their addresses in the rules.

use std::{collections::BTreeMap, time::Duration};

use minisvc_proto::{
    NodeName, Object,
    client::{Client, Informer, InformerEvent, ListParams},
    path::Target,
    resource::NODES,
    watch::EventType,
};
use tokio_util::sync::CancellationToken;

use super::readiness::Readiness;
use crate::{
    dataplane::Handle,
    net::{Net, NodeRoute},
};

const RETRY: Duration = Duration::from_secs(1);
/// The part of [`Readiness`] that this loop answers for.
pub const PART: &str = "routes";

/// Follows the nodes until cancelled. A route that cannot be set makes this node not ready, and is tried again.
pub async fn run(
    client: Client,
    own: NodeName,
    net: Net,
    dataplane: Handle,
    readiness: Readiness,
    shutdown: CancellationToken,
) {
    let mut events = Informer::spawn(client, Target::collection(&NODES, None), ListParams::default());
    let mut known: BTreeMap<String, NodeRoute> = BTreeMap::new();
    let mut applied: Option<BTreeMap<String, NodeRoute>> = None;
    loop {
        let failed = applied.is_none();
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.recv() => match event {
                Some(event) => put(&mut known, event),
                // Only a panic ends an informer.
                None => return,
            },
            () = tokio::time::sleep(RETRY), if failed && !known.is_empty() => {}
        }
        // A node's own pods are reached by routes of their own. Heartbeats and conditions change no route.
        if known.is_empty() || applied.as_ref() == Some(&known) {
            continue;
        }
        let others = known.values().filter(|n| n.name != own.as_str()).cloned().collect();
        let all = known.values().cloned().collect();
        let result = match net.set_routes(others).await {
            Ok(()) => dataplane.set_nodes(all).await.map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        match result {
            Ok(()) => {
                applied = Some(known.clone());
                readiness.works(PART);
            }
            Err(error) => {
                tracing::error!(%error, "the routes to the other nodes are not right; trying again");
                applied = None;
                readiness.fails(PART, &error);
            }
        }
    }
}

fn put(known: &mut BTreeMap<String, NodeRoute>, event: InformerEvent) {
    match event {
        InformerEvent::Reset(_, objects) => {
            *known = objects.iter().filter_map(|o| route(o)).map(|r| (r.name.clone(), r)).collect();
        }
        InformerEvent::Changed(event) => match event.kind {
            EventType::Added | EventType::Modified => match route(&event.object) {
                Some(route) => drop(known.insert(route.name.clone(), route)),
                None => drop(known.remove(event.object.name())),
            },
            EventType::Deleted => drop(known.remove(event.object.name())),
            EventType::Bookmark | EventType::Error => {}
        },
    }
}

/// The way to a node's pods, once it has an address and a range.
fn route(node: &Object) -> Option<NodeRoute> {
    let addresses = node.pointer("/status/addresses")?.as_array()?;
    let ip = addresses.iter().find(|a| a["type"] == "InternalIP")?.get("address")?.as_str()?;
    Some(NodeRoute {
        name: node.name().to_owned(),
        ip: ip.parse().ok()?,
        pod_cidr: node.str_at("/spec/podCIDR")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use minisvc_proto::{Revision, watch::WatchEvent};
    use serde_json::json;

    use super::*;

    fn node(name: &str, ip: &str) -> Object {
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
            "spec": {"podCIDR": "10.244.1.0/24"},
            "status": {"addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": ip}]}}))
        .unwrap()
    }

    #[test]
    fn a_node_has_a_route_while_it_has_an_address_and_a_range() {
        let mut known = BTreeMap::new();
        let changed = |kind, object| InformerEvent::Changed(WatchEvent { kind, object });
        put(
            &mut known,
            InformerEvent::Reset(Revision(1), vec![node("a", "192.0.2.1").into(), node("b", "?").into()]),
        );
        assert_eq!(known.keys().collect::<Vec<_>>(), ["a"]);
        put(&mut known, changed(EventType::Modified, node("b", "192.0.2.2")));
        assert_eq!(known["b"].ip.to_string(), "192.0.2.2");
        put(&mut known, changed(EventType::Modified, node("a", "")));
        put(&mut known, changed(EventType::Deleted, node("b", "192.0.2.2")));
        assert!(known.is_empty());
    }
}
