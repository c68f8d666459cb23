//! One pod: looks, decides, acts, tells, and waits for the next thing to happen.

mod act;
mod health;
mod observe;
mod withdraw;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::{Container, Pod};
use minisvc_proto::Object;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use self::{health::Task, withdraw::Left};
use super::{
    Containers, Entry, PodNetwork, Shared,
    decide::{Action, Facts, Health, Kind, Member, Plan, RestartPolicy, Sandbox, Stop, Withdrawal, decide},
    handler::Report,
    status, writer,
};
use crate::{
    runtime::{ContainerState, PodRuntime, PodSetup, PodState, now_millis},
    sync::events::Severity,
};

/// The most that a pod gets to end when its object is gone already.
const VANISHED_GRACE: i64 = 2_000;

/// The task of one pod.
pub struct Worker<R, N> {
    shared: Arc<Shared<R, N>>,
    uid: String,
    namespace: String,
    name: String,
    /// The Pod when it was seen last.
    object: Option<Arc<Object>>,
    pod: Pod,
    /// Its containers, in the order to start them.
    members: Vec<Member>,
    vanished: bool,
    deleted: bool,
    /// It was over before this agent saw it.
    over: bool,
    setup: Option<PodSetup>,
    sandbox: Sandbox,
    states: Option<watch::Receiver<PodState>>,
    containers: BTreeMap<String, ContainerState>,
    /// Containers that have not been started in the namespaces that there are.
    earlier: BTreeSet<String>,
    published: watch::Sender<Containers>,
    failures: BTreeMap<String, u32>,
    health: BTreeMap<String, Health>,
    /// Starts that an earlier agent found started: their hooks and startup probes are behind them.
    was_started: BTreeMap<String, u32>,
    /// Starts that an earlier agent found ready: they stay so until a probe says otherwise, or its restart would take a pod that
    /// serves from its services.
    was_ready: BTreeMap<String, u32>,
    waiting: BTreeMap<String, (&'static str, String)>,
    /// Probes and hooks of containers that run.
    tasks: BTreeMap<String, BTreeMap<Task, AbortOnDropHandle<()>>>,
    reports: (mpsc::Sender<Report>, mpsc::Receiver<Report>),
    withdrawal: Option<Withdrawal>,
    left: (mpsc::Sender<Left>, mpsc::Receiver<Left>),
    not_before: BTreeMap<String, i64>,
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
            members: Vec::new(),
            vanished: false,
            deleted: false,
            setup,
            states,
            published: watch::Sender::default(),
            earlier: BTreeSet::new(),
            failures: BTreeMap::new(),
            health: BTreeMap::new(),
            was_started: object.as_ref().map(|o| status::started_starts(o)).unwrap_or_default(),
            was_ready: object.as_ref().map(|o| status::ready_starts(o)).unwrap_or_default(),
            waiting: BTreeMap::new(),
            tasks: BTreeMap::new(),
            reports: mpsc::channel(16),
            withdrawal: None,
            left: mpsc::channel(1),
            not_before: BTreeMap::new(),
            retry_at: None,
            troubles: 0,
            want: watch::Sender::new(None),
        };
        // What the shim knows is newer than what stands on the server.
        if let Some(states) = &worker.states {
            let known = states.borrow().containers.clone();
            worker.containers.retain(|name, _| !known.contains_key(name));
        }
        worker.earlier = worker.containers.keys().cloned().collect();
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
            self.tell(!starting);
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
                    self.not_before.clear();
                }
                followed = changed => if !followed {
                    // Nobody follows it any more: what was told last stands.
                    self.observe();
                    self.states = None;
                },
                Some(report) = self.reports.1.recv() => self.hear(report),
                Some(left) = self.left.1.recv() => self.has_left(left),
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
                let members = members(&pod);
                let renamed = members != self.members;
                self.members = members;
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
            containers: self.members.iter().map(|m| m.name.clone()).collect(),
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

    /// Milliseconds that a container gets to end when nobody says otherwise.
    fn grace(&self) -> i64 {
        let spec = self.pod.spec.as_ref();
        spec.and_then(|s| s.termination_grace_period_seconds).unwrap_or(30).max(0).saturating_mul(1000)
    }

    /// What the pod says of this container.
    fn spec(&self, name: &str) -> Option<&Container> {
        let spec = self.pod.spec.as_ref()?;
        spec.init_containers.iter().flatten().chain(&spec.containers).find(|c| c.name == name)
    }

    fn kind(&self, name: &str) -> Kind {
        self.members.iter().find(|m| m.name == name).map_or(Kind::Main, |m| m.kind)
    }

    fn plan(&self) -> Plan {
        decide(&Facts {
            members: &self.members,
            restart: self.restart(),
            over: self.over,
            stop: self.stop(),
            withdrawal: self.withdrawal,
            grace: self.grace(),
            sandbox: self.sandbox,
            containers: &self.containers,
            earlier: &self.earlier,
            health: &self.health,
            failures: &self.failures,
            not_before: &self.not_before,
            retry_at: self.retry_at,
            now: now_millis(),
        })
    }

    fn event(&self, severity: Severity, reason: &'static str, message: impl Into<String>) {
        if let Some(object) = &self.object {
            self.shared.recorder.event(object, severity, reason, message);
        }
    }

    /// Tells this node whether the pod serves, and hands the status to the one who writes it, unless it is about to change.
    fn tell(&self, settled: bool) {
        let Some(object) = &self.object else { return };
        // What was over before we came stands on the server already, told by one who saw it.
        if self.vanished || self.deleted || (self.over && self.states.is_none() && self.setup.is_none()) {
            return;
        }
        let status = status::render(&status::Seen {
            pod: object,
            members: &self.members,
            restart: self.restart(),
            containers: &self.containers,
            earlier: &self.earlier,
            health: &self.health,
            failures: &self.failures,
            waiting: &self.waiting,
            ips: &self.ip.map(|ip| self.shared.config.addresses(ip)).unwrap_or_default(),
            node_ips: &self.shared.machine.node_ips,
        });
        self.shared.local_health.put(&self.uid, status::is_ready(&status));
        if !settled {
            return;
        }
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
        self.shared.local_health.gone(&self.uid);
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

/// The pod's containers, in the order to start them.
fn members(pod: &Pod) -> Vec<Member> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let of = |c: &Container, kind| {
        let hook = c.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some());
        Member { name: c.name.clone(), kind, hook }
    };
    let init = spec.init_containers.iter().flatten().map(|c| match c.restart_policy.as_deref() {
        Some("Always") => of(c, Kind::Sidecar),
        _ => of(c, Kind::Init),
    });
    init.chain(spec.containers.iter().map(|c| of(c, Kind::Main))).collect()
}

#[cfg(test)]
mod tests;
