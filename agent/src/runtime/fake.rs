//! A runtime in memory, for tests of what drives it.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{oneshot, watch};

use super::{
    ExecSession, ExecSpec, PodRuntime, RuntimeError,
    model::{ContainerSpec, ContainerState, Exit, PodSetup, PodState, now_millis},
};

/// Pods that are nothing but their state. A program is there if [`FakeRuntime::missing`] does not say otherwise; SIGTERM ends
/// it with code 0, unless [`FakeRuntime::stubborn`]. What exec runs ends well, unless it was said otherwise.
#[derive(Debug, Default)]
pub struct FakeRuntime {
    pods: Mutex<BTreeMap<String, FakePod>>,
    missing: Mutex<BTreeSet<String>>,
    stubborn: Mutex<BTreeSet<String>>,
    failing: Mutex<BTreeMap<String, (i32, String)>>,
    hanging: Mutex<BTreeSet<String>>,
    calls: watch::Sender<Vec<String>>,
}

#[derive(Debug)]
struct FakePod {
    setup: PodSetup,
    state: watch::Sender<PodState>,
    specs: BTreeMap<String, ContainerSpec>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeRuntime {
    /// From now on there is no such program.
    pub fn missing(&self, program: &str) {
        lock(&self.missing).insert(program.to_owned());
    }

    /// From now on this program ignores SIGTERM.
    pub fn stubborn(&self, program: &str) {
        lock(&self.stubborn).insert(program.to_owned());
    }

    /// From now on this program ends with this code when exec runs it, and says this.
    pub fn fails(&self, program: &str, code: i32, output: &str) {
        lock(&self.failing).insert(program.to_owned(), (code, output.to_owned()));
    }

    /// From now on this program ends well again.
    pub fn recovers(&self, program: &str) {
        lock(&self.failing).remove(program);
    }

    /// From now on this program ends when exec runs it.
    pub fn ends(&self, program: &str) {
        lock(&self.hanging).remove(program);
    }

    /// From now on this program does not end when exec runs it.
    pub fn hangs(&self, program: &str) {
        lock(&self.hanging).insert(program.to_owned());
    }

    /// What was asked of it, in order and in words: `start c 0`, `exec c PROGRAM`, `signal c 15`, `end`, `remove`.
    pub fn calls(&self) -> watch::Receiver<Vec<String>> {
        self.calls.subscribe()
    }

    fn called(&self, words: String) {
        self.calls.send_modify(|calls| calls.push(words));
    }

    /// A container's main process ends by itself.
    pub fn exit(&self, uid: &str, container: &str, code: i32, signal: Option<i32>) {
        if let Some(pod) = lock(&self.pods).get(uid) {
            pod.exit(container, code, signal);
        }
    }

    /// How a container was last started.
    pub fn spec(&self, uid: &str, container: &str) -> Option<ContainerSpec> {
        lock(&self.pods).get(uid)?.specs.get(container).cloned()
    }

    /// How a pod was made.
    pub fn setup(&self, uid: &str) -> Option<PodSetup> {
        lock(&self.pods).get(uid).map(|p| p.setup.clone())
    }
}

impl FakePod {
    fn exit(&self, container: &str, code: i32, signal: Option<i32>) {
        self.state.send_if_modified(|state| {
            let Some(container) = state.containers.get_mut(container).filter(|c| c.is_running()) else {
                return false;
            };
            container.exit = Some(Exit {
                code,
                signal,
                not_started: None,
                message: None,
                oom_killed: false,
                started_at: container.started_at,
                finished_at: now_millis(),
            });
            true
        });
    }
}

impl PodRuntime for FakeRuntime {
    async fn create(&self, setup: &PodSetup) -> Result<(), RuntimeError> {
        let mut pods = lock(&self.pods);
        if pods.get(&setup.uid).is_none_or(|p| !p.state.borrow().alive) {
            let state = watch::Sender::new(PodState { alive: true, ..PodState::default() });
            pods.insert(setup.uid.clone(), FakePod { setup: setup.clone(), state, specs: BTreeMap::new() });
        }
        Ok(())
    }

    fn limits(&self) -> Result<(), String> {
        Ok(())
    }

    fn watch(&self, uid: &str) -> Result<watch::Receiver<PodState>, RuntimeError> {
        let pods = lock(&self.pods);
        pods.get(uid).map(|p| p.state.subscribe()).ok_or_else(|| RuntimeError::NoPod(uid.to_owned()))
    }

