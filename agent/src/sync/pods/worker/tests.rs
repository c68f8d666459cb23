//! A pod's task on a runtime in memory, with a server that cannot be reached: what it asks of the runtime, and in which order.

use minisvc_proto::client::{Client, Kubeconfig};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    super::{Directory, NoNetwork, PodsConfig, ServiceLinks, ipam::Ipam, spec::Machine},
    *,
};
use crate::{
    runtime::fake::FakeRuntime,
    sync::{events::Recorder, local_health::LocalHealth},
};

/// An agent with one pod.
struct Agent {
    runtime: Arc<FakeRuntime>,
    object: Object,
    objects: watch::Sender<Option<Arc<Object>>>,
    status: watch::Receiver<Option<Value>>,
    task: AbortOnDropHandle<()>,
    _home: tempfile::TempDir,
}

fn pod(spec: Value) -> Object {
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"}, "spec": spec}))
    .unwrap()
}

/// Nobody listens there.
fn client() -> Client {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let ca = rcgen::generate_simple_self_signed(["ca.test".to_owned()]).unwrap().cert.pem();
    let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1", "certificate-authority-data": STANDARD.encode(ca)}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]});
    Client::from_kubeconfig(&Kubeconfig::from_yaml(&config.to_string()).unwrap()).unwrap()
}

impl Agent {
    /// With the pod that this object says; `runtime` may hold it already.
    async fn start(runtime: &Arc<FakeRuntime>, object: Object) -> Self {
        let home = tempfile::tempdir().unwrap();
        let range = "10.244.1.0/24".parse().unwrap();
        let node_ip = Ipv4Addr::new(192, 0, 2, 1);
        let shutdown = CancellationToken::new();
        let links = ServiceLinks::default();
        links.complete();
        let shared = Shared {
            client: client(),
            config: PodsConfig {
                node: "node-1".parse().unwrap(),
                node_ip,
                local_pod_cidr: range,
                family6: None,
                dns_ip: Ipv4Addr::new(10, 96, 0, 10),
                cluster_domain: "cluster.local".into(),
                run_dir: home.path().join("run"),
                log_dir: home.path().join("log"),
                volume_dir: home.path().join("volumes"),
                resolv_conf: "/dev/null".into(),
                withdraw_timeout: Duration::ZERO,
            },
            machine: Machine {
                node: "node-1".into(),
                node_ips: vec![node_ip.into()],
                path: "/bin".into(),
                own_uid: 0,
                uids: vec![(0, u32::MAX)],
                users: BTreeMap::new(),
            },
            runtime: runtime.clone(),
            network: NoNetwork,
            recorder: Recorder::new(client(), "node-1".parse().unwrap(), shutdown.clone()).0,
            ipam: std::sync::Mutex::new(Ipam::new(range)),
            links,
            local_health: LocalHealth::default(),
            directory: Directory::default(),
            shutdown,
        };
        let setup = runtime.adopt().await.pop();
        let (objects, watched) = watch::channel(Some(Arc::new(object.clone())));
        let worker = Worker::new(Arc::new(shared), setup, Some(Arc::new(object.clone()))).unwrap();
        let status = worker.want.subscribe();
        let task = AbortOnDropHandle::new(tokio::spawn(worker.run(watched)));
        Agent { runtime: runtime.clone(), object, objects, status, task, _home: home }
    }

    /// The first status that the test is for.
    async fn until(&mut self, test: impl Fn(&Value) -> bool) -> Value {
        let is = |status: &Option<Value>| status.as_ref().is_some_and(&test);
        self.status.wait_for(is).await.unwrap().clone().unwrap()
    }

    /// The calls up to the first that says this.
    async fn called(&self, last: &str) -> Vec<String> {
        let mut calls = self.runtime.calls();
        calls.wait_for(|c| c.iter().any(|c| c == last)).await.unwrap().clone()
    }

    fn delete(&mut self) {
        let meta = self.object.metadata_mut();
        meta.insert("deletionTimestamp".into(), "2026-11-25T00:00:00Z".into());
        meta.insert("deletionGracePeriodSeconds".into(), 30.into());
        self.objects.send_replace(Some(Arc::new(self.object.clone())));
    }
}

