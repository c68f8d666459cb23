//! One pod: looks, decides, acts, tells, and waits for the next thing to happen.

use std::{
    collections::BTreeMap,
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use minisvc_proto::{Object, ObjectKey, path::Target, resource::PODS};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Containers, Entry, PodNetwork, Shared,
    decide::{
        Action, Facts, LAST_BACKOFF, Plan, RestartPolicy, Sandbox, Stop, backoff, count_failure, decide,
        is_over,
    },
    probe::{ReadinessProbe, Verdict},
    spec, status, writer,
};
use crate::{
    runtime::{ContainerState, PodRuntime, PodSetup, PodState, now_millis},
    sync::events::Severity,
};

/// A log longer than this is begun anew; one older part is kept.
const LOG_LIMIT: u64 = 10 << 20;
/// The most that a pod gets to end when its object is gone already.
const VANISHED_GRACE: i64 = 2_000;
/// The longest wait between tries to remove the object of a pod that is gone: only the server stands in the way, and nothing
/// tells of its return.
const DELETE_RETRY: i64 = 5_000;
/// Until a container whose configuration cannot be had is looked at again.
const CONFIG_RETRY: i64 = 60_000;

/// The task of one pod.
pub struct Worker<R, N> {
    shared: Arc<Shared<R, N>>,
    uid: String,
    namespace: String,
    name: String,
    /// The Pod when it was seen last.
    object: Option<Arc<Object>>,
    pod: Pod,
    names: Vec<String>,
    vanished: bool,
    deleted: bool,
    /// It was over before this agent saw it.
    over: bool,
    setup: Option<PodSetup>,
    sandbox: Sandbox,
    states: Option<watch::Receiver<PodState>>,
    containers: BTreeMap<String, ContainerState>,
    published: watch::Sender<Containers>,
    failures: BTreeMap<String, u32>,
    ready: BTreeMap<String, bool>,
    /// Starts that an earlier agent found ready: they stay so until a probe says otherwise, or its restart would take a pod that
    /// serves from its services.
    was_ready: BTreeMap<String, u32>,
    waiting: BTreeMap<String, (&'static str, String)>,
    probes: BTreeMap<String, AbortOnDropHandle<()>>,
    verdicts: (mpsc::Sender<Verdict>, mpsc::Receiver<Verdict>),
    stop_since: Option<i64>,
    retry_at: Option<i64>,
    troubles: u32,
    ip: Option<Ipv4Addr>,
    want: watch::Sender<Option<Value>>,
}

impl<R: PodRuntime, N: PodNetwork> Worker<R, N> {
    /// For a pod of the server, or one that is left on this machine, or both; `None` for neither.
    pub fn new(
        shared: Arc<Shared<R, N>>,
        setup: Option<PodSetup>,
        object: Option<Arc<Object>>,
    ) -> Option<Self> {
        let (uid, namespace, name) = match (&object, &setup) {
            (Some(o), _) => {
                (o.uid().to_owned(), o.namespace().unwrap_or("default").to_owned(), o.name().to_owned())
            }
            (None, Some(s)) => (s.uid.clone(), s.namespace.clone(), s.name.clone()),
            (None, None) => return None,
        };
        let states = setup.as_ref().and_then(|s| shared.runtime.watch(&s.uid).ok());
        let now = now_millis();
        let phase = object.as_ref().and_then(|o| o.str_at("/status/phase"));
        let mut worker = Worker {
            over: matches!(phase, Some("Succeeded" | "Failed")),
            containers: object.as_ref().map(|o| status::read_back(o, now)).unwrap_or_default(),
            sandbox: if states.is_some() { Sandbox::Unconnected } else { Sandbox::Absent },
            ip: setup.as_ref().map(|s| s.ip),
            shared,
            uid,
            namespace,
            name,
            object: None,
            pod: Pod::default(),
            names: Vec::new(),
            vanished: false,
            deleted: false,
            setup,
            states,
            published: watch::Sender::default(),
            failures: BTreeMap::new(),
            ready: BTreeMap::new(),
            was_ready: object.as_ref().map(|o| status::ready_starts(o)).unwrap_or_default(),
            waiting: BTreeMap::new(),
            probes: BTreeMap::new(),
            verdicts: mpsc::channel(16),
            stop_since: None,
            retry_at: None,
            troubles: 0,
            want: watch::Sender::new(None),
        };
        // What the shim knows is newer than what stands on the server.
        if let Some(states) = &worker.states {
            let known = states.borrow().containers.clone();
            worker.containers.retain(|name, _| !known.contains_key(name));
        }
        // A machine that starts anew starts its pods at once.
        let ended = worker.containers.iter().filter(|(_, c)| status::ended_with_machine(c, now));
        worker.failures = ended.map(|(name, _)| (name.clone(), 0)).collect();
        worker.take(object);
        worker.publish();
        worker.shared.directory.put(&worker.namespace, &worker.name, worker.entry());
        Some(worker)
    }

