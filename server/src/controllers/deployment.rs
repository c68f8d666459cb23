//! ReplicaSets from a Deployment: one for each pod template it had.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use minisvc_proto::{Object, resource::REPLICA_SETS};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::action::{Action, Plan, is_controlled_by, number, owned_by};
use crate::conditions::{self, Condition};

/// The label that tells apart the pods of different templates.
pub const TEMPLATE_HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

/// The writes that move the deployment's sets one step on, and its status; and when its time to progress is over. `sets` are
/// its own.
pub fn reconcile(deployment: &Object, sets: &[Arc<Object>], now: Timestamp) -> Plan {
    if deployment.deletion_timestamp().is_some() {
        return Plan::default();
    }
    let owned = sets.iter().filter(|s| is_controlled_by(s, deployment) && s.deletion_timestamp().is_none());
    let hash = template_hash(deployment);
    let (new, old): (Vec<_>, Vec<_>) = owned.partition(|s| s.label(TEMPLATE_HASH) == Some(&hash));
    let new = new.first().copied();
    let wanted = number(deployment, "/spec/replicas").unwrap_or(1).max(0);
    let recreate = deployment.str_at("/spec/strategy/type") == Some("Recreate");
    let (surge, unavailable) = if recreate { (0, wanted) } else { limits(deployment, wanted) };

    let has = new.map_or(0, |s| replicas(s));
    let old_total: i64 = old.iter().map(|s| replicas(s)).sum();
    let target = if recreate {
        // Nothing new starts before the last old pod is gone.
        let gone = old.iter().all(|s| replicas(s) == 0 && count(s, "replicas") == 0);
        if gone { wanted } else { has.min(wanted) }
    } else {
        wanted.min(has.max(wanted + surge - old_total))
    };
    let mut actions = Vec::new();
    // A former template that is used again is the newest.
    let next = old.iter().map(|s| revision(s)).max().unwrap_or(0) + 1;
    match new {
        None => actions.push(Action::Create(new_set(deployment, &hash, target, next))),
        Some(set) if has != target || revision(set) < next => {
            let mut set = (**set).clone();
            set.spec_mut().insert("replicas".into(), target.into());
            if revision(&set) < next {
                let notes = set.metadata_mut().entry("annotations").or_insert_with(|| json!({}));
                notes[REVISION] = next.to_string().into();
            }
            actions.push(Action::Update(set));
        }
        Some(_) => {}
    }

    // Old pods that serve nobody go at once, the others only as far as enough remain available.
    let available = |s: &Object| count(s, "availableReplicas");
    let new_available = new.map_or(0, |s| available(s));
    let old_available: i64 = old.iter().map(|s| available(s).min(replicas(s))).sum();
    let mut spare = (new_available.min(target) + old_available - (wanted - unavailable)).max(0);
    let mut by_age = old.clone();
    by_age.sort_by_key(|s| {
        (s.str_at("/metadata/creationTimestamp").unwrap_or("").to_owned(), s.name().to_owned())
    });
    for set in by_age {
        let serving = available(set).min(replicas(set));
        let stop = if recreate { serving } else { serving.min(spare) };
        spare -= stop.min(spare);
        if serving - stop != replicas(set) {
            actions.push(scaled(set, serving - stop));
        }
    }
    let counts = Counts::of(new.map(|s| &**s), &old, wanted, wanted - unavailable);
    if counts.is_complete() {
        actions.extend(forgotten(deployment, &old));
    }
    let (status, again) = status(deployment, &counts, now);
    actions.extend(status);
    Plan { actions, again }
}

/// Empty old sets beyond those that are kept for a way back, the oldest first.
fn forgotten(deployment: &Object, old: &[&Arc<Object>]) -> Vec<Action> {
    let limit = number(deployment, "/spec/revisionHistoryLimit").and_then(|n| usize::try_from(n).ok());
    let mut empty: Vec<_> = old.iter().filter(|s| replicas(s) == 0 && count(s, "replicas") == 0).collect();
    empty.sort_by_key(|s| revision(s));
    let surplus = empty.len().saturating_sub(limit.unwrap_or(10));
    empty.into_iter().take(surplus).filter_map(|s| Action::delete(s)).collect()
}

/// How many pods there are, of what kind.
struct Counts {
    wanted: i64,
    /// The fewest that must be available.
    least: i64,
    total: i64,
    updated: i64,
    ready: i64,
    available: i64,
}

