//! A cluster for tests: a real registry in memory, the real controllers, and nodes that do what agents do, without processes.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use minisvc_proto::{
    Object, ObjectKey, Resource,
    path::Target,
    report::{HEARTBEAT_PERIOD, NodeReport},
    resource::{DEPLOYMENTS, ENDPOINT_SLICES, NODES, PODS, SERVICES},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    cache::Item,
    conditions::{self, Condition},
    controllers::{bootstrap, lifecycle::Lifecycle, nodes::Listening, pod, start_listening},
    progress::Progress,
    registry::{DeleteOptions, Part, Registry, WriteOptions, testing},
};

pub fn object(value: Value) -> Object {
    serde_json::from_value(value).unwrap()
}

pub struct Cluster {
    pub registry: Registry,
    pub progress: Arc<Progress>,
    tasks: JoinSet<&'static str>,
    shutdown: CancellationToken,
    _end: DropGuard,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::over(testing::registry()).await
    }

    /// Controllers over what is there, which have listened to the nodes for long.
    pub async fn over(registry: Registry) -> Self {
        // None of the tests' silences lasts for so long.
        Self::evicting_after(Duration::from_hours(1), registry).await
    }

    /// Pods of silent nodes are replaced after this time.
    pub async fn evicting_after(eviction_timeout: Duration, registry: Registry) -> Self {
        bootstrap(&registry, "10.0.0.1:7443".parse().unwrap()).await.unwrap();
        let (progress, shutdown) = (Arc::new(Progress::default()), CancellationToken::new());
        let lifecycle = Lifecycle::new(Listening::since_then(long_ago()), eviction_timeout);
        let tasks = start_listening(registry.clone(), progress.clone(), lifecycle, shutdown.clone());
        Cluster { registry, progress, tasks, _end: shutdown.clone().drop_guard(), shutdown }
    }

    /// Ends the controllers and answers the names of those that ended.
    pub async fn stop(mut self) -> Vec<&'static str> {
        self.shutdown.cancel();
        let mut names = Vec::new();
        while let Some(name) = self.tasks.join_next().await {
            names.push(name.unwrap());
        }
        names
    }

    pub async fn create(&self, resource: &'static Resource, value: Value) -> Arc<Object> {
        let target = Target::collection(resource, Some("default"));
        self.registry.create(&target, object(value), WriteOptions::default()).await.unwrap()
    }

    /// A Node with an agent that reports and runs its pods until the token is cancelled.
    pub async fn node(&self, name: &str) -> CancellationToken {
        self.create(&NODES, json!({"metadata": {"name": name}})).await;
        self.agent(name).await
    }

    /// A life of the agent of a registered node.
    pub async fn agent(&self, name: &str) -> CancellationToken {
        let end = self.shutdown.child_token();
        let agent = Agent {
            registry: self.registry.clone(),
            progress: self.progress.clone(),
            name: name.to_owned(),
            boot: rand::random::<u64>().to_string(),
            said: 0,
        };
        let token = end.clone();
        // Cancelled, it says no last word: `run_until_cancelled` would let it.
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                () = agent.run() => {}
            }
        });
        self.until(&NODES, |all| all.iter().any(|n| n.name() == name && conditions::is_true(n, "Ready")))
            .await;
        end
    }

    /// The node was last heard long ago: its agent must have ended.
    pub fn silence(&self, name: &str) {
        let name = name.parse().unwrap();
        let mut report = self.progress.report(&name).unwrap();
        report.sequence += 1;
        assert!(self.progress.record(&name, report, long_ago()));
    }

    pub async fn deployment(&self, name: &str, replicas: usize) -> Arc<Object> {
        self.create(&DEPLOYMENTS, deployment(name, replicas)).await
    }

    pub async fn service(&self, name: &str) -> Arc<Object> {
        self.create(
            &SERVICES,
            json!({"metadata": {"name": name}, "spec": {"selector": {"app": name}, "ports": [{"port": 80}]}}),
        )
        .await
    }

    /// Waits until the objects of a kind are as wished, and answers them.
    pub async fn until(
        &self,
        resource: &'static Resource,
        wish: impl Fn(&[Arc<Object>]) -> bool,
    ) -> Vec<Arc<Object>> {
        let wait = async {
            loop {
                let (revision, all) = self.registry.list(resource, None);
                if wish(&all) {
                    return all;
                }
                let mut watch = self.registry.watch(resource, revision).unwrap();
                while !matches!(watch.next().await, Ok(Item::Event(_)) | Err(_)) {}
            }
        };
        let end = tokio::time::timeout(Duration::from_mins(1), wait).await;
        end.unwrap_or_else(|_| panic!("not as wished: {:#?}", self.registry.list(resource, None).1))
    }

    pub async fn ready_pods(&self, count: usize) -> Vec<Arc<Object>> {
        self.until(&PODS, |all| {
            all.len() == count && all.iter().all(|p| pod::is_ready(p) && !pod::is_terminating(p))
        })
        .await
    }

    pub async fn endpoints(&self, service: &str, ready: usize) {
        self.until(&ENDPOINT_SLICES, |all| {
            let ours = all.iter().filter(|s| s.label("kubernetes.io/service-name") == Some(service));
            let endpoints = ours.filter_map(|s| s.pointer("/endpoints")?.as_array()).flatten();
            endpoints.filter(|e| e["conditions"]["ready"] == true).count() == ready
        })
        .await;
    }

    pub async fn delete(&self, resource: &'static Resource, name: &str, options: DeleteOptions) {
        let namespace = resource.is_namespaced().then(|| "default".to_owned());
        let key = ObjectKey { resource, namespace, name: name.to_owned() };
        self.registry.delete(&key, options).await.unwrap();
    }

    pub async fn scale(&self, name: &str, replicas: i64) {
        let key = ObjectKey::namespaced(&DEPLOYMENTS, "default", name);
        let scale = object(json!({"kind": "Scale", "spec": {"replicas": replicas}}));
        self.registry.update_scale(&key, scale, WriteOptions::default()).await.unwrap();
    }
}