fn is_ready(status: &Value) -> bool {
    status["conditions"].as_array().unwrap().iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// An init container, a sidecar, and a main container with all hooks.
fn whole() -> Object {
    let exec = |program: &str| json!({"exec": {"command": [program]}});
    pod(json!({
        "initContainers": [
            {"name": "i", "command": ["once"]},
            {"name": "s", "command": ["serve"], "restartPolicy": "Always", "startupProbe": exec("is-up")}],
        "containers": [{"name": "c", "command": ["serve"],
            "lifecycle": {"postStart": exec("post"), "preStop": exec("pre")}}],
    }))
}

#[tokio::test]
async fn a_pod_comes_and_goes_in_order() {
    let runtime = Arc::new(FakeRuntime::default());
    let mut agent = Agent::start(&runtime, whole()).await;
    agent.called("start i 0").await;
    runtime.exit("u1", "i", 0, None);
    agent.until(is_ready).await;
    agent.delete();
    let calls = agent.called("remove").await;
    assert_eq!(
        calls,
        [
            "start i 0",
            "start s 0",
            "exec s is-up",
            "start c 0",
            "exec c post",
            "exec c pre",
            "signal c 15",
            "signal s 15",
            "end",
            "remove"
        ]
    );
}

#[tokio::test]
async fn the_next_agent_asks_no_hook_and_no_startup_probe_again() {
    let runtime = Arc::new(FakeRuntime::default());
    let mut agent = Agent::start(&runtime, whole()).await;
    agent.called("start i 0").await;
    runtime.exit("u1", "i", 0, None);
    let status = agent.until(is_ready).await;
    let before = runtime.calls().borrow().len();
    let mut object = agent.object.clone();
    object.0.insert("status".into(), status);
    drop(agent.task);
    let mut agent = Agent::start(&runtime, object).await;
    agent.until(is_ready).await;
    agent.delete();
    let calls = agent.called("remove").await;
    assert_eq!(calls[before..], ["exec c pre", "signal c 15", "signal s 15", "end", "remove"]);
}

#[tokio::test]
async fn after_a_restart_of_the_machine_all_begins_anew() {
    let runtime = Arc::new(FakeRuntime::default());
    let mut agent = Agent::start(&runtime, whole()).await;
    agent.called("start i 0").await;
    runtime.exit("u1", "i", 0, None);
    let mut object = agent.object.clone();
    object.0.insert("status".into(), agent.until(is_ready).await);
    drop(agent);
    let runtime = Arc::new(FakeRuntime::default());
    let mut agent = Agent::start(&runtime, object).await;
    agent.called("start i 1").await;
    let status = agent.until(|s| s["initContainerStatuses"][0]["state"].get("running").is_some()).await;
    assert_eq!((&status["phase"], is_ready(&status)), (&json!("Pending"), false));
    assert_eq!(status["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    runtime.exit("u1", "i", 0, None);
    agent.until(is_ready).await;
    let calls = runtime.calls().borrow().clone();
    assert_eq!(calls, ["start i 1", "start s 1", "exec s is-up", "start c 1", "exec c post"]);
}

#[tokio::test]
async fn a_start_hook_that_was_cut_off_runs_again() {
    let runtime = Arc::new(FakeRuntime::default());
    runtime.hangs("post");
    let spec = json!({"containers": [
        {"name": "c", "command": ["serve"], "lifecycle": {"postStart": {"exec": {"command": ["post"]}}}},
        {"name": "d", "command": ["serve"]}]});
    let mut agent = Agent::start(&runtime, pod(spec)).await;
    let running = |s: &Value| s["containerStatuses"][0]["state"].get("running").is_some();
    let status = agent.until(running).await;
    assert_eq!(status["containerStatuses"][0]["started"], false);
    assert_eq!(status["containerStatuses"][1]["state"]["waiting"]["reason"], "ContainerCreating");
    let mut object = agent.object.clone();
    object.0.insert("status".into(), status);
    drop(agent.task);
    runtime.ends("post");
    let mut agent = Agent::start(&runtime, object).await;
    agent.until(is_ready).await;
    assert_eq!(*runtime.calls().borrow(), ["start c 0", "exec c post", "exec c post", "start d 0"]);
}

#[tokio::test]
async fn what_is_not_well_ends_after_its_hook_and_starts_again() {
    let runtime = Arc::new(FakeRuntime::default());
    runtime.fails("is-well", 1, "no");
    let exec = |program: &str| json!({"exec": {"command": [program]}, "failureThreshold": 1});
    let spec = json!({"containers": [{"name": "c", "command": ["serve"], "livenessProbe": exec("is-well"),
        "lifecycle": {"preStop": {"exec": {"command": ["pre"]}}}}]});
    let mut agent = Agent::start(&runtime, pod(spec)).await;
    agent.called("signal c 15").await;
    runtime.recovers("is-well");
    agent.until(|s| is_ready(s) && s["containerStatuses"][0]["restartCount"] == 1).await;
    let calls = agent.called("start c 1").await;
    assert_eq!(calls[..5], ["start c 0", "exec c is-well", "exec c pre", "signal c 15", "start c 1"]);
}

#[tokio::test]
async fn one_containers_fault_is_not_that_of_another() {
    let runtime = Arc::new(FakeRuntime::default());
    // Nobody may run as root here, and one of them would.
    let spec = json!({"containers": [
        {"name": "bad", "command": ["serve"], "securityContext": {"runAsNonRoot": true}},
        {"name": "good", "command": ["serve"]}]});
    let mut agent = Agent::start(&runtime, pod(spec)).await;
    agent.called("start good 0").await;
    runtime.exit("u1", "good", 1, None);
    agent.until(|s| s["containerStatuses"][1]["restartCount"] == 1).await;
    let status = agent.until(|s| s["containerStatuses"][1]["ready"] == true).await;
    let waiting = &status["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["reason"], "CreateContainerConfigError", "{status}");
}

#[tokio::test]
async fn a_start_hook_that_ends_after_the_end_has_begun_begins_nothing() {
    let runtime = Arc::new(FakeRuntime::default());
    runtime.stubborn("serve");
    runtime.hangs("post");
    let exec = |program: &str| json!({"exec": {"command": [program]}});
    let spec = json!({"containers": [{"name": "c", "command": ["serve"], "livenessProbe": exec("is-well"),
        "lifecycle": {"postStart": exec("post"), "preStop": exec("pre")}}]});
    let mut agent = Agent::start(&runtime, pod(spec)).await;
    agent.called("exec c post").await;
    agent.delete();
    agent.called("signal c 15").await;
    runtime.exit("u1", "c", 0, None);
    let calls = agent.called("remove").await;
    assert_eq!(calls, ["start c 0", "exec c post", "exec c pre", "signal c 15", "end", "remove"]);
}
