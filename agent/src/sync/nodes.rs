//! The other nodes: routes to their pods, and their addresses in the rules.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use minisvc_proto::{
    NodeName, Object, ObjectKey,
    client::{Client, Informer, InformerEvent, ListParams, PatchKind},
    path::Target,
    resource::NODES,
    watch::EventType,
};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    peers::{Peers, sends_through_tunnel},
    readiness::Readiness,
    source::{World, link_address},
    viewpoint::Standpoint,
};
use crate::{
    dataplane::Handle,
    net::{Net, NodeRoute, NodeRoute6, Way, Ways},
    source::{self, Mac, Peer},
};

const RETRY: Duration = Duration::from_secs(1);
/// The part of [`Readiness`] that this loop answers for.
pub const PART: &str = "routes";

/// Follows the nodes until cancelled. A route that cannot be set makes this node not ready, and is tried again.
pub async fn run(
    client: Client,
    own: NodeName,
    (net, dataplane): (Net, Handle),
    standpoint: Standpoint,
    readiness: Readiness,
    sources: watch::Sender<World>,
    shutdown: CancellationToken,
) {
    let mut events = Informer::spawn(client.clone(), Target::collection(&NODES, None), ListParams::default());
    let ways = [net.ways(), net.ways6()];
    let (known, macs, peers) = (BTreeMap::new(), BTreeMap::new(), Peers::default());
    let mut nodes = Nodes { own, net, dataplane, ways, known, standpoint, macs, peers, sources };
    let mut applied: Option<BTreeMap<String, NodeRoute>> = None;
    let mut due: Option<Instant> = None;
    loop {
        let failed = applied.is_none();
        let mut to_tell = false;
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.recv() => match event {
                Some(event) => nodes.put(event),
                // Only a panic ends an informer.
                None => return,
            },
            changed = changed(&mut nodes.ways) => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed && !nodes.known.is_empty() => {}
            () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                to_tell = true;
            }
        }
        if nodes.known.is_empty() {
            continue;
        }
        // Heartbeats and conditions change no route.
        if applied.as_ref() != Some(&nodes.known) {
            let result = tokio::select! {
                () = shutdown.cancelled() => return,
                result = nodes.program() => result,
            };
            match result {
                Ok(()) => {
                    applied = Some(nodes.known.clone());
                    readiness.works(PART);
                }
                Err(error) => {
                    tracing::error!(%error, "the routes to the other nodes are not right; trying again");
                    applied = None;
                    readiness.fails(PART, &error);
                }
            }
        }
        // The machine's own routes may have changed how nodes are reached.
        if let Err(error) = nodes.follow_ways().await {
            tracing::error!(%error, "the rules do not know how nodes are reached; trying again");
            applied = None;
            readiness.fails(PART, &error);
        }
        if to_tell {
            nodes.tell(&client).await;
        }
        due = nodes.peers.news().map(|wait| match due {
            Some(at) if !to_tell => at,
            _ => Instant::now() + wait,
        });
    }
}

/// Waits for other ways, in either family.
async fn changed([first, second]: &mut [watch::Receiver<Ways>; 2]) -> Result<(), watch::error::RecvError> {
    tokio::select! {
        changed = first.changed() => changed,
        changed = second.changed() => changed,
    }
}

struct Nodes {
    own: NodeName,
    net: Net,
    dataplane: Handle,
    /// By family.
    ways: [watch::Receiver<Ways>; 2],
    known: BTreeMap<String, NodeRoute>,
    standpoint: Standpoint,
    /// Link addresses that nodes tell.
    macs: BTreeMap<String, Mac>,
    peers: Peers,
    /// What the loop that keeps sources must know.
    sources: watch::Sender<World>,
}

impl Nodes {
    /// Rules first: they must know the nodes when the tunnel opens.
    async fn program(&self) -> Result<(), String> {
        let all = self.known.values().cloned().collect();
        self.dataplane.set_nodes(all).await.map_err(|e| e.to_string())?;
        // A node's own pods are reached by routes of their own.
        let others = self.known.values().filter(|n| n.name != self.own.as_str()).cloned().collect();
        self.net.set_routes(others).await.map_err(|e| e.to_string())
    }

    async fn follow_ways(&mut self) -> Result<(), crate::nft::NftError> {
        let [first, second] = &mut self.ways;
        let (first, second) = (first.borrow_and_update().clone(), second.borrow_and_update().clone());
        self.peers.set(&first, &second);
        self.tell_sources(&first);
        let is_direct = |(name, way): (&String, &Way)| (*way == Way::Direct).then(|| self.known.get(name))?;
        let direct = first.iter().filter_map(is_direct).map(|node| IpAddr::V4(node.ip));
        let direct6 = second.iter().filter_map(is_direct).filter_map(|node| Some(node.family6?.ip.into()));
        self.dataplane.set_direct(direct.chain(direct6).collect()).await
    }

    fn tell_sources(&self, ways: &Ways) {
        let peers = self.known.values().filter(|node| node.name != self.own.as_str()).map(|node| {
            let way = match ways.get(&node.name) {
                Some(Way::Direct) => Some(source::Way::Uplink),
                Some(Way::Vxlan) => Some(source::Way::Tunnel),
                Some(Way::Unreachable) | None => None,
            };
            let mac = self.macs.get(&node.name).copied();
            (node.name.clone(), Peer { ip: node.ip, pod_cidr: node.pod_cidr, way, mac })
        });
        let world = World { peers: peers.collect(), told: self.macs.get(self.own.as_str()).copied() };
        self.sources.send_if_modified(|known| {
            let is_new = *known != world;
            *known = world;
            is_new
        });
    }

