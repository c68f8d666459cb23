//! The room's processes: what is started, started again with back-off, and reaped.

use std::{
    fs::{self, OpenOptions},
    io,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal, kill},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::lan::Machine;

const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// A process that ran this long had a good start: the next back-off begins anew.
const GOOD_RUN: Duration = Duration::from_secs(20);

/// A process that is kept running on a machine.
pub struct Service<'m> {
    /// For messages.
    pub name: String,
    /// Where it runs.
    pub machine: &'m Machine,
    /// What runs.
    pub args: Vec<String>,
    /// Where its output goes.
    pub log: PathBuf,
    pid: Option<Pid>,
    started: Instant,
    backoff: Duration,
    due: Option<Instant>,
}

impl<'m> Service<'m> {
    /// A service that has not been started.
    pub fn new(machine: &'m Machine, args: Vec<String>, log: PathBuf) -> Self {
        Service {
            name: machine.name.clone(),
            machine,
            args,
            log,
            pid: None,
            started: Instant::now(),
            backoff: FIRST_BACKOFF,
            due: Some(Instant::now()),
        }
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.log);
        let log = log.with_context(|| format!("cannot open {}", self.log.display()))?;
        let mut command = Command::new(super::own_binary()?);
        // What is set for a server or an agent of this machine is not meant for those of the room.
        command.args(&self.args).args(["--settings", "/dev/null"]);
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"MINISVC_") || name == "NOTIFY_SOCKET" {
                command.env_remove(name);
            }
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = self.machine.enter(|| {
            // A child inherits the mask of the thread that starts it.
            SigSet::empty().thread_set_mask()?;
            command.spawn()
        })?;
        let child = child.with_context(|| format!("cannot start {}", self.name))?;
        self.pid = Some(Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX)));
        self.started = Instant::now();
        self.due = None;
        Ok(())
    }

    fn ended(&mut self, how: &str) {
        self.pid = None;
        if self.started.elapsed() > GOOD_RUN {
            self.backoff = FIRST_BACKOFF;
        }
        super::report::say(&format!(
            "{} ended ({how}), and starts again in {:?}: {}",
            self.name,
            self.backoff,
            last_line(&self.log)
        ));
        self.due = Some(Instant::now() + self.backoff);
        self.backoff = (self.backoff * 2).min(LAST_BACKOFF);
    }
}

/// Why [`Supervisor::turn`] came back.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something changed, or the time was over.
    Again,
    /// The other end of the given file was closed.
    Closed,
}

/// Starts, restarts and reaps. Works in the room's first process, which inherits every orphan.
pub struct Supervisor<'m> {
    services: Vec<Service<'m>>,
    signals: SignalFd,
}

impl<'m> Supervisor<'m> {
    /// Blocks SIGCHLD and reads it from a file instead.
    pub fn new() -> anyhow::Result<Self> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Supervisor { services: Vec::new(), signals })
    }

    /// Starts a service and keeps it running.
    pub fn add(&mut self, mut service: Service<'m>) -> anyhow::Result<()> {
        service.start()?;
        self.services.push(service);
        Ok(())
    }

    /// Waits for one of: an ended child, a due restart, the close of `until`, the end of `at_most`.
    pub fn turn(&mut self, until: impl AsFd, at_most: Option<Duration>) -> anyhow::Result<Turn> {
        let now = Instant::now();
        let due =
            self.services.iter().filter_map(|s| s.due).min().map(|at| at.saturating_duration_since(now));
        let wait = match (due, at_most) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        // Rounded up, so that a due restart is really due after it.
        let wait = wait.map_or(PollTimeout::NONE, |d| {
            PollTimeout::try_from(d + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        });
        let mut fds = [
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(until.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        if fds[1].revents().is_some_and(|r| !r.is_empty()) {
            return Ok(Turn::Closed);
        }
        self.reap()?;
        for service in &mut self.services {
            if service.due.is_some_and(|at| at <= Instant::now()) {
                service.start()?;
            }
        }
        Ok(Turn::Again)
    }

    /// Whether a service has ended and not started again.
    pub fn has_ended(&self, name: &str) -> bool {
        self.services.iter().any(|s| s.name == name && s.pid.is_none())
    }

    /// Takes the exit codes of everything that ended, orphans included.
    fn reap(&mut self) -> anyhow::Result<()> {
        while self.signals.read_signal()?.is_some() {}
        loop {
            let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(e) => return Err(io::Error::from(e).into()),
            };
            let how = match status {
                WaitStatus::Exited(_, code) => format!("exit code {code}"),
                WaitStatus::Signaled(_, signal, _) => format!("{signal}"),
                _ => continue,
            };
            if let Some(service) = self.services.iter_mut().find(|s| s.pid == status.pid()) {
                service.ended(&how);
            }
        }
    }

    /// Asks every service to end, and waits for them, but not longer than `limit`.
    pub fn stop(&mut self, limit: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + limit;
        for pid in self.services.iter().filter_map(|s| s.pid) {
            // One that is gone already needs no signal.
            let _ = kill(pid, Signal::SIGTERM);
        }
        // Nothing is started any more from here on.
        while self.services.iter().any(|s| s.pid.is_some()) && Instant::now() < end {
            let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let left = end.saturating_duration_since(Instant::now());
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
            while self.signals.read_signal()?.is_some() {}
            while let Ok(status) = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                if status == WaitStatus::StillAlive {
                    break;
                }
                if let Some(service) = self.services.iter_mut().find(|s| s.pid == status.pid()) {
                    service.pid = None;
                }
            }
        }
        Ok(())
    }
}

/// The last error in a log, or its last line, for a message about what went wrong.
pub fn last_line(log: &std::path::Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let error = text.lines().rfind(|l| l.starts_with("error"));
    let line = error.or_else(|| text.lines().rfind(|l| !l.trim().is_empty())).unwrap_or("it wrote no log");
    format!("{} (log: {})", line.trim_start_matches("error: "), log.display())
}
