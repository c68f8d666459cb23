//! What to do next with a pod. Pure.

mod end;
mod restart;

use std::collections::{BTreeMap, BTreeSet};

pub use self::{
    end::{Ending, Hook},
    restart::{Kind, LAST_BACKOFF, RestartPolicy, backoff, count_failure, due},
};
use crate::runtime::ContainerState;

/// A container of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub kind: Kind,
    /// It has a postStart hook.
    pub hook: bool,
}

/// What is known of a container's newest start, beside what the runtime says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Which start, from 0.
    pub attempt: u32,
    /// Its postStart hook runs.
    pub starting: bool,
    /// Its postStart hook is done and its startup probe has passed.
    pub started: bool,
    /// Its readiness probe says so, or it has none.
    pub ready: bool,
    /// It is not well and has to end, to be started anew if the policy says so: milliseconds between SIGTERM and SIGKILL.
    pub condemned: Option<i64>,
    /// How far its end has come.
    pub ending: Option<Ending>,
}

/// What there is of the pod on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// Nothing.
    Absent,
    /// Namespaces, whose network may not be right (an earlier agent made them).
    Unconnected,
    /// Namespaces with a network.
    Alive,
    /// Namespaces have ended; link, address and directory have not been given back.
    Ended,
}

/// Why the pod has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Milliseconds between SIGTERM and SIGKILL.
    pub grace: i64,
    /// The object is still there, to be removed when all is done.
    pub delete_object: bool,
}

/// How far a pod that has to end is on its way out of rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// Nodes are awaited.
    Waits,
    /// No node leads new connections to it, or that took too long.
    Over {
        /// Milliseconds, which are part of the grace period.
        took: i64,
    },
}

/// All that the decision depends on.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The containers, in the order to start them: init containers first.
    pub members: &'a [Member],
    /// What follows an end.
    pub restart: RestartPolicy,
    /// The pod was over before this agent looked at it.
    pub over: bool,
    /// The pod has to end.
    pub stop: Option<Stop>,
    /// Whether new connections still come to a pod that has to end; `None` before that was asked.
    pub withdrawal: Option<Withdrawal>,
    /// Milliseconds between SIGTERM and SIGKILL for sidecars when the pod is over.
    pub grace: i64,
    /// What there is.
    pub sandbox: Sandbox,
    /// What the containers do, or did last.
    pub containers: &'a BTreeMap<String, ContainerState>,
    /// Containers that have not been started in these namespaces: what they did, they did in earlier ones.
    pub earlier: &'a BTreeSet<String>,
    /// How they are.
    pub health: &'a BTreeMap<String, Health>,
    /// Ends in a row that followed a bad start, by container; 0 for one that ended with the machine.
    pub failures: &'a BTreeMap<String, u32>,
    /// Containers whose start failed: not before this time again.
    pub not_before: &'a BTreeMap<String, i64>,
    /// Something of the whole pod failed: not before this time again.
    pub retry_at: Option<i64>,
    /// Now, in milliseconds since 1970, as are all times here.
    pub now: i64,
}

impl Facts<'_> {
    fn ending(&self, name: &str) -> Option<&Ending> {
        self.health.get(name)?.ending.as_ref()
    }

    /// What is no member any more runs as one of the main containers.
    fn kind(&self, name: &str) -> Kind {
        self.members.iter().find(|m| m.name == name).map_or(Kind::Main, |m| m.kind)
    }
}

/// What the container did in these namespaces.
pub fn here<'a>(
    name: &str,
    containers: &'a BTreeMap<String, ContainerState>,
    earlier: &BTreeSet<String>,
) -> Option<&'a ContainerState> {
    containers.get(name).filter(|_| !earlier.contains(name))
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make the namespaces if there are none, and connect their network.
    Create,
    /// Start a container.
    Start {
        /// Which.
        container: String,
        /// Which start.
        attempt: u32,
    },
    /// Wait until no node leads new connections to the pod.
    Withdraw,
    /// Begin a container's end, with its preStop hook.
    Stop {
        /// Which.
        container: String,
        /// Milliseconds from now to SIGKILL.
        grace: i64,
    },
    /// SIGTERM to a container.
    Terminate {
        /// Which.
        container: String,
    },
    /// SIGKILL to a container.
    Kill {
        /// Which.
        container: String,
    },
    /// Kill what is left, and end the namespaces.
    End,
    /// Give back link, address and directory.
    Release,
    /// Remove the object.
    DeleteObject,
    /// Nothing is left to do, ever.
    Done,
}

/// What to do now, and when to look again at the latest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In order; when one fails the rest waits.
    pub actions: Vec<Action>,
    /// Milliseconds since 1970.
    pub wake: Option<i64>,
}

impl Plan {
    fn act(action: Action) -> Self {
        Plan { actions: vec![action], wake: None }
    }

    fn wait(until: Option<i64>) -> Self {
        Plan { actions: Vec::new(), wake: until }
    }

