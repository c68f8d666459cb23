//! ReplicaSets from a Deployment: one for each pod template it had. [pkg/controller/deployment]
//!
//! `template` makes and finds the set of a template, `scale` says how many pods each set is to have, `history` numbers the sets and
//! forgets old ones, `status` says how far it is.

mod history;
mod scale;
mod status;
mod template;

use std::sync::Arc;

use jiff::Timestamp;
use minisvc_proto::Object;
use serde_json::{Value, json};

use self::{
    scale::{Limits, Size},
    status::News,
};
use super::{
    action::{Action, Plan, is_controlled_by, number},
    pod,
};

pub use status::not_made;
pub use template::name as set_name;

/// The label that tells apart the pods of different templates.
pub const TEMPLATE_HASH: &str = "pod-template-hash";

/// What there is besides the deployment.
pub struct Seen<'a> {
    /// Its sets.
    pub sets: &'a [Arc<Object>],
    /// The pods of these, where none of them may run beside others: [`is_recreate`].
    pub pods: &'a [Arc<Object>],
    /// Whether a set has the name that a new one would get: [`set_name`].
    pub taken: bool,
}

/// The deployment's sets.
struct Rollout<'a> {
    /// The one of its template.
    new: Option<&'a Object>,
    /// The others, the oldest first.
    old: Vec<&'a Object>,
}

impl<'a> Rollout<'a> {
    fn of(deployment: &Object, sets: &'a [Arc<Object>]) -> Self {
        let mut owned: Vec<&Object> =
            sets.iter().map(|s| &**s).filter(|s| is_controlled_by(s, deployment)).collect();
        owned.sort_by_key(|s| {
            (s.str_at("/metadata/creationTimestamp").unwrap_or("").to_owned(), s.name().to_owned())
        });
        // Of two with one template the older is the one.
        let at = owned.iter().position(|s| template::is_of(s, deployment));
        let new = at.map(|at| owned.remove(at));
        Rollout { new, old: owned }
    }

    fn all(&self) -> impl Iterator<Item = &'a Object> {
        self.old.iter().copied().chain(self.new)
    }

    /// Whether a pod of another template is left, be it one that ends. [oldPodsRunning]
    fn has_old_pods(&self, pods: &[Arc<Object>]) -> bool {
        let of_old = |p: &Object| self.old.iter().any(|s| is_controlled_by(p, s));
        self.old.iter().any(|s| number(s, "/status/replicas").unwrap_or(0) > 0)
            || pods.iter().any(|p| of_old(p) && !pod::is_ended(p))
    }
}

/// Whether all old pods must be gone before a new one starts.
pub fn is_recreate(deployment: &Object) -> bool {
    deployment.str_at("/spec/strategy/type") == Some("Recreate")
}

fn is_paused(deployment: &Object) -> bool {
    deployment.pointer("/spec/paused") == Some(&Value::Bool(true))
}

/// The writes that move the deployment's sets one step on, and its status; and when its time to progress is over.
pub fn reconcile(deployment: &Object, seen: &Seen<'_>, now: Timestamp) -> Plan {
    if deployment.deletion_timestamp().is_some() {
        return Plan::default();
    }
    let rollout = Rollout::of(deployment, seen.sets);
    let (limits, paused, recreate) = (Limits::of(deployment), is_paused(deployment), is_recreate(deployment));
    let mut sizes: Vec<Size> = rollout.all().map(Size::of).collect();
    let scales = paused || (!recreate && scale::is_due(&limits, &sizes));
    let gone = !recreate || !rollout.has_old_pods(seen.pods);
    let creates = rollout.new.is_none() && !scales && gone;
    if creates && seen.taken {
        return collided(deployment);
    }
    let targets = if scales {
        scale::scaled(&limits, &sizes, rollout.new.is_some(), !recreate)
    } else {
        if rollout.new.is_none() {
            sizes.push(Size::default());
        }
        if recreate { scale::recreated(&limits, &sizes, gone) } else { scale::rolling(&limits, &sizes) }
    };

    let mut actions = Vec::new();
    let next = rollout.old.iter().map(|s| history::revision(s)).max().unwrap_or(0) + 1;
    for (set, target) in rollout.all().zip(&targets) {
        let mut changed = set.clone();
        changed.spec_mut().insert("replicas".into(), (*target).into());
        if *target > 0 {
            limits.note(&mut changed);
        }
        if rollout.new.is_some_and(|new| new.name() == set.name()) {
            history::annotate(deployment, &mut changed, next);
            template::copy_min_ready(deployment, &mut changed);
        }
        if changed != *set {
            actions.push(Action::Update(changed));
        }
    }
    if creates {
        let mut set = template::new_set(deployment, &limits, targets.last().copied().unwrap_or(0));
        history::annotate(deployment, &mut set, next);
        actions.push(Action::Create(set));
    }
    if paused || status::is_complete(&rollout, &limits) {
        actions.extend(history::forgotten(deployment, &rollout.old));
    }

    let is_newest = |set: &Object| history::revision(set) >= next;
    if let Some(numbered) =
        rollout.new.filter(|s| is_newest(s)).and_then(|s| history::numbered(deployment, s))
    {
        // It comes back for its status.
        actions.push(Action::Update(numbered));
        return Plan { actions, again: None };
    }
    let unsaid = crate::conditions::get(deployment, "Progressing").is_none();
    let news = match rollout.new {
        None if creates => News::Created,
        Some(set) if unsaid || !is_newest(set) => News::Found,
        _ => News::None,
    };
    let name = rollout.new.map_or_else(|| template::name(deployment), |s| s.name().to_owned());
    let (after, again) = status::next(deployment, &rollout, &limits, (news, &name), !scales, now);
    if after != *deployment {
        actions.push(Action::UpdateStatus(after));
    }
    Plan { actions, again }
}

/// Another template has the name that this one's set would get: the next try asks for another.
fn collided(deployment: &Object) -> Plan {
    let mut after = deployment.clone();
    let count = number(deployment, "/status/collisionCount").unwrap_or(0) + 1;
    after.status_mut().insert("collisionCount".into(), json!(count));
    Plan { actions: vec![Action::UpdateStatus(after)], again: None }
}

/// What is told of the writes to sets that these actions are.
pub fn told(sets: &[Arc<Object>], actions: &[Action]) -> Vec<String> {
    let size = |s: &Object| number(s, "/spec/replicas").unwrap_or(1);
    let told = actions.iter().filter_map(|action| {
        let (from, set) = match action {
            Action::Create(set) => (0, set),
            Action::Update(set) => (size(sets.iter().find(|s| s.uid() == set.uid())?), set),
            _ => return None,
        };
        let to = size(set);
        let how = if to > from { "up" } else { "down" };
        (from != to).then(|| format!("Scaled {how} replica set {} from {from} to {to}", set.name()))
    });
    told.collect()
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod walk;
