//! Which node a pod goes to.

use std::{collections::BTreeMap, sync::Arc};

use minisvc_proto::{NodeName, Object};
use serde_json::Value;

use crate::{conditions, controllers::pod};

/// Why no node takes a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unschedulable {
    /// There is no node at all.
    #[error("0 nodes are registered; start an agent")]
    NoNodes,
    /// Every node has something against it: counts by reason.
    #[error("0/{total} nodes are available: {}", list(.against))]
    NoneFits {
        /// How many nodes there are.
        total: usize,
        /// How many nodes each reason rules out.
        against: BTreeMap<&'static str, usize>,
    },
}

fn list(against: &BTreeMap<&'static str, usize>) -> String {
    against.iter().map(|(why, n)| format!("{n} {why}")).collect::<Vec<_>>().join(", ")
}

/// The node for this pod: of those that are ready, schedulable and match its nodeSelector, the one with the fewest pods of the
/// same owner, then the fewest pods, then the first by name.
pub fn pick(p: &Object, nodes: &[Arc<Object>], pods: &[Arc<Object>]) -> Result<NodeName, Unschedulable> {
    if nodes.is_empty() {
        return Err(Unschedulable::NoNodes);
    }
    let owner = p.controller().map(|o| o.uid);
    let mut load: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for other in pods.iter().filter(|o| !pod::is_ended(o) && !pod::is_terminating(o)) {
        let Some(node) = pod::node(other) else { continue };
        let entry = load.entry(node).or_default();
        entry.0 += usize::from(owner.is_some() && other.controller().map(|o| o.uid) == owner);
        entry.1 += 1;
    }
    let mut against = BTreeMap::new();
    let mut best: Option<((usize, usize), NodeName)> = None;
    for node in nodes {
        let objection = objection(p, node);
        let name = node.name().parse::<NodeName>().ok().filter(|_| objection.is_none());
        let Some(name) = name else {
            *against.entry(objection.unwrap_or("had an invalid name")).or_default() += 1;
            continue;
        };
        let candidate = (load.get(name.as_str()).copied().unwrap_or_default(), name);
        if best.as_ref().is_none_or(|b| candidate < *b) {
            best = Some(candidate);
        }
    }
    best.map(|(_, name)| name).ok_or(Unschedulable::NoneFits { total: nodes.len(), against })
}

fn objection(p: &Object, node: &Object) -> Option<&'static str> {
    if node.deletion_timestamp().is_some() || !conditions::is_true(node, "Ready") {
        return Some("were not ready");
    }
    if node.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true) {
        return Some("were unschedulable");
    }
    let labels = node.labels();
    let mut wanted = p.pointer("/spec/nodeSelector").and_then(Value::as_object).into_iter().flatten();
    let fits = wanted.all(|(k, v)| labels.get(k).map(String::as_str) == v.as_str());
    (!fits).then_some("didn't match the pod's node selector")
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::{NODES, PODS};
    use serde_json::json;

    use super::*;

    fn node(name: &str, ready: &str, unschedulable: bool) -> Arc<Object> {
        let mut n = Object::new(&NODES, None, name);
        n.metadata_mut().insert("labels".into(), json!({"disk": name}));
        n.0.insert("spec".into(), json!({"unschedulable": unschedulable}));
        n.0.insert("status".into(), json!({"conditions": [{"type": "Ready", "status": ready}]}));
        Arc::new(n)
    }

    fn on(node: &str, owner: &str) -> Arc<Object> {
        let mut p = Object::new(&PODS, Some("default"), "p");
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}]);
        p.metadata_mut().insert("ownerReferences".into(), owner);
        p.0.insert("spec".into(), json!({"nodeName": node}));
        Arc::new(p)
    }

    #[test]
    fn owners_spread_then_load_then_the_name_decides() {
        let nodes = [node("b", "True", false), node("a", "True", false)];
        for (pods, expected) in [
            (vec![], "a"),
            (vec![on("a", "web")], "b"),
            (vec![on("a", "web"), on("b", "db"), on("b", "db")], "b"),
            (vec![on("a", "db")], "b"),
            (vec![on("a", "web"), on("b", "web")], "a"),
        ] {
            assert_eq!(pick(&on("", "web"), &nodes, &pods).unwrap().as_str(), expected, "{pods:?}");
        }
    }

    #[test]
    fn the_refusal_counts_the_reasons() {
        let nodes = [node("a", "Unknown", false), node("b", "True", true), node("c", "True", false)];
        let mut p = (*on("", "web")).clone();
        p.spec_mut().insert("nodeSelector".into(), json!({"disk": "c"}));
        assert_eq!(pick(&p, &nodes, &[]).unwrap().as_str(), "c");
        p.spec_mut().insert("nodeSelector".into(), json!({"disk": "ssd"}));
        assert_eq!(
            pick(&p, &nodes, &[]).unwrap_err().to_string(),
            "0/3 nodes are available: 1 didn't match the pod's node selector, 1 were not ready, 1 were unschedulable"
        );
        assert_eq!(pick(&p, &[], &[]), Err(Unschedulable::NoNodes));
    }
}
