//! Which node a pod goes to.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::Arc,
};

use minisvc_proto::{NodeName, Object, ObjectKey};
use serde_json::Value;

use crate::conditions;

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

/// How many pods each node has, in all and of each owner. Kept step by step, so that a choice does not count all pods.
#[derive(Debug, Default)]
pub struct Loads {
    places: HashMap<ObjectKey, (String, Option<String>)>,
    of_node: HashMap<String, usize>,
    of_owner: HashMap<(String, String), usize>,
}

impl Loads {
    /// The pod is on this node, with this controller's uid; `None`: it is nowhere, or does not count any more.
    pub fn set(&mut self, pod: &ObjectKey, place: Option<(&str, Option<&str>)>) {
        let place = place.map(|(node, owner)| (node.to_owned(), owner.map(str::to_owned)));
        if self.places.get(pod) == place.as_ref() {
            return;
        }
        if let Some((node, owner)) = self.places.remove(pod) {
            if let Some(owner) = owner {
                take_one(&mut self.of_owner, (owner, node.clone()));
            }
            take_one(&mut self.of_node, node);
        }
        if let Some((node, owner)) = place {
            *self.of_node.entry(node.clone()).or_default() += 1;
            if let Some(owner) = owner.clone() {
                *self.of_owner.entry((owner, node.clone())).or_default() += 1;
            }
            self.places.insert(pod.clone(), (node, owner));
        }
    }

    /// Whether the pod counts somewhere.
    pub fn knows(&self, pod: &ObjectKey) -> bool {
        self.places.contains_key(pod)
    }

    /// Pods of this owner on the node, and all pods on it.
    fn of(&self, node: &str, owner: Option<&str>) -> (usize, usize) {
        let own = owner.and_then(|o| self.of_owner.get(&(o.to_owned(), node.to_owned())));
        (own.copied().unwrap_or(0), self.of_node.get(node).copied().unwrap_or(0))
    }
}

fn take_one<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: K) {
    if let Entry::Occupied(mut entry) = counts.entry(key) {
        *entry.get_mut() -= 1;
        if *entry.get() == 0 {
            entry.remove();
        }
    }
}

/// The node for this pod: of those that are ready, schedulable, tolerated and match its nodeSelector, the one with the fewest
/// pods of the same owner, then the fewest pods, then the first by name.
pub fn pick<'a>(
    p: &Object,
    nodes: impl IntoIterator<Item = &'a Arc<Object>>,
    loads: &Loads,
) -> Result<NodeName, Unschedulable> {
    let owner = p.controller_uid();
    let (mut total, mut against) = (0, BTreeMap::new());
    let mut best: Option<((usize, usize), &str, NodeName)> = None;
    for node in nodes {
        total += 1;
        let objection = objection(p, node);
        let name = node.name().parse::<NodeName>().ok().filter(|_| objection.is_none());
        let Some(name) = name else {
            *against.entry(objection.unwrap_or("had an invalid name")).or_default() += 1;
            continue;
        };
        let load = loads.of(name.as_str(), owner);
        if best.as_ref().is_none_or(|(l, n, _)| (load, node.name()) < (*l, *n)) {
            best = Some((load, node.name(), name));
        }
    }
    match best {
        Some((_, _, name)) => Ok(name),
        None if total == 0 => Err(Unschedulable::NoNodes),
        None => Err(Unschedulable::NoneFits { total, against }),
    }
}

fn objection(p: &Object, node: &Object) -> Option<&'static str> {
    if node.deletion_timestamp().is_some() || !conditions::is_true(node, "Ready") {
        return Some("were not ready");
    }
    if node.pointer("/spec/unschedulable").and_then(Value::as_bool) == Some(true) {
        return Some("were unschedulable");
    }
    let mut wanted = p.pointer("/spec/nodeSelector").and_then(Value::as_object).into_iter().flatten();
    if !wanted.all(|(k, v)| node.label(k) == v.as_str()) {
        return Some("didn't match the pod's node selector");
    }
    let mut taints = node.pointer("/spec/taints").and_then(Value::as_array).into_iter().flatten();
    let keeps_out =
        |t: &Value| matches!(text(t, "effect"), "NoSchedule" | "NoExecute") && !is_tolerated(p, t);
    taints.any(keeps_out).then_some("had taints that the pod did not tolerate")
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

