//! Deployments and ReplicaSets as they are, over pods that come up, fail and end at random.

use std::{collections::BTreeMap, time::Duration};

use minisvc_proto::{Object, resource::DEPLOYMENTS};
use proptest::prelude::*;

use super::*;
use crate::controllers::replicaset;

/// Something that happens between two looks of the controllers.
#[derive(Clone, Debug)]
enum Step {
    /// Another template, of four.
    Template(u8),
    Scale(i64),
    Pause(bool),
    Limits(u8, u8),
    Recreate,
    /// A pod that is not ready gets ready.
    Ready(usize),
    /// A pod fails its probe.
    Unready(usize),
    /// A pod's process ends for good.
    Fail(usize),
    /// A pod that ends is gone.
    Gone(usize),
    /// Time passes.
    Wait(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0_u8..4).prop_map(Step::Template),
        2 => (0_i64..12).prop_map(Step::Scale),
        1 => any::<bool>().prop_map(Step::Pause),
        1 => (0_u8..5, 0_u8..5).prop_map(|(surge, unavailable)| Step::Limits(surge, unavailable)),
        1 => Just(Step::Recreate),
        16 => any::<usize>().prop_map(Step::Ready),
        2 => any::<usize>().prop_map(Step::Unready),
        1 => any::<usize>().prop_map(Step::Fail),
        8 => any::<usize>().prop_map(Step::Gone),
        4 => (1_i64..20).prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..120)
}

struct Model {
    deployment: Object,
    sets: BTreeMap<String, Object>,
    pods: BTreeMap<String, Object>,
    now: i64,
    made: usize,
}

impl Model {
    fn new(min_ready: i64) -> Self {
        let mut deployment = Object::new(&DEPLOYMENTS, Some("default"), "web");
        deployment.metadata_mut().insert("uid".into(), "d".into());
        let template = json!({"metadata": {"labels": {"app": "web", "template": "0"}}});
        let spec = json!({"replicas": 4, "selector": {"matchLabels": {"app": "web"}}, "template": template, "minReadySeconds": min_ready});
        deployment.0.insert("spec".into(), spec);
        Model { deployment, sets: BTreeMap::new(), pods: BTreeMap::new(), now: 0, made: 0 }
    }

    fn time(&self) -> Timestamp {
        Timestamp::from_second(self.now).unwrap()
    }

    fn list(objects: &BTreeMap<String, Object>) -> Vec<Arc<Object>> {
        objects.values().cloned().map(Arc::new).collect()
    }

    /// Of the pods that count, those that have been ready for long enough.
    fn available(&self) -> i64 {
        let min_ready = number(&self.deployment, "/spec/minReadySeconds").unwrap_or(0);
        let min_ready = Duration::from_secs(min_ready.try_into().unwrap());
        let is =
            |p: &&Object| pod::available_in(p, min_ready, self.time()).is_some_and(|left| left.is_zero());
        i64::try_from(self.live().filter(is).count()).unwrap()
    }

    fn live(&self) -> impl Iterator<Item = &Object> {
        self.pods.values().filter(|p| !pod::is_terminating(p) && !pod::is_ended(p))
    }

    fn carry_out(&mut self, actions: Vec<Action>) -> usize {
        let count = actions.len();
        for action in actions {
            match action {
                Action::Create(mut o) => {
                    self.made += 1;
                    o.metadata_mut().insert("uid".into(), format!("u{}", self.made).into());
                    o.metadata_mut().insert("creationTimestamp".into(), format!("{:06}", self.made).into());
                    let all = if o.kind() == "Pod" { &mut self.pods } else { &mut self.sets };
                    assert!(all.insert(o.name().to_owned(), o).is_none());
                }
                Action::Update(o) | Action::UpdateStatus(o) if o.kind() == "Deployment" => {
                    self.deployment = o;
                }
                Action::UpdateStatus(o) => {
                    let status = o.0["status"].clone();
                    self.sets.get_mut(o.name()).unwrap().0.insert("status".into(), status);
                }
                Action::Update(o) => {
                    let spec = self.sets.get_mut(o.name()).unwrap();
                    let status = spec.0.get("status").cloned().unwrap_or_else(|| json!({}));
                    *spec = o;
                    spec.0.insert("status".into(), status);
                }
                Action::Delete { key, .. } if key.resource.kind == "Pod" => {
                    let pod = self.pods.get_mut(&key.name).unwrap();
                    pod.metadata_mut().insert("deletionTimestamp".into(), "now".into());
                }
                Action::Delete { key, .. } => {
                    let gone = self.sets.remove(&key.name).unwrap();
                    assert!(
                        self.pods.values().all(|p| pod::is_terminating(p) || !is_controlled_by(p, &gone))
                    );
                }
            }
        }
        count
    }

    /// What the ReplicaSets do; answers how many writes that was.
    fn fill(&mut self) -> usize {
        let mut count = 0;
        for set in Self::list(&self.sets) {
            let pods = Self::list(&self.pods);
            let mut made = self.made;
            let plan = replicaset::reconcile(&set, &pods, &pods, self.time(), || {
                made += 1;
                made.to_string()
            });
            count += self.carry_out(plan.actions);
        }
        count
    }

    /// What the Deployment does.
    fn roll(&mut self) -> usize {
        let (sets, pods) = (Self::list(&self.sets), Self::list(&self.pods));
        let seen =
            Seen { sets: &sets, pods: &pods, taken: self.sets.contains_key(&set_name(&self.deployment)) };
        let plan = reconcile(&self.deployment, &seen, self.time());
        self.carry_out(plan.actions)
    }

