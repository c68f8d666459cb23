//! The keeper: the one process of the cluster that stays in this machine's own namespaces. It holds the lock, starts the room
//! and the relay, and ends the room.

use std::{
    fs::{self, OpenOptions},
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{
    args::{Stage, UpArgs},
    paths::Paths,
    report::say,
    state::{State, try_lock},
};

const RELAY_BACKOFF: Duration = Duration::from_millis(500);
const STOP: Duration = Duration::from_secs(8);

/// What `up` writes to the keeper before it goes away and leaves the cluster running. Without this word its end, however it
/// comes, is the end of the cluster.
pub const LEAVE: &[u8] = b"leave\n";

/// Keeps the cluster until a signal asks for its end, `up` goes away without [`LEAVE`], or the room ends by itself.
pub fn run(args: &UpArgs, paths: &Paths) -> anyhow::Result<()> {
    // A session of its own: Ctrl-C in the terminal is for `up`, which then asks this process to end.
    nix::unistd::setsid().context("cannot start a session")?;
    let Some(_lock) = try_lock(paths)? else {
        let pid = State::read(paths).map(|s| format!(" (process {})", s.keeper.pid)).unwrap_or_default();
        bail!(
            "cluster \"{}\" runs already{pid}: end it with `minisvc down --name {}`, or choose another --name and --api-port",
            args.name,
            args.name
        );
    };
    await_former_room(paths)?;
    clean_run_dir(paths)?;
    // Before the room exists: a port that is taken is one clear line and leaves nothing behind.
    free_port(args.api_port)?;
    State::of_this_process(args, paths, None)?.write(paths)?;
    isolate()?;
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
    // The state file stays: whoever comes next sees by it when this process is really gone, and where the data lies.
    keep(args, paths, &signals)
}

/// A new process-id namespace for the children, below a new user namespace for those who are not root.
pub fn isolate() -> anyhow::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if uid.is_root() {
        return unshare(CloneFlags::CLONE_NEWPID).context("the kernel refuses a process-id namespace");
    }
    unshare(CloneFlags::CLONE_NEWUSER).context("the kernel refuses a user namespace")?;
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/self/{file}"), text)
            .with_context(|| format!("cannot write /proc/self/{file}"))
    };
    write("setgroups", "deny".to_owned())?;
    write("uid_map", format!("0 {uid} 1\n"))?;
    write("gid_map", format!("0 {gid} 1\n"))?;
    unshare(CloneFlags::CLONE_NEWPID).context("the kernel refuses a process-id namespace")
}

