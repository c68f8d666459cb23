//! The real runtime: a shim process for every pod.

mod link;

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{Semaphore, oneshot, watch};

use self::link::{First, Link};
use super::{
    Cgroup, ExecSession, ExecSpec, PodRuntime, RuntimeError,
    model::{ContainerSpec, PodSetup, PodState, now_millis},
    wire::{self, Answer, Request},
};

/// How many shims are started at a time: more do not go faster, and take the processor from everything else.
const STARTS: usize = 8;
/// A shim ends within milliseconds; one that hangs is killed, and the kernel ends the pod with it.
const END: Duration = Duration::from_secs(5);

/// What the runtime is told.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// Pods live in `run_dir/pods/UID`.
    pub run_dir: PathBuf,
    /// The program that has the hidden command `shim`: this one, unless a test says otherwise.
    pub binary: PathBuf,
}

impl RuntimeConfig {
    /// With this very program as shim, also when its file has been replaced since.
    pub fn new(run_dir: &Path) -> Self {
        RuntimeConfig { run_dir: run_dir.to_path_buf(), binary: "/proc/self/exe".into() }
    }
}

/// Runs pods on this machine.
#[derive(Debug)]
pub struct LocalRuntime {
    config: RuntimeConfig,
    pods: Mutex<HashMap<String, watch::Receiver<PodState>>>,
    starts: Semaphore,
    /// Holds the pods' cgroups, or why there are none.
    cgroups: Result<Cgroup, String>,
}

impl LocalRuntime {
    /// Makes the directory of the pods.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let pods = config.run_dir.join("pods");
        make_dir(&pods).map_err(|e| file(&pods, &e))?;
        let bin = super::bin_dir(&config.run_dir);
        make_dir(&bin).and_then(|()| link_binary(&config.binary, &bin)).map_err(|e| file(&bin, &e))?;
        let cgroups = Cgroup::detect();
        if let Err(why) = &cgroups {
            tracing::warn!(%why, "limits of containers are not enforced on this node");
        }
        Ok(LocalRuntime { config, pods: Mutex::default(), starts: Semaphore::new(STARTS), cgroups })
    }

    fn dir(&self, uid: &str) -> PathBuf {
        self.config.run_dir.join("pods").join(uid)
    }

    fn known(&self, uid: &str) -> Option<watch::Receiver<PodState>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// Connects to the shim and follows it.
    async fn follow(&self, uid: &str) -> Result<(), RuntimeError> {
        let dir = self.dir(uid);
        let (sender, receiver) = watch::channel(PodState::default());
        let link = Link::connect(&dir).await.map_err(|e| shim(uid, &e))?;
        let (link, state) = subscribe(link).await.map_err(|e| shim(uid, &e))?;
        sender.send_replace(state);
        tokio::spawn(track(dir, link, sender));
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), receiver);
        Ok(())
    }

    async fn ask(&self, uid: &str, request: &Request) -> Result<Vec<OwnedFd>, RuntimeError> {
        let ask = async {
            let mut link = Link::connect(&self.dir(uid)).await?;
            link.send(request, &[]).await?;
            link.receive().await
        };
        match ask.await {
            Ok(Some((Answer::Refused(why), _))) => Err(RuntimeError::Refused(why)),
            Ok(Some((_, files))) => Ok(files),
            Ok(None) => Err(RuntimeError::NoPod(uid.to_owned())),
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                Err(RuntimeError::NoPod(uid.to_owned()))
            }
            Err(e) => Err(shim(uid, &e)),
        }
    }

    /// Starts the shim and waits until it listens.
    async fn start_shim(&self, setup: &PodSetup, dir: &Path) -> Result<(), RuntimeError> {
        let failed = |why: String| RuntimeError::Setup { pod: setup.name.clone(), why };
        let log_path = dir.join(wire::LOG);
        let log = OpenOptions::new().create(true).append(true).mode(0o600).open(&log_path);
        let log = log.map_err(|e| file(&log_path, &e))?;
        let mut command = tokio::process::Command::new(&self.config.binary);
        command.arg0("minisvc").arg("shim").arg("--dir").arg(dir).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let status = command.status().await;
        let status =
            status.map_err(|e| failed(format!("cannot start {}: {e}", self.config.binary.display())))?;
        if status.success() {
            return Ok(());
        }
        let text = fs::read_to_string(&log_path).unwrap_or_default();
        let line = text.lines().last().map(|l| l.trim_start_matches("error: "));
        Err(failed(line.map_or_else(|| format!("the shim ended with {status}"), str::to_owned)))
    }
}

/// Makes `bin/minisvc` lead to the program.
fn link_binary(binary: &Path, bin: &Path) -> io::Result<()> {
    let mut program = fs::canonicalize(binary)?;
    // The file was replaced since we started: what stands there now is meant.
    if let Some(path) = program.to_str().and_then(|p| p.strip_suffix(" (deleted)")) {
        program = path.into();
    }
    let (link, new) = (bin.join("minisvc"), bin.join("minisvc.new"));
    let _ = fs::remove_file(&new);
    std::os::unix::fs::symlink(program, &new)?;
    fs::rename(new, link)
}