fn is_tolerated(p: &Object, taint: &Value) -> bool {
    let mut tolerations = p.pointer("/spec/tolerations").and_then(Value::as_array).into_iter().flatten();
    tolerations.any(|t| tolerates(t, taint))
}

/// `Toleration.ToleratesTaint` of k8s.io/component-helpers: an empty key with Exists tolerates all, an empty effect every effect.
pub fn tolerates(t: &Value, taint: &Value) -> bool {
    let (effect, key) = (text(t, "effect"), text(t, "key"));
    (effect.is_empty() || effect == text(taint, "effect"))
        && (key == text(taint, "key") || (key.is_empty() && text(t, "operator") == "Exists"))
        && match text(t, "operator") {
            "" | "Equal" => text(t, "value") == text(taint, "value"),
            operator => operator == "Exists",
        }
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

    fn of(owner: &str) -> Object {
        let mut p = Object::new(&PODS, Some("default"), "p");
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}]);
        p.metadata_mut().insert("ownerReferences".into(), owner);
        p
    }

    fn key(n: usize) -> ObjectKey {
        ObjectKey::namespaced(&PODS, "default", &format!("p{n}"))
    }

    #[test]
    fn owners_spread_then_load_then_the_name_decides() {
        let nodes = [node("b", "True", false), node("a", "True", false)];
        for (pods, expected) in [
            (vec![], "a"),
            (vec![("a", "web")], "b"),
            (vec![("a", "web"), ("b", "db"), ("b", "db")], "b"),
            (vec![("a", "db")], "b"),
            (vec![("a", "web"), ("b", "web")], "a"),
        ] {
            let mut loads = Loads::default();
            for (i, (node, owner)) in pods.iter().enumerate() {
                loads.set(&key(i), Some((node, Some(owner))));
            }
            assert_eq!(pick(&of("web"), &nodes, &loads).unwrap().as_str(), expected, "{pods:?}");
        }
    }

    #[test]
    fn what_moved_and_what_left_no_longer_counts_where_it_was() {
        let mut loads = Loads::default();
        loads.set(&key(1), Some(("a", Some("web"))));
        loads.set(&key(1), Some(("b", None)));
        assert_eq!((loads.of("a", Some("web")), loads.of("b", Some("web"))), ((0, 0), (0, 1)));
        loads.set(&key(1), None);
        loads.set(&key(1), None);
        assert!(!loads.knows(&key(1)) && loads.of_node.is_empty() && loads.of_owner.is_empty());
    }

    #[test]
    fn the_refusal_counts_the_reasons() {
        let mut tainted = (*node("d", "True", false)).clone();
        tainted
            .spec_mut()
            .insert("taints".into(), json!([{"key": "x", "value": "y", "effect": "NoSchedule"}]));
        let nodes = [
            node("a", "Unknown", false),
            node("b", "True", true),
            node("c", "True", false),
            Arc::new(tainted),
        ];
        let (mut p, loads) = (of("web"), Loads::default());
        p.spec_mut().insert("nodeSelector".into(), json!({"disk": "c"}));
        assert_eq!(pick(&p, &nodes, &loads).unwrap().as_str(), "c");
        p.spec_mut().insert("nodeSelector".into(), json!({"disk": "d"}));
        assert_eq!(
            pick(&p, &nodes, &loads).unwrap_err().to_string(),
            "0/4 nodes are available: 1 didn't match the pod's node selector, \
             1 had taints that the pod did not tolerate, 1 were not ready, 1 were unschedulable"
        );
        for (toleration, tolerates) in [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "x", "value": "y"}), true),
            (json!({"key": "x", "operator": "Exists", "effect": "NoSchedule"}), true),
            (json!({"key": "x", "value": "z"}), false),
            (json!({"key": "x", "value": "y", "effect": "NoExecute"}), false),
        ] {
            p.spec_mut().insert("tolerations".into(), json!([toleration]));
            assert_eq!(pick(&p, &nodes, &loads).is_ok(), tolerates, "{toleration}");
        }
        assert_eq!(pick(&p, &[], &loads), Err(Unschedulable::NoNodes));
    }
}
