//! What to do next with a pod. Pure.

use std::collections::BTreeMap;

use crate::runtime::{ContainerState, Exit};

/// The first wait before a container that ended is started again. It doubles with each end; Kubernetes starts with 10 s, which
/// is long for a process on one's own machine.
pub const FIRST_BACKOFF: i64 = 1_000;
/// The longest wait, as in Kubernetes.
pub const LAST_BACKOFF: i64 = 300_000;
/// A container that ran this long had a good start: the wait begins anew, as in Kubernetes.
pub const GOOD_RUN: i64 = 600_000;

/// When an ended container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestartPolicy {
    /// However it ended.
    Always,
    /// If it failed.
    OnFailure,
    /// Never.
    Never,
}

impl RestartPolicy {
    /// From `spec.restartPolicy`.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        }
    }

    /// Whether this end is followed by another start.
    pub fn restarts(self, exit: &Exit) -> bool {
        match self {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => exit.code != 0,
            RestartPolicy::Never => false,
        }
    }
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

/// All that the decision depends on.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The containers' names, in the order to start them.
    pub names: &'a [String],
    /// What follows an end.
    pub restart: RestartPolicy,
    /// The pod was over before this agent looked at it.
    pub over: bool,
    /// The pod has to end.
    pub stop: Option<Stop>,
    /// When SIGTERM was sent.
    pub stop_since: Option<i64>,
    /// What there is.
    pub sandbox: Sandbox,
    /// What the containers do, or did last.
    pub containers: &'a BTreeMap<String, ContainerState>,
    /// Ends in a row that followed a bad start, by container; 0 for one that ended with the machine.
    pub failures: &'a BTreeMap<String, u32>,
    /// Something failed: not before this time again.
    pub retry_at: Option<i64>,
    /// Now, in milliseconds since 1970, as are all times here.
    pub now: i64,
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
    /// SIGTERM to every container.
    Terminate,
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
}

/// How long an ended container waits for its next start: not at all when it was the machine that failed.
pub fn backoff(failures: u32) -> i64 {
    if failures == 0 {
        return 0;
    }
    FIRST_BACKOFF.saturating_mul(1 << (failures - 1).min(20)).min(LAST_BACKOFF)
}

/// When a container is started again; `None` if it is not. A clock that was set back does not make it wait longer.
pub fn due(exit: &Exit, restart: RestartPolicy, failures: u32, now: i64) -> Option<i64> {
    restart.restarts(exit).then(|| exit.finished_at.min(now) + backoff(failures))
}

/// Whether every container has ended for good.
pub fn is_over(
    names: &[String],
    restart: RestartPolicy,
    containers: &BTreeMap<String, ContainerState>,
) -> bool {
    !names.is_empty()
        && names.iter().all(|n| {
            containers.get(n).and_then(|c| c.exit.as_ref()).is_some_and(|exit| !restart.restarts(exit))
        })
}

/// The next steps.
pub fn decide(facts: &Facts<'_>) -> Plan {
    if let Some(at) = facts.retry_at.filter(|at| *at > facts.now) {
        return Plan::wait(Some(at));
    }
    let over = facts.over || is_over(facts.names, facts.restart, facts.containers);
    match (facts.stop, facts.sandbox) {
        (Some(stop), Sandbox::Absent) if stop.delete_object => Plan::act(Action::DeleteObject),
        (Some(_), Sandbox::Absent) => Plan::act(Action::Done),
        (_, Sandbox::Ended) => Plan::act(Action::Release),
        (Some(stop), Sandbox::Alive | Sandbox::Unconnected) => end(facts, stop),
        (None, Sandbox::Absent) if over => Plan::wait(None),
        (None, Sandbox::Alive | Sandbox::Unconnected) if over => Plan::act(Action::End),
        (None, Sandbox::Absent | Sandbox::Unconnected) => Plan::act(Action::Create),
        (None, Sandbox::Alive) => keep(facts),
    }
}