/// Asks for the state and its changes.
async fn subscribe(mut link: Link) -> io::Result<(Link, PodState)> {
    link.send(&Request::Watch, &[]).await?;
    let answer = link.receive().await?;
    if let Some((Answer::State(state), _)) = answer {
        return Ok((link, state));
    }
    Err(io::Error::other(format!("the shim answered {answer:?} to watch")))
}

/// Passes on what the shim says, until the shim is gone.
async fn track(dir: PathBuf, mut link: Link, state: watch::Sender<PodState>) {
    loop {
        if let Ok(Some((Answer::State(new), _))) = link.receive().await {
            state.send_replace(new);
            continue;
        }
        // The shim ended, or let go of us because we were slow: in that case it answers again.
        let again = async { subscribe(Link::connect(&dir).await?).await };
        let Ok((new_link, new)) = again.await else {
            state.send_replace(last_state(&dir).buried(now_millis()));
            return;
        };
        link = new_link;
        state.send_replace(new);
    }
}

/// What the shim kept.
fn last_state(dir: &Path) -> PodState {
    let bytes = fs::read(dir.join(wire::STATE)).unwrap_or_default();
    serde_json::from_slice(&bytes).unwrap_or_default()
}

fn file(path: &Path, e: &io::Error) -> RuntimeError {
    RuntimeError::File { path: path.display().to_string(), why: e.to_string() }
}

fn shim(uid: &str, e: &io::Error) -> RuntimeError {
    RuntimeError::Shim { uid: uid.to_owned(), why: e.to_string() }
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Removes what is left of an ended pod. Its directory goes last: it says where the cgroup is.
fn remove_pod(dir: &Path) -> Result<(), RuntimeError> {
    if let Some(cgroup) = setup_in(dir).and_then(|s| s.cgroup) {
        cgroup.remove().map_err(|e| RuntimeError::Refused(format!("the pod's cgroup stays: {e}")))?;
    }
    remove_dir(dir)
}

fn remove_dir(dir: &Path) -> Result<(), RuntimeError> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file(dir, &e)),
        _ => Ok(()),
    }
}

fn setup_in(dir: &Path) -> Option<PodSetup> {
    serde_json::from_slice(&fs::read(dir.join(wire::SETUP)).ok()?).ok()
}

/// Whole or not at all.
fn write(path: &Path, mode: u32, bytes: &[u8]) -> Result<(), RuntimeError> {
    let mut new = OsString::from(path);
    new.push(".new");
    let new = PathBuf::from(new);
    let written = OpenOptions::new().create(true).write(true).truncate(true).mode(mode).open(&new);
    written
        .and_then(|mut f| f.write_all(bytes))
        .and_then(|()| fs::rename(&new, path))
        .map_err(|e| file(path, &e))
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), RuntimeError> {
    let bytes = serde_json::to_vec(value).map_err(|e| file(path, &io::Error::other(e)))?;
    write(path, 0o600, &bytes)
}

impl PodRuntime for LocalRuntime {
    async fn create(&self, setup: &PodSetup) -> Result<(), RuntimeError> {
        let dir = self.dir(&setup.uid);
        if self.known(&setup.uid).is_some_and(|s| s.borrow().alive) {
            return Ok(());
        }
        let _permit = self.starts.acquire().await;
        // What an ended shim left behind would be taken for this one's.
        if dir.exists() {
            if let Some(first) = First::of(&dir).await.map_err(|e| shim(&setup.uid, &e))? {
                first.kill().await.map_err(|e| shim(&setup.uid, &e))?;
            }
            remove_pod(&dir)?;
        }
        make_dir(&dir).map_err(|e| file(&dir, &e))?;
        make_dir(&setup.log_dir).map_err(|e| file(&setup.log_dir, &e))?;
        let mut setup = setup.clone();
        setup.cgroup = self.cgroups.as_ref().ok().map(|c| c.child(&setup.uid));
        setup.keep.extend([self.config.run_dir.clone(), setup.log_dir.clone()]);
        if !setup.volumes.is_empty() {
            make_dir(&setup.volume_dir).map_err(|e| file(&setup.volume_dir, &e))?;
            setup.keep.push(setup.volume_dir.clone());
        }
        let program = fs::read_link(super::bin_dir(&self.config.run_dir).join("minisvc"));
        setup.keep.extend(program.ok().and_then(|p| Some(p.parent()?.to_path_buf())));
        write(&dir.join("hosts"), 0o644, setup.hosts.as_bytes())?;
        write(&dir.join("resolv.conf"), 0o644, setup.resolv_conf.as_bytes())?;
        write_json(&dir.join(wire::SETUP), &setup)?;
        if let Err(e) = self.start_shim(&setup, &dir).await {
            let _ = fs::remove_dir_all(&dir);
            return Err(e);
        }
        self.follow(&setup.uid).await
    }