    /// The pod's whole life, or until the agent ends.
    pub async fn run(mut self, mut objects: watch::Receiver<Option<Arc<Object>>>) {
        let writer = writer::run(self.shared.client.clone(), self.want.subscribe(), objects.clone());
        let _writer = AbortOnDropHandle::new(tokio::spawn(writer));
        let shutdown = self.shared.shutdown.clone();
        loop {
            let object = objects.borrow_and_update().clone();
            self.take(object);
            self.observe();
            self.publish();
            let plan = self.plan();
            let starting = plan.actions.iter().any(|a| matches!(a, Action::Create | Action::Start { .. }));
            if !starting {
                self.tell();
            }
            if plan.actions == [Action::Done] {
                return self.forget();
            }
            if !plan.actions.is_empty() {
                self.act_all(plan.actions).await;
                if shutdown.is_cancelled() {
                    return;
                }
                continue;
            }
            let sleep = sleep_until(plan.wake);
            let changed = async {
                match &mut self.states {
                    Some(states) => states.changed().await.is_ok(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = objects.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.retry_at = None;
                }
                followed = changed => if !followed {
                    // Nobody follows it any more: what was told last stands.
                    self.observe();
                    self.states = None;
                },
                Some(verdict) = self.verdicts.1.recv() => self.judge(verdict),
                () = sleep => {}
            }
        }
    }

    fn take(&mut self, object: Option<Arc<Object>>) {
        self.vanished = object.is_none();
        let Some(object) = object else { return };
        if self.object.as_ref().is_some_and(|o| Arc::ptr_eq(o, &object)) {
            return;
        }
        match object.typed::<Pod>() {
            Ok(pod) => {
                let containers = pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default();
                let names: Vec<String> = containers.iter().map(|c| c.name.clone()).collect();
                let renamed = names != self.names;
                self.names = names;
                self.pod = pod;
                self.object = Some(object);
                if renamed {
                    self.shared.directory.put(&self.namespace, &self.name, self.entry());
                }
            }
            Err(error) => tracing::error!(pod = self.name, %error, "an unreadable Pod is not run"),
        }
    }

    fn log_dir(&self) -> PathBuf {
        self.shared.config.log_dir.join(format!("{}_{}_{}", self.namespace, self.name, self.uid))
    }

    fn entry(&self) -> Entry {
        Entry {
            uid: self.uid.clone(),
            containers: self.names.clone(),
            log_dir: self.log_dir(),
            states: self.published.subscribe(),
        }
    }

    fn restart(&self) -> RestartPolicy {
        RestartPolicy::parse(self.pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()))
    }