pub fn deployment(name: &str, replicas: usize) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "replicas": replicas, "selector": {"matchLabels": {"app": name}},
        "template": {"metadata": {"labels": {"app": name}}, "spec": {
            "containers": [{"name": "c", "command": ["true"], "ports": [{"containerPort": 80}]}],
        }},
    }})
}

struct Agent {
    registry: Registry,
    progress: Arc<Progress>,
    name: String,
    boot: String,
    said: u64,
}

fn long_ago() -> Instant {
    Instant::now().checked_sub(Duration::from_mins(1)).unwrap()
}

impl Agent {
    /// Runs what is bound to it and says that everything is programmed, after each change.
    async fn run(mut self) {
        loop {
            let revision = self.registry.revision();
            let Ok(mut watch) = self.registry.follow(revision) else { continue };
            for p in self.registry.list(&PODS, None).1 {
                self.mind(&p).await;
            }
            self.report();
            loop {
                let item = match tokio::time::timeout(HEARTBEAT_PERIOD, watch.next()).await {
                    Err(_) => {
                        self.report();
                        continue;
                    }
                    Ok(Err(_)) => break,
                    Ok(Ok(item)) => item,
                };
                if let Item::Event(event) = item
                    && event.key.resource == &PODS
                {
                    self.mind(&event.entry.object).await;
                }
                self.report();
            }
        }
    }

    fn report(&mut self) {
        self.said += 1;
        let at = self.registry.revision();
        let report = NodeReport {
            boot_id: self.boot.clone(),
            sequence: self.said,
            services: at,
            endpoint_slices: at,
            ready: true,
            ..NodeReport::default()
        };
        self.progress.record(&self.name.parse().unwrap(), report, Instant::now());
    }

    async fn mind(&self, p: &Object) {
        let (Some(key), true) = (p.key(), pod::node(p) == Some(&self.name)) else { return };
        if pod::is_terminating(p) {
            let options = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
            // Another event may have led to its deletion before.
            let _ = self.registry.delete(&key, options).await;
            return;
        }
        let ready = Condition { kind: "Ready", status: "True", reason: "", message: String::new() };
        let run = |p: &mut Object| {
            if pod::is_ready(p) || pod::is_terminating(p) {
                return Ok(false);
            }
            p.status_mut().insert("phase".into(), "Running".into());
            let bytes =
                key.name.bytes().fold(7_u16, |a, b| a.wrapping_mul(31).wrapping_add(b.into())).to_be_bytes();
            p.status_mut().insert("podIP".into(), format!("10.244.{}.{}", bytes[0], bytes[1]).into());
            Ok(conditions::set(p, &ready, &conditions::now()))
        };
        let _ = self.registry.modify(&key, Part::Status, run).await;
    }
}
