//! What a pod's task does, one step at a time.

use std::{fs, sync::PoisonError};

use minisvc_proto::{ObjectKey, path::Target, resource::PODS};
use serde_json::json;

use super::{
    super::{
        decide::{Action, Ending, Hook, LAST_BACKOFF, backoff},
        spec,
    },
    PodNetwork, PodRuntime, Sandbox, Severity, Worker,
};
use crate::runtime::{PodSetup, now_millis};

/// A log longer than this is begun anew; one older part is kept.
const LOG_LIMIT: u64 = 10 << 20;
/// The longest wait between tries to remove the object of a pod that is gone: only the server stands in the way, and nothing
/// tells of its return.
const DELETE_RETRY: i64 = 5_000;
/// Until a container whose configuration cannot be had is looked at again.
const CONFIG_RETRY: i64 = 60_000;

impl<R: PodRuntime, N: PodNetwork> Worker<R, N> {
    /// Does what the plan says; when a step fails the rest waits.
    pub(super) async fn act_all(&mut self, actions: Vec<Action>) {
        for action in actions {
            match self.act(&action).await {
                Ok(()) => {
                    if !matches!(action, Action::Start { .. }) {
                        (self.troubles, self.retry_at) = (0, None);
                    }
                }
                Err(why) => {
                    self.troubles = self.troubles.saturating_add(1);
                    let most = if action == Action::DeleteObject { DELETE_RETRY } else { LAST_BACKOFF };
                    let wait = now_millis() + backoff(self.troubles).min(most);
                    tracing::warn!(pod = self.name, ?action, %why, "trying again later");
                    // The other containers need not wait for this one.
                    if let Action::Start { container, .. } = &action {
                        let at = self.not_before.entry(container.clone()).or_default();
                        *at = wait.max(*at);
                        continue;
                    }
                    self.retry_at = Some(wait);
                    if action == Action::Create {
                        for member in &self.members {
                            self.waiting.insert(member.name.clone(), ("ContainerCreating", why.clone()));
                        }
                        self.event(Severity::Warning, "FailedCreatePodSandBox", why);
                    }
                    return;
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
            Action::Withdraw => {
                self.withdraw();
                Ok(())
            }
            Action::Stop { container, grace } => {
                self.begin_end(container, *grace);
                Ok(())
            }
            Action::Terminate { container } => {
                self.end_hook(container);
                if let Some(ending) = self.health.get_mut(container).and_then(|h| h.ending.as_mut()) {
                    ending.terminated = Some(now_millis());
                }
                // A shim that is gone needs no signal, and the state says so in a moment.
                let _ = runtime.signal(&self.uid, container, 15).await;
                Ok(())
            }
            Action::Kill { container } => {
                let since = now_millis();
                let health = self.health.entry(container.clone()).or_default();
                let ending = Ending { since, grace: 0, hook: Hook::None, terminated: None, killed: true };
                health.ending.get_or_insert(ending).killed = true;
                let _ = runtime.signal(&self.uid, container, 9).await;
                Ok(())
            }
            Action::End => {
                runtime.end(&self.uid).await.map_err(|e| e.to_string())?;
                self.observe();
                self.sandbox = Sandbox::Ended;
                Ok(())
            }
            Action::Release => {
                self.tasks.clear();
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
        if self.sandbox == Sandbox::Absent {
            self.earlier = self.containers.keys().cloned().collect();
        }
        let shared = self.shared.clone();
        let config = &shared.config;
        let ip = shared.ipam.lock().unwrap_or_else(PoisonError::into_inner).allocate(&self.uid);
        let ip = ip.map_err(|e| e.to_string())?;
        self.ip = Some(ip);
        let machine = fs::read_to_string(&config.resolv_conf).unwrap_or_default();
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
            volumes: spec::volumes(&self.pod),
            volume_dir: config.volume_dir.join(&self.uid),
            cgroup: None,
            grace_seconds: u32::try_from(self.grace() / 1000).unwrap_or(u32::MAX),
        };
        shared.runtime.create(&setup).await.map_err(|e| e.to_string())?;
        self.states = Some(shared.runtime.watch(&self.uid).map_err(|e| e.to_string())?);
        self.setup = Some(setup);
        self.sandbox = Sandbox::Unconnected;
        let netns = shared.runtime.netns(&self.uid).await.map_err(|e| e.to_string())?;
        shared.network.attach(&self.uid, ip, netns).await?;
        self.sandbox = Sandbox::Alive;
        self.waiting.clear();
        if let Some(message) = spec::limits_not_enforced(&self.pod, shared.runtime.limits()) {
            self.event(Severity::Warning, "LimitsNotEnforced", message);
        }
        Ok(())
    }

    async fn start(&mut self, name: &str, attempt: u32) -> Result<(), String> {
        let shared = self.shared.clone();
        let (Some(container), Some(ip)) = (self.spec(name), self.ip) else {
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
                self.not_before.insert(name.to_owned(), now_millis() + CONFIG_RETRY);
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
}