fn end(facts: &Facts<'_>, stop: Stop) -> Plan {
    if !facts.containers.values().any(ContainerState::is_running) {
        return Plan::act(Action::End);
    }
    match facts.stop_since {
        None if stop.grace > 0 => {
            Plan { actions: vec![Action::Terminate], wake: Some(facts.now.saturating_add(stop.grace)) }
        }
        Some(since) if facts.now < since.saturating_add(stop.grace) => {
            Plan::wait(Some(since.saturating_add(stop.grace)))
        }
        _ => Plan::act(Action::End),
    }
}

fn keep(facts: &Facts<'_>) -> Plan {
    let mut plan = Plan::default();
    for name in facts.names {
        let start = |attempt| Action::Start { container: name.clone(), attempt };
        match facts.containers.get(name) {
            None => plan.actions.push(start(0)),
            Some(ContainerState { exit: Some(exit), attempt, .. }) => {
                let failures = facts.failures.get(name).copied().unwrap_or(1);
                match due(exit, facts.restart, failures, facts.now) {
                    Some(at) if at <= facts.now => plan.actions.push(start(attempt + 1)),
                    Some(at) => plan.wake = Some(plan.wake.map_or(at, |w| w.min(at))),
                    None => {}
                }
            }
            Some(_) => {}
        }
    }
    plan
}

