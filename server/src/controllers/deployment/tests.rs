//! Deployments step by step, their sets' pods as numbers.

use std::{collections::BTreeMap, time::Duration};

use minisvc_proto::resource::{DEPLOYMENTS, PODS, REPLICA_SETS};

use super::*;
use crate::conditions;

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"image": image}]}})
}

fn web(image: &str, replicas: i64, strategy: Value) -> Object {
    let mut d = Object::new(&DEPLOYMENTS, Some("default"), "web");
    d.metadata_mut().insert("uid".into(), "d1".into());
    let selector = json!({"matchLabels": {"app": "web"}});
    let spec = json!({"replicas": replicas, "selector": selector, "template": template(image), "strategy": strategy});
    d.0.insert("spec".into(), spec);
    d
}

fn size(set: &Object) -> i64 {
    number(set, "/spec/replicas").unwrap()
}

/// A deployment and its sets.
struct World {
    deployment: Object,
    sets: BTreeMap<String, Object>,
    pods: Vec<Arc<Object>>,
    now: Timestamp,
    said: Vec<String>,
}

impl World {
    fn of(deployment: Object) -> Self {
        World {
            deployment,
            sets: BTreeMap::new(),
            pods: Vec::new(),
            now: Timestamp::UNIX_EPOCH,
            said: Vec::new(),
        }
    }

    /// One step; answers how many writes it was, and when to look again.
    fn step(&mut self) -> (usize, Option<Duration>) {
        let sets: Vec<_> = self.sets.values().cloned().map(Arc::new).collect();
        let taken = self.sets.contains_key(&set_name(&self.deployment));
        let plan = reconcile(&self.deployment, &Seen { sets: &sets, pods: &self.pods, taken }, self.now);
        let count = plan.actions.len();
        self.said.extend(told(&sets, &plan.actions));
        for action in plan.actions {
            match action {
                Action::Create(mut set) => {
                    set.metadata_mut().insert("uid".into(), format!("r{}", self.sets.len()).into());
                    set.metadata_mut()
                        .insert("creationTimestamp".into(), format!("{:02}", self.sets.len()).into());
                    assert!(self.sets.insert(set.name().to_owned(), set).is_none());
                }
                Action::Update(o) if o.kind() == "Deployment" => self.deployment = o,
                Action::Update(o) => drop(self.sets.insert(o.name().to_owned(), o)),
                Action::UpdateStatus(o) => self.deployment = o,
                Action::Delete { key, .. } => assert_eq!(size(&self.sets.remove(&key.name).unwrap()), 0),
            }
        }
        (count, plan.again)
    }

    /// Every set has its pods, `available` of them of the newest template; those of others are.
    fn run_pods(&mut self, available: i64) {
        let newest = self.sets.values().map(history::revision).max().unwrap_or(0);
        for s in self.sets.values_mut() {
            let n = size(s);
            let up = if history::revision(s) == newest { n.min(available) } else { n };
            for (field, n) in [("replicas", n), ("readyReplicas", up), ("availableReplicas", up)] {
                s.status_mut().insert(field.into(), n.into());
            }
        }
    }

    /// Until nothing changes. Answers the least available and the most pods on the way.
    fn roll(&mut self, available: i64) -> (i64, i64) {
        let (mut least, mut most) = (i64::MAX, 0);
        for _ in 0..100 {
            let before = self.sets.clone();
            if self.step().0 == 0 && before == self.sets {
                return (least, most);
            }
            most = most.max(self.sets.values().map(size).sum());
            // What was stopped is gone first, then what was started comes up.
            least = least.min(
                self.sets
                    .values()
                    .map(|s| number(s, "/status/availableReplicas").unwrap_or(0).min(size(s)))
                    .sum(),
            );
            self.run_pods(available);
        }
        panic!("it does not settle: {:#?}", self.deployment);
    }

    fn set_image(&mut self, image: &str) {
        self.deployment.spec_mut().insert("template".into(), template(image));
    }

    /// Revision, size and image of each set.
    fn state(&self) -> Vec<(u64, i64, &str)> {
        let mut all: Vec<_> = self
            .sets
            .values()
            .map(|s| {
                (history::revision(s), size(s), s.str_at("/spec/template/spec/containers/0/image").unwrap())
            })
            .collect();
        all.sort_unstable();
        all
    }

    fn reason(&self) -> &str {
        conditions::get(&self.deployment, "Progressing").unwrap()["reason"].as_str().unwrap()
    }
}

fn rolling(surge: &Value, unavailable: &Value) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