    fn wake_at(&mut self, at: i64) {
        self.wake = Some(self.wake.map_or(at, |w| w.min(at)));
    }
}

/// Whether the pod is over: every main container has ended for good, or an init container failed for good.
pub fn is_over(
    members: &[Member],
    restart: RestartPolicy,
    containers: &BTreeMap<String, ContainerState>,
    health: &BTreeMap<String, Health>,
) -> bool {
    let for_good = |m: &Member| {
        let exit = containers.get(&m.name)?.exit.as_ref()?;
        let condemned = health.get(&m.name).is_some_and(|h| h.condemned.is_some());
        (!m.kind.restarts(restart, exit, condemned)).then_some(exit)
    };
    let of = |kind: Kind| members.iter().filter(move |m| m.kind == kind);
    (of(Kind::Main).next().is_some() && of(Kind::Main).all(|m| for_good(m).is_some()))
        || of(Kind::Init).any(|m| for_good(m).is_some_and(|exit| exit.code != 0))
}

/// Whether a main container was started in these namespaces: then init containers are behind it.
pub fn has_begun(
    members: &[Member],
    containers: &BTreeMap<String, ContainerState>,
    earlier: &BTreeSet<String>,
) -> bool {
    members.iter().any(|m| m.kind == Kind::Main && here(&m.name, containers, earlier).is_some())
}

/// The next steps.
pub fn decide(facts: &Facts<'_>) -> Plan {
    if let Some(at) = facts.retry_at.filter(|at| *at > facts.now) {
        return Plan::wait(Some(at));
    }
    let over = facts.over || is_over(facts.members, facts.restart, facts.containers, facts.health);
    match (facts.stop, facts.sandbox) {
        (Some(stop), Sandbox::Absent) if stop.delete_object => Plan::act(Action::DeleteObject),
        (Some(_), Sandbox::Absent) => Plan::act(Action::Done),
        (_, Sandbox::Ended) => Plan::act(Action::Release),
        (Some(stop), Sandbox::Alive | Sandbox::Unconnected) => end::leave(facts, stop),
        (None, Sandbox::Absent) if over => Plan::wait(None),
        (None, Sandbox::Alive | Sandbox::Unconnected) if over => end::end(facts, facts.grace),
        (None, Sandbox::Absent | Sandbox::Unconnected) => Plan::act(Action::Create),
        (None, Sandbox::Alive) => keep(facts),
    }
}

/// Brings the containers to life in their order, and keeps them alive. [KEP-753]
fn keep(facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::default();
    let begun = has_begun(facts.members, facts.containers, facts.earlier);
    let running = |m: &Member| facts.containers.get(&m.name).is_some_and(ContainerState::is_running);
    let health = |m: &Member| facts.health.get(&m.name).filter(|_| running(m));
    // Whether the next one may be started.
    let mut free = true;
    for member in facts.members {
        if member.kind == Kind::Init {
            let state = here(&member.name, facts.containers, facts.earlier);
            let done = state.and_then(|c| c.exit.as_ref()).is_some_and(|e| e.code == 0);
            if done || begun {
                continue;
            }
        }
        let before = plan.actions.len();
        tend(facts, member, free, &mut plan);
        let acts = plan.actions.len() > before;
        let waits = match member.kind {
            Kind::Init => true,
            Kind::Sidecar => !begun && !health(member).is_some_and(|h| h.started),
            // As Kubernetes starts them: programs rely on it.
            Kind::Main => member.hook && (acts || health(member).is_some_and(|h| h.starting)),
        };
        free &= !waits;
    }
    plan
}

/// Starts the container if it is time and it `may_start`, or ends it if it is not well.
fn tend(facts: &Facts<'_>, member: &Member, may_start: bool, plan: &mut Plan) {
    let name = &member.name;
    let health = facts.health.get(name);
    let (attempt, at) = match facts.containers.get(name) {
        Some(ContainerState { exit: None, .. }) => {
            if let Some(grace) = health.and_then(|h| h.condemned) {
                end::end_one(facts, name, grace, plan);
            }
            return;
        }
        _ if !may_start => return,
        None => (0, facts.now),
        Some(ContainerState { exit: Some(exit), attempt, .. }) => {
            let condemned = health.is_some_and(|h| h.condemned.is_some());
            let failures = facts.failures.get(name).copied().unwrap_or(1);
            let at = if member.kind == Kind::Init && exit.code == 0 {
                // Its work is gone with the namespaces.
                facts.now
            } else if member.kind.restarts(facts.restart, exit, condemned) {
                due(exit, failures, facts.now)
            } else {
                return;
            };
            (attempt + 1, at)
        }
    };
    let at = facts.not_before.get(name).map_or(at, |b| at.max(*b));
    if at <= facts.now {
        plan.actions.push(Action::Start { container: name.clone(), attempt });
    } else {
        plan.wake_at(at);
    }
}

#[cfg(test)]
mod tests;