    async fn netns(&self, uid: &str) -> Result<OwnedFd, RuntimeError> {
        let _pod = self.watch(uid)?;
        std::fs::File::open("/proc/self/ns/net")
            .map(OwnedFd::from)
            .map_err(|e| RuntimeError::File { path: "/proc/self/ns/net".into(), why: e.to_string() })
    }

    async fn start(&self, uid: &str, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        self.called(format!("start {} {}", spec.name, spec.attempt));
        let mut pods = lock(&self.pods);
        let pod = pods.get_mut(uid).filter(|p| p.state.borrow().alive);
        let pod = pod.ok_or_else(|| RuntimeError::NoPod(uid.to_owned()))?;
        if pod.state.borrow().containers.get(&spec.name).is_some_and(ContainerState::is_running) {
            return Err(RuntimeError::Refused(format!("container {} runs already", spec.name)));
        }
        let program = spec.argv.first().cloned().unwrap_or_default();
        let started_at = now_millis();
        let exit = lock(&self.missing).contains(&program).then(|| Exit {
            code: 128,
            signal: None,
            not_started: Some(format!("exec: \"{program}\": not found in PATH")),
            message: None,
            oom_killed: false,
            started_at,
            finished_at: started_at,
        });
        pod.specs.insert(spec.name.clone(), spec.clone());
        pod.state.send_modify(|state| {
            let previous = state.containers.remove(&spec.name).and_then(|c| c.exit);
            let new = ContainerState { attempt: spec.attempt, started_at, exit, previous };
            state.containers.insert(spec.name.clone(), new);
        });
        Ok(())
    }

    async fn signal(&self, uid: &str, container: &str, signal: i32) -> Result<(), RuntimeError> {
        self.called(format!("signal {container} {signal}"));
        let pods = lock(&self.pods);
        let pod = pods.get(uid).ok_or_else(|| RuntimeError::NoPod(uid.to_owned()))?;
        let program = pod.specs.get(container).and_then(|s| s.argv.first()).cloned().unwrap_or_default();
        if signal != 9 && lock(&self.stubborn).contains(&program) {
            return Ok(());
        }
        pod.exit(container, 128 + signal, Some(signal));
        Ok(())
    }

    async fn end(&self, uid: &str) -> Result<(), RuntimeError> {
        self.called("end".into());
        if let Some(pod) = lock(&self.pods).get(uid) {
            pod.state.send_modify(|s| *s = std::mem::take(s).buried(now_millis()));
        }
        Ok(())
    }

    async fn remove(&self, uid: &str) -> Result<(), RuntimeError> {
        self.called("remove".into());
        lock(&self.pods).remove(uid);
        Ok(())
    }

    async fn exec(
        &self,
        uid: &str,
        exec: ExecSpec,
        [_, stdout, _]: [OwnedFd; 3],
    ) -> Result<ExecSession, RuntimeError> {
        let state = self.watch(uid)?;
        if !state.borrow().containers.get(&exec.container).is_some_and(ContainerState::is_running) {
            return Err(RuntimeError::Refused(format!("container {} does not run", exec.container)));
        }
        let program = exec.argv.first().cloned().unwrap_or_default();
        self.called(format!("exec {} {program}", exec.container));
        if lock(&self.missing).contains(&program) {
            return Err(RuntimeError::Refused(format!("exec: \"{program}\": not found in PATH")));
        }
        let (told, exit) = oneshot::channel();
        let (hold, mut dropped) = oneshot::channel();
        if lock(&self.hanging).contains(&program) {
            tokio::spawn(async move {
                let _ = (&mut dropped).await;
                drop((told, stdout));
            });
            return Ok(ExecSession { exit, _hold: hold });
        }
        let (code, output) = lock(&self.failing).get(&program).cloned().unwrap_or_default();
        // A pipe holds less than a program may say.
        tokio::task::spawn_blocking(move || {
            let _ = std::io::Write::write_all(&mut std::fs::File::from(stdout), output.as_bytes());
            let now = now_millis();
            let exit = Exit {
                code,
                signal: None,
                not_started: None,
                message: None,
                oom_killed: false,
                started_at: now,
                finished_at: now,
            };
            let _ = told.send(exit);
        });
        Ok(ExecSession { exit, _hold: hold })
    }

    async fn adopt(&self) -> Vec<PodSetup> {
        lock(&self.pods).values().map(|p| p.setup.clone()).collect()
    }
}
