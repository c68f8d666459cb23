//! What a pod is, and what a user sees of it.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use minisvc_tests::cluster::Cluster;

use super::object;

#[test]
fn a_pod_has_a_world_of_its_own() {
    let cluster = Cluster::up("world", 1);
    cluster.sh("minisvc run one --env COLOUR=blue -- minisvc echo --port 8080").ok();
    cluster.sh("minisvc wait --for=condition=Ready pod/one --timeout=30s").ok();
    let exec = |line: &str| cluster.run(&["exec", "one", "--", "sh", "-c", line]);
    assert_eq!(exec("hostname").ok().trim(), "one");
    assert_eq!(exec("pwd").ok().trim(), "/");
    let resolv = exec("cat /etc/resolv.conf").ok();
    assert!(resolv.contains("nameserver 10.96.0.10") && resolv.contains("ndots:5"), "{resolv}");
    let hosts = exec("cat /etc/hosts").ok();
    let ip = object(&cluster, "pod/one")["status"]["podIP"].as_str().unwrap().to_owned();
    assert!(hosts.contains("localhost") && hosts.contains(&ip), "{hosts}");
    // Nothing of the agent's environment, nothing of other processes, nothing of this machine's /tmp.
    let environment = exec("tr '\\0' '\\n' < /proc/$(pgrep -o -f 'minisvc echo' || echo 2)/environ").ok();
    assert!(environment.contains("COLOUR=blue"), "{environment}");
    for name in environment.lines().filter_map(|l| l.split_once('=')).map(|(name, _)| name) {
        // The API server is a service of every pod's environment.
        let known = ["PATH", "HOME", "HOSTNAME", "COLOUR"].contains(&name) || name.starts_with("KUBERNETES_");
        assert!(known || name.starts_with("MINISVC_") || name.contains("_SERVICE_"), "{name} is inherited");
    }
    let processes: usize = exec("ls -d /proc/[0-9]* | wc -l").ok().trim().parse().unwrap();
    assert!(processes < 10, "a pod sees {processes} processes");
    // Of this machine's /tmp there is nothing but, where it lies there, the way to `minisvc`.
    let strange = tempfile::Builder::new().prefix("strange").tempfile_in("/tmp").unwrap();
    let seen = exec("ls -A /tmp").ok();
    let name = strange.path().file_name().unwrap().to_string_lossy().into_owned();
    assert!(!seen.contains(&name) && seen.lines().count() <= 2, "{seen}");
    assert_eq!(exec("touch /tmp/mine && ls /tmp/mine").ok().trim(), "/tmp/mine");
    assert!(!std::path::Path::new("/tmp/mine").exists());
    assert_eq!(exec("command -v minisvc >/dev/null && echo there").ok().trim(), "there");
    // Exit codes and streams come through.
    let said = exec("echo out; echo err >&2; exit 7");
    assert_eq!((said.status.code(), said.out.as_str()), (Some(7), "out\n"), "{said}");
    assert!(said.err.contains("err"), "{said}");
}

#[test]
fn logs_endings_and_readiness_are_told() {
    let cluster = Cluster::up("told", 1);
    cluster
        .run(&["run", "talker", "--restart=Never", "--", "sh", "-c", "echo hello; echo world >&2; exit 3"])
        .ok();
    cluster.sh("minisvc wait --for=jsonpath={.status.phase}=Failed pod/talker --timeout=30s").ok();
    let log = cluster.sh("minisvc logs talker").ok();
    assert!(log.contains("hello") && log.contains("world"), "{log}");
    let status = object(&cluster, "pod/talker");
    let code = status.pointer("/status/containerStatuses/0/state/terminated/exitCode");
    assert_eq!(code, Some(&3.into()), "{status}");
    // A pod that never gets ready gets no traffic, and `create service` names it.
    let file = cluster.home().join("late.yaml");
    std::fs::write(
        &file,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: late, labels: {app: late}}\nspec:\n  containers:\n  - name: main\n    \
         command: [minisvc, echo, --port, '8080']\n    readinessProbe: {httpGet: {port: 9999, path: /}, periodSeconds: 1}\n",
    )
    .unwrap();
    cluster.run(&["create", "-f", file.to_str().unwrap()]).ok();
    let error = cluster.sh("minisvc create service clusterip late --tcp=80:8080 --timeout=2s").refused(1);
    assert!(error.contains("late"), "{error}");
    let said = cluster.sh("minisvc create service clusterip nobody --tcp=80:8080");
    assert!(said.status.success() && said.err.contains("no pod"), "{said}");
}

#[test]
fn the_containers_of_a_pod_come_in_order_and_share_its_network() {
    let cluster = Cluster::up("order", 1);
    let file = cluster.home().join("shop.yaml");
    std::fs::write(
        &file,
        "apiVersion: v1
kind: Pod
metadata: {name: shop, labels: {app: shop}}
spec:
  initContainers:
  - {name: prepare, command: [sh, -c, 'echo prepared']}
  - name: proxy
    restartPolicy: Always
    command: [minisvc, echo, --port, '9000']
    ports: [{name: web, containerPort: 9000}]
    startupProbe: {httpGet: {port: web, httpHeaders: [{name: X-Who, value: probe}]}}
    livenessProbe: {tcpSocket: {port: web}, periodSeconds: 1}
  containers:
  - {name: main, command: [sh, -c, 'curl -sS --max-time 5 http://127.0.0.1:9000/ && exec sleep 1000']}
",
    )
    .unwrap();
    cluster.run(&["create", "-f", file.to_str().unwrap()]).ok();
    cluster.sh("minisvc expose pod shop --name front --port 80 --target-port web").ok();
    let row = cluster.sh("minisvc get pod shop --no-headers").ok();
    assert_eq!(row.split_whitespace().take(4).collect::<Vec<_>>(), ["shop", "2/2", "Running", "0"], "{row}");
    assert_eq!(cluster.sh("minisvc logs shop -c prepare").ok(), "prepared\n");
    // What main asks for at its start is there: the sidecar is started.
    let said = cluster.sh("minisvc logs shop");
    assert!(
        said.err.contains("Defaulted container \"main\" out of: main, prepare (init), proxy (init)"),
        "{said}"
    );
    assert_eq!(super::pod_of(&said.ok()), "shop");
    // A service may mean a sidecar's port by its name.
    let out = cluster.sh("minisvc exec shop -c proxy -- curl -sS --max-time 5 http://front/").ok();
    assert_eq!(super::pod_of(&out), "shop");
    let described = cluster.sh("minisvc describe pod shop").ok();
    assert!(described.contains("Init Containers:") && described.contains("Restart Policy:"), "{described}");
}

