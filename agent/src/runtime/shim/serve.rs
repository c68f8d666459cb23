//! The shim's loop: signals, the agent's requests, the containers' output.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    process::Stdio,
};

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

use super::{
    super::{
        cgroup::Resources,
        model::{ContainerSpec, ContainerState, Exit, PodSetup, PodState, now_millis},
        wire::{self, Answer, Request},
    },
    ShimError,
    log::Output,
    process, system, termination,
    volumes::View,
};
use crate::sys::packet;

const SIGNALS: [Signal; 5] =
    [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];
/// The code of a program that could not be started, as container runtimes have it.
const NOT_STARTED: i32 = 128;

/// The pod as its first process sees it.
#[derive(Debug)]
pub struct Pod {
    dir: PathBuf,
    setup: PodSetup,
    signals: SignalFd,
    listener: OwnedFd,
    clients: Vec<Client>,
    state: PodState,
    /// Main processes of running containers.
    main: BTreeMap<i32, String>,
    /// Kills for want of memory before the newest start, by container.
    oom_kills: BTreeMap<String, u64>,
    /// What containers with volumes see.
    views: BTreeMap<String, View>,
    outputs: Vec<Output>,
    end: bool,
}

#[derive(Debug)]
struct Client {
    socket: OwnedFd,
    watches: bool,
    /// The program that lives as long as this connection, and when it was started.
    exec: Option<(Pid, i64)>,
    closed: bool,
}

impl Client {
    /// One who does not read is let go: it comes back and gets the whole state.
    fn send(&mut self, answer: &Answer, files: &[OwnedFd]) {
        let sent = serde_json::to_vec(answer).map(|bytes| packet::send(&self.socket, &bytes, files));
        self.closed |= !matches!(sent, Ok(Ok(())));
    }
}