#[test]
fn a_rollout_keeps_to_its_limits_and_ends_with_the_new_template() {
    for (strategy, least, most) in [
        (rolling(&json!(1), &json!(0)), 4, 5),
        (rolling(&json!("25%"), &json!("25%")), 3, 5),
        (rolling(&json!(0), &json!(1)), 3, 4),
        (rolling(&json!(0), &json!(0)), 3, 4),
        (json!({"type": "Recreate"}), 0, 4),
    ] {
        let mut world = World::of(web("a", 4, strategy.clone()));
        world.roll(4);
        world.set_image("b");
        let seen = world.roll(4);
        assert!(seen.0 >= least && seen.1 <= most, "{strategy}: {seen:?}");
        assert_eq!(world.state(), [(1, 0, "a"), (2, 4, "b")], "{strategy}");
        assert_eq!(number(&world.deployment, "/status/availableReplicas"), Some(4));
        assert_eq!(world.reason(), "NewReplicaSetAvailable");
        assert_eq!(history::revision(&world.deployment), 2);
    }
}

#[test]
fn a_set_has_the_deployments_hash_minimum_and_annotations() {
    let mut deployment = web("a", 2, Value::Null);
    deployment.spec_mut().insert("minReadySeconds".into(), 7.into());
    deployment.metadata_mut().insert("annotations".into(), json!({"kubernetes.io/change-cause": "first"}));
    let mut world = World::of(deployment);
    world.roll(2);
    let set = world.sets.values().next().unwrap();
    let hash = &set.labels()[TEMPLATE_HASH];
    assert_eq!(set.name(), format!("web-{hash}"));
    for pointer in ["/spec/selector/matchLabels", "/spec/template/metadata/labels"] {
        assert_eq!(set.pointer(pointer).unwrap(), &json!({"app": "web", TEMPLATE_HASH: hash}));
    }
    let notes = set.annotations();
    let note = |name: &str| notes.get(name).map(String::as_str);
    assert_eq!(number(set, "/spec/minReadySeconds"), Some(7));
    assert_eq!(note("kubernetes.io/change-cause"), Some("first"));
    assert_eq!(
        (note("deployment.kubernetes.io/desired-replicas"), note(history::REVISION)),
        (Some("2"), Some("1"))
    );
    world.deployment.spec_mut().insert("minReadySeconds".into(), 0.into());
    world.roll(2);
    assert_eq!(number(world.sets.values().next().unwrap(), "/spec/minReadySeconds"), Some(0));
    assert_eq!(world.state(), [(1, 2, "a")], "no new template");
}

#[test]
fn old_pods_that_still_end_hold_up_a_recreation() {
    let mut world = World::of(web("a", 2, json!({"type": "Recreate"})));
    world.roll(2);
    let owner = world.sets.values().next().unwrap().clone();
    let mut pod = Object::new(&PODS, Some("default"), "a-1");
    pod.metadata_mut().insert("ownerReferences".into(), super::super::action::owned_by(&owner));
    pod.metadata_mut().insert("deletionTimestamp".into(), "2026-01-01T00:00:00Z".into());
    world.pods = vec![Arc::new(pod.clone())];
    world.set_image("b");
    world.roll(2);
    assert_eq!(world.state(), [(1, 0, "a")], "the old pod still ends");
    pod.status_mut().insert("phase".into(), "Failed".into());
    world.pods = vec![Arc::new(pod)];
    world.roll(2);
    assert_eq!(world.state(), [(1, 0, "a"), (2, 2, "b")]);
}

#[test]
fn a_stuck_rollout_harms_nothing_when_it_is_scaled_and_is_left_by_the_way_it_came() {
    let mut world = World::of(web("a", 10, Value::Null));
    world.roll(10);
    world.set_image("broken");
    world.roll(0);
    assert_eq!(world.state(), [(1, 8, "a"), (2, 5, "broken")]);
    world.deployment.spec_mut().insert("replicas".into(), 20.into());
    world.roll(0);
    assert_eq!(world.state(), [(1, 15, "a"), (2, 10, "broken")]);
    world.deployment.spec_mut().insert("replicas".into(), 4.into());
    world.roll(0);
    assert_eq!(world.state(), [(1, 3, "a"), (2, 2, "broken")]);
    world.said.clear();
    world.set_image("a");
    world.step();
    assert_eq!(world.reason(), "FoundNewReplicaSet");
    world.roll(4);
    assert_eq!(world.state(), [(2, 0, "broken"), (3, 4, "a")]);
    let names: BTreeMap<&str, &str> = world
        .sets
        .values()
        .map(|s| (s.str_at("/spec/template/spec/containers/0/image").unwrap(), s.name()))
        .collect();
    assert_eq!(
        world.said,
        [
            format!("Scaled down replica set {} from 2 to 0", names["broken"]),
            format!("Scaled up replica set {} from 3 to 4", names["a"])
        ]
    );
}