    /// Writes the ways into the node's own object.
    async fn tell(&mut self, client: &Client) {
        let key = ObjectKey::cluster(&NODES, self.own.as_str());
        let target = Target::object(&key).with_subresource("status");
        match client.patch(&target, PatchKind::Merge, &self.peers.patch()).await {
            Ok(object) => self.peers.told(&object),
            Err(error) => tracing::info!(%error, "the server does not know how this node reaches the others"),
        }
    }

    fn put(&mut self, event: InformerEvent) {
        match &event {
            InformerEvent::Reset(_, objects) => {
                if let Some(own) = objects.iter().find(|o| o.name() == self.own.as_str()) {
                    self.peers.told(own);
                }
            }
            InformerEvent::Changed(event) if event.object.name() == self.own.as_str() => {
                self.peers.told(&event.object);
            }
            InformerEvent::Changed(_) => {}
        }
        self.standpoint.put(&event);
        put_macs(&mut self.macs, &event);
        put(&mut self.known, self.own.as_str(), event);
    }
}

fn put_macs(macs: &mut BTreeMap<String, Mac>, event: &InformerEvent) {
    let mut put = |node: &Object, is_there: bool| match link_address(node).filter(|_| is_there) {
        Some(mac) => drop(macs.insert(node.name().to_owned(), mac)),
        None => drop(macs.remove(node.name())),
    };
    match event {
        InformerEvent::Reset(_, objects) => {
            for node in objects {
                put(node, true);
            }
        }
        InformerEvent::Changed(event) => put(&event.object, event.kind != EventType::Deleted),
    }
}

fn put(known: &mut BTreeMap<String, NodeRoute>, own: &str, event: InformerEvent) {
    match event {
        InformerEvent::Reset(_, objects) => {
            *known = objects.iter().filter_map(|o| route(o, own)).map(|r| (r.name.clone(), r)).collect();
        }
        InformerEvent::Changed(event) => match event.kind {
            EventType::Added | EventType::Modified => match route(&event.object, own) {
                Some(route) => drop(known.insert(route.name.clone(), route)),
                None => drop(known.remove(event.object.name())),
            },
            EventType::Deleted => drop(known.remove(event.object.name())),
            EventType::Bookmark | EventType::Error => {}
        },
    }
}

/// The way to a node's pods, once it has an address and a range.
fn route(node: &Object, own: &str) -> Option<NodeRoute> {
    let addresses = node.pointer("/status/addresses")?.as_array()?;
    let own_ips = addresses.iter().filter(|a| a["type"] == "InternalIP");
    let ips: Vec<IpAddr> = own_ips.filter_map(|a| a["address"].as_str()?.parse().ok()).collect();
    let ip = ips.iter().find_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None })?;
    let ip6 = ips.iter().find_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None });
    let pods6 = node.str_at("/spec/podCIDRs/1").and_then(|cidr| cidr.parse().ok());
    Some(NodeRoute {
        name: node.name().to_owned(),
        ip,
        pod_cidr: node.str_at("/spec/podCIDR")?.parse().ok()?,
        tunnels: sends_through_tunnel(node, own),
        family6: ip6.zip(pods6).map(|(ip, pod_cidr)| NodeRoute6 { ip, pod_cidr }),
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
            "own",
            InformerEvent::Reset(Revision(1), vec![node("a", "192.0.2.1").into(), node("b", "?").into()]),
        );
        assert_eq!(known.keys().collect::<Vec<_>>(), ["a"]);
        put(&mut known, "own", changed(EventType::Modified, node("b", "192.0.2.2")));
        assert_eq!(known["b"].ip.to_string(), "192.0.2.2");
        put(&mut known, "own", changed(EventType::Modified, node("a", "")));
        put(&mut known, "own", changed(EventType::Deleted, node("b", "192.0.2.2")));
        assert!(known.is_empty());
    }

    #[test]
    fn a_node_has_a_second_route_where_it_has_both_families() {
        let mut both = node("a", "192.0.2.1");
        both.spec_mut().insert("podCIDRs".into(), json!(["10.244.1.0/24", "fd00:1:0:1::/64"]));
        assert_eq!(route(&both, "own").unwrap().family6, None);
        let addresses = ["192.0.2.1", "2001:db8::1"].map(|ip| json!({"type": "InternalIP", "address": ip}));
        both.status_mut().insert("addresses".into(), json!(addresses));
        let family = route(&both, "own").unwrap().family6.unwrap();
        assert_eq!(
            (family.ip.to_string(), family.pod_cidr.to_string()),
            ("2001:db8::1".into(), "fd00:1:0:1::/64".into())
        );
    }

    #[test]
    fn what_nodes_say_of_each_other_changes_no_route_unless_it_is_said_of_this_node() {
        let saying = |peers: serde_json::Value| {
            let mut node = node("a", "192.0.2.1");
            node.status_mut().insert("peers".into(), peers);
            route(&node, "own").unwrap()
        };
        let silent = route(&node("a", "192.0.2.1"), "own").unwrap();
        assert_eq!(saying(json!({"direct": ["own"], "vxlan": ["b", "c"]})), silent);
        assert!(saying(json!({"direct": [], "vxlan": ["b", "own"]})).tunnels);
        // Not all names are told.
        assert!(saying(json!({"direct": [], "vxlan": ["b"], "counts": {"vxlan": 900}})).tunnels);
    }
}
