//! How this node reaches the others, as its object says: `status.peers`, with the nodes' names by way. Pure.
//!
//! Every node says it of every other one, so what is said is bounded, and not said at once: a thousand nodes that a new one makes
//! write would send a million events.

use std::{collections::BTreeMap, time::Duration};

use minisvc_proto::Object;
use serde_json::{Map, Value, json};

use crate::net::{Way, Ways};

/// So many names are told for each way; beyond that `counts` says how many there are.
const MOST_NAMES: usize = 64;
/// How long a change waits for others, and how much longer for each node.
const QUIET: Duration = Duration::from_millis(200);
const QUIET_PER_NODE: Duration = Duration::from_millis(20);

const WAYS: [(Way, &str); 3] =
    [(Way::Direct, "direct"), (Way::Vxlan, "vxlan"), (Way::Unreachable, "unreachable")];

/// What should be said, and what is.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    wanted: Map<String, Value>,
    told: Map<String, Value>,
    count: u32,
    is_known: bool,
}

impl Peers {
    /// These are the ways now, of IPv4 and of IPv6.
    pub fn set(&mut self, first: &Ways, second: &Ways) {
        let mut ways = BTreeMap::clone(first);
        for (name, way) in second.iter() {
            // Of two, the one that takes more is told: a node that is reached through the tunnel in one family must open it.
            ways.entry(name.clone()).and_modify(|told| *told = (*told).max(*way)).or_insert(*way);
        }
        (self.wanted, self.count, self.is_known) =
            (status(&ways), u32::try_from(ways.len()).unwrap_or(u32::MAX), true);
    }

    /// The node's object says this.
    pub fn told(&mut self, own: &Object) {
        self.told = own.pointer("/status/peers").and_then(Value::as_object).cloned().unwrap_or_default();
    }

    /// Whether there is something to say, and how long it may wait.
    pub fn news(&self) -> Option<Duration> {
        (self.is_known && self.wanted != self.told).then(|| QUIET + QUIET_PER_NODE * self.count.min(10_000))
    }

    /// Says it; a merge patch.
    pub fn patch(&self) -> Value {
        let mut peers = self.wanted.clone();
        for field in self.told.keys() {
            peers.entry(field.clone()).or_insert(Value::Null);
        }
        json!({"status": {"peers": peers}})
    }
}

fn status(ways: &BTreeMap<String, Way>) -> Map<String, Value> {
    let (mut peers, mut counts) = (Map::new(), Map::new());
    for (way, field) in WAYS {
        let names: Vec<&String> = ways.iter().filter(|(_, w)| **w == way).map(|(name, _)| name).collect();
        // The usual ways are always there, so that one sees that there are none.
        if names.is_empty() && way == Way::Unreachable {
            continue;
        }
        if names.len() > MOST_NAMES {
            counts.insert(field.into(), names.len().into());
        }
        peers.insert(field.into(), json!(names[..names.len().min(MOST_NAMES)]));
    }
    if !counts.is_empty() {
        peers.insert("counts".into(), counts.into());
    }
    peers
}

/// Whether a node says that it sends to the node `own` through VXLAN, or may: not all names are told.
pub fn sends_through_tunnel(node: &Object, own: &str) -> bool {
    let names = node.pointer("/status/peers/vxlan").and_then(Value::as_array);
    names.is_some_and(|names| names.iter().any(|name| name == own))
        || node.pointer("/status/peers/counts/vxlan").is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use minisvc_proto::resource::NODES;

    use super::*;

    fn ways(list: impl IntoIterator<Item = (String, Way)>) -> Ways {
        Arc::new(list.into_iter().collect())
    }

    fn said(patch: &Value) -> Object {
        let mut node = Object::new(&NODES, None, "a");
        let mut peers = patch["status"]["peers"].as_object().unwrap().clone();
        peers.retain(|_, value| !value.is_null());
        node.status_mut().insert("peers".into(), peers.into());
        node
    }

    #[test]
    fn what_is_said_is_said_once_and_taken_back() {
        let mut peers = Peers::default();
        assert_eq!(peers.news(), None);
        peers.set(&ways([]), &ways([]));
        assert_eq!(peers.patch(), json!({"status": {"peers": {"direct": [], "vxlan": []}}}));
        peers.set(
            &ways([("b".into(), Way::Direct), ("c".into(), Way::Unreachable)]),
            &ways([("b".into(), Way::Direct)]),
        );
        assert!(peers.news().is_some());
        let node = said(&peers.patch());
        assert_eq!(node.pointer("/status/peers/unreachable"), Some(&json!(["c"])));
        peers.told(&node);
        assert_eq!(peers.news(), None);
        let direct = ways([("b".into(), Way::Direct), ("c".into(), Way::Direct)]);
        peers.set(&direct, &ways([("c".into(), Way::Vxlan)]));
        assert_eq!(
            peers.patch(),
            json!({"status": {"peers": {"direct": ["b"], "vxlan": ["c"], "unreachable": null}}})
        );
        let node = said(&peers.patch());
        assert!(sends_through_tunnel(&node, "c") && !sends_through_tunnel(&node, "b"));
        // A server that has forgotten is told again.
        peers.told(&node);
        peers.told(&Object::new(&NODES, None, "a"));
        assert!(peers.news().is_some());
    }

    #[test]
    fn a_thousand_nodes_are_counted() {
        let mut peers = Peers::default();
        let many = (0..1000).map(|n| (format!("node-{n:04}"), if n < 3 { Way::Direct } else { Way::Vxlan }));
        peers.set(&ways(many), &ways([]));
        let node = said(&peers.patch());
        let names =
            |way: &str| node.pointer(&format!("/status/peers/{way}")).unwrap().as_array().unwrap().len();
        assert_eq!((names("direct"), names("vxlan")), (3, MOST_NAMES));
        assert_eq!(node.pointer("/status/peers/counts"), Some(&json!({"vxlan": 997})));
        assert!(sends_through_tunnel(&node, "node-0999"));
        assert!(node.pointer("/status/peers").unwrap().to_string().len() < 2000);
        assert!(peers.news().unwrap() > Duration::from_secs(10));
    }
}
