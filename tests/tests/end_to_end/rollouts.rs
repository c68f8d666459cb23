//! Pods come and go under load, and nobody who asks a service is refused, reset or kept waiting.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::Child,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::ensure;

use minisvc_proto::{
    Object, ObjectKey,
    client::{Informer, InformerEvent, ListParams, PatchKind},
    path::Target,
    resource::DEPLOYMENTS,
};
use minisvc_tests::cluster::Cluster;
use serde_json::json;

use super::{client, object, pod_names};

/// Requests of one call of curl, eight of them at a time.
const BATCH: usize = 500;

/// Asks a URL from a node, with a new connection for each request, until the file `stop` is there, or a request was refused, reset, not
/// answered with 200, or took ten seconds. Nothing is asked twice.
struct Load {
    what: &'static str,
    child: Child,
}

impl Load {
    fn start(cluster: &Cluster, what: &'static str, node: &str, url: &str) -> Self {
        let stop = cluster.home().join("stop");
        let ask = "curl -sS -Z --parallel-max 8 --max-time 10 -H 'Connection: close' -o /dev/null -w '%{http_code}\\n'";
        let script = format!(
            "n=0; while ! [ -e {stop} ]; do {ask} '{url}[1-{BATCH}]' | grep -vx 200 && exit 1; n=$((n + {BATCH})); done; echo $n",
            stop = stop.display()
        );
        let mut command = cluster.command(cluster.binary());
        command.args(["node", "exec", node, "--", "sh", "-c", &script]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        Load { what, child: command.spawn().unwrap() }
    }

    /// How many requests were answered, which are all.
    fn end(self) -> usize {
        let said = self.child.wait_with_output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
        assert!(said.status.success(), "{}: {out}{err}", self.what);
        out.trim().parse().unwrap_or_else(|_| panic!("{}: {out}{err}", self.what))
    }
}

/// Asks over one connection for as long as the server keeps it open, then over the next; answers how many requests and connections
/// that were. The first request that is refused, reset, not answered with 200, or is not answered within ten seconds is an error.
fn keep_asking(port: u16, stop: &AtomicBool) -> anyhow::Result<(usize, usize)> {
    let (mut requests, mut connections) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut stream = BufReader::new(stream);
        connections += 1;
        let mut open = true;
        while open && !stop.load(Ordering::Relaxed) {
            stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")?;
            let (mut head, mut length) = (String::new(), 0);
            while !head.ends_with("\r\n\r\n") {
                ensure!(stream.read_line(&mut head)? > 0, "closed after {requests} requests, in {head:?}");
                let line = head.lines().last().unwrap_or("").to_lowercase();
                open &= line != "connection: close";
                if let Some(n) = line.strip_prefix("content-length: ") {
                    length = n.parse()?;
                }
            }
            ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
            stream.read_exact(&mut vec![0; length])?;
            requests += 1;
        }
    }
    Ok((requests, connections))
}

/// Ten pods that say when they are ready, behind a nodePort service.
fn ten_pods(cluster: &Cluster, node_port: u16) {
    let container = json!({"name": "echo", "command": ["minisvc", "echo", "--port", "8080"],
        "readinessProbe": {"httpGet": {"port": 8080}}});
    let labels = json!({"app": "web"});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 10, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}});
    let file = cluster.home().join("web.json");
    std::fs::write(&file, deployment.to_string()).unwrap();
    cluster.sh(&format!("minisvc create -f {}", file.display())).ok();
    cluster.sh(&format!("minisvc create service nodeport web --tcp=80:8080 --node-port={node_port}")).ok();
    cluster.sh("minisvc wait --for=condition=Available deployment/web --timeout=60s").ok();
    cluster.sh("minisvc wait --for=condition=Ready pod -l app=web --timeout=60s").ok();
    cluster.sh("minisvc wait --for=condition=Programmed service/web --timeout=30s").ok();
}

