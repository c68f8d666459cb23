//! What a pod is to the runtime, as values.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    cgroup::{Cgroup, Resources},
    volume::{Mount, Volume},
};

/// Everything that is fixed when a pod is made. Kept in the pod's directory as `pod.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodSetup {
    /// `metadata.uid`; the name of the pod's directory.
    pub uid: String,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// At most 63 bytes.
    pub hostname: String,
    /// The pod's address: an agent that comes back gives it to nobody else.
    pub ip: Ipv4Addr,
    /// Contents of /etc/hosts.
    pub hosts: String,
    /// Contents of /etc/resolv.conf.
    pub resolv_conf: String,
    /// Where `CONTAINER/ATTEMPT.log` go.
    pub log_dir: PathBuf,
    /// A log longer than this, in bytes, is renamed to `ATTEMPT.log.1` and begun anew.
    pub log_limit: u64,
    /// Directories that stay visible when /tmp becomes private, if they lie below it.
    pub keep: Vec<PathBuf>,
    /// Show `minisvc` at [`SHARED_BIN`] too: the agent's directories are closed to the users that a container may run as.
    #[serde(default)]
    pub shared_bin: bool,
    /// What its containers may mount.
    #[serde(default)]
    pub volumes: Vec<Volume>,
    /// Holds the volumes by name, and goes with the pod.
    #[serde(default)]
    pub volume_dir: PathBuf,
    /// Holds the cgroups of the containers; the runtime sets it, where it can have any.
    #[serde(default)]
    pub cgroup: Option<Cgroup>,
    /// Seconds between SIGTERM and SIGKILL when the pod's object is no longer there to say so.
    pub grace_seconds: u32,
}

/// Where any user of a pod finds `minisvc`: in the pod's own /tmp, since only there a place for it can be made.
pub const SHARED_BIN: &str = "/tmp/.minisvc";

/// How to start a container once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The container's name.
    pub name: String,
    /// Counts the starts, from 0; names the log.
    pub attempt: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The working directory.
    pub cwd: PathBuf,
    /// Who runs it; the one that started the agent when absent.
    pub user: Option<User>,
    /// Which volumes it sees, and where.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// The file by which it may say why it ended.
    #[serde(default)]
    pub termination_path: Option<PathBuf>,
    /// If it says nothing there and fails, the end of its log says it.
    #[serde(default)]
    pub termination_from_log: bool,
    /// What it asks for and may have.
    #[serde(default)]
    pub resources: Resources,
}

/// Who runs a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id, the only group.
    pub gid: u32,
}

/// What the containers of a pod do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodState {
    /// The pod's namespaces are there.
    pub alive: bool,
    /// By name; a container that was never started is absent.
    pub containers: BTreeMap<String, ContainerState>,
}

/// The newest start of a container, and the end of the one before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerState {
    /// Which start, from 0.
    pub attempt: u32,
    /// When, in milliseconds since 1970.
    pub started_at: i64,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
    /// How the start before ended.
    pub previous: Option<Exit>,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code; 128 + the signal for a killed process, as shells and Kubernetes count.
    pub code: i32,
    /// The signal that killed it.
    pub signal: Option<i32>,
    /// Why it never ran, when it could not be started.
    pub not_started: Option<String>,
    /// What it says about it.
    #[serde(default)]
    pub message: Option<String>,
    /// The kernel killed it, or a process of its, for want of memory within its limit.
    #[serde(default)]
    pub oom_killed: bool,
    /// Start, in milliseconds since 1970.
    pub started_at: i64,
    /// End, in milliseconds since 1970.
    pub finished_at: i64,
}

impl Exit {
    /// Of a process that was killed with everything around it, so that nobody saw its end. Times in milliseconds since 1970.
    pub fn killed(started_at: i64, finished_at: i64) -> Self {
        Exit {
            code: 137,
            signal: Some(9),
            not_started: None,
            message: None,
            oom_killed: false,
            started_at,
            finished_at,
        }
    }
}

impl ContainerState {
    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        self.exit.is_none()
    }
}

impl PodState {
    /// Whether any container runs.
    pub fn any_running(&self) -> bool {
        self.containers.values().any(ContainerState::is_running)
    }

    /// The state after the shim died: nothing can run any more, and what ran was killed.
    pub fn buried(mut self, now: i64) -> Self {
        self.alive = false;
        for container in self.containers.values_mut() {
            let started_at = container.started_at;
            container.exit.get_or_insert(Exit::killed(started_at, now));
        }
        self
    }
}

/// Milliseconds since 1970.
pub fn now_millis() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}