    /// Pods of the newest template, and those of others that have not ended.
    fn new_and_old(&self) -> (usize, usize) {
        let newest = self.deployment.pointer("/spec/template/metadata/labels/template");
        let is_new = |p: &&Object| p.pointer("/metadata/labels/template") == newest;
        let old = self.pods.values().filter(|p| !is_new(p) && !pod::is_ended(p)).count();
        (self.live().filter(is_new).count(), old)
    }

    /// The controllers look once, and keep what was promised.
    fn look(&mut self) -> usize {
        let mut count = self.fill();
        let limits = Limits::of(&self.deployment);
        let (available, total) = (self.available(), self.live().count());
        let (new, old) = self.new_and_old();
        count += self.roll();
        count += self.fill();
        if is_recreate(&self.deployment) {
            let now = self.new_and_old().0;
            assert!(
                is_paused(&self.deployment) || old == 0 || now <= new,
                "{now} new pods beside {old} old ones"
            );
            return count;
        }
        let after = self.available();
        assert!(after >= limits.least().min(available), "{limits:?}: {available} -> {after}");
        let most = usize::try_from(limits.most()).unwrap();
        let now = self.live().count();
        assert!(now <= most.max(total), "{limits:?}: {total} -> {now}");
        count
    }

    fn set(&mut self, pod: usize, wish: impl Fn(&Object) -> bool, change: impl FnOnce(&mut Object)) {
        let mut all: Vec<&mut Object> = self.pods.values_mut().filter(|p| wish(p)).collect();
        let count = all.len();
        if count > 0 {
            change(all.remove(pod % count));
        }
    }

    fn become_ready(p: &mut Object, status: &str, at: Timestamp) {
        p.spec_mut().insert("nodeName".into(), "n".into());
        p.status_mut().insert("phase".into(), "Running".into());
        let condition = json!([{"type": "Ready", "status": status, "lastTransitionTime": at.to_string()}]);
        p.status_mut().insert("conditions".into(), condition);
    }

    fn happen(&mut self, step: Step) {
        let now = self.time();
        let waits = |p: &Object| !pod::is_ready(p) && !pod::is_terminating(p) && !pod::is_ended(p);
        match step {
            Step::Template(n) => {
                let template = json!({"metadata": {"labels": {"app": "web", "template": n.to_string()}}});
                self.deployment.spec_mut().insert("template".into(), template);
            }
            Step::Scale(n) => drop(self.deployment.spec_mut().insert("replicas".into(), n.into())),
            Step::Pause(paused) => drop(self.deployment.spec_mut().insert("paused".into(), paused.into())),
            Step::Limits(surge, unavailable) => {
                let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
                let strategy = json!({"type": "RollingUpdate", "rollingUpdate": rolling});
                self.deployment.spec_mut().insert("strategy".into(), strategy);
            }
            Step::Recreate => {
                drop(self.deployment.spec_mut().insert("strategy".into(), json!({"type": "Recreate"})));
            }
            Step::Ready(n) => self.set(n, waits, |p| Self::become_ready(p, "True", now)),
            Step::Unready(n) => self.set(n, pod::is_ready, |p| Self::become_ready(p, "False", now)),
            Step::Fail(n) => self.set(
                n,
                |p| !pod::is_ended(p),
                |p| {
                    p.status_mut().insert("phase".into(), "Failed".into());
                    p.status_mut().remove("conditions");
                },
            ),
            Step::Gone(n) => {
                let ends: Vec<String> = self
                    .pods
                    .values()
                    .filter(|p| pod::is_terminating(p))
                    .map(|p| p.name().to_owned())
                    .collect();
                if !ends.is_empty() {
                    self.pods.remove(&ends[n % ends.len()]);
                }
            }
            Step::Wait(seconds) => self.now += seconds,
        }
    }

    /// How large the sets are, and which pods there are.
    fn standing(&self) -> (Vec<Option<i64>>, Vec<String>) {
        let sizes = self.sets.values().map(|s| number(s, "/spec/replicas")).collect();
        (sizes, self.pods.keys().cloned().collect())
    }

    /// Looks until nothing is left to do. Pods that were asked to end are gone then.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.pods.retain(|_, p| !pod::is_terminating(p));
            if self.look() == 0 {
                return;
            }
        }
        panic!("it does not settle: {:#?}", self.deployment);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn whatever_happens_enough_pods_serve_and_it_ends_as_wished(steps in steps(), min_ready in 0_i64..8) {
        let mut model = Model::new(min_ready);
        for step in steps {
            model.happen(step);
            model.look();
        }
        // Without any pod that gets ready it comes to rest, late or not, and stays there.
        model.happen(Step::Pause(false));
        model.settle();
        model.now += 100;
        model.settle();
        let resting = model.standing();
        model.now += 10_000;
        model.settle();
        prop_assert_eq!(resting, model.standing());
        // With pods that do, it ends as wished.
        for _ in 0..30 {
            let now = model.time();
            for p in model.pods.values_mut().filter(|p| !pod::is_ready(p)) {
                Model::become_ready(p, "True", now);
            }
            model.now += 10;
            model.settle();
        }
        let wanted = Limits::of(&model.deployment).wanted;
        let template = model.deployment.pointer("/spec/template/metadata/labels/template").cloned();
        prop_assert_eq!(i64::try_from(model.pods.len()).unwrap(), wanted);
        for p in model.pods.values() {
            prop_assert_eq!(p.pointer("/metadata/labels/template").cloned(), template.clone());
        }
        prop_assert_eq!(number(&model.deployment, "/status/availableReplicas"), Some(wanted));
        let progressing = crate::conditions::get(&model.deployment, "Progressing").unwrap();
        prop_assert_eq!(progressing["reason"].as_str(), Some("NewReplicaSetAvailable"));
    }
}
