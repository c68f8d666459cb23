//! A server and the pods' part of one agent, in this process: real pods, but no network between them.

#![allow(clippy::unwrap_used, reason = "a test kit: what cannot go on fails the test here")]

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::StreamExt;
use minisvc_agent::{
    api::{Api, ApiConfig},
    identity,
    runtime::{LocalRuntime, RuntimeConfig},
    sync::{
        events::Recorder,
        local_health::LocalHealth,
        pods::{self, Directory, NoNetwork, PodsConfig, ServiceLinks},
        readiness::Readiness,
        reporter,
    },
};
use minisvc_proto::{
    NodeName, Object, ObjectKey,
    client::{Client, Identity, Kubeconfig, ListParams, PatchKind},
    path::Target,
    resource::{JOIN_TOKENS, NODES, PODS},
    watch::EventType,
};
use minisvc_server::{
    pki::Pki,
    run::{Server, ServerConfig, pki_dir},
};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::binary::minisvc;

const NODE: &str = "node-1";

/// A server with one node.
pub struct TestNode {
    /// Holds the node's `run` and `log`.
    pub home: PathBuf,
    /// May do everything.
    pub admin: Client,
    /// The node's own credentials.
    pub kubeconfig: Kubeconfig,
    /// The pods' range: addresses of loopback that no other test uses.
    pub range: ipnet::Ipv4Net,
    server: (CancellationToken, JoinSet<()>),
    agent: Option<(CancellationToken, JoinSet<()>)>,
    /// Where the agent's API listens.
    pub api: Option<std::net::SocketAddr>,
}

