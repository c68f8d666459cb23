//! Which template came when, and what is kept of them. [pkg/controller/deployment/util, SetNewReplicaSetAnnotations]

use minisvc_proto::Object;
use serde_json::{Value, json};

use super::super::action::{Action, number};

/// The number of a set among those that the deployment had; on the deployment, that of its newest one.
pub const REVISION: &str = "deployment.kubernetes.io/revision";
/// The numbers that a set had before its template was used again.
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// What is remembered of these, in characters.
const HISTORY_LENGTH: usize = 2000;
/// Annotations of a deployment that are not its sets'.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
    "deprecated.deployment.rollback.to",
];
/// `revisionHistoryLimit` that keeps all.
const ENDLESS: i64 = 0x7fff_ffff;

/// 0 for a set without a number.
pub fn revision(object: &Object) -> u64 {
    object.annotations().get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// Gives the newest set its number, at least this one, and the deployment's annotations (`kubernetes.io/change-cause` is one).
pub fn annotate(deployment: &Object, set: &mut Object, least: u64) {
    let before = set.annotations();
    let notes = set.metadata_mut().entry("annotations").or_insert_with(|| json!({}));
    for (name, value) in deployment.annotations() {
        if !OWN.contains(&name.as_str()) {
            notes[name] = value.into();
        }
    }
    let had = before.get(REVISION);
    if had.and_then(|r| r.parse().ok()).is_some_and(|r: u64| r >= least) {
        return;
    }
    notes[REVISION] = least.to_string().into();
    let Some(had) = had.filter(|h| !h.is_empty()) else { return };
    let earlier = before.get(HISTORY).filter(|h| !h.is_empty());
    let mut all = earlier.map_or_else(|| had.clone(), |earlier| format!("{earlier},{had}"));
    while all.len() > HISTORY_LENGTH
        && let Some((_, rest)) = all.split_once(',')
    {
        all = rest.to_string();
    }
    notes[HISTORY] = all.into();
}

/// The deployment with the number of its newest set; `None` if it has it.
pub fn numbered(deployment: &Object, set: &Object) -> Option<Object> {
    let notes = set.annotations();
    let number = notes.get(REVISION)?;
    if deployment.annotations().get(REVISION) == Some(number) {
        return None;
    }
    let mut new = deployment.clone();
    let notes = new.metadata_mut().entry("annotations").or_insert_with(|| json!({}));
    notes[REVISION] = number.as_str().into();
    Some(new)
}

/// Deletes old sets without pods beyond those that are kept for a way back, the oldest revision first.
pub fn forgotten(deployment: &Object, old: &[&Object]) -> Vec<Action> {
    let limit = number(deployment, "/spec/revisionHistoryLimit").unwrap_or(10);
    let mut kept: Vec<&Object> = old.iter().copied().filter(|s| s.deletion_timestamp().is_none()).collect();
    let surplus = kept.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    if limit == ENDLESS || surplus == 0 {
        return Vec::new();
    }
    kept.sort_by_key(|s| revision(s));
    let is_empty = |s: &&Object| {
        let none = |at: &str| s.pointer(at).and_then(Value::as_i64).unwrap_or(0) == 0;
        none("/spec/replicas")
            && none("/status/replicas")
            && s.generation() <= number(s, "/status/observedGeneration").unwrap_or(0)
    };
    kept.into_iter().take(surplus).filter(is_empty).filter_map(Action::delete).collect()
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::{DEPLOYMENTS, REPLICA_SETS};

    use super::*;

    #[test]
    fn a_template_that_is_used_again_has_the_newest_number_and_remembers_the_others() {
        let mut deployment = Object::new(&DEPLOYMENTS, Some("default"), "web");
        deployment.metadata_mut().insert(
            "annotations".into(),
            json!({"kubernetes.io/change-cause": "why", REVISION: "9", OWN[0]: "{}"}),
        );
        let mut set = Object::new(&REPLICA_SETS, Some("default"), "web-1");
        for (least, revision, history) in
            [(1, "1", None), (1, "1", None), (4, "4", Some("1")), (3, "4", Some("1")), (6, "6", Some("1,4"))]
        {
            annotate(&deployment, &mut set, least);
            let notes = set.annotations();
            assert_eq!(
                (notes[REVISION].as_str(), notes.get(HISTORY).map(String::as_str)),
                (revision, history)
            );
            assert_eq!(notes["kubernetes.io/change-cause"], "why");
            assert!(!notes.contains_key(OWN[0]));
        }
        for n in 7..2000 {
            annotate(&deployment, &mut set, n);
        }
        let history = &set.annotations()[HISTORY];
        assert!(history.len() <= HISTORY_LENGTH && history.ends_with(",1998"), "{history}");
        assert_eq!(numbered(&deployment, &set).unwrap().annotations()[REVISION], "1999");
        assert_eq!(numbered(&numbered(&deployment, &set).unwrap(), &set), None);
    }
}
