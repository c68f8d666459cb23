//! Hooks and probes of the containers that run, and what comes of them.
//! The words of events are Kubernetes' (pkg/kubelet/{prober,kuberuntime}).

use std::time::Duration;

use tokio_util::task::AbortOnDropHandle;

use super::{
    super::{
        decide::{Ending, Hook, Kind, RestartPolicy},
        handler::{Handler, Place, Report, What},
        probe::{self, Probe, ProbeKind, Verdict},
    },
    PodNetwork, PodRuntime, Severity, Worker,
};
use crate::runtime::now_millis;

/// What is done beside a container that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Task {
    /// Its postStart hook.
    PostStart,
    /// Its preStop hook.
    PreStop,
    /// A probe.
    Probe(ProbeKind),
}

impl<R: PodRuntime, N: PodNetwork> Worker<R, N> {
    /// A start of a container is seen for the first time, and runs.
    pub(super) fn take_up(&mut self, name: &str, attempt: u32, started_at: i64) {
        self.tasks.remove(name);
        let was_started = self.was_started.remove(name) == Some(attempt);
        if was_started {
            return self.set_started(name, started_at, true);
        }
        let hook = self.spec(name).and_then(|c| c.lifecycle.as_ref()?.post_start.as_ref());
        match hook.map(|hook| self.hook(name, hook)) {
            None => self.try_startup(name, started_at),
            Some(Ok(handler)) => {
                if let Some(health) = self.health.get_mut(name) {
                    health.starting = true;
                }
                let place = self.place(name, attempt);
                self.spawn_hook(Task::PostStart, place, handler, What::PostStart);
            }
            Some(Err(why)) => self.fail_start(name, &why),
        }
    }

    /// Begins the end of a container that runs.
    pub(super) fn begin_end(&mut self, name: &str, grace: i64) {
        let Some(state) = self.containers.get(name) else { return };
        let attempt = state.attempt;
        if let Some(tasks) = self.tasks.get_mut(name) {
            // It stays ready while its probe says so: what comes in until it is out of rotation is served.
            tasks.retain(|task, _| *task == Task::Probe(ProbeKind::Readiness));
        }
        let health = self.health.entry(name.to_owned()).or_default();
        let condemned = health.condemned.is_some();
        if !condemned {
            self.event(Severity::Normal, "Killing", format!("Stopping container {name}"));
        }
        let spec = self.spec(name).and_then(|c| c.lifecycle.as_ref()?.pre_stop.as_ref());
        let hook = match spec.map(|hook| self.hook(name, hook)) {
            None => Hook::None,
            Some(Ok(handler)) => {
                self.spawn_hook(Task::PreStop, self.place(name, attempt), handler, What::PreStop);
                Hook::Runs
            }
            Some(Err(why)) => {
                self.event(Severity::Warning, "FailedPreStopHook", format!("PreStopHook failed: {why}"));
                Hook::Over
            }
        };
        let ending = Ending { since: now_millis(), grace, hook, terminated: None, killed: false };
        self.health.entry(name.to_owned()).or_default().ending = Some(ending);
    }

    /// The time for SIGTERM has come, whether the preStop hook is done or not.
    pub(super) fn end_hook(&mut self, name: &str) {
        let running = self.tasks.get_mut(name).and_then(|t| t.remove(&Task::PreStop)).is_some();
        let ending = self.health.get_mut(name).and_then(|h| h.ending.as_mut());
        if let Some(ending) = ending.filter(|e| running && e.hook == Hook::Runs) {
            ending.hook = Hook::Over;
            let why = "PreStopHook failed: not completed in grace period";
            self.event(Severity::Warning, "FailedPreStopHook", why);
        }
    }

    /// Takes note of what a hook or a probe has to say, if the container is still the one that was asked.
    pub(super) fn hear(&mut self, report: Report) {
        let Report { container: name, attempt, what } = report;
        let current = self.containers.get(&name);
        let Some(started_at) =
            current.filter(|c| c.attempt == attempt && c.is_running()).map(|c| c.started_at)
        else {
            return;
        };
        // What was on its way when the container's end began is of no use any more.
        let ending = self.health.get(&name).is_some_and(|h| h.ending.is_some());
        let still_asked = match &what {
            What::PreStop(_) => true,
            What::Probe(verdict) => verdict.kind == ProbeKind::Readiness,
            What::PostStart(_) => false,
        };
        if ending && !still_asked {
            return;
        }
        match what {
            What::PostStart(result) => {
                if let Some(health) = self.health.get_mut(&name) {
                    health.starting = false;
                }
                match result {
                    Ok(()) => self.try_startup(&name, started_at),
                    Err(why) => self.fail_start(&name, &why),
                }
            }
            What::PreStop(result) => {
                if let Err(why) = result {
                    self.event(Severity::Warning, "FailedPreStopHook", format!("PreStopHook failed: {why}"));
                }
                if let Some(ending) = self.health.get_mut(&name).and_then(|h| h.ending.as_mut()) {
                    ending.hook = Hook::Over;
                }
            }
            What::Probe(verdict) => self.judge(&name, started_at, verdict),
        }
    }

