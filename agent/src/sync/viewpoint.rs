//! Where this node stands among the others, as services see it: followed from the Node objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use minisvc_proto::{NodeName, Object, client::InformerEvent, watch::EventType};
use tokio::sync::watch;

use crate::plan::Viewpoint;

const ZONE: &str = "topology.kubernetes.io/zone";

/// Keeps the viewpoint from what comes of nodes.
#[derive(Debug)]
pub struct Standpoint {
    own: NodeName,
    /// What the agent was started with: a Node that does not say it yet has it all the same.
    started_with: BTreeSet<IpAddr>,
    zone: Option<String>,
    addresses: BTreeMap<String, BTreeSet<IpAddr>>,
    told: watch::Sender<Option<Viewpoint>>,
}

impl Standpoint {
    /// Of a node that was started with these addresses.
    pub fn new(own: NodeName, started_with: BTreeSet<IpAddr>) -> Self {
        let told = watch::Sender::new(None);
        Standpoint { own, started_with, zone: None, addresses: BTreeMap::new(), told }
    }

    /// The viewpoint, now and later; `None` until the nodes have been listed: an address that is another node's would be taken for
    /// nobody's.
    pub fn subscribe(&self) -> watch::Receiver<Option<Viewpoint>> {
        self.told.subscribe()
    }

    /// Takes what has come of nodes. What services do not see costs nothing.
    pub fn put(&mut self, event: &InformerEvent) {
        let changed = match event {
            InformerEvent::Reset(_, objects) => {
                self.addresses.clear();
                self.zone = None;
                for node in objects {
                    self.take(node);
                }
                true
            }
            InformerEvent::Changed(event) => match event.kind {
                EventType::Added | EventType::Modified => self.take(&event.object),
                EventType::Deleted => self.addresses.remove(event.object.name()).is_some(),
                EventType::Bookmark | EventType::Error => false,
            },
        };
        if changed {
            let now = self.viewpoint();
            self.told.send_if_modified(|told| {
                let is_news = told.as_ref() != Some(&now);
                *told = Some(now);
                is_news
            });
        }
    }

    fn take(&mut self, node: &Object) -> bool {
        let addresses = addresses(node);
        let mut changed = false;
        if node.name() == self.own.as_str() {
            let zone = node.labels().remove(ZONE).filter(|zone| !zone.is_empty());
            changed = zone != self.zone;
            self.zone = zone;
        }
        if self.addresses.get(node.name()) != Some(&addresses) {
            self.addresses.insert(node.name().to_owned(), addresses);
            changed = true;
        }
        changed
    }

    fn viewpoint(&self) -> Viewpoint {
        let own = self.addresses.get(self.own.as_str()).into_iter().flatten();
        let addresses: BTreeSet<IpAddr> = own.chain(&self.started_with).copied().collect();
        let others = self.addresses.iter().filter(|(name, _)| *name != self.own.as_str());
        let others = others.flat_map(|(_, ips)| ips).copied();
        Viewpoint {
            node: self.own.to_string(),
            zone: self.zone.clone(),
            others: others.filter(|ip| !addresses.contains(ip)).collect(),
            addresses,
        }
    }
}

fn addresses(node: &Object) -> BTreeSet<IpAddr> {
    let all = node.pointer("/status/addresses").and_then(|v| v.as_array()).into_iter().flatten();
    let ips = all.filter(|a| a["type"] == "InternalIP" || a["type"] == "ExternalIP");
    ips.filter_map(|a| a["address"].as_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use minisvc_proto::{Revision, watch::WatchEvent};
    use serde_json::json;

    use super::*;

    fn node(name: &str, zone: &str, ips: &[&str]) -> Object {
        let addresses: Vec<_> = ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip})).collect();
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {ZONE: zone}}, "status": {"addresses": addresses}}))
        .unwrap()
    }

    fn ips(ips: &[&str]) -> BTreeSet<IpAddr> {
        ips.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn zone_and_addresses_are_followed_and_nothing_is_said_without_need() {
        let mut standpoint = Standpoint::new("own".parse().unwrap(), ips(&["192.0.2.1"]));
        let mut told = standpoint.subscribe();
        assert_eq!(*told.borrow(), None);
        let all =
            vec![node("a", "z", &["192.0.2.2"]).into(), node("b", "", &["192.0.2.3", "2001:db8::3"]).into()];
        standpoint.put(&InformerEvent::Reset(Revision(1), all));
        let seen = |told: &mut watch::Receiver<Option<Viewpoint>>| {
            let seen = told.borrow_and_update().clone().unwrap();
            (seen.zone, seen.addresses, seen.others)
        };
        let others = ips(&["192.0.2.2", "192.0.2.3", "2001:db8::3"]);
        assert_eq!(seen(&mut told), (None, ips(&["192.0.2.1"]), others.clone()));
        let mut put = |kind, object| standpoint.put(&InformerEvent::Changed(WatchEvent { kind, object }));
        put(EventType::Modified, node("own", "z", &["192.0.2.1", "2001:db8::1"]));
        assert_eq!(seen(&mut told), (Some("z".into()), ips(&["192.0.2.1", "2001:db8::1"]), others));
        // A heartbeat of another node, and its zone.
        put(EventType::Modified, node("a", "y", &["192.0.2.2"]));
        assert!(!told.has_changed().unwrap());
        put(EventType::Deleted, node("b", "", &[]));
        put(EventType::Modified, node("a", "y", &["192.0.2.9"]));
        assert_eq!(seen(&mut told).2, ips(&["192.0.2.9"]));
    }
}
