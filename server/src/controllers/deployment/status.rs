//! What a Deployment says of itself. [pkg/controller/deployment, progress.go, calculateStatus in sync.go]

use std::time::Duration;

use jiff::Timestamp;
use minisvc_proto::Object;
use serde_json::{Value, json};

use super::{super::action::number, Rollout, scale::Limits};
use crate::conditions;

/// `progressDeadlineSeconds` that never passes.
const ENDLESS: i64 = 0x7fff_ffff;
/// Times of conditions are whole seconds: so much later a deadline has surely passed.
const CERTAINTY: Duration = Duration::from_secs(1);

/// What happens to the newest set in this step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// It is made.
    Created,
    /// It was there, and is the newest from now on.
    Found,
    /// Nothing.
    None,
}

/// How many pods there are, of what kind.
struct Counts {
    wanted: i64,
    total: i64,
    updated: i64,
    ready: i64,
    available: i64,
}

impl Counts {
    fn of(rollout: &Rollout<'_>, limits: &Limits) -> Self {
        let count = |s: &Object, field: &str| number(s, &format!("/status/{field}")).unwrap_or(0);
        let sum = |field: &str| rollout.all().map(|s| count(s, field)).sum();
        Counts {
            wanted: limits.wanted,
            total: sum("replicas"),
            updated: rollout.new.map_or(0, |s| count(s, "replicas")),
            ready: sum("readyReplicas"),
            available: sum("availableReplicas"),
        }
    }

    fn is_complete(&self) -> bool {
        (self.updated, self.total, self.available) == (self.wanted, self.wanted, self.wanted)
    }
}

/// Whether all pods are of the new template and available, and there are no others.
pub fn is_complete(rollout: &Rollout<'_>, limits: &Limits) -> bool {
    Counts::of(rollout, limits).is_complete()
}

/// The deployment with its status, and when its time to make progress is over. `name`: of the newest set. `moves`: whether
/// this is a step of a rollout, and not of a scaling or a pause.
pub fn next(
    deployment: &Object,
    rollout: &Rollout<'_>,
    limits: &Limits,
    (news, name): (News, &str),
    moves: bool,
    now: Timestamp,
) -> (Object, Option<Duration>) {
    let counts = Counts::of(rollout, limits);
    let mut after = deployment.clone();
    let spec: i64 = rollout.all().map(|s| number(s, "/spec/replicas").unwrap_or(1)).sum();
    for (field, value) in [
        ("observedGeneration", deployment.generation()),
        ("replicas", counts.total),
        ("updatedReplicas", counts.updated),
        ("readyReplicas", counts.ready),
        ("availableReplicas", counts.available),
        ("unavailableReplicas", (spec - counts.available).max(0)),
    ] {
        after.status_mut().insert(field.into(), value.into());
    }
    let mut write = Write { after, now: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() };
    if counts.available >= limits.least() {
        let message = "Deployment has minimum availability.";
        write.condition("Available", "True", "MinimumReplicasAvailable", message);
    } else {
        let message = "Deployment does not have minimum availability.";
        write.condition("Available", "False", "MinimumReplicasUnavailable", message);
    }
    let deadline = number(deployment, "/spec/progressDeadlineSeconds").unwrap_or(600);
    let again = if deadline == ENDLESS {
        conditions::remove(&mut write.after, "Progressing");
        None
    } else {
        write.pause();
        let deadline = Duration::from_secs(u64::try_from(deadline).unwrap_or(0));
        write.progress(deployment, &counts, (news, name), moves, deadline, now)
    };
    write.failure(rollout);
    (write.after, again)
}

/// That the set of the deployment's template could not be made.
pub fn not_made(deployment: &mut Object, name: &str, why: &str, now: Timestamp) -> String {
    let message = format!("Failed to create new replica set {name:?}: {why}");
    let mut write = Write { after: deployment.clone(), now: now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string() };
    write.condition("Progressing", "False", "ReplicaSetCreateError", &message);
    *deployment = write.after;
    message
}

struct Write {
    after: Object,
    now: String,
}

impl Write {
    fn field(&self, kind: &str, name: &str) -> Option<&str> {
        conditions::get(&self.after, kind)?.get(name)?.as_str()
    }

