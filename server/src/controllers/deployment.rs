//! ReplicaSets from a Deployment: one for each pod template it had.

use std::sync::Arc;

use minisvc_proto::{Object, resource::REPLICA_SETS};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::action::{Action, is_controlled_by, number, owned_by};
use crate::conditions::{self, Condition};

/// The label that tells apart the pods of different templates.
pub const TEMPLATE_HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";

/// The writes that move the deployment's sets one step on, and its status. `sets` are of its namespace.
pub fn reconcile(deployment: &Object, sets: &[Arc<Object>], now: &str) -> Vec<Action> {
    if deployment.deletion_timestamp().is_some() {
        return Vec::new();
    }
    let owned = sets.iter().filter(|s| is_controlled_by(s, deployment) && s.deletion_timestamp().is_none());
    let hash = template_hash(deployment);
    let (new, old): (Vec<_>, Vec<_>) = owned.partition(|s| s.labels().get(TEMPLATE_HASH) == Some(&hash));
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
    match new {
        None => {
            let last = old.iter().filter_map(|s| s.annotations().get(REVISION)?.parse::<u64>().ok()).max();
            actions.push(Action::Create(new_set(deployment, &hash, target, last.unwrap_or(0) + 1)));
        }
        Some(set) if has != target => actions.push(scaled(set, target)),
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
    actions.extend(status(deployment, new.map(|s| &**s), &old, wanted, unavailable, now));
    actions
}

fn status(
    deployment: &Object,
    new: Option<&Object>,
    old: &[&Arc<Object>],
    wanted: i64,
    unavailable: i64,
    now: &str,
) -> Option<Action> {
    let sum = |field: &str| -> i64 {
        new.map_or(0, |s| count(s, field)) + old.iter().map(|s| count(s, field)).sum::<i64>()
    };
    let updated = new.map_or(0, |s| count(s, "replicas"));
    let (total, available) = (sum("replicas"), sum("availableReplicas"));
    let mut after = deployment.clone();
    let fields = after.status_mut();
    for (field, value) in [
        ("observedGeneration", deployment.generation()),
        ("replicas", total),
        ("updatedReplicas", updated),
        ("readyReplicas", sum("readyReplicas")),
        ("availableReplicas", available),
        ("unavailableReplicas", (wanted - available).max(0)),
    ] {
        fields.insert(field.into(), value.into());
    }
    let enough = available >= wanted - unavailable;
    let complete = updated == wanted && total == wanted && available == wanted;
    let available = Condition {
        kind: "Available",
        status: if enough { "True" } else { "False" },
        reason: if enough { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" },
        message: format!("{available} of {wanted} replicas are available"),
    };
    let progressing = Condition {
        kind: "Progressing",
        status: "True",
        reason: if complete { "NewReplicaSetAvailable" } else { "ReplicaSetUpdated" },
        message: format!("{updated} of {wanted} replicas are of the newest template"),
    };
    conditions::set(&mut after, &available, now);
    conditions::set(&mut after, &progressing, now);
    (after != *deployment).then_some(Action::UpdateStatus(after))
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
            let actions = reconcile(d, &list, "t");
            if actions.is_empty() {
                return (least, most);
            }
            for action in actions {
                match action {
                    Action::Create(o) | Action::Update(o) => drop(sets.insert(o.name().to_owned(), o)),
                    Action::UpdateStatus(o) => *d = o,
                    Action::Delete { key, .. } => panic!("{key} must stay"),
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
        let actions = reconcile(&web("a", 2, Value::Null), &[], "t");
        let Action::Create(set) = &actions[0] else { panic!("{actions:?}") };
        let hash = &set.labels()[TEMPLATE_HASH];
        assert_eq!(set.name(), format!("web-{hash}"));
        for pointer in ["/spec/selector/matchLabels", "/spec/template/metadata/labels"] {
            assert_eq!(set.pointer(pointer).unwrap(), &json!({"app": "web", TEMPLATE_HASH: hash}));
        }
        assert_eq!(set.pointer("/spec/replicas"), Some(&2.into()));
    }
}
