//! Pods from a ReplicaSet.

mod victims;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use minisvc_proto::{Object, resource::PODS};
use serde_json::{Map, Value, json};

use super::{
    action::{Action, Plan, is_controlled_by, number, owned_by},
    pod,
};
use crate::conditions;

/// Pods that one reconcile makes or deletes at most; what it wrote brings the set back for the next ones. [pkg/controller/replicaset,
/// BurstReplicas]
const BURST: usize = 500;

/// The longest beginning of a pod's name, so that the whole has 63 characters. [apiserver/pkg/storage/names]
const LONGEST_BASE: usize = 58;

/// The condition of a set whose pods cannot be made or deleted.
pub const FAILURE: &str = "ReplicaFailure";

/// The writes that bring the pods of the set to its number, and its status in line; and when a pod will have been ready for
/// long enough. `related`: the pods of all sets of its owner, which share the nodes. `suffix` gives the end of a new pod's name.
pub fn reconcile(
    set: &Object,
    pods: &[Arc<Object>],
    related: &[Arc<Object>],
    now: Timestamp,
    mut suffix: impl FnMut() -> String,
) -> Plan {
    if set.deletion_timestamp().is_some() {
        return Plan::default();
    }
    let owned = || pods.iter().filter(|p| is_controlled_by(p, set) && !pod::is_terminating(p));
    // What ended does not count and will not run again.
    let mut actions: Vec<Action> =
        owned().filter(|p| pod::is_ended(p)).filter_map(|p| Action::delete(p)).collect();
    let mut live: Vec<&Arc<Object>> = owned().filter(|p| !pod::is_ended(p)).collect();
    let wanted = usize::try_from(wanted(set)).unwrap_or(0);

    let min_ready = number(set, "/spec/minReadySeconds").and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
    let min_ready = Duration::from_secs(min_ready);
    for _ in live.len()..wanted.min(live.len() + BURST) {
        actions.push(Action::Create(new_pod(set, &suffix())));
    }
    if live.len() > wanted {
        victims::sort(&mut live, related, min_ready, now);
        let surplus = (live.len() - wanted).min(BURST);
        actions.extend(live.iter().take(surplus).filter_map(|p| Action::delete(p)));
    }

    let waits = live.iter().map(|p| pod::available_in(p, min_ready, now));
    let (mut ready, mut available, mut again) = (0_usize, 0_usize, None::<Duration>);
    for wait in waits.flatten() {
        ready += 1;
        if wait.is_zero() {
            available += 1;
        } else {
            again = Some(again.map_or(wait, |a| a.min(wait)));
        }
    }
    let template = set.pointer("/spec/template/metadata/labels").and_then(Value::as_object);
    let labelled = |p: &&&Arc<Object>| template.into_iter().flatten().all(|(k, v)| p.label(k) == v.as_str());
    let mut new = set.clone();
    let status = new.status_mut();
    for (field, count) in [
        ("replicas", live.len()),
        ("fullyLabeledReplicas", live.iter().filter(labelled).count()),
        ("readyReplicas", ready),
        ("availableReplicas", available),
    ] {
        status.insert(field.into(), count.into());
    }
    status.insert("observedGeneration".into(), set.generation().into());
    if wanted == live.len() {
        conditions::remove(&mut new, FAILURE);
    }
    if new != *set {
        actions.push(Action::UpdateStatus(new));
    }
    Plan { actions, again }
}

/// Whether some of this many pods have to go.
pub fn has_surplus(set: &Object, pods: usize) -> bool {
    usize::try_from(wanted(set)).is_ok_and(|wanted| pods > wanted)
}

fn wanted(set: &Object) -> i64 {
    number(set, "/spec/replicas").unwrap_or(1)
}