impl Counts {
    fn of(new: Option<&Object>, old: &[&Arc<Object>], wanted: i64, least: i64) -> Self {
        let sum = |field: &str| -> i64 {
            new.map_or(0, |s| count(s, field)) + old.iter().map(|s| count(s, field)).sum::<i64>()
        };
        Counts {
            wanted,
            least,
            total: sum("replicas"),
            updated: new.map_or(0, |s| count(s, "replicas")),
            ready: sum("readyReplicas"),
            available: sum("availableReplicas"),
        }
    }

    fn is_complete(&self) -> bool {
        (self.updated, self.total, self.available) == (self.wanted, self.wanted, self.wanted)
    }
}

fn status(deployment: &Object, counts: &Counts, now: Timestamp) -> (Option<Action>, Option<Duration>) {
    let Counts { wanted, least, total, updated, ready, available } = *counts;
    let mut after = deployment.clone();
    let before = |field: &str| number(deployment, &format!("/status/{field}")).unwrap_or(0);
    // More of what is wanted, less of what is not, or a new wish: the time to progress starts anew.
    let moved = updated > before("updatedReplicas")
        || ready > before("readyReplicas")
        || available > before("availableReplicas")
        || total < before("replicas")
        || deployment.generation() != before("observedGeneration");
    let fields = after.status_mut();
    for (field, value) in [
        ("observedGeneration", deployment.generation()),
        ("replicas", total),
        ("updatedReplicas", updated),
        ("readyReplicas", ready),
        ("availableReplicas", available),
        ("unavailableReplicas", (wanted - available).max(0)),
    ] {
        fields.insert(field.into(), value.into());
    }
    let enough = available >= least;
    let said = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = Condition {
        kind: "Available",
        status: if enough { "True" } else { "False" },
        reason: if enough { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" },
        message: format!("{available} of {wanted} replicas are available"),
    };
    conditions::set(&mut after, &condition, &said);

    let old = conditions::get(deployment, "Progressing");
    let field = |name: &str| old.and_then(|c| c.get(name)).and_then(Value::as_str);
    let complete = counts.is_complete();
    let deadline = number(deployment, "/spec/progressDeadlineSeconds").and_then(|s| u64::try_from(s).ok());
    let deadline = Duration::from_secs(deadline.unwrap_or(600));
    let since = field("lastUpdateTime").filter(|_| !moved).and_then(|t| t.parse::<Timestamp>().ok());
    let waited = since.and_then(|t| Duration::try_from(now.duration_since(t)).ok()).unwrap_or_default();
    // What was complete once and has lost a pod makes no progress, and is not late.
    let rests = field("reason") == Some("NewReplicaSetAvailable") && total == updated && !moved;
    let late = !complete && !rests && waited >= deadline;
    let condition = Condition {
        kind: "Progressing",
        status: if late { "False" } else { "True" },
        reason: match (complete || rests, late) {
            (true, _) => "NewReplicaSetAvailable",
            (_, true) => "ProgressDeadlineExceeded",
            _ => "ReplicaSetUpdated",
        },
        message: format!(
            "{updated} of {wanted} replicas are of the newest template, {available} are available"
        ),
    };
    if conditions::set(&mut after, &condition, &said) || moved {
        let when = since.filter(|_| !complete).map_or(said, |t| t.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        let list = after.status_mut().get_mut("conditions").and_then(Value::as_array_mut);
        for c in list.into_iter().flatten().filter(|c| c["type"] == "Progressing") {
            c["lastUpdateTime"] = when.as_str().into();
        }
    }
    let again = (!complete && !rests && !late).then(|| deadline.saturating_sub(waited));
    ((after != *deployment).then_some(Action::UpdateStatus(after)), again)
}

fn revision(set: &Object) -> u64 {
    set.annotations().get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

fn replicas(set: &Object) -> i64 {
    number(set, "/spec/replicas").unwrap_or(1)
}

fn count(set: &Object, field: &str) -> i64 {
    number(set, &format!("/status/{field}")).unwrap_or(0)
}

fn scaled(set: &Object, replicas: i64) -> Action {
    let mut new = set.clone();
    new.spec_mut().insert("replicas".into(), replicas.into());
    Action::Update(new)
}

/// maxSurge (rounded up) and maxUnavailable (rounded down) in pods; if both were 0 nothing could ever move.
fn limits(deployment: &Object, wanted: i64) -> (i64, i64) {
    let hundredths = |field: &str| {
        let value = deployment.pointer(&format!("/spec/strategy/rollingUpdate/{field}"));
        match value {
            Some(Value::Number(n)) => n.as_i64().unwrap_or(0).saturating_mul(100),
            Some(Value::String(s)) => {
                s.trim_end_matches('%').parse::<i64>().unwrap_or(25).saturating_mul(wanted)
            }
            _ => wanted.saturating_mul(25),
        }
    };
    let surge = hundredths("maxSurge").saturating_add(99) / 100;
    let unavailable = (hundredths("maxUnavailable") / 100).min(wanted);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

/// The same for the same template, in whatever order its fields are written.
fn template_hash(deployment: &Object) -> String {
    fn canonical(value: &Value, out: &mut Sha256) {
        match value {
            Value::Object(map) => {
                let mut fields: Vec<_> = map.iter().collect();
                fields.sort_by_key(|(k, _)| *k);
                out.update("{");
                for (k, v) in fields {
                    out.update(Value::from(k.as_str()).to_string());
                    canonical(v, out);
                }
                out.update("}");
            }
            Value::Array(list) => {
                out.update("[");
                for v in list {
                    canonical(v, out);
                }
                out.update("]");
            }
            plain => {
                out.update(plain.to_string());
                out.update(",");
            }
        }
    }
    let mut hasher = Sha256::new();
    canonical(deployment.pointer("/spec/template").unwrap_or(&Value::Null), &mut hasher);
    let digest = hasher.finalize();
    // Letters and digits that spell no words.
    let alphabet = b"bcdfghjklmnpqrstvwxz2456789";
    digest.iter().take(10).map(|b| char::from(alphabet[usize::from(*b) % alphabet.len()])).collect()
}

fn new_set(deployment: &Object, hash: &str, replicas: i64, revision: u64) -> Object {
    let name = format!("{}-{hash}", deployment.name());
    let mut set = Object::new(&REPLICA_SETS, deployment.namespace(), &name);
    let object =
        |pointer: &str| deployment.pointer(pointer).and_then(Value::as_object).cloned().unwrap_or_default();
    let with_hash = |mut map: Map<String, Value>| {
        map.insert(TEMPLATE_HASH.into(), hash.into());
        Value::Object(map)
    };
    let mut selector = object("/spec/selector");
    selector.insert("matchLabels".into(), with_hash(object("/spec/selector/matchLabels")));
    let mut template = object("/spec/template");
    let mut metadata = object("/spec/template/metadata");
    let labels = with_hash(object("/spec/template/metadata/labels"));
    metadata.insert("labels".into(), labels.clone());
    template.insert("metadata".into(), Value::Object(metadata));
    let meta = set.metadata_mut();
    meta.insert("labels".into(), labels);
    meta.insert("annotations".into(), json!({REVISION: revision.to_string()}));
    meta.insert("ownerReferences".into(), owned_by(deployment));
    set.0.insert("spec".into(), json!({"replicas": replicas, "selector": selector, "template": template}));
    set
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use minisvc_proto::resource::DEPLOYMENTS;

    use super::*;

    fn web(image: &str, replicas: i64, strategy: Value) -> Object {
        let mut d = Object::new(&DEPLOYMENTS, Some("default"), "web");
        d.metadata_mut().insert("uid".into(), "d1".into());
        let template =
            json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"image": image}]}});
        let selector = json!({"matchLabels": {"app": "web"}});
        let spec =
            json!({"replicas": replicas, "selector": selector, "template": template, "strategy": strategy});
        d.0.insert("spec".into(), spec);
        d
    }

    /// Runs until nothing changes; each set's pods become available between the steps. Answers the sets' numbers, and the
    /// least available and the most pods on the way.
    fn roll(d: &mut Object, sets: &mut BTreeMap<String, Object>) -> (i64, i64) {
        let (mut least, mut most) = (i64::MAX, 0);
        for _ in 0..50 {
            let list: Vec<_> = sets.values().cloned().map(Arc::new).collect();
            let actions = reconcile(d, &list, Timestamp::UNIX_EPOCH).actions;
            if actions.is_empty() {
                return (least, most);
            }
            for action in actions {
                match action {
                    Action::Create(o) | Action::Update(o) => drop(sets.insert(o.name().to_owned(), o)),
                    Action::UpdateStatus(o) => *d = o,
                    Action::Delete { key, .. } => {
                        assert_eq!(replicas(&sets.remove(&key.name).unwrap()), 0, "{key} has pods");
                    }
                }
            }
            // What was stopped is gone first, then what was started comes up.
            most = most.max(sets.values().map(replicas).sum());
            least = least.min(sets.values().map(|s| count(s, "availableReplicas").min(replicas(s))).sum());
            for s in sets.values_mut() {
                let n = replicas(s);
                for field in ["replicas", "readyReplicas", "availableReplicas"] {
                    s.status_mut().insert(field.into(), n.into());
                }
            }
        }
        panic!("it does not settle: {sets:?}");
    }

    #[test]
    fn a_rollout_keeps_to_its_limits_and_ends_with_the_new_template() {
        let rolling = |surge: Value, unavailable: Value| json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        for (strategy, least, most) in [
            (rolling(json!(1), json!(0)), 4, 5),
            (rolling(json!("25%"), json!("25%")), 3, 5),
            (rolling(json!(0), json!(1)), 3, 4),
            (rolling(json!(0), json!(0)), 3, 4),
            (json!({"type": "Recreate"}), 0, 4),
        ] {
            let mut sets = BTreeMap::new();
            let mut d = web("a", 4, strategy.clone());
            roll(&mut d, &mut sets);
            d.spec_mut()
                .insert("template".into(), web("b", 4, strategy.clone()).0["spec"]["template"].clone());
            let seen = roll(&mut d, &mut sets);
            assert!(seen.0 >= least && seen.1 <= most, "{strategy}: {seen:?}");
            let mut numbers: Vec<i64> = sets.values().map(replicas).collect();
            numbers.sort_unstable();
            assert_eq!(numbers, [0, 4], "{strategy}");
            assert_eq!(number(&d, "/status/availableReplicas"), Some(4));
            assert_eq!(conditions::get(&d, "Progressing").unwrap()["reason"], "NewReplicaSetAvailable");
        }
    }

    #[test]
    fn the_set_carries_the_hash_in_selector_template_and_labels() {
        let actions = reconcile(&web("a", 2, Value::Null), &[], Timestamp::UNIX_EPOCH).actions;
        let Action::Create(set) = &actions[0] else { panic!("{actions:?}") };
        let hash = &set.labels()[TEMPLATE_HASH];
        assert_eq!(set.name(), format!("web-{hash}"));
        for pointer in ["/spec/selector/matchLabels", "/spec/template/metadata/labels"] {
            assert_eq!(set.pointer(pointer).unwrap(), &json!({"app": "web", TEMPLATE_HASH: hash}));
        }
        assert_eq!(set.pointer("/spec/replicas"), Some(&2.into()));
    }

    #[test]
    fn a_former_template_is_the_newest_again_and_only_so_many_are_kept() {
        let mut sets = BTreeMap::new();
        let mut d = web("a", 1, Value::Null);
        d.spec_mut().insert("revisionHistoryLimit".into(), 1.into());
        for image in ["a", "b", "c", "a"] {
            d.spec_mut().insert("template".into(), web(image, 1, Value::Null).0["spec"]["template"].clone());
            roll(&mut d, &mut sets);
        }
        let mut kept: Vec<_> = sets
            .values()
            .map(|s| (revision(s), replicas(s), s.str_at("/spec/template/spec/containers/0/image").unwrap()))
            .collect();
        kept.sort_unstable();
        assert_eq!(kept, [(3, 0, "c"), (4, 1, "a")]);
    }

    #[test]
    fn a_rollout_that_stands_still_is_late_after_its_deadline_and_not_before() {
        let mut d = web("a", 2, Value::Null);
        d.spec_mut().insert("progressDeadlineSeconds".into(), 60.into());
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let Action::Create(mut set) = reconcile(&d, &[], at(0)).actions.remove(0) else { panic!() };
        let counts = |set: &mut Object, ready: i64| {
            for (field, n) in [("replicas", 2), ("readyReplicas", ready), ("availableReplicas", ready)] {
                set.status_mut().insert(field.into(), n.into());
            }
        };
        for (now, ready, reason, again) in [
            (0, 0, "ReplicaSetUpdated", Some(60)),
            (50, 0, "ReplicaSetUpdated", Some(10)),
            (55, 1, "ReplicaSetUpdated", Some(60)),
            (114, 1, "ReplicaSetUpdated", Some(1)),
            (115, 1, "ProgressDeadlineExceeded", None),
            (200, 2, "NewReplicaSetAvailable", None),
            (900, 1, "NewReplicaSetAvailable", None),
        ] {
            counts(&mut set, ready);
            let plan = reconcile(&d, &[Arc::new(set.clone())], at(now));
            if let Some(Action::UpdateStatus(after)) = plan.actions.into_iter().next() {
                d = after;
            }
            let condition = conditions::get(&d, "Progressing").unwrap();
            assert_eq!(
                (condition["reason"].as_str(), plan.again),
                (Some(reason), again.map(Duration::from_secs)),
                "{now}"
            );
        }
    }
}