#[test]
fn what_is_paused_is_scaled_but_not_rolled_out_and_its_time_does_not_run() {
    let mut world = World::of(web("a", 2, Value::Null));
    world.roll(2);
    world.deployment.spec_mut().insert("paused".into(), true.into());
    world.set_image("b");
    world.deployment.spec_mut().insert("replicas".into(), 3.into());
    world.roll(3);
    assert_eq!((world.state(), world.reason()), (vec![(1, 3, "a")], "DeploymentPaused"));
    world.now = Timestamp::from_second(10_000).unwrap();
    assert_eq!(world.step(), (0, None), "no time runs");
    world.deployment.spec_mut().remove("paused");
    world.step();
    assert_eq!(world.reason(), "NewReplicaSetCreated");
    world.roll(3);
    assert_eq!((world.state(), world.reason()), (vec![(1, 0, "a"), (2, 3, "b")], "NewReplicaSetAvailable"));
    // Nothing new is wanted after this one.
    world.deployment.spec_mut().insert("paused".into(), true.into());
    world.step();
    world.deployment.spec_mut().remove("paused");
    world.run_pods(1);
    world.step();
    assert_eq!(world.reason(), "DeploymentResumed");
}

#[test]
fn a_former_template_is_the_newest_again_and_only_so_many_are_kept() {
    let mut world = World::of(web("a", 1, Value::Null));
    world.deployment.spec_mut().insert("revisionHistoryLimit".into(), 1.into());
    for image in ["a", "b", "c", "b"] {
        world.set_image(image);
        world.roll(1);
    }
    assert_eq!(world.state(), [(3, 0, "c"), (4, 1, "b")]);
    assert_eq!(history::revision(&world.deployment), 4);
}

#[test]
fn a_name_that_another_set_has_is_not_taken_from_it() {
    let mut world = World::of(web("a", 1, Value::Null));
    let name = set_name(&world.deployment);
    let mut stranger = Object::new(&REPLICA_SETS, Some("default"), &name);
    stranger.spec_mut().insert("replicas".into(), 0.into());
    world.sets.insert(name.clone(), stranger.clone());
    world.roll(1);
    assert_eq!(number(&world.deployment, "/status/collisionCount"), Some(1));
    assert_eq!(world.sets.len(), 2);
    assert_eq!(world.sets[&name].pointer("/spec"), stranger.pointer("/spec"));
    assert_eq!(world.reason(), "NewReplicaSetAvailable");
}

#[test]
fn the_trouble_of_a_set_is_told_by_the_deployment_as_long_as_it_lasts() {
    let mut world = World::of(web("a", 1, Value::Null));
    world.roll(0);
    let failure = conditions::Condition {
        kind: "ReplicaFailure",
        status: "True",
        reason: "FailedCreate",
        message: "no".into(),
    };
    let set = world.sets.values_mut().next().unwrap();
    conditions::set(set, &failure, "then");
    world.step();
    let told = conditions::get(&world.deployment, "ReplicaFailure").unwrap();
    assert_eq!(
        (&told["reason"], &told["message"], &told["lastUpdateTime"]),
        (&json!("FailedCreate"), &json!("no"), &json!("then"))
    );
    conditions::remove(world.sets.values_mut().next().unwrap(), "ReplicaFailure");
    world.step();
    assert_eq!(conditions::get(&world.deployment, "ReplicaFailure"), None);
}

#[test]
fn a_rollout_that_stands_still_is_late_after_its_deadline_and_only_progress_begins_it_anew() {
    let mut world = World::of(web("a", 2, Value::Null));
    world.deployment.spec_mut().insert("progressDeadlineSeconds".into(), 60.into());
    world.step();
    assert_eq!(world.reason(), "NewReplicaSetCreated");
    // The time, how many are available, and the generation.
    for (now, available, generation, reason, again) in [
        (1, 0, 1, "ReplicaSetUpdated", Some(61)),
        (50, 0, 1, "ReplicaSetUpdated", Some(12)),
        (55, 1, 1, "ReplicaSetUpdated", Some(61)),
        (100, 1, 2, "ReplicaSetUpdated", Some(16)),
        (115, 1, 2, "ReplicaSetUpdated", Some(1)),
        (116, 1, 2, "ProgressDeadlineExceeded", None),
        (500, 1, 3, "ProgressDeadlineExceeded", None),
        (600, 2, 3, "NewReplicaSetAvailable", None),
        (900, 1, 3, "NewReplicaSetAvailable", None),
    ] {
        world.now = Timestamp::from_second(now).unwrap();
        world.deployment.metadata_mut().insert("generation".into(), generation.into());
        world.run_pods(available);
        let mut seen = world.step();
        if now == 1 {
            // The first of the two gave the deployment its revision.
            seen = world.step();
        }
        assert_eq!((world.reason(), seen.1), (reason, again.map(Duration::from_secs)), "{now}");
    }
    let condition = conditions::get(&world.deployment, "Available").unwrap();
    assert_eq!(condition["message"], "Deployment does not have minimum availability.");
}