    fn limits(&self) -> Result<(), String> {
        self.cgroups.as_ref().map(drop).map_err(Clone::clone)
    }

    fn watch(&self, uid: &str) -> Result<watch::Receiver<PodState>, RuntimeError> {
        self.known(uid).ok_or_else(|| RuntimeError::NoPod(uid.to_owned()))
    }

    async fn netns(&self, uid: &str) -> Result<OwnedFd, RuntimeError> {
        let files = self.ask(uid, &Request::Netns).await?;
        files.into_iter().next().ok_or_else(|| RuntimeError::Refused("the shim sent no namespace".into()))
    }

    async fn start(&self, uid: &str, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        write_json(&self.dir(uid).join(wire::container_file(&spec.name)), spec)?;
        self.ask(uid, &Request::Start { container: spec.name.clone() }).await?;
        // The state comes on another connection, maybe later.
        let mut states = self.watch(uid)?;
        let started = |s: &PodState| s.containers.get(&spec.name).is_some_and(|c| c.attempt == spec.attempt);
        let _ = states.wait_for(|s| !s.alive || started(s)).await;
        Ok(())
    }

    async fn signal(&self, uid: &str, container: &str, signal: i32) -> Result<(), RuntimeError> {
        self.ask(uid, &Request::Signal { container: container.to_owned(), signal }).await.map(drop)
    }

    async fn end(&self, uid: &str) -> Result<(), RuntimeError> {
        let Some(mut state) = self.known(uid) else { return Ok(()) };
        let first = First::of(&self.dir(uid)).await.map_err(|e| shim(uid, &e))?;
        let asked = async {
            match self.ask(uid, &Request::End).await {
                Ok(_) | Err(RuntimeError::NoPod(_)) => {}
                Err(e) => return Err(e),
            }
            // An error means that nobody tells the state any more, which is the end as well.
            let _ = state.wait_for(|s| !s.alive).await;
            match &first {
                Some(first) => first.ended().await.map_err(|e| shim(uid, &e)),
                None => Ok(()),
            }
        };
        match (tokio::time::timeout(END, asked).await, &first) {
            (Ok(Ok(())), _) | (_, None) => Ok(()),
            (_, Some(first)) => first.kill().await.map_err(|e| shim(uid, &e)),
        }
    }

    async fn remove(&self, uid: &str) -> Result<(), RuntimeError> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
        let dir = self.dir(uid);
        // Volumes outlive a pod's namespaces, which can be made anew, and go before what says where they are.
        if let Some(setup) = setup_in(&dir).filter(|s| !s.volumes.is_empty()) {
            remove_dir(&setup.volume_dir)?;
        }
        remove_pod(&dir)
    }

    async fn exec(
        &self,
        uid: &str,
        exec: ExecSpec,
        stdio: [OwnedFd; 3],
    ) -> Result<ExecSession, RuntimeError> {
        let request = Request::Exec { container: exec.container, argv: exec.argv, tty: exec.tty };
        let started = async {
            let mut link = Link::connect(&self.dir(uid)).await?;
            link.send(&request, &stdio).await?;
            let answer = link.receive().await?;
            Ok((link, answer))
        };
        let (mut link, answer) = started.await.map_err(|e: io::Error| match e.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => RuntimeError::NoPod(uid.to_owned()),
            _ => shim(uid, &e),
        })?;
        match answer {
            Some((Answer::Done, _)) => {}
            Some((Answer::Refused(why), _)) => return Err(RuntimeError::Refused(why)),
            _ => return Err(RuntimeError::NoPod(uid.to_owned())),
        }
        let (told, exit) = oneshot::channel();
        let (hold, mut dropped) = oneshot::channel::<()>();
        tokio::spawn(async move {
            tokio::select! {
                _ = &mut dropped => {}
                answer = link.receive() => if let Ok(Some((Answer::Exited(exit), _))) = answer {
                    let _ = told.send(exit);
                },
            }
        });
        Ok(ExecSession { exit, _hold: hold })
    }

    async fn adopt(&self) -> Vec<PodSetup> {
        let mut found = Vec::new();
        let Ok(entries) = fs::read_dir(self.config.run_dir.join("pods")) else { return found };
        for dir in entries.flatten().map(|e| e.path()) {
            let Some(setup) = setup_in(&dir) else {
                // An agent that died while it made the pod: nothing was started in it yet.
                tracing::warn!(dir = %dir.display(), "a half-made pod is removed");
                let _ = fs::remove_dir_all(&dir);
                continue;
            };
            if let Err(error) = self.follow(&setup.uid).await {
                tracing::info!(pod = %setup.name, %error, "the pod ended while no agent ran");
                let (sender, receiver) = watch::channel(last_state(&dir).buried(now_millis()));
                drop(sender);
                self.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(setup.uid.clone(), receiver);
            }
            found.push(setup);
        }
        found
    }
}