/// Changes the deployment, and waits until it has what it wants and nothing else.
fn change(cluster: &Cluster, patch: &serde_json::Value) {
    let complete = |o: &Object| {
        let number = |path: &str| o.pointer(path).and_then(serde_json::Value::as_i64).unwrap_or(0);
        let wanted = number("/spec/replicas");
        number("/status/observedGeneration") == number("/metadata/generation")
            && ["replicas", "updatedReplicas", "availableReplicas"]
                .iter()
                .all(|f| number(&format!("/status/{f}")) == wanted)
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rolled = async {
        let target = Target::object(&ObjectKey::namespaced(&DEPLOYMENTS, "default", "web"));
        let client = client(cluster);
        let generation = client.patch(&target, PatchKind::Merge, patch).await.unwrap().generation();
        let mut events =
            Informer::spawn(client, Target::collection(&DEPLOYMENTS, Some("default")), ListParams::default());
        loop {
            let objects = match events.recv().await.unwrap() {
                InformerEvent::Reset(_, objects) => objects,
                InformerEvent::Changed(event) => vec![event.object.into()],
            };
            if objects.iter().any(|o| o.generation() >= generation && complete(o)) {
                return;
            }
        }
    };
    runtime.block_on(async { tokio::time::timeout(Duration::from_mins(2), rolled).await }).unwrap();
}

#[test]
fn a_rollout_and_a_scale_down_fail_no_request() {
    let cluster = Cluster::up("rollouts", 3);
    ten_pods(&cluster, 30_071);
    let ip = object(&cluster, "service/web")["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let loads = [
        Load::start(&cluster, "ClusterIP from node-1", "node-1", &format!("http://{ip}/")),
        Load::start(&cluster, "nodePort of node-3 from node-2", "node-2", "http://192.168.77.13:30071/"),
    ];
    let stop = Arc::new(AtomicBool::new(false));
    let kept: Vec<_> = (0..2)
        .map(|_| {
            let stop = stop.clone();
            thread::spawn(move || keep_asking(30_071, &stop))
        })
        .collect();
    let old = pod_names(&cluster);
    let container = json!({"name": "echo", "command": ["minisvc", "echo", "--port", "8080"],
        "readinessProbe": {"httpGet": {"port": 8080}}, "env": [{"name": "VERSION", "value": "2"}]});
    change(&cluster, &json!({"spec": {"template": {"spec": {"containers": [container]}}}}));
    cluster.sh(&format!("minisvc wait --for=delete pod {} --timeout=60s", old.join(" "))).ok();
    change(&cluster, &json!({"spec": {"replicas": 2}}));
    change(&cluster, &json!({"spec": {"replicas": 6}}));
    let [first, ..] = &pod_names(&cluster)[..] else { panic!("no pods") };
    cluster.sh(&format!("minisvc delete pod {first} --timeout=60s")).ok();
    std::fs::write(cluster.home().join("stop"), "").unwrap();
    let asked = loads.map(Load::end);
    assert!(asked.iter().all(|n| *n >= 2 * BATCH), "{asked:?}");
    stop.store(true, Ordering::Relaxed);
    let kept: Vec<_> = kept.into_iter().map(|one| one.join().unwrap().unwrap()).collect();
    assert!(
        kept.iter().all(|(requests, connections)| requests > connections && *connections > 1),
        "{kept:?}"
    );
    println!("requests without a failure: {asked:?}, over kept connections (and how many): {kept:?}");
    // The wait was for the nodes, not for its end.
    let events = cluster.sh("minisvc get events").ok();
    assert!(!events.contains("WithdrawalTimeout"), "{events}");
}

#[test]
fn a_rollout_that_never_gets_ready_harms_nothing_and_is_undone() {
    let cluster = Cluster::up("undo", 2);
    ten_pods(&cluster, 30_072);
    let images = || {
        let list = object(&cluster, "pods -l app=web");
        let pods = list["items"].as_array().unwrap().clone();
        let of =
            |p: &serde_json::Value| p["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"].clone();
        pods.iter().filter(|p| p["metadata"]["deletionTimestamp"].is_null()).map(of).collect::<Vec<_>>()
    };
    let target = Target::object(&ObjectKey::namespaced(&DEPLOYMENTS, "default", "web"));
    let container = json!({"name": "echo", "command": ["minisvc", "echo", "--port", "8080"],
        "readinessProbe": {"httpGet": {"port": 9}}});
    let patch = json!({"metadata": {"annotations": {"kubernetes.io/change-cause": "a wrong port"}},
        "spec": {"progressDeadlineSeconds": 3, "template": {"spec": {"containers": [container]}}}});
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { client(&cluster).patch(&target, PatchKind::Merge, &patch).await }).unwrap();

    let late = cluster.sh("minisvc rollout status deployment/web --timeout=60s");
    assert_eq!(late.status.code(), Some(1), "{late}");
    assert!(late.err.contains("deployment \"web\" exceeded its progress deadline"), "{late}");
    let seen = images();
    let count = |port: u16| seen.iter().filter(|p| **p == port).count();
    // 25 % of ten: three beyond, two missing.
    assert_eq!((count(8080), count(9)), (8, 5), "{seen:?}");
    // The pods that never got ready answer nobody, and the others serve.
    let answering = super::answers("http://127.0.0.1:30072/", 200);
    assert_eq!(answering.len(), 8, "{answering:?}");

    cluster.sh("minisvc rollout undo deployment/web").ok();
    let out = cluster.sh("minisvc rollout status deployment/web --timeout=60s").ok();
    assert!(out.ends_with("deployment \"web\" successfully rolled out\n"), "{out}");
    let seen = images();
    assert!(seen.len() == 10 && seen.iter().all(|p| *p == 8080), "{seen:?}");
    let history = cluster.sh("minisvc rollout history deployment/web").ok();
    let rows: Vec<_> =
        history.lines().skip(2).map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(rows[..2], ["2 a wrong port", "3 <none>"], "{history}");
    let events = cluster.sh("minisvc describe deployment web").ok();
    assert!(events.contains("Scaled down replica set") && events.contains(" from 5 to "), "{events}");
}
