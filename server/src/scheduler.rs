//! Which node a pod goes to.

mod node_affinity;
mod requests;
mod taints;

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fmt,
    sync::Arc,
};

use minisvc_proto::{NodeName, Object, ObjectKey};

use self::requests::Amounts;
pub use self::taints::tolerates;
use crate::conditions;

/// So many nodes are named with what is against them; of the others the counts tell.
const NAMED: usize = 20;

/// Why no node takes a pod.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unschedulable {
    /// There is no node at all.
    #[error("0 nodes are registered; start an agent")]
    NoNodes,
    /// Every node has something against it.
    #[error("{0}")]
    NoneFits(Objections),
}

/// What each node has against a pod, by the node's name. Shown as Kubernetes counts it, and then node by node.
/// [pkg/scheduler/framework/types.go, FitError]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objections(BTreeMap<String, Vec<String>>);

impl fmt::Display for Objections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = BTreeMap::<&str, usize>::new();
        for reason in self.0.values().flatten() {
            *counts.entry(reason).or_default() += 1;
        }
        let mut counted: Vec<String> = counts.iter().map(|(why, n)| format!("{n} {why}")).collect();
        counted.sort();
        write!(f, "0/{} nodes are available: {}.", self.0.len(), counted.join(", "))?;
        for (i, (node, reasons)) in self.0.iter().take(NAMED).enumerate() {
            let reasons: Vec<&str> = reasons.iter().map(|r| r.trim_start_matches("node(s) ")).collect();
            write!(f, "{} {node}: {}", if i == 0 { "" } else { ";" }, reasons.join(", "))?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

/// What is on each node: how many pods, in all and of each owner, and what they ask for. Kept step by step, so that a choice does
/// not count all pods.
#[derive(Debug, Default)]
pub struct Loads {
    places: HashMap<ObjectKey, Place>,
    of_node: HashMap<String, Load>,
    of_owner: HashMap<(String, String), usize>,
}

#[derive(Debug, PartialEq, Eq)]
struct Place {
    node: String,
    /// The controller's uid, unless the pod is ending: then another one takes its place, here or elsewhere.
    owner: Option<String>,
    requests: Amounts,
}

#[derive(Debug, Default)]
struct Load {
    pods: usize,
    used: Amounts,
}

impl Loads {
    /// The pod is on this node; `None`: it is nowhere, or does not count any more. One that is ending counts until it has ended.
    /// Answers whether room became free.
    pub fn set(&mut self, key: &ObjectKey, place: Option<(&str, &Object)>) -> bool {
        let place = place.map(|(node, pod)| {
            let owner = pod.controller_uid().filter(|_| pod.deletion_timestamp().is_none());
            Place { node: node.to_owned(), owner: owner.map(str::to_owned), requests: requests::of_pod(pod) }
        });
        if self.places.get(key) == place.as_ref() {
            return false;
        }
        let old = self.places.remove(key);
        let freed = old.as_ref().is_some_and(|old| place.as_ref().is_none_or(|p| p.node != old.node));
        if let Some(old) = old {
            if let Some(owner) = old.owner {
                take_one(&mut self.of_owner, (owner, old.node.clone()));
            }
            if let Entry::Occupied(mut load) = self.of_node.entry(old.node) {
                load.get_mut().pods -= 1;
                requests::subtract(&mut load.get_mut().used, &old.requests);
                if load.get().pods == 0 {
                    load.remove();
                }
            }
        }
        if let Some(place) = place {
            let load = self.of_node.entry(place.node.clone()).or_default();
            load.pods += 1;
            requests::add(&mut load.used, &place.requests);
            if let Some(owner) = &place.owner {
                *self.of_owner.entry((owner.clone(), place.node.clone())).or_default() += 1;
            }
            self.places.insert(key.clone(), place);
        }
        freed
    }

    /// Whether the pod counts somewhere.
    pub fn knows(&self, pod: &ObjectKey) -> bool {
        self.places.contains_key(pod)
    }

    /// Pods of this owner on the node.
    fn own(&self, node: &str, owner: Option<&str>) -> usize {
        let own = owner.and_then(|o| self.of_owner.get(&(o.to_owned(), node.to_owned())));
        own.copied().unwrap_or(0)
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

/// The node for this pod. Of those that have nothing against it: first by what the pod and the node prefer (taints
/// PreferNoSchedule, preferred node affinity), then the one with the fewest pods of the same owner, then the emptiest by what is asked
/// for, then the fewest pods, then the first by name.
pub fn pick<'a>(
    p: &Object,
    nodes: impl IntoIterator<Item = &'a Arc<Object>>,
    loads: &Loads,
) -> Result<NodeName, Unschedulable> {
    let (owner, asked, idle) = (p.controller_uid(), requests::of_pod(p), Load::default());
    let mut objections = Objections::default();
    let mut best = None;
    for node in nodes {
        let load = loads.of_node.get(node.name()).unwrap_or(&idle);
        let has = requests::allocatable(node);
        let mut against = objection(p, node)
            .map_or_else(|| requests::lacks(&has, load.pods, &load.used, &asked), |why| vec![why]);
        let name = node.name().parse::<NodeName>();
        if name.is_err() {
            against.push("node(s) had an invalid name".to_owned());
        }
        let Some(name) = name.ok().filter(|_| against.is_empty()) else {
            objections.0.insert(node.name().to_owned(), against);
            continue;
        };
        let preferred = (taints::discouraging(p, node), -node_affinity::preference(p, node));
        let own = loads.own(node.name(), owner);
        let rank = (preferred, own, requests::fullness(&has, &load.used, &asked), load.pods, node.name());
        if best.as_ref().is_none_or(|(least, _)| rank < *least) {
            best = Some((rank, name));
        }
    }
    match best {
        Some((_, name)) => Ok(name),
        None if objections.0.is_empty() => Err(Unschedulable::NoNodes),
        None => Err(Unschedulable::NoneFits(objections)),
    }
}

/// What a node has against the pod, whatever else is on it, in the order in which Kubernetes' plugins are asked.
fn objection(p: &Object, node: &Object) -> Option<String> {
    if node.deletion_timestamp().is_some() || !conditions::is_true(node, "Ready") {
        return Some("node(s) were not ready".to_owned());
    }
    if taints::is_cordoned(p, node) {
        return Some("node(s) were unschedulable".to_owned());
    }
    if let Some(taint) = taints::untolerated(p, node) {
        return Some(format!("node(s) had untolerated taint {}", taints::shown(taint)));
    }
    (!node_affinity::matches(p, node)).then(|| "node(s) didn't match Pod's node affinity/selector".to_owned())
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
                loads.set(&key(i), Some((node, &of(owner))));
            }
            assert_eq!(pick(&of("web"), &nodes, &loads).unwrap().as_str(), expected, "{pods:?}");
        }
    }

    fn asking(owner: &str, cpu: &str) -> Object {
        let mut p = of(owner);
        p.spec_mut().insert("containers".into(), json!([{"resources": {"requests": {"cpu": cpu}}}]));
        p
    }

    #[test]
    fn what_moved_and_what_left_no_longer_counts_where_it_was() {
        let mut loads = Loads::default();
        assert!(!loads.set(&key(1), Some(("a", &asking("web", "1")))));
        assert!(loads.set(&key(1), Some(("b", &asking("web", "2")))), "there is room on a");
        assert_eq!((loads.own("a", Some("web")), loads.own("b", Some("web"))), (0, 1));
        assert!(!loads.of_node.contains_key("a"));
        let mut ending = asking("web", "2");
        ending.metadata_mut().insert("deletionTimestamp".into(), "t".into());
        assert!(!loads.set(&key(1), Some(("b", &ending))), "it has not ended yet");
        assert_eq!((loads.own("b", Some("web")), loads.of_node["b"].used["cpu"].value()), (0, 2));
        assert!(loads.set(&key(1), None) && !loads.set(&key(1), None));
        assert!(!loads.knows(&key(1)) && loads.of_node.is_empty() && loads.of_owner.is_empty());
    }

    #[test]
    fn a_pod_goes_where_there_is_room_for_what_it_asks() {
        let sized = |name: &str, cpu: &str| {
            let mut n = (*node(name, "True", false)).clone();
            n.status_mut().insert("allocatable".into(), json!({"cpu": cpu, "pods": "3"}));
            Arc::new(n)
        };
        let nodes = [sized("a", "1"), sized("b", "4")];
        let mut loads = Loads::default();
        let mut placed = Vec::new();
        for (i, owner) in ["w", "x", "y", "z"].into_iter().enumerate() {
            let p = asking(owner, "900m");
            let name = pick(&p, &nodes, &loads).unwrap();
            loads.set(&key(i), Some((name.as_str(), &p)));
            placed.push(name.to_string());
        }
        assert_eq!(placed, ["b", "b", "b", "a"], "the emptiest by share, until it is full");
        let refused = pick(&asking("v", "200m"), &nodes, &loads).unwrap_err().to_string();
        assert_eq!(
            refused,
            "0/2 nodes are available: 1 Insufficient cpu, 1 Too many pods. a: Insufficient cpu; b: Too many pods"
        );
    }

    #[test]
    fn what_is_preferred_comes_first() {
        let mut discouraged = (*node("a", "True", false)).clone();
        discouraged.spec_mut().insert("taints".into(), json!([{"key": "x", "effect": "PreferNoSchedule"}]));
        let nodes = [Arc::new(discouraged), node("b", "True", false), node("c", "True", false)];
        let loads = Loads::default();
        let mut p = of("web");
        assert_eq!(pick(&p, &nodes, &loads).unwrap().as_str(), "b");
        p.spec_mut().insert(
            "affinity".into(),
            json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference":
                {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["c"]}]}}]}}),
        );
        assert_eq!(pick(&p, &nodes, &loads).unwrap().as_str(), "c");
        p.spec_mut().insert("tolerations".into(), json!([{"operator": "Exists"}]));
        p.spec_mut().remove("affinity");
        assert_eq!(pick(&p, &nodes, &loads).unwrap().as_str(), "a");
    }

    #[test]
    fn the_refusal_counts_the_reasons_and_names_the_nodes() {
        let mut tainted = (*node("d", "True", false)).clone();
        tainted
            .spec_mut()
            .insert("taints".into(), json!([{"key": "x", "value": "y", "effect": "NoSchedule"}]));
        let mut nodes = vec![
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
            "0/4 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, \
             1 node(s) had untolerated taint {x: y}, 1 node(s) were not ready, 1 node(s) were unschedulable. \
             a: were not ready; b: were unschedulable; c: didn't match Pod's node affinity/selector; \
             d: had untolerated taint {x: y}"
        );
        assert_eq!(pick(&p, &[], &loads), Err(Unschedulable::NoNodes));
        nodes.extend((0..18).map(|n| node(&format!("e{n}"), "False", false)));
        assert!(pick(&p, &nodes, &loads).unwrap_err().to_string().ends_with("; and 2 more"));
    }
}
