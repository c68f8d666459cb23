//! Which cluster runs: a lock that the kernel drops with its holder, and a file that says who holds it.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{args::UpArgs, paths::Paths};

/// What the keeper writes about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// The keeper.
    #[serde(flatten)]
    pub keeper: Process,
    /// The first process of the room.
    pub room: Option<Process>,
    /// Port of the API on 127.0.0.1.
    pub api_port: u16,
    /// How many nodes.
    pub nodes: u8,
    /// Where the data lies. What a version wrote that did not say so is read all the same: `down` must find the keeper.
    #[serde(default)]
    pub data: Option<PathBuf>,
}

/// A process, told apart from a later one that got the same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_time: u64,
}

impl Process {
    /// The process that has this id now.
    pub fn of(pid: i32) -> Option<Process> {
        Some(Process { pid, start_time: start_time(pid)? })
    }

    /// Whether it is still there.
    pub fn alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }
}

/// Takes the cluster's lock; `None` when somebody else has it.
pub fn try_lock(paths: &Paths) -> anyhow::Result<Option<Flock<File>>> {
    let path = paths.lock();
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, e)) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
    }
}

impl State {
    /// The state of this process, which keeps a cluster, and of its room's first process.
    pub fn of_this_process(args: &UpArgs, paths: &Paths, room_pid: Option<u32>) -> anyhow::Result<State> {
        let keeper = Process::of(nix::unistd::getpid().as_raw())
            .context("/proc/self/stat cannot be read: is /proc mounted?")?;
        let room = room_pid.and_then(|pid| Process::of(i32::try_from(pid).ok()?));
        Ok(State { keeper, room, api_port: args.api_port, nodes: args.nodes, data: Some(paths.data.clone()) })
    }

    /// Writes the state file.
    pub fn write(&self, paths: &Paths) -> anyhow::Result<()> {
        write_private(&paths.state(), &serde_json::to_vec_pretty(self)?)
    }

    /// Reads the state file; `None` when there is none or it is of no use.
    pub fn read(paths: &Paths) -> Option<State> {
        serde_json::from_slice(&std::fs::read(paths.state()).ok()?).ok()
    }

    /// Whether anything of this cluster is still there: the kernel takes a moment to end a room whose keeper was killed.
    pub fn alive(&self) -> bool {
        self.keeper.alive() || self.room.is_some_and(|r| r.alive())
    }
}

/// Writes a file that nobody else may read, also when it was there with other permissions.
pub fn write_private(path: &std::path::Path, bytes: &[u8]) -> anyhow::Result<()> {
    let temporary = path.with_extension("new");
    let write = || -> std::io::Result<()> {
        std::fs::remove_file(&temporary).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        })?;
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// When a process started (field 22 of its stat line), or `None` when there is no such process.
fn start_time(pid: i32) -> Option<u64> {
    let mut text = String::new();
    File::open(format!("/proc/{pid}/stat")).ok()?.read_to_string(&mut text).ok()?;
    // The command's name is in parentheses and may hold anything: count from the last one.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_alive_only_while_the_same_process_is() {
        let keeper = Process::of(nix::unistd::getpid().as_raw()).unwrap();
        let mut state = State { keeper, room: None, api_port: 1, nodes: 3, data: None };
        assert!(state.alive());
        state.keeper.start_time += 1;
        assert!(!state.alive());
        state.room = Process::of(state.keeper.pid);
        assert!(state.alive());
    }

    #[test]
    fn what_an_earlier_version_wrote_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { data: dir.path().into(), run: dir.path().into(), log: dir.path().into() };
        let text =
            r#"{"pid": 7, "startTime": 8, "room": {"pid": 9, "startTime": 10}, "apiPort": 7443, "nodes": 3}"#;
        std::fs::write(paths.state(), text).unwrap();
        assert_eq!(State::read(&paths).unwrap().keeper, Process { pid: 7, start_time: 8 });
    }

    #[test]
    fn the_lock_has_one_holder_and_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths { data: dir.path().into(), run: dir.path().into(), log: dir.path().into() };
        let held = try_lock(&paths).unwrap();
        assert!(held.is_some());
        assert!(try_lock(&paths).unwrap().is_none());
        drop(held);
        assert!(try_lock(&paths).unwrap().is_some());
    }
}