/// One more question over a connection that stays open.
fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: calm\r\n\r\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0, "the connection was closed");
        let line = line.trim().to_lowercase();
        if let Some(n) = line.strip_prefix("content-length:") {
            length = n.trim().parse().unwrap();
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    super::pod_of(&String::from_utf8(body).unwrap())
}

#[test]
fn a_failed_readiness_probe_touches_nothing_that_is_under_way() {
    let cluster = Cluster::up("calm", 1);
    let file = cluster.home().join("calm.yaml");
    std::fs::write(
        &file,
        "apiVersion: v1
kind: Pod
metadata: {name: calm, labels: {app: calm}}
spec:
  containers:
  - name: main
    command: [sh, -c, 'touch /tmp/well; exec minisvc echo --port 8080']
    readinessProbe: {exec: {command: [test, -e, /tmp/well]}, periodSeconds: 1, failureThreshold: 1}
",
    )
    .unwrap();
    cluster.run(&["create", "-f", file.to_str().unwrap()]).ok();
    cluster.sh("minisvc create service nodeport calm --tcp=80:8080 --node-port=30047").ok();
    let mut stream = TcpStream::connect("127.0.0.1:30047").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(ask(&mut stream), "calm");
    cluster.sh("minisvc exec calm -- rm /tmp/well").ok();
    cluster.sh("minisvc wait --for=condition=Ready=False pod/calm --timeout=30s").ok();
    assert_eq!(ask(&mut stream), "calm");
    cluster.sh("minisvc exec calm -- touch /tmp/well").ok();
    // It returns when the node has all that came before in its kernel, the way out of rotation and back.
    cluster.sh("minisvc expose pod calm --name again --port 80 --target-port 8080").ok();
    assert_eq!(ask(&mut stream), "calm");
    let status = object(&cluster, "pod/calm");
    assert_eq!(status.pointer("/status/containerStatuses/0/restartCount"), Some(&0.into()), "{status}");
}

#[test]
fn a_pod_that_cannot_be_placed_or_started_says_why() {
    let cluster = Cluster::up("why", 1);
    let file = cluster.home().join("pods.yaml");
    std::fs::write(
        &file,
        "apiVersion: v1\nkind: Pod\nmetadata: {name: nowhere}\nspec:\n  nodeSelector: {disk: fast}\n  containers:\n  - {name: main, command: [sleep, '60']}\n",
    )
    .unwrap();
    cluster.run(&["create", "-f", file.to_str().unwrap()]).ok();
    cluster.sh("minisvc wait --for=condition=PodScheduled=False pod/nowhere --timeout=30s").ok();
    let described = cluster.sh("minisvc describe pod nowhere").ok();
    let why = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. node-1: ";
    assert!(described.contains(why), "{described}");
    // Written after the condition.
    let told =
        format!("until {} get events | grep -q FailedScheduling; do :; done", cluster.binary().display());
    assert!(cluster.command("timeout").args(["30", "sh", "-c", &told]).status().unwrap().success());
    cluster.sh("minisvc run absent -- no-such-program").ok();
    cluster.sh("minisvc wait --for=condition=PodScheduled pod/absent --timeout=30s").ok();
    cluster.sh("minisvc wait --for=jsonpath={.status.containerStatuses[0].started}=false pod/absent --timeout=30s").ok();
    let described = cluster.sh("minisvc describe pod absent").ok();
    assert!(described.contains("no-such-program"), "{described}");
}

#[test]
fn volumes_are_shared_and_limits_hold_or_it_is_said() {
    let cluster = Cluster::up("volumes", 1);
    let guide = include_str!("../../../docs/pods.md");
    let pod = guide.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let file = cluster.home().join("pod.yaml");
    let create = |text: &str| {
        std::fs::write(&file, text).unwrap();
        cluster.run(&["create", "-f", file.to_str().unwrap()]).ok()
    };
    create(pod);
    cluster.sh("minisvc wait --for=jsonpath={.status.phase}=Succeeded pod/scratch --timeout=30s").ok();
    assert_eq!(cluster.sh("minisvc logs scratch").ok(), "hello\n");

    let hungry = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hungry"}, "spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "command": ["sh", "-c", "x=$(head -c 100000000 /dev/zero | tr '\\0' x)"],
        "resources": {"limits": {"memory": "32Mi"}}}]}}"#;
    create(hungry);
    cluster.sh("minisvc wait --for=jsonpath={.status.containerStatuses[0].state.terminated.containerID} pod/hungry --timeout=30s").ok();
    let page = cluster.sh("minisvc describe pod hungry").ok();
    assert!(page.contains("OOMKilled") != page.contains("LimitsNotEnforced"), "{page}");
}