    /// One that says the same already stays as it is, its times included.
    fn condition(&mut self, kind: &'static str, status: &'static str, reason: &'static str, message: &str) {
        if self.field(kind, "status") != Some(status) || self.field(kind, "reason") != Some(reason) {
            self.renew(kind, status, reason, message);
        }
    }

    /// Sets it, as news even if it says the same.
    fn renew(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let since =
            self.field(kind, "lastTransitionTime").filter(|_| self.field(kind, "status") == Some(status));
        let new = json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastUpdateTime": self.now, "lastTransitionTime": since.unwrap_or(&self.now),
        });
        self.put(new);
    }

    fn put(&mut self, condition: Value) {
        let list = self.after.status_mut().entry("conditions").or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            match list.iter_mut().find(|c| c["type"] == condition["type"]) {
                Some(slot) => *slot = condition,
                None => list.push(condition),
            }
        }
    }

    /// While it is paused no deadline runs, and it starts anew when that ends.
    fn pause(&mut self) {
        let paused = super::is_paused(&self.after);
        let reason = self.field("Progressing", "reason");
        match (paused, reason == Some("DeploymentPaused")) {
            _ if reason == Some("ProgressDeadlineExceeded") => {}
            (true, false) => self.renew("Progressing", "Unknown", "DeploymentPaused", "Deployment is paused"),
            (false, true) => {
                self.renew("Progressing", "Unknown", "DeploymentResumed", "Deployment is resumed");
            }
            _ => {}
        }
    }

    fn progress(
        &mut self,
        before: &Object,
        counts: &Counts,
        (news, name): (News, &str),
        moves: bool,
        deadline: Duration,
        now: Timestamp,
    ) -> Option<Duration> {
        const KIND: &str = "Progressing";
        if !moves {
            return None;
        }
        match news {
            News::Created => {
                let message = format!("Created new replica set {name:?}");
                self.renew(KIND, "True", "NewReplicaSetCreated", &message);
            }
            News::Found => {
                let message = format!("Found new replica set {name:?}");
                self.renew(KIND, "True", "FoundNewReplicaSet", &message);
            }
            // What was complete once and has lost a pod makes no progress, and is not late.
            News::None
                if counts.total == counts.updated
                    && self.field(KIND, "reason") == Some("NewReplicaSetAvailable") =>
            {
                return None;
            }
            News::None if counts.is_complete() => {
                let message = format!("ReplicaSet {name:?} has successfully progressed.");
                self.condition(KIND, "True", "NewReplicaSetAvailable", &message);
                return None;
            }
            News::None if has_moved(before, counts) => {
                let message = format!("ReplicaSet {name:?} is progressing.");
                self.renew(KIND, "True", "ReplicaSetUpdated", &message);
            }
            News::None => {}
        }
        let reason = self.field(KIND, "reason");
        if matches!(reason, None | Some("NewReplicaSetAvailable" | "ProgressDeadlineExceeded")) {
            return None;
        }
        let since = self.field(KIND, "lastUpdateTime")?.parse::<Timestamp>().ok()?;
        let waited = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        let left = (deadline + CERTAINTY).saturating_sub(waited);
        if left.is_zero() {
            let message = format!("ReplicaSet {name:?} has timed out progressing.");
            self.condition(KIND, "False", "ProgressDeadlineExceeded", &message);
            return None;
        }
        Some(left)
    }

    /// That a set cannot make its pods is the deployment's trouble too; the newest set's first.
    fn failure(&mut self, rollout: &Rollout<'_>) {
        let failed = |s: &Object| conditions::get(s, "ReplicaFailure").cloned();
        let Some(mut failure) = rollout.new.and_then(failed).or_else(|| rollout.all().find_map(failed))
        else {
            conditions::remove(&mut self.after, "ReplicaFailure");
            return;
        };
        let since = failure.get("lastTransitionTime").cloned().unwrap_or_default();
        failure.insert("lastUpdateTime".into(), since);
        self.put(Value::Object(failure));
    }
}

/// More of what is wanted, or less of what is not.
fn has_moved(before: &Object, counts: &Counts) -> bool {
    let was = |field: &str| number(before, &format!("/status/{field}")).unwrap_or(0);
    counts.updated > was("updatedReplicas")
        || counts.total - counts.updated < was("replicas") - was("updatedReplicas")
        || counts.ready > was("readyReplicas")
        || counts.available > was("availableReplicas")
}