impl Pod {
    /// Opens what the loop needs; the socket last, since it says that the pod is there.
    pub fn start(dir: &Path, setup: PodSetup) -> Result<Self, ShimError> {
        let mut mask = SigSet::empty();
        mask.extend(SIGNALS);
        mask.thread_block().map_err(system("blocking signals"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
            .map_err(system("signalfd"))?;
        // Nothing of the directory that the agent stood in stays busy.
        nix::unistd::chdir("/").map_err(system("chdir /"))?;
        let mut pod = Pod {
            dir: dir.to_path_buf(),
            setup,
            signals,
            listener: packet::listen_at(dir, wire::SOCKET)
                .map_err(system("listening on the pod's socket"))?,
            clients: Vec::new(),
            state: PodState { alive: true, ..PodState::default() },
            main: BTreeMap::new(),
            oom_kills: BTreeMap::new(),
            views: BTreeMap::new(),
            outputs: Vec::new(),
            end: false,
        };
        pod.persist();
        Ok(pod)
    }

    /// Serves until it is told to end.
    pub fn run(mut self) -> Result<(), ShimError> {
        while !self.end {
            self.turn()?;
        }
        process::kill_all();
        while !matches!(waitpid(Pid::from_raw(-1), None), Err(Errno::ECHILD)) {}
        for output in &mut self.outputs {
            output.drain(true);
        }
        self.state = std::mem::take(&mut self.state).buried(now_millis());
        self.persist();
        let _ = fs::remove_file(self.dir.join(wire::SOCKET));
        Ok(())
    }

    fn turn(&mut self) -> Result<(), ShimError> {
        let (signalled, asked, spoken, written) = {
            let signals = self.signals.as_fd();
            let clients = self.clients.iter().map(|c| c.socket.as_fd());
            let pipes = self.outputs.iter().flat_map(Output::open_pipes);
            let mut fds: Vec<_> = [signals, self.listener.as_fd()]
                .into_iter()
                .chain(clients)
                .chain(pipes)
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(why) => return Err(ShimError::System { what: "poll", why }),
            }
            let ready: Vec<bool> = fds.iter().map(|f| f.revents().is_some_and(|r| !r.is_empty())).collect();
            let (clients, pipes) = ready[2..].split_at(self.clients.len());
            (ready[0], ready[1], clients.to_vec(), pipes.contains(&true))
        };
        if written {
            for output in &mut self.outputs {
                output.drain(false);
            }
        }
        if signalled {
            self.signalled();
        }
        for (i, _) in spoken.iter().enumerate().filter(|(_, s)| **s) {
            self.listen_to(i);
        }
        self.clients.retain(|c| {
            if let (true, Some((pid, _))) = (c.closed, c.exec) {
                process::kill_session(pid);
            }
            !c.closed
        });
        self.outputs.retain(|o| o.open_pipes().next().is_some());
        if asked {
            while let Ok(socket) = packet::accept(&self.listener) {
                self.clients.push(Client { socket, watches: false, exec: None, closed: false });
            }
        }
        Ok(())
    }

    fn signalled(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = info.ssi_signo.cast_signed();
            if number != Signal::SIGCHLD as i32 {
                self.main.keys().for_each(|pid| forward(*pid, number));
            }
        }
        let mut changed = false;
        loop {
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => changed |= self.ended(pid, code, None),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    let number = signal as i32;
                    changed |= self.ended(pid, NOT_STARTED + number, Some(number));
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) | Err(_) => {}
            }
        }
        if changed {
            self.changed();
        }
    }

    /// Takes note of an ended child; true if it was a container's main process.
    fn ended(&mut self, pid: Pid, code: i32, signal: Option<i32>) -> bool {
        let finished_at = now_millis();
        let exit = |started_at, oom_killed, message| Exit {
            code,
            signal,
            not_started: None,
            message,
            oom_killed,
            started_at,
            finished_at,
        };
        if let Some(client) = self.clients.iter_mut().find(|c| c.exec.is_some_and(|(p, _)| p == pid)) {
            let started_at = client.exec.take().map_or(finished_at, |(_, at)| at);
            client.send(&Answer::Exited(exit(started_at, false, None)), &[]);
            return false;
        }
        let Some(name) = self.main.remove(&pid.as_raw()) else { return false };
        // What the container wrote is in the log before anybody hears of its end.
        for output in &mut self.outputs {
            output.drain(true);
        }
        // Its other processes end with it, as they would in a container of their own.
        if self.main.is_empty() {
            process::kill_all();
        } else {
            process::kill_session(pid);
        }
        let oom_killed = code != 0 && self.count_oom_kills(&name) > *self.oom_kills.get(&name).unwrap_or(&0);
        let message = self.last_message(&name, code);
        if let Some(container) = self.state.containers.get_mut(&name) {
            container.exit = Some(exit(container.started_at, oom_killed, message));
        }
        true
    }

    fn listen_to(&mut self, i: usize) {
        match packet::receive(&self.clients[i].socket) {
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(Some((bytes, files))) => match serde_json::from_slice(&bytes) {
                Ok(request) => self.request(i, request, files),
                Err(e) => self.clients[i].send(&Answer::Refused(format!("not a request: {e}")), &[]),
            },
            Ok(None) | Err(_) => self.clients[i].closed = true,
        }
    }

    fn request(&mut self, i: usize, request: Request, files: Vec<OwnedFd>) {
        let answer = match request {
            Request::Watch => {
                self.clients[i].watches = true;
                Ok(Answer::State(self.state.clone()))
            }
            Request::Netns => {
                let opened = fs::File::open("/proc/self/ns/net").map_err(|e| e.to_string());
                return match opened {
                    Ok(file) => self.clients[i].send(&Answer::Done, &[file.into()]),
                    Err(e) => self.clients[i].send(&Answer::Refused(e), &[]),
                };
            }
            Request::Start { container } => self.start_container(&container).map(|()| Answer::Done),
            Request::Signal { container, signal } => {
                self.main.iter().filter(|(_, n)| **n == container).for_each(|(p, _)| forward(*p, signal));
                Ok(Answer::Done)
            }
            Request::Exec { container, argv, tty } => self.exec(i, &container, &argv, tty, files),
            Request::End => {
                self.end = true;
                Ok(Answer::Done)
            }
        };
        self.clients[i].send(&answer.unwrap_or_else(Answer::Refused), &[]);
    }

    fn start_container(&mut self, name: &str) -> Result<(), String> {
        if self.main.values().any(|n| n == name) {
            return Err(format!("container {name} runs already"));
        }
        let spec = self.spec(name)?;
        let started_at = now_millis();
        let mut state = ContainerState {
            attempt: spec.attempt,
            started_at,
            exit: None,
            previous: self.state.containers.remove(name).and_then(|c| c.exit),
        };
        match self.spawn(&spec) {
            Ok(pid) => drop(self.main.insert(pid.as_raw(), name.to_owned())),
            Err(why) => {
                state.exit = Some(Exit {
                    code: NOT_STARTED,
                    signal: None,
                    not_started: Some(why),
                    message: None,
                    oom_killed: false,
                    started_at,
                    finished_at: started_at,
                });
            }
        }
        self.state.containers.insert(name.to_owned(), state);
        self.changed();
        Ok(())
    }

    fn spawn(&mut self, spec: &ContainerSpec) -> Result<Pid, String> {
        let log = self.log(spec);
        let pipe = || std::io::pipe().map_err(|e| format!("pipe: {e}"));
        let ((out, stdout), (err, stderr)) = (pipe()?, pipe()?);
        let output = Output::new(&log, self.setup.log_limit, out, err)
            .map_err(|e| format!("cannot write the log {}: {e}", log.display()))?;
        let cgroup = self.cgroup(spec)?;
        self.oom_kills.insert(spec.name.clone(), self.count_oom_kills(&spec.name));
        let stdio = [Stdio::null(), stdout.into(), stderr.into()];
        self.views.remove(&spec.name);
        let file = self.dir.join(wire::termination_file(&spec.name));
        let termination = spec.termination_path.as_deref().map(|place| (file.as_path(), place));
        if termination.is_some() {
            termination::begin(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        }
        if !spec.mounts.is_empty() || termination.is_some() {
            let view = View::make(&self.setup.volume_dir, &spec.mounts, termination)?;
            self.views.insert(spec.name.clone(), view);
        }
        let pid = self.seen_by(&spec.name, || process::spawn(&spec.argv, spec, stdio, false, cgroup))?;
        self.outputs.push(output);
        Ok(pid)
    }

    /// What a container that has ended says about it.
    fn last_message(&self, name: &str, code: i32) -> Option<String> {
        let spec = self.spec(name).ok()?;
        let written = spec.termination_path.is_some();
        let said = written.then(|| termination::said(&self.dir.join(wire::termination_file(name)))).flatten();
        let from_log = spec.termination_from_log && code != 0;
        let text = said.or_else(|| from_log.then(|| termination::logged(&self.log(&spec))).flatten())?;
        // A state is one packet, and the status one object: what is told already leaves the others less.
        let told = self.state.containers.values().flat_map(|c| [&c.exit, &c.previous]).flatten();
        let told: usize = told.filter_map(|e| e.message.as_ref()).map(String::len).sum();
        termination::end_of(&text, termination::POD_BYTES.saturating_sub(told))
    }

    fn log(&self, spec: &ContainerSpec) -> PathBuf {
        self.setup.log_dir.join(&spec.name).join(format!("{}.log", spec.attempt))
    }

    /// Does something with the files as a container sees them.
    fn seen_by<T>(&self, container: &str, act: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
        match self.views.get(container) {
            Some(view) => view.run(act),
            None => act(),
        }
    }

    /// What a process of the container writes to in order to be held to its limits. A container without any stays with the agent.
    fn cgroup(&self, spec: &ContainerSpec) -> Result<Vec<fs::File>, String> {
        match &self.setup.cgroup {
            Some(cgroup) if spec.resources != Resources::default() => {
                cgroup.open(&spec.name, &spec.resources)
            }
            _ => Ok(Vec::new()),
        }
    }

    fn count_oom_kills(&self, container: &str) -> u64 {
        self.setup.cgroup.as_ref().map_or(0, |c| c.oom_kills(container))
    }

    fn exec(
        &mut self,
        i: usize,
        container: &str,
        argv: &[String],
        tty: bool,
        files: Vec<OwnedFd>,
    ) -> Result<Answer, String> {
        if !self.main.values().any(|n| n == container) {
            return Err(format!("container {container} does not run"));
        }
        let stdio: [OwnedFd; 3] = files.try_into().map_err(|_| "exec needs three files".to_owned())?;
        let spec = self.spec(container)?;
        let cgroup = self.cgroup(&spec)?;
        let stdio = stdio.map(Stdio::from);
        let pid = self.seen_by(container, || process::spawn(argv, &spec, stdio, tty, cgroup))?;
        self.clients[i].exec = Some((pid, now_millis()));
        Ok(Answer::Done)
    }

    fn spec(&self, container: &str) -> Result<ContainerSpec, String> {
        let path = self.dir.join(wire::container_file(container));
        let bad = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let bytes = fs::read(&path).map_err(|e| bad(&e))?;
        serde_json::from_slice(&bytes).map_err(|e| bad(&e))
    }

    /// Keeps the state, then tells it.
    fn changed(&mut self) {
        self.persist();
        let answer = Answer::State(self.state.clone());
        for client in self.clients.iter_mut().filter(|c| c.watches) {
            client.send(&answer, &[]);
        }
    }

    /// A state that cannot be kept is still told; it is lost only if the shim dies too.
    fn persist(&mut self) {
        let (path, new) = (self.dir.join(wire::STATE), self.dir.join("state.new"));
        if let Ok(bytes) = serde_json::to_vec(&self.state)
            && fs::write(&new, bytes).is_ok()
        {
            let _ = fs::rename(new, path);
        }
    }
}

/// A process that is gone needs no signal.
fn forward(pid: i32, signal: i32) {
    if let Ok(signal) = Signal::try_from(signal) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}