    fn judge(&mut self, name: &str, started_at: i64, verdict: Verdict) {
        if !verdict.message.is_empty() {
            self.event(Severity::Warning, "Unhealthy", verdict.message);
        }
        match (verdict.kind, verdict.well) {
            (_, None) | (ProbeKind::Liveness, Some(true)) => {}
            (ProbeKind::Startup, Some(true)) => self.set_started(name, started_at, false),
            (ProbeKind::Readiness, Some(ready)) => {
                if let Some(health) = self.health.get_mut(name) {
                    health.ready = ready;
                }
            }
            (ProbeKind::Startup | ProbeKind::Liveness, Some(false)) => {
                let spec = self.spec(name).and_then(|c| probe::spec_of(verdict.kind, c));
                let grace = spec.and_then(|p| p.termination_grace_period_seconds);
                let grace = grace.map_or(self.grace(), |s| s.max(0).saturating_mul(1000));
                let which = verdict.kind.name().to_lowercase();
                let next = match (self.kind(name), self.restart()) {
                    (Kind::Main, RestartPolicy::Never) => "",
                    _ => ", will be restarted",
                };
                self.condemn(name, grace, format!("Container {name} failed {which} probe{next}"));
            }
        }
    }

    fn fail_start(&mut self, name: &str, why: &str) {
        self.event(Severity::Warning, "FailedPostStartHook", format!("PostStartHook failed: {why}"));
        self.condemn(name, self.grace(), "FailedPostStartHook".into());
    }

    /// It is not well: it ends, and is started again if the policy says so.
    fn condemn(&mut self, name: &str, grace: i64, why: String) {
        let Some(health) = self.health.get_mut(name) else { return };
        if health.ending.is_none() && health.condemned.is_none() {
            health.condemned = Some(grace);
            self.event(Severity::Normal, "Killing", why);
        }
    }

    /// Its postStart hook is done: now its startup probe has the word.
    fn try_startup(&mut self, name: &str, started_at: i64) {
        if self.spec(name).is_some_and(|c| c.startup_probe.is_some()) {
            self.watch(name, ProbeKind::Startup, started_at, false);
        } else {
            self.set_started(name, started_at, false);
        }
    }

    /// Without a probe a container that is started is ready.
    fn set_started(&mut self, name: &str, started_at: i64, adopted: bool) {
        let Some(health) = self.health.get_mut(name) else { return };
        let was_ready = self.was_ready.remove(name) == Some(health.attempt);
        health.started = true;
        let spec = self.spec(name);
        let (readiness, liveness) =
            spec.map_or((false, false), |c| (c.readiness_probe.is_some(), c.liveness_probe.is_some()));
        if let Some(health) = self.health.get_mut(name) {
            health.ready = was_ready || !readiness;
        }
        if readiness {
            self.watch(name, ProbeKind::Readiness, started_at, was_ready);
        }
        if liveness {
            self.watch(name, ProbeKind::Liveness, started_at, adopted);
        }
    }

    /// Begins a probe.
    fn watch(&mut self, name: &str, kind: ProbeKind, started_at: i64, was_well: bool) {
        let (Some(container), Some(ip)) = (self.spec(name), self.ip) else { return };
        let attempt = self.health.get(name).map_or(0, |h| h.attempt);
        match Probe::of(kind, container, ip) {
            Ok(None) => {}
            Ok(Some(probe)) => {
                let age = u64::try_from(now_millis() - started_at).unwrap_or(0);
                let facts = (Duration::from_millis(age), was_well);
                let run = probe.run(self.place(name, attempt), facts, self.reports.0.clone());
                self.keep(name, Task::Probe(kind), tokio::spawn(run));
            }
            Err(why) => {
                let message = format!("{} probe failed: {why}", kind.name());
                self.event(Severity::Warning, "Unhealthy", message);
            }
        }
    }

    fn hook(
        &self,
        name: &str,
        hook: &k8s_openapi::api::core::v1::LifecycleHandler,
    ) -> Result<Handler, String> {
        match (self.spec(name), self.ip) {
            (Some(container), Some(ip)) => Handler::of_hook(hook, container, ip),
            _ => Err("the pod has no address".into()),
        }
    }

    fn spawn_hook(
        &mut self,
        task: Task,
        place: Place<R>,
        handler: Handler,
        what: fn(Result<(), String>) -> What,
    ) {
        let reports = self.reports.0.clone();
        let name = place.container.clone();
        let run = async move {
            let result = handler.ask(&place).await;
            // The pod's task is gone only with this one.
            let _ = reports.send(place.report(what(result))).await;
        };
        self.keep(&name, task, tokio::spawn(run));
    }

    fn keep(&mut self, name: &str, task: Task, handle: tokio::task::JoinHandle<()>) {
        self.tasks.entry(name.to_owned()).or_default().insert(task, AbortOnDropHandle::new(handle));
    }

    fn place(&self, name: &str, attempt: u32) -> Place<R> {
        let runtime = self.shared.runtime.clone();
        Place { runtime, uid: self.uid.clone(), container: name.to_owned(), attempt }
    }
}
