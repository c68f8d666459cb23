//! Programs that exec starts: in a pod, or on the node itself.

use std::{
    ffi::CString,
    io,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            process::{CommandExt, ExitStatusExt},
        },
    },
    path::Path,
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::process::Child;

use crate::{
    runtime::{
        ExecSession, bin_dir,
        name_service::{NAME_SERVICES, RESOLV_CONF, target},
    },
    sys::process::{contain, lay_over},
};

/// A program that runs. Dropping it kills it.
#[derive(Debug)]
pub enum Program {
    /// The pod's shim looks after it.
    InPod(ExecSession),
    /// A child of the agent.
    OnNode(NodeProgram),
}

/// A child of the agent, and the leader of its own session.
#[derive(Debug)]
pub struct NodeProgram {
    child: Child,
    group: Option<Pid>,
}

impl Program {
    /// Waits for the end; the exit code is 128 + the signal for one that was killed, and absent when the pod ended under it.
    pub async fn ended(&mut self) -> Option<i32> {
        match self {
            Program::InPod(session) => (&mut session.exit).await.ok().map(|exit| exit.code),
            Program::OnNode(program) => {
                let status = program.child.wait().await.ok()?;
                status.code().or_else(|| status.signal().map(|s| 128 + s))
            }
        }
    }
}

impl Drop for NodeProgram {
    /// Kills the program and what it started, as far as it is in the program's process group.
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // Fails when nobody is left.
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// Starts a program in the node's own network, with an environment as clean as a pod's. Names are found by `resolv_conf`.
pub fn on_node(
    argv: &[String],
    tty: bool,
    run_dir: &Path,
    resolv_conf: Option<&Path>,
    stdio: [OwnedFd; 3],
) -> Result<Program, String> {
    let (name, arguments) = argv.split_first().ok_or("command: required")?;
    let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    let [stdin, stdout, stderr] = stdio.map(Stdio::from);
    let mut command = Command::new(name);
    command.arg0(name).args(arguments).env_clear().current_dir("/");
    command.env("PATH", format!("{}:{path}", bin_dir(run_dir).display())).env("HOME", "/");
    if tty {
        command.env("TERM", "xterm");
    }
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    if let Some(file) = resolv_conf {
        find_names_by(&mut command, file);
    }
    contain(&mut command, tty);
    let child = tokio::process::Command::from(command).spawn().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound if name.contains('/') => {
            format!("exec: \"{name}\": no such file or directory")
        }
        io::ErrorKind::NotFound => format!("exec: \"{name}\": not found in PATH"),
        _ => format!("exec: \"{name}\": {e}"),
    })?;
    let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    Ok(Program::OnNode(NodeProgram { child, group }))
}

/// As in a pod, with what the machine has for this out of the way; on a machine without a resolv.conf nothing changes.
fn find_names_by(command: &mut Command, resolv_conf: &Path) {
    let place = target(Path::new(RESOLV_CONF));
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).ok();
    let covered = NAME_SERVICES.iter().map(Path::new).filter(|d| d.is_dir()).filter_map(text).collect();
    if let (true, Some(from), Some(to)) = (place.exists(), text(resolv_conf), text(&place)) {
        lay_over(command, from, to, covered);
    }
}