    fn stop(&self) -> Option<Stop> {
        if self.vanished || self.deleted {
            let own = self.setup.as_ref().map_or(0, |s| i64::from(s.grace_seconds) * 1000);
            return Some(Stop { grace: own.min(VANISHED_GRACE), delete_object: false });
        }
        let meta = &self.pod.metadata;
        meta.deletion_timestamp.as_ref()?;
        let seconds = meta.deletion_grace_period_seconds.unwrap_or(30).max(0);
        Some(Stop { grace: seconds.saturating_mul(1000), delete_object: true })
    }

    fn plan(&self) -> Plan {
        decide(&Facts {
            names: &self.names,
            restart: self.restart(),
            over: self.over,
            stop: self.stop(),
            stop_since: self.stop_since,
            sandbox: self.sandbox,
            containers: &self.containers,
            failures: &self.failures,
            retry_at: self.retry_at,
            now: now_millis(),
        })
    }

    /// Takes over what the runtime says, and what follows from it.
    fn observe(&mut self) {
        let Some(state) = self.states.as_mut().map(|s| s.borrow_and_update().clone()) else { return };
        if !state.alive {
            self.sandbox = Sandbox::Ended;
        }
        for (name, mut new) in state.containers {
            let old = self.containers.get(&name);
            // A new shim does not know what its predecessor saw.
            if new.previous.is_none() {
                new.previous = match old {
                    Some(o) if o.attempt == new.attempt => o.previous.clone(),
                    Some(o) => o.exit.clone(),
                    None => None,
                };
            }
            if old == Some(&new) && (new.exit.is_some() || self.ready.contains_key(&name)) {
                continue;
            }
            let seen = old.is_some_and(|o| o.attempt == new.attempt && o.exit.is_some());
            match &new.exit {
                Some(exit) => {
                    self.probes.remove(&name);
                    self.ready.remove(&name);
                    if !seen {
                        let count = count_failure(self.failures.get(&name).copied(), &new, exit);
                        self.failures.insert(name.clone(), count);
                        self.tell_of_end(&name, &new, count);
                    }
                }
                None if !self.ready.contains_key(&name) => self.watch_readiness(&name, new.attempt),
                None => {}
            }
            self.containers.insert(name, new);
        }
    }

    /// Tells the agent's API.
    fn publish(&self) {
        let over =
            self.over || self.stop().is_some() || is_over(&self.names, self.restart(), &self.containers);
        self.published.send_if_modified(|known| {
            let news = known.over != over || known.states != self.containers;
            *known = Containers { states: self.containers.clone(), over };
            news
        });
    }

    /// Without a probe a container that runs is ready.
    fn watch_readiness(&mut self, name: &str, attempt: u32) {
        let container = self.pod.spec.iter().flat_map(|s| &s.containers).find(|c| c.name == name);
        let probe = match (container, self.ip) {
            (Some(container), Some(ip)) => ReadinessProbe::of(container, ip),
            _ => Ok(None),
        };
        let was_ready = self.was_ready.remove(name) == Some(attempt);
        let ready = match probe {
            Ok(None) => true,
            Ok(Some(probe)) => {
                let run = probe.run(name.to_owned(), attempt, was_ready, self.verdicts.0.clone());
                self.probes.insert(name.to_owned(), AbortOnDropHandle::new(tokio::spawn(run)));
                was_ready
            }
            Err(why) => {
                self.event(Severity::Warning, "Unhealthy", why);
                false
            }
        };
        self.ready.insert(name.to_owned(), ready);
    }

    fn judge(&mut self, verdict: Verdict) {
        let current = self.containers.get(&verdict.container);
        if !current.is_some_and(|c| c.attempt == verdict.attempt && c.is_running()) {
            return;
        }
        if !verdict.message.is_empty() {
            self.event(Severity::Warning, "Unhealthy", verdict.message);
        }
        if let Some(ready) = verdict.ready {
            self.ready.insert(verdict.container, ready);
        }
    }

