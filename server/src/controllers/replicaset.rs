//! Pods from a ReplicaSet.

use std::sync::Arc;

use minisvc_proto::{Object, resource::PODS};
use serde_json::{Map, Value, json};

use super::{
    action::{Action, is_controlled_by, number, owned_by},
    pod,
};

/// The writes that bring the pods of the set to its number, and its status in line. `pods` are of its namespace; `suffix` gives
/// the end of a new pod's name.
pub fn reconcile(set: &Object, pods: &[Arc<Object>], mut suffix: impl FnMut() -> String) -> Vec<Action> {
    if set.deletion_timestamp().is_some() {
        return Vec::new();
    }
    let owned = || pods.iter().filter(|p| is_controlled_by(p, set) && !pod::is_terminating(p));
    // What ended does not count and will not run again.
    let mut actions: Vec<Action> =
        owned().filter(|p| pod::is_ended(p)).filter_map(|p| Action::delete(p)).collect();
    let mut live: Vec<&Arc<Object>> = owned().filter(|p| !pod::is_ended(p)).collect();
    let wanted = usize::try_from(number(set, "/spec/replicas").unwrap_or(1)).unwrap_or(0);

    for _ in live.len()..wanted {
        actions.push(Action::Create(new_pod(set, &suffix())));
    }
    if live.len() > wanted {
        live.sort_by_cached_key(|p| worth(p));
        actions.extend(live.iter().take(live.len() - wanted).filter_map(|p| Action::delete(p)));
    }

    let ready = live.iter().filter(|p| pod::is_ready(p)).count();
    let mut new = set.clone();
    let status = new.status_mut();
    for (field, count) in [
        ("replicas", live.len()),
        ("fullyLabeledReplicas", live.len()),
        ("readyReplicas", ready),
        ("availableReplicas", ready),
    ] {
        status.insert(field.into(), count.into());
    }
    status.insert("observedGeneration".into(), set.generation().into());
    if new != *set {
        actions.push(Action::UpdateStatus(new));
    }
    actions
}

/// What goes first is least: unscheduled, then not ready, then the youngest. The name makes the order total.
fn worth(p: &Object) -> (bool, bool, std::cmp::Reverse<String>, String) {
    let created = p.str_at("/metadata/creationTimestamp").unwrap_or("").to_owned();
    (pod::node(p).is_some(), pod::is_ready(p), std::cmp::Reverse(created), p.name().to_owned())
}

fn new_pod(set: &Object, suffix: &str) -> Object {
    let mut new = Object::new(&PODS, set.namespace(), &format!("{}-{suffix}", set.name()));
    let template = |field: &str| set.pointer(&format!("/spec/template/{field}")).cloned();
    for field in ["labels", "annotations"] {
        if let Some(value) = template(&format!("metadata/{field}")) {
            new.metadata_mut().insert(field.into(), value);
        }
    }
    new.metadata_mut().insert("ownerReferences".into(), owned_by(set));
    new.0.insert("spec".into(), template("spec").unwrap_or_else(|| Value::Object(Map::new())));
    new.0.insert("status".into(), json!({"phase": "Pending"}));
    new
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::REPLICA_SETS;

    use super::*;

    fn set(replicas: usize) -> Object {
        let mut s = Object::new(&REPLICA_SETS, Some("default"), "web");
        s.metadata_mut().insert("uid".into(), "r1".into());
        let template =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}});
        s.0.insert("spec".into(), json!({"replicas": replicas, "template": template}));
        s
    }

    fn one(name: &str, node: bool, ready: bool, created: &str) -> Arc<Object> {
        let mut p = new_pod(&set(1), name);
        p.metadata_mut().insert("creationTimestamp".into(), created.into());
        if node {
            p.spec_mut().insert("nodeName".into(), "n1".into());
        }
        let status = if ready { "True" } else { "False" };
        p.status_mut().insert("conditions".into(), json!([{"type": "Ready", "status": status}]));
        Arc::new(p)
    }

    fn deleted(actions: &[Action]) -> Vec<&str> {
        let deletes = actions.iter().filter_map(|a| match a {
            Action::Delete { key, .. } => Some(key.name.as_str()),
            _ => None,
        });
        deletes.collect()
    }

    #[test]
    fn missing_pods_are_made_from_the_template() {
        let mut n = 0;
        let actions = reconcile(&set(2), &[one("a", true, true, "1")], || {
            n += 1;
            n.to_string()
        });
        let Action::Create(p) = &actions[0] else { panic!("{actions:?}") };
        assert_eq!((p.name(), p.labels()["app"].as_str(), n), ("web-1", "web", 1));
        assert_eq!(p.controller().unwrap().uid, "r1");
        let Action::UpdateStatus(s) = &actions[1] else { panic!("{actions:?}") };
        assert_eq!(s.pointer("/status/readyReplicas"), Some(&1.into()));
    }

    #[test]
    fn the_least_worthy_go_first() {
        let pods = [
            one("old", true, true, "1"),
            one("young", true, true, "2"),
            one("unready", true, false, "0"),
            one("unbound", false, false, "0"),
        ];
        for (replicas, expected) in [
            (3, &["web-unbound"][..]),
            (2, &["web-unbound", "web-unready"]),
            (1, &["web-unbound", "web-unready", "web-young"]),
        ] {
            assert_eq!(deleted(&reconcile(&set(replicas), &pods, String::new)), expected);
        }
    }

    #[test]
    fn ended_pods_are_replaced_and_strangers_left_alone() {
        let mut ended = (*one("ended", true, false, "1")).clone();
        ended.status_mut().insert("phase".into(), "Failed".into());
        let mut stranger = (*one("stranger", true, true, "1")).clone();
        stranger.metadata_mut().remove("ownerReferences");
        let actions = reconcile(&set(1), &[Arc::new(ended), Arc::new(stranger)], || "new".into());
        assert_eq!(deleted(&actions), ["web-ended"]);
        assert!(actions.iter().any(|a| matches!(a, Action::Create(_))));
    }
}