impl TestNode {
    /// Starts both. `number` tells the tests of one executable apart, 0 to 255.
    pub async fn start(home: &Path, number: u8) -> Self {
        let second = 1 + u8::try_from(std::process::id() % 250).unwrap();
        let range = ipnet::Ipv4Net::new(Ipv4Addr::new(127, second, number, 0), 24).unwrap();
        let config = ServerConfig {
            data_dir: home.join("server"),
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            advertise: Ipv4Addr::LOCALHOST.into(),
            tls_sans: Vec::new(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            pod_cidr: ipnet::Ipv4Net::new(Ipv4Addr::new(127, second, 0, 0), 16).unwrap().into(),
            node_port_range: (30000, 32767),
            vxlan_port: minisvc_proto::join::VXLAN_PORT,
            node_certificate_ttl: std::time::Duration::from_hours(24),
            pod_eviction_timeout: std::time::Duration::from_secs(6),
        };
        let server = Server::open(config).await.unwrap();
        let url = format!("https://{}", server.address());
        let pki = Pki::load(&pki_dir(&home.join("server"))).unwrap();
        let config = |issued| Kubeconfig::from_yaml(&pki.kubeconfig(&issued, &url).unwrap()).unwrap();
        let admin = Client::from_kubeconfig(&config(pki.issue_admin().unwrap())).unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let serving = server.serve(stop.clone());
        tasks.spawn(async move { serving.await.unwrap() });
        let tokens = Target::collection(&JOIN_TOKENS, None);
        let token = admin.create(&tokens, &Object::new(&JOIN_TOKENS, None, ""), false).await.unwrap();
        let token = token.str_at("/status/token").unwrap().parse().unwrap();
        let joined = identity::join(&url, &token, &NODE.parse().unwrap(), &stop).await.unwrap();
        let kubeconfig = joined.unwrap().kubeconfig;
        let mut object = Object::new(&NODES, None, NODE);
        object.spec_mut().insert("podCIDR".into(), range.to_string().into());
        admin.create(&Target::collection(&NODES, None), &object, false).await.unwrap();
        let mut node = TestNode {
            home: home.to_path_buf(),
            admin,
            kubeconfig,
            range,
            server: (stop, tasks),
            agent: None,
            api: None,
        };
        node.start_agent().await;
        node
    }

    /// Starts the agent's part, on what an earlier one left.
    pub async fn start_agent(&mut self) {
        let credentials = self.kubeconfig.credentials().unwrap();
        let identity = Arc::new(Identity::new(&credentials.certificate, &credentials.key).unwrap());
        let client = Client::with_identity(&self.kubeconfig, &identity).unwrap();
        let node: NodeName = NODE.parse().unwrap();
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let readiness = Readiness::new(&[pods::PART]);
        let (recorder, events) = Recorder::new(client.clone(), node.clone(), stop.clone());
        tasks.spawn(events);
        let (unregistered, _) = tokio::sync::mpsc::channel(1);
        let reports = readiness.subscribe();
        tasks.spawn(reporter::run(client.clone(), node.clone(), reports, unregistered, stop.clone()));
        let run_dir = self.home.join("run");
        let config = RuntimeConfig { run_dir: run_dir.clone(), binary: minisvc().unwrap() };
        let runtime = Arc::new(LocalRuntime::new(config).unwrap());
        let directory = Directory::default();
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        let config = ApiConfig { listen, run_dir: run_dir.clone(), resolv_conf: None };
        let api = Api::bind(config, &self.kubeconfig, &identity).await.unwrap();
        let address = api.address().unwrap();
        self.api = Some(address);
        let facts = json!({"status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}}}});
        let key = ObjectKey::cluster(&NODES, NODE);
        let target = Target::object(&key).with_subresource("status");
        client.patch(&target, PatchKind::Merge, &facts).await.unwrap();
        tasks.spawn(api.serve(runtime.clone(), directory.clone(), stop.clone()));
        let config = PodsConfig {
            node,
            node_ip: Ipv4Addr::LOCALHOST,
            local_pod_cidr: self.range,
            family6: None,
            dns_ip: "10.96.0.10".parse().unwrap(),
            cluster_domain: "cluster.local".into(),
            run_dir,
            log_dir: self.home.join("log"),
            volume_dir: self.home.join("volumes"),
            resolv_conf: "/etc/resolv.conf".into(),
            withdraw_timeout: std::time::Duration::from_secs(5),
        };
        let links = ServiceLinks::default();
        links.complete();
        let parts = ((runtime, NoNetwork), (recorder, readiness, links, LocalHealth::default()));
        tasks.spawn(pods::run(client, config, parts.0, parts.1, directory, stop.clone()));
        self.agent = Some((stop, tasks));
    }

    /// Ends the agent's part; its pods live on.
    pub async fn stop_agent(&mut self) {
        if let Some((stop, tasks)) = self.agent.take() {
            stop.cancel();
            tasks.join_all().await;
        }
    }

    /// Ends all, pods included.
    pub async fn end(mut self) {
        let pods = Target::collection(&PODS, Some("default"));
        let (_, objects) = self.admin.list(&pods, &ListParams::default()).await.unwrap();
        for object in &objects {
            // One whose end was asked for by the test may be gone by now.
            match self.admin.delete(&pod(object.name()), &json!({"gracePeriodSeconds": 1})).await {
                Err(error) if error.is_not_found() => {}
                other => drop(other.unwrap()),
            }
        }
        for pod in &objects {
            self.gone(pod.name()).await;
        }
        self.stop_agent().await;
        self.server.0.cancel();
        self.server.1.join_all().await;
    }

    /// Creates a pod on this node with one container `c`; `more` is merged into the container, and `spec` into the pod.
    pub async fn run(&self, name: &str, command: &[&str], spec: Value, more: Value) -> Object {
        let mut container = json!({"name": "c", "command": command});
        merge(&mut container, more);
        let mut whole = json!({"nodeName": NODE, "containers": [container]});
        merge(&mut whole, spec);
        let mut pod = Object::new(&PODS, Some("default"), name);
        pod.0.insert("spec".into(), whole);
        self.admin.create(&Target::collection(&PODS, Some("default")), &pod, false).await.unwrap()
    }

    /// Deletes a pod.
    pub async fn delete(&self, name: &str, options: Value) {
        self.admin.delete(&pod(name), &options).await.unwrap();
    }

    /// The pod's first state that the test is for, however it comes about.
    pub async fn until(&self, name: &str, test: impl Fn(&Object) -> bool) -> Object {
        self.watch(name, |pod| pod.filter(|p| test(p)).cloned()).await
    }

    /// Returns when there is no such pod.
    pub async fn gone(&self, name: &str) {
        self.watch(name, |pod| pod.is_none().then_some(())).await;
    }

    async fn watch<T>(&self, name: &str, test: impl Fn(Option<&Object>) -> Option<T>) -> T {
        let target = Target::collection(&PODS, Some("default"));
        let params = ListParams::fields(format!("metadata.name={name}"));
        let (revision, found) = self.admin.list(&target, &params).await.unwrap();
        if let Some(done) = test(found.first()) {
            return done;
        }
        let mut events = self.admin.watch(&target, &params, revision).await.unwrap();
        loop {
            let event = events.next().await.unwrap().unwrap();
            let pod = (event.kind != EventType::Deleted).then_some(&event.object);
            if event.kind != EventType::Bookmark
                && let Some(done) = test(pod)
            {
                return done;
            }
        }
    }
}

fn merge(into: &mut Value, more: Value) {
    if let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) {
        into.extend(more);
    }
}

/// A pod of the namespace default.
pub fn pod(name: &str) -> Target {
    Target::object(&ObjectKey::namespaced(&PODS, "default", name))
}

/// The status of a pod's condition.
pub fn condition<'a>(pod: &'a Object, kind: &str) -> &'a str {
    let all = pod.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    all.filter(|c| c["type"] == kind).find_map(|c| c["status"].as_str()).unwrap_or("")
}

/// The status of a pod's container.
pub fn container(pod: &Object) -> Value {
    pod.pointer("/status/containerStatuses/0").cloned().unwrap_or_default()
}