    async fn act_all(&mut self, actions: Vec<Action>) {
        for action in actions {
            let is_start = matches!(action, Action::Start { .. });
            match self.act(&action).await {
                Ok(()) if is_start => {}
                Ok(()) => (self.troubles, self.retry_at) = (0, None),
                Err(why) => {
                    self.troubles = self.troubles.saturating_add(1);
                    let most = if action == Action::DeleteObject { DELETE_RETRY } else { LAST_BACKOFF };
                    let wait = now_millis() + backoff(self.troubles).min(most);
                    self.retry_at = Some(self.retry_at.unwrap_or(0).max(wait));
                    tracing::warn!(pod = self.name, ?action, %why, "trying again later");
                    if action == Action::Create {
                        for name in &self.names {
                            self.waiting.insert(name.clone(), ("ContainerCreating", why.clone()));
                        }
                        self.event(Severity::Warning, "FailedCreatePodSandBox", why);
                    }
                    if !is_start {
                        return;
                    }
                }
            }
        }
    }

    async fn act(&mut self, action: &Action) -> Result<(), String> {
        let shared = self.shared.clone();
        let runtime = &shared.runtime;
        match action {
            Action::Create => self.create().await,
            Action::Start { container, attempt } => self.start(container, *attempt).await,
            Action::Terminate => {
                self.stop_since = Some(now_millis());
                for (name, _) in self.containers.iter().filter(|(_, c)| c.is_running()) {
                    self.event(Severity::Normal, "Killing", format!("Stopping container {name}"));
                    // A shim that is gone needs no signal, and the state says so in a moment.
                    let _ = runtime.signal(&self.uid, name, 15).await;
                }
                Ok(())
            }
            Action::End => {
                runtime.end(&self.uid).await.map_err(|e| e.to_string())?;
                self.observe();
                self.sandbox = Sandbox::Ended;
                Ok(())
            }
            Action::Release => {
                self.probes.clear();
                shared.network.detach(&self.uid).await?;
                runtime.remove(&self.uid).await.map_err(|e| e.to_string())?;
                shared.ipam.lock().unwrap_or_else(PoisonError::into_inner).free(&self.uid);
                self.states = None;
                self.sandbox = Sandbox::Absent;
                Ok(())
            }
            Action::DeleteObject => {
                // When the object is gone, nothing of the pod is left.
                self.forget();
                let key = ObjectKey::namespaced(&PODS, &self.namespace, &self.name);
                let options = json!({"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}});
                match shared.client.delete(&Target::object(&key), &options).await {
                    Ok(_) => {}
                    Err(e) if e.api().is_some_and(|e| e.is_not_found() || e.is_conflict()) => {}
                    Err(e) => return Err(e.to_string()),
                }
                self.deleted = true;
                Ok(())
            }
            Action::Done => Ok(()),
        }
    }

    async fn create(&mut self) -> Result<(), String> {
        let shared = self.shared.clone();
        let config = &shared.config;
        let ip = shared.ipam.lock().unwrap_or_else(PoisonError::into_inner).allocate(&self.uid);
        let ip = ip.map_err(|e| e.to_string())?;
        self.ip = Some(ip);
        let machine = fs::read_to_string(&config.resolv_conf).unwrap_or_default();
        let grace = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
        let setup = PodSetup {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            hostname: spec::hostname(&self.pod),
            ip,
            hosts: spec::hosts(&self.pod, &config.addresses(ip)),
            resolv_conf: spec::resolv_conf(&self.pod, config.dns_ip, &config.cluster_domain, &machine),
            log_dir: self.log_dir(),
            log_limit: LOG_LIMIT,
            keep: Vec::new(),
            shared_bin: spec::has_other_user(&self.pod),
            grace_seconds: u32::try_from(grace).unwrap_or(0),
        };
        shared.runtime.create(&setup).await.map_err(|e| e.to_string())?;
        self.states = Some(shared.runtime.watch(&self.uid).map_err(|e| e.to_string())?);
        self.setup = Some(setup);
        self.sandbox = Sandbox::Unconnected;
        let netns = shared.runtime.netns(&self.uid).await.map_err(|e| e.to_string())?;
        shared.network.attach(&self.uid, ip, netns).await?;
        self.sandbox = Sandbox::Alive;
        self.waiting.clear();
        Ok(())
    }

    async fn start(&mut self, name: &str, attempt: u32) -> Result<(), String> {
        let shared = self.shared.clone();
        let container = self.pod.spec.iter().flat_map(|s| &s.containers).find(|c| c.name == name);
        let (Some(container), Some(ip)) = (container, self.ip) else {
            return Err(format!("container {name} is not in the pod any more"));
        };
        let services = shared.links.variables(&self.pod).await;
        let spec = match spec::container_spec(
            &self.pod,
            container,
            &shared.config.addresses(ip),
            attempt,
            (&shared.machine, services),
        ) {
            Ok(spec) => spec,
            Err(why) => {
                self.event(Severity::Warning, "Failed", format!("container {name}: {why}"));
                self.waiting.insert(name.to_owned(), ("CreateContainerConfigError", why.clone()));
                self.retry_at = Some(now_millis() + CONFIG_RETRY);
                return Err(why);
            }
        };
        // The log of the start before stays, for `logs --previous`.
        if let Some(old) = attempt.checked_sub(2) {
            let dir = self.log_dir().join(name);
            for file in [format!("{old}.log"), format!("{old}.log.1")] {
                let _ = fs::remove_file(dir.join(file));
            }
        }
        self.waiting.remove(name);
        shared.runtime.start(&self.uid, &spec).await.map_err(|e| e.to_string())?;
        self.event(Severity::Normal, "Started", format!("Started container {name}"));
        Ok(())
    }

    fn tell_of_end(&self, name: &str, state: &ContainerState, failures: u32) {
        let Some(exit) = &state.exit else { return };
        if let Some(why) = &exit.not_started {
            self.event(Severity::Warning, "Failed", format!("container {name}: {why}"));
        }
        if self.stop().is_none() && self.restart().restarts(exit) {
            let seconds = backoff(failures) / 1000;
            let message = format!("Back-off restarting container {name}: next start in {seconds} s");
            self.event(Severity::Warning, "BackOff", message);
        }
    }

    fn event(&self, severity: Severity, reason: &'static str, message: impl Into<String>) {
        if let Some(object) = &self.object {
            self.shared.recorder.event(object, severity, reason, message);
        }
    }

    /// Hands the status to the one who writes it.
    fn tell(&self) {
        let Some(object) = &self.object else { return };
        // What was over before we came stands on the server already, told by one who saw it.
        if self.vanished || self.deleted || (self.over && self.states.is_none() && self.setup.is_none()) {
            return;
        }
        let status = status::render(&status::Seen {
            pod: object,
            names: &self.names,
            restart: self.restart(),
            containers: &self.containers,
            ready: &self.ready,
            waiting: &self.waiting,
            ips: &self.ip.map(|ip| self.shared.config.addresses(ip)).unwrap_or_default(),
            node_ips: &self.shared.machine.node_ips,
        });
        self.want.send_if_modified(|want| {
            let news = want.as_ref() != Some(&status);
            *want = Some(status);
            news
        });
    }

    /// Gives back what outlives the pod's processes.
    fn forget(&self) {
        self.shared.ipam.lock().unwrap_or_else(PoisonError::into_inner).free(&self.uid);
        self.shared.directory.remove(&self.uid);
        let dir = self.log_dir();
        if let Err(error) = fs::remove_dir_all(&dir)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(dir = %dir.display(), %error, "the logs of a gone pod are not removed");
        }
    }
}

async fn sleep_until(at: Option<i64>) {
    match at {
        Some(at) => {
            let left = u64::try_from(at - now_millis()).unwrap_or(0);
            tokio::time::sleep(Duration::from_millis(left)).await;
        }
        None => std::future::pending().await,
    }
}