fn new_pod(set: &Object, suffix: &str) -> Object {
    let base: String = format!("{}-", set.name()).chars().take(LONGEST_BASE).collect();
    let mut new = Object::new(&PODS, set.namespace(), &format!("{base}{suffix}"));
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
        let actions = reconcile(&set(2), &[one("a", true, true, "1")], &[], Timestamp::UNIX_EPOCH, || {
            n += 1;
            n.to_string()
        })
        .actions;
        let Action::Create(p) = &actions[0] else { panic!("{actions:?}") };
        assert_eq!((p.name(), p.labels()["app"].as_str(), n), ("web-1", "web", 1));
        assert_eq!(p.controller().unwrap().uid, "r1");
        let Action::UpdateStatus(s) = &actions[1] else { panic!("{actions:?}") };
        assert_eq!(s.pointer("/status/readyReplicas"), Some(&1.into()));
    }

    #[test]
    fn a_set_of_more_pods_than_anybody_can_have_is_made_step_by_step() {
        let created = |set: &Object, pods: &[Arc<Object>]| {
            let actions = reconcile(set, pods, &[], Timestamp::UNIX_EPOCH, String::new).actions;
            actions.iter().filter(|a| matches!(a, Action::Create(_))).count()
        };
        let huge = set(usize::try_from(i32::MAX).unwrap());
        assert_eq!(created(&huge, &[]), BURST);
        assert_eq!(created(&huge, &[one("a", true, true, "1")]), BURST);
        assert_eq!(created(&set(3), &[one("a", true, true, "1")]), 2);
    }

    #[test]
    fn surplus_pods_go_the_least_worthy_first() {
        let pods = [
            one("old", true, true, "1"),
            one("unready", true, false, "0"),
            one("unbound", false, false, "0"),
        ];
        for (replicas, expected) in
            [(3, &[][..]), (2, &["web-unbound"]), (1, &["web-unbound", "web-unready"])]
        {
            let plan = reconcile(&set(replicas), &pods, &[], Timestamp::UNIX_EPOCH, String::new);
            assert_eq!(deleted(&plan.actions), expected);
        }
    }

    #[test]
    fn trouble_is_over_when_every_pod_is_there() {
        let mut set = set(1);
        let failure = conditions::Condition {
            kind: FAILURE,
            status: "True",
            reason: "FailedCreate",
            message: String::new(),
        };
        conditions::set(&mut set, &failure, "then");
        for (pods, lasts) in [(vec![], true), (vec![one("a", true, true, "1")], false)] {
            let plan = reconcile(&set, &pods, &[], Timestamp::UNIX_EPOCH, String::new);
            let Some(Action::UpdateStatus(after)) = plan.actions.last() else { panic!("{plan:?}") };
            assert_eq!(conditions::get(after, FAILURE).is_some(), lasts);
        }
    }

    #[test]
    fn a_pods_name_fits_a_label_whatever_its_sets_name() {
        let mut set = set(1);
        set.metadata_mut().insert("name".into(), "x".repeat(200).into());
        assert_eq!(new_pod(&set, "bcdfg").name(), format!("{}bcdfg", "x".repeat(58)));
    }

    #[test]
    fn ended_pods_are_replaced_and_strangers_left_alone() {
        let mut ended = (*one("ended", true, false, "1")).clone();
        ended.status_mut().insert("phase".into(), "Failed".into());
        let mut stranger = (*one("stranger", true, true, "1")).clone();
        stranger.metadata_mut().remove("ownerReferences");
        let actions =
            reconcile(&set(1), &[Arc::new(ended), Arc::new(stranger)], &[], Timestamp::UNIX_EPOCH, || {
                "new".into()
            })
            .actions;
        assert_eq!(deleted(&actions), ["web-ended"]);
        assert!(actions.iter().any(|a| matches!(a, Action::Create(_))));
    }

    #[test]
    fn a_pod_is_available_when_it_has_been_ready_for_long_enough() {
        let mut set = set(1);
        set.spec_mut().insert("minReadySeconds".into(), 10.into());
        let mut p = (*one("a", true, true, "1")).clone();
        let ready =
            json!([{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]);
        p.status_mut().insert("conditions".into(), ready);
        for (now, available, again) in
            [("00:00:04Z", 0, Some(6)), ("00:00:10Z", 1, None), ("00:01:00Z", 1, None)]
        {
            let now = format!("2026-01-01T{now}").parse().unwrap();
            let plan = reconcile(&set, &[Arc::new(p.clone())], &[], now, String::new);
            let Action::UpdateStatus(s) = &plan.actions[0] else { panic!("{plan:?}") };
            assert_eq!(s.pointer("/status/availableReplicas"), Some(&available.into()));
            assert_eq!(plan.again, again.map(Duration::from_secs));
        }
    }
}