/// The failures in a row after one more end.
pub fn count_failure(before: Option<u32>, state: &ContainerState, exit: &Exit) -> u32 {
    if exit.finished_at - exit.started_at >= GOOD_RUN {
        return 1;
    }
    match before {
        Some(n) => n.saturating_add(1),
        // A new agent does not know how the earlier ends were spaced: it takes all of them for bad starts.
        None => state.attempt.saturating_add(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;

    fn exit(code: i32, ago: i64) -> Exit {
        Exit { code, signal: None, not_started: None, started_at: NOW - ago - 50, finished_at: NOW - ago }
    }

    fn state(exit: Option<Exit>) -> BTreeMap<String, ContainerState> {
        BTreeMap::from([("c".to_owned(), ContainerState { attempt: 3, started_at: 0, exit, previous: None })])
    }

    /// (policy, stop, stop_since, sandbox, state, failures) -> plan
    fn plan(
        restart: RestartPolicy,
        stop: Option<(i64, bool)>,
        stop_since: Option<i64>,
        sandbox: Sandbox,
        containers: &BTreeMap<String, ContainerState>,
        failures: u32,
    ) -> Plan {
        decide(&Facts {
            names: &["c".to_owned()],
            restart,
            over: false,
            stop: stop.map(|(grace, delete_object)| Stop { grace, delete_object }),
            stop_since,
            sandbox,
            containers,
            failures: &BTreeMap::from([("c".to_owned(), failures)]),
            retry_at: None,
            now: NOW,
        })
    }

    #[test]
    fn a_pod_comes_to_life_and_is_kept_alive() {
        use RestartPolicy::{Always, Never, OnFailure};
        let none = BTreeMap::new();
        let start = |attempt| Plan::act(Action::Start { container: "c".into(), attempt });
        let idle = Plan::default();
        let cases = [
            (Always, Sandbox::Absent, none.clone(), 0, Plan::act(Action::Create)),
            (Always, Sandbox::Unconnected, state(None), 0, Plan::act(Action::Create)),
            (Always, Sandbox::Alive, none, 0, start(0)),
            (Always, Sandbox::Alive, state(None), 0, idle.clone()),
            (Always, Sandbox::Alive, state(Some(exit(0, 400))), 1, Plan::wait(Some(NOW + 600))),
            (Always, Sandbox::Alive, state(Some(exit(0, 1000))), 1, start(4)),
            (Always, Sandbox::Alive, state(Some(exit(1, 1000))), 3, Plan::wait(Some(NOW + 3000))),
            // The machine ended it.
            (Always, Sandbox::Alive, state(Some(exit(137, 0))), 0, start(4)),
            // The clock was set back an hour.
            (Always, Sandbox::Alive, state(Some(exit(1, -3_600_000))), 1, Plan::wait(Some(NOW + 1000))),
            (OnFailure, Sandbox::Alive, state(Some(exit(1, 1000))), 1, start(4)),
            (OnFailure, Sandbox::Alive, state(Some(exit(0, 1000))), 1, Plan::act(Action::End)),
            (Never, Sandbox::Alive, state(Some(exit(1, 1000))), 1, Plan::act(Action::End)),
            (Never, Sandbox::Ended, state(Some(exit(1, 1000))), 1, Plan::act(Action::Release)),
            (Never, Sandbox::Absent, state(Some(exit(1, 1000))), 1, idle),
            // The shim was killed: its remains go, then everything begins anew.
            (Always, Sandbox::Ended, state(Some(exit(137, 0))), 1, Plan::act(Action::Release)),
            (Always, Sandbox::Absent, state(Some(exit(137, 0))), 1, Plan::act(Action::Create)),
        ];
        for (restart, sandbox, containers, failures, want) in cases {
            let got = plan(restart, None, None, sandbox, &containers, failures);
            assert_eq!(got, want, "{restart:?} {sandbox:?} {containers:?} {failures}");
        }
    }

    #[test]
    fn a_pod_ends_in_order() {
        let (running, ended) = (state(None), state(Some(exit(0, 0))));
        let wait = |action: Option<Action>, at| Plan { actions: action.into_iter().collect(), wake: at };
        let cases = [
            (Some((30, true)), None, Sandbox::Alive, &running, wait(Some(Action::Terminate), Some(NOW + 30))),
            (Some((30, true)), Some(NOW - 10), Sandbox::Alive, &running, wait(None, Some(NOW + 20))),
            (Some((30, true)), Some(NOW - 30), Sandbox::Alive, &running, Plan::act(Action::End)),
            (Some((i64::MAX, true)), Some(NOW - 10), Sandbox::Alive, &running, wait(None, Some(i64::MAX))),
            // A second delete made the grace shorter.
            (Some((5, true)), Some(NOW - 10), Sandbox::Alive, &running, Plan::act(Action::End)),
            (Some((0, true)), None, Sandbox::Alive, &running, Plan::act(Action::End)),
            (Some((30, true)), None, Sandbox::Unconnected, &ended, Plan::act(Action::End)),
            (Some((30, true)), None, Sandbox::Ended, &ended, Plan::act(Action::Release)),
            (Some((30, true)), None, Sandbox::Absent, &ended, Plan::act(Action::DeleteObject)),
            (Some((30, false)), None, Sandbox::Absent, &ended, Plan::act(Action::Done)),
        ];
        for (stop, since, sandbox, containers, want) in cases {
            let got = plan(RestartPolicy::Always, stop, since, sandbox, containers, 1);
            assert_eq!(got, want, "{stop:?} {since:?} {sandbox:?}");
        }
    }

    #[test]
    fn the_wait_doubles_to_a_limit_and_begins_anew_after_a_good_run() {
        assert_eq!([0, 1, 2, 3, 9, 10, 99].map(backoff), [0, 1000, 2000, 4000, 256_000, 300_000, 300_000]);
        let container = &state(None)["c"];
        assert_eq!(count_failure(Some(4), container, &exit(1, 0)), 5);
        assert_eq!(count_failure(None, container, &exit(1, 0)), 4);
        assert_eq!(count_failure(Some(0), container, &exit(1, 0)), 1);
        let long = Exit { started_at: NOW - GOOD_RUN, finished_at: NOW, ..exit(1, 0) };
        assert_eq!(count_failure(Some(4), container, &long), 1);
    }

    #[test]
    fn after_a_failure_nothing_happens_too_soon() {
        let facts = Facts {
            names: &["c".to_owned()],
            restart: RestartPolicy::Always,
            over: false,
            stop: None,
            stop_since: None,
            sandbox: Sandbox::Absent,
            containers: &BTreeMap::new(),
            failures: &BTreeMap::new(),
            retry_at: Some(NOW + 5),
            now: NOW,
        };
        assert_eq!(decide(&facts), Plan::wait(Some(NOW + 5)));
        assert_eq!(decide(&Facts { now: NOW + 5, ..facts }), Plan::act(Action::Create));
    }
}
