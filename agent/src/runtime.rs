//! Pods as local processes with namespaces of their own.
//!
//! One small process per pod, the shim, is PID 1 of the pod's PID namespace. It starts the containers, reaps, writes the logs
//! and keeps the exit codes, so that the agent can go and come back. The agent speaks to it over a socket in the pod's
//! directory, `RUN/pods/UID`.

mod cgroup;
pub mod contract;
pub mod fake;
mod local;
mod model;
pub mod name_service;
pub mod shim;
mod volume;
mod wire;

use std::{
    future::Future,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use tokio::sync::{oneshot, watch};

pub use self::{
    cgroup::{Cgroup, Resources},
    local::{LocalRuntime, RuntimeConfig},
    model::{ContainerSpec, ContainerState, Exit, PodSetup, PodState, SHARED_BIN, User, now_millis},
    volume::{HostPathType, Mount, Volume, VolumeSource},
};

/// Holds a link to `minisvc`: it comes first on the PATH of every pod.
pub fn bin_dir(run_dir: &Path) -> PathBuf {
    run_dir.join("bin")
}

/// Runs pods. A pod is known by its uid from [`PodRuntime::create`] to [`PodRuntime::remove`].
pub trait PodRuntime: Send + Sync + 'static {
    /// Makes the pod's namespaces and files; nothing runs in it yet. A pod that is there already is left as it is.
    fn create(&self, setup: &PodSetup) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Whether limits of containers are enforced; the error is the reason, for the user.
    fn limits(&self) -> Result<(), String>;

    /// What the pod's containers do, always the newest.
    fn watch(&self, uid: &str) -> Result<watch::Receiver<PodState>, RuntimeError>;

    /// The pod's network namespace.
    fn netns(&self, uid: &str) -> impl Future<Output = Result<OwnedFd, RuntimeError>> + Send;

    /// Starts a container. Whether that went well stands in the pod's state when this returns, also when the program is
    /// missing.
    fn start(&self, uid: &str, spec: &ContainerSpec)
    -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Sends a signal to a container's main process; one that has ended is no error.
    fn signal(
        &self,
        uid: &str,
        container: &str,
        signal: i32,
    ) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Kills every process of the pod and ends its namespaces. Returns when all of them are gone.
    fn end(&self, uid: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Forgets a pod that has ended, with its directory. Its logs stay.
    fn remove(&self, uid: &str) -> impl Future<Output = Result<(), RuntimeError>> + Send;

    /// Starts another program in a running container.
    fn exec(
        &self,
        uid: &str,
        exec: ExecSpec,
        stdio: [OwnedFd; 3],
    ) -> impl Future<Output = Result<ExecSession, RuntimeError>> + Send;

    /// The pods that an earlier life of the agent left behind, running or ended; they can be watched from now on.
    fn adopt(&self) -> impl Future<Output = Vec<PodSetup>> + Send;
}

/// What to run beside a container's main process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecSpec {
    /// In which container.
    pub container: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Standard input is a terminal, and becomes the controlling one.
    pub tty: bool,
}

/// A program started by exec. Dropping it kills the program.
#[derive(Debug)]
pub struct ExecSession {
    /// How it ended; an error when the pod ended under it.
    pub exit: oneshot::Receiver<Exit>,
    /// Closed with the session: the shim then kills what still runs.
    _hold: oneshot::Sender<()>,
}

/// Why a pod could not be run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// There is no such pod, or it has ended.
    #[error("pod {0} does not run on this node")]
    NoPod(String),
    /// The pod's namespaces or files could not be made.
    #[error("cannot make the namespaces of pod {pod}: {why}")]
    Setup {
        /// The pod's name.
        pod: String,
        /// What failed.
        why: String,
    },
    /// A file of the pod could not be read or written.
    #[error("{path}: {why}")]
    File {
        /// Which file.
        path: String,
        /// What the system said.
        why: String,
    },
    /// The shim refused.
    #[error("{0}")]
    Refused(String),
    /// The shim could not be spoken to.
    #[error("cannot reach the shim of pod {uid}: {why}")]
    Shim {
        /// The pod's uid.
        uid: String,
        /// What the system said.
        why: String,
    },
}