fn keep(args: &UpArgs, paths: &Paths, signals: &SignalFd) -> anyhow::Result<()> {
    let mut room = stage(args, paths, Stage::Room, &[])?;
    let mut room = room.stdin(Stdio::piped()).spawn().context("cannot start the room")?;
    State::of_this_process(args, paths, Some(room.id()))?.write(paths)?;
    let mut relay: Option<Child> = None;
    let mut relay_due = Some(Instant::now());
    let up = std::io::stdin();
    let mut left_alone = false;
    loop {
        if relay_due.is_some_and(|at| at <= Instant::now()) {
            if paths.resolv_conf().exists() {
                let pid = room.id().to_string();
                let mut command = stage(args, paths, Stage::Relay, &["--room-pid", &pid])?;
                relay = Some(command.stdin(Stdio::null()).spawn().context("cannot start the relay")?);
                relay_due = None;
            } else {
                relay_due = Some(Instant::now() + Duration::from_millis(2));
            }
        }
        let wait = relay_due.map_or(PollTimeout::NONE, |at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        let mut fds =
            [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(up.as_fd(), PollFlags::POLLIN)];
        let watched = if left_alone { 1 } else { 2 };
        match poll(&mut fds[..watched], wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut stop = false;
        if !left_alone && fds[1].revents().is_some_and(|r| !r.is_empty()) {
            // One write of a few bytes into a pipe comes whole.
            let mut word = [0; 16];
            let length = nix::unistd::read(up.as_fd(), &mut word)?;
            left_alone = &word[..length] == LEAVE;
            stop = !left_alone;
        }
        while let Some(signal) = signals.read_signal()? {
            stop |= signal.ssi_signo != Signal::SIGCHLD as u32;
        }
        if stop {
            return end(&mut room, signals);
        }
        while let Some(ended) = reap()? {
            if ended == room.id() {
                bail!("the room ended; logs are in {}", paths.log.display());
            }
            if relay.as_ref().is_some_and(|r| r.id() == ended) {
                relay = None;
                say("the relay ended; it starts again");
                relay_due = Some(Instant::now() + RELAY_BACKOFF);
            }
        }
    }
}

/// Closes the room's standard input, waits for it, and kills it when it takes too long.
fn end(room: &mut Child, signals: &SignalFd) -> anyhow::Result<()> {
    drop(room.stdin.take());
    let limit = Instant::now() + STOP;
    loop {
        while let Some(ended) = reap()? {
            if ended == room.id() {
                // The kernel has ended the rest of the room by now; what is left are zombies of ours, which go with us.
                return Ok(());
            }
        }
        let left = limit.saturating_duration_since(Instant::now());
        if left.is_zero() {
            room.kill().context("cannot end the room")?;
            return room.wait().map(drop).context("cannot wait for the end of the room");
        }
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
        while signals.read_signal()?.is_some() {}
    }
}

/// One child that ended, if any.
fn reap() -> anyhow::Result<Option<u32>> {
    loop {
        return match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => Ok(None),
            Ok(status) => Ok(status.pid().and_then(|p| u32::try_from(p.as_raw()).ok())),
            Err(Errno::EINTR) => continue,
            Err(e) => Err(e.into()),
        };
    }
}

/// The command of another process of this cluster.
pub fn stage(args: &UpArgs, paths: &Paths, stage: Stage, more: &[&str]) -> anyhow::Result<Command> {
    let name = match stage {
        Stage::Probe => "probe",
        Stage::Keeper => "keeper",
        Stage::Room => "room",
        Stage::Relay => "relay",
    };
    let mut command = Command::new(super::own_binary()?);
    command.args(["up", "--stage", name, "--name", &args.name, "--nodes", &args.nodes.to_string()]);
    command.args(["--api-port", &args.api_port.to_string()]).args(more);
    if args.ipv6 {
        command.arg("--ipv6");
    }
    if args.no_host_access {
        command.arg("--no-host-access");
    }
    for (flag, dir) in [("--data-dir", &paths.data), ("--run-dir", &paths.run), ("--log-dir", &paths.log)] {
        command.arg(flag).arg(dir);
    }
    if stage != Stage::Probe {
        let path = paths.log.join(format!("{name}.log"));
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        command.stderr(log.with_context(|| format!("cannot open {}", path.display()))?);
    }
    Ok(command)
}

/// The room of a keeper that was killed is ended by the kernel, which takes a moment: its sockets and files are in use until then.
fn await_former_room(paths: &Paths) -> anyhow::Result<()> {
    let end = Instant::now() + STOP;
    while State::read(paths).is_some_and(|s| s.alive()) {
        if Instant::now() > end {
            bail!("processes of an earlier run of this cluster do not end: end it with `minisvc down` first");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A new room is like a machine after its boot: nothing of the run directory is true any more.
fn clean_run_dir(paths: &Paths) -> anyhow::Result<()> {
    for entry in fs::read_dir(&paths.run).with_context(|| paths.run.display().to_string())? {
        let path = entry?.path();
        if path == paths.lock() {
            continue;
        }
        remove(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.symlink_metadata()?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

fn free_port(port: u16) -> anyhow::Result<()> {
    match std::net::TcpListener::bind(("127.0.0.1", port)) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
            bail!(
                "the API's port {port} on 127.0.0.1 is taken by another program: choose another with --api-port"
            )
        }
        Err(e) => {
            bail!("the API's port {port} on 127.0.0.1 cannot be had ({e}): choose another with --api-port")
        }
    }
}
