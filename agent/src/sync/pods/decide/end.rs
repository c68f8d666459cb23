//! How a pod ends: first it leaves rotation, so that nobody comes any more when its containers hear of the end: preStop hook, SIGTERM, SIGKILL, within the grace period; sidecars after all others, the last one first.
//! Rules from Kubernetes: pkg/kubelet/kuberuntime, `killContainer` and `newTerminationOrdering` (KEP-753).

use super::{Action, Facts, Kind, Plan, Stop, Withdrawal};

/// Milliseconds that a container has after SIGTERM when its preStop hook, or those that end before it, used up the grace period:
/// Kubernetes' one-off extension.
pub const LAST_WORD: i64 = 2_000;

/// How far the end of a running container has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// When it was begun.
    pub since: i64,
    /// Milliseconds from then to SIGKILL.
    pub grace: i64,
    /// Its preStop hook, if it has one.
    pub hook: Hook,
    /// When SIGTERM was sent.
    pub terminated: Option<i64>,
    /// SIGKILL was sent.
    pub killed: bool,
}

/// A preStop hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// There is none.
    None,
    /// It runs.
    Runs,
    /// It has ended, well or not.
    Over,
}

/// What the end of one container needs next.
enum Step {
    Act(Action),
    Wait(i64),
    /// Its time is up.
    Kill,
}

/// The steps that take the pod out of rotation and end it. Without grace, or without its object, by which the others would know of
/// it, there is nothing to wait for.
pub fn leave(facts: &Facts<'_>, stop: Stop) -> Plan {
    if stop.grace <= 0 || !stop.delete_object || running(facts).next().is_none() {
        return end(facts, stop.grace);
    }
    match facts.withdrawal {
        None => Plan::act(Action::Withdraw),
        Some(Withdrawal::Waits) => Plan::wait(None),
        Some(Withdrawal::Over { took }) => end(facts, (stop.grace - took).max(1)),
    }
}

/// The steps that end the pod, which gives its containers this many milliseconds.
pub fn end(facts: &Facts<'_>, grace: i64) -> Plan {
    let mut plan = Plan::default();
    let mut late = Vec::new();
    let running: Vec<&str> = running(facts).collect();
    for name in &running {
        match step(facts, name, grace, has_turn(facts, name)) {
            Step::Act(action) => plan.actions.push(action),
            Step::Wait(until) => plan.wake_at(until),
            Step::Kill => late.push(*name),
        }
    }
    if late.len() == running.len() {
        return Plan::act(Action::End);
    }
    plan.actions.extend(late.into_iter().filter_map(|name| kill(facts, name)));
    plan
}

/// The steps that end one container of a pod that goes on.
pub fn end_one(facts: &Facts<'_>, name: &str, grace: i64, plan: &mut Plan) {
    match step(facts, name, grace, true) {
        Step::Act(action) => plan.actions.push(action),
        Step::Wait(until) => plan.wake_at(until),
        Step::Kill => plan.actions.extend(kill(facts, name)),
    }
}

fn running<'a>(facts: &Facts<'a>) -> impl Iterator<Item = &'a str> {
    facts.containers.iter().filter(|(_, c)| c.is_running()).map(|(name, _)| name.as_str())
}

/// Everything but sidecars ends at once, also what an earlier version of the pod called otherwise.
fn has_turn(facts: &Facts<'_>, name: &str) -> bool {
    let place = |name: &str| facts.members.iter().position(|m| m.name == name && m.kind == Kind::Sidecar);
    let Some(own) = place(name) else { return true };
    running(facts).all(|other| place(other).is_some_and(|p| p <= own))
}

fn kill(facts: &Facts<'_>, name: &str) -> Option<Action> {
    let killed = facts.ending(name).is_some_and(|e| e.killed);
    (!killed).then(|| Action::Kill { container: name.to_owned() })
}

fn step(facts: &Facts<'_>, name: &str, grace: i64, turn: bool) -> Step {
    let container = name.to_owned();
    if grace <= 0 {
        return Step::Kill;
    }
    let Some(ending) = facts.ending(name) else { return Step::Act(Action::Stop { container, grace }) };
    // A second deletion may have left less time.
    let deadline = ending.since.saturating_add(ending.grace.min(grace));
    let Some(at) = ending.terminated else {
        let waits = ending.hook == Hook::Runs || !turn;
        return if waits && facts.now < deadline {
            Step::Wait(deadline)
        } else {
            Step::Act(Action::Terminate { container })
        };
    };
    let waited = ending.hook != Hook::None || facts.kind(name) == Kind::Sidecar;
    let until = if waited { deadline.max(at + LAST_WORD) } else { deadline };
    if facts.now < until { Step::Wait(until) } else { Step::Kill }
}
