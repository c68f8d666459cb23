//! When a container that ended is started again.

use crate::runtime::{ContainerState, Exit};

/// The first wait before a container that ended is started again. It doubles with each end; Kubernetes starts with 10 s, which
/// is long for a process on one's own machine.
pub const FIRST_BACKOFF: i64 = 1_000;
/// The longest wait, as in Kubernetes.
pub const LAST_BACKOFF: i64 = 300_000;
/// A container that ran this long had a good start: the wait begins anew, as in Kubernetes.
pub const GOOD_RUN: i64 = 600_000;

/// `spec.restartPolicy`: when an ended container is started again.
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
}

/// What a container is for in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Runs to its success before anything that follows it.
    Init,
    /// An init container with restartPolicy Always: what follows waits until it is started, and it runs as long as the pod.
    Sidecar,
    /// One of `spec.containers`: they are what the pod is for.
    Main,
}

impl Kind {
    /// Whether this end is followed by another start. `condemned` if the node ended it because it was not well: then it has
    /// failed, whatever its exit code says. [KEP-753; pkg/kubelet/kuberuntime, computePodActions]
    pub fn restarts(self, policy: RestartPolicy, exit: &Exit, condemned: bool) -> bool {
        let failed = exit.code != 0 || condemned;
        match (self, policy) {
            (Kind::Sidecar, _) | (Kind::Main, RestartPolicy::Always) => true,
            (_, RestartPolicy::Never) => false,
            (Kind::Init, _) => exit.code != 0,
            (Kind::Main, RestartPolicy::OnFailure) => failed,
        }
    }
}

/// How long an ended container waits for its next start: not at all when it was the machine that failed.
pub fn backoff(failures: u32) -> i64 {
    if failures == 0 {
        return 0;
    }
    FIRST_BACKOFF.saturating_mul(1 << (failures - 1).min(20)).min(LAST_BACKOFF)
}

/// When a container is started again. A clock that was set back does not make it wait longer.
pub fn due(exit: &Exit, failures: u32, now: i64) -> i64 {
    exit.finished_at.min(now) + backoff(failures)
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
