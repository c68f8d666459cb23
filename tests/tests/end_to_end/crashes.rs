//! kill -9 of every part.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use minisvc_proto::{
    Object,
    path::Target,
    resource::{NODES, SERVICES},
};
use minisvc_tests::cluster::{Cluster, Footprint};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{answer, client, hello, listed, object, pod_names, pod_of};

pub(super) fn kill_9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

/// The processes of a cluster whose command line holds these words.
pub(super) fn pids_with(footprint: &Footprint, words: &[&str]) -> Vec<i32> {
    let command = |pid: &i32| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let text = |pid: &i32| String::from_utf8_lossy(&command(pid)).replace('\0', " ");
    let all = footprint.processes.keys().map(|(pid, _)| *pid);
    all.filter(|pid| words.iter().all(|w| text(pid).contains(w))).collect()
}

#[test]
fn after_the_death_of_any_process_of_up_nothing_is_left() {
    let cluster = Cluster::prepared("killed");
    for stage in ["keeper", "room"] {
        cluster.start(2).ok();
        let footprint = cluster.footprint();
        let stage = format!("--stage {stage}");
        let [pid] = pids_with(&footprint, &["up", &stage])[..] else { panic!("{footprint:?}") };
        kill_9(pid);
        cluster.stop().ok();
        assert_eq!(cluster.left_of(&footprint), Vec::<String>::new(), "after {stage}");
    }
    // And the next `up` works as if nothing had happened.
    cluster.start(2).ok();
    let footprint = cluster.footprint();
    let [pid] = pids_with(&footprint, &["up", "--stage keeper"])[..] else { panic!("{footprint:?}") };
    kill_9(pid);
    cluster.start(2).ok();
    assert_eq!(footprint.processes_left(), Vec::<String>::new());
    cluster.sh("minisvc get nodes").ok();
}

#[test]
fn an_up_that_ends_before_the_cluster_is_ready_leaves_none() {
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGKILL] {
        let cluster = Cluster::prepared("early");
        let mut up = cluster.start_command(2).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(up.stdout.take().unwrap()).lines();
        assert!(lines.any(|l| l.unwrap().contains("room ready")));
        let footprint = cluster.footprint();
        kill(Pid::from_raw(up.id().cast_signed()), signal).unwrap();
        assert!(!up.wait().unwrap().success(), "{signal}");
        // The keeper holds this lock to its end.
        let lock = std::fs::File::open(cluster.run_dir().join("lock")).unwrap();
        let (done, ended) = std::sync::mpsc::channel();
        std::thread::spawn(move || done.send(lock.lock()));
        ended.recv_timeout(Duration::from_secs(30)).expect("the keeper ends within 30 s").unwrap();
        cluster.stop().ok();
        assert_eq!(cluster.left_of(&footprint), Vec::<String>::new(), "{signal}");
    }
}

#[test]
fn an_agent_that_dies_leaves_pods_and_traffic_and_takes_them_up_again() {
    let cluster = Cluster::up("agent", 2);
    hello(&cluster, 30_051);
    let before = pod_names(&cluster);
    let uids: BTreeSet<String> = before
        .iter()
        .map(|p| {
            object(&cluster, &format!("pod/{p}"))["status"]["containerStatuses"][0]["containerID"].to_string()
        })
        .collect();
    for node in ["node-1", "node-2"] {
        let footprint = cluster.footprint();
        let [pid] = pids_with(&footprint, &["agent", "--node-name", node])[..] else {
            panic!("{footprint:?}")
        };
        kill_9(pid);
        // Rules and pods stay: every pod answers, whatever the agent does.
        let pods: BTreeSet<String> = (0..60).map(|_| answer("http://127.0.0.1:30051/")).collect();
        assert_eq!(pods.into_iter().collect::<Vec<_>>(), before);
    }
    // The new agents work: a change gets through.
    cluster.sh("minisvc scale deployment hello --replicas 5").ok();
    cluster.sh("minisvc wait --for=condition=Available deployment/hello --timeout=30s").ok();
    cluster.sh("minisvc wait --for=jsonpath={.status.readyReplicas}=5 deployment/hello --timeout=30s").ok();
    let after: BTreeSet<String> = before
        .iter()
        .map(|p| {
            object(&cluster, &format!("pod/{p}"))["status"]["containerStatuses"][0]["containerID"].to_string()
        })
        .collect();
    assert_eq!(uids, after, "the same processes as before");
    let restarts = cluster.run(&["get", "pods", "-o", "json"]).ok();
    assert!(!restarts.contains("\"restartCount\": 1"), "{restarts}");
}

#[test]
fn a_server_that_dies_stops_no_traffic_and_forgets_nothing() {
    let cluster = Cluster::up("server", 2);
    hello(&cluster, 30_052);
    let before = (pod_names(&cluster), object(&cluster, "service/hello")["metadata"]["uid"].clone());
    let footprint = cluster.footprint();
    let [pid] = pids_with(&footprint, &["server", "--listen"])[..] else { panic!("{footprint:?}") };
    kill_9(pid);
    let pods: BTreeSet<String> = (0..60).map(|_| answer("http://127.0.0.1:30052/")).collect();
    assert_eq!(pods.into_iter().collect::<Vec<_>>(), before.0);
    assert_eq!(listed(&cluster, &NODES).len(), 2);
    cluster.sh("minisvc wait --for=condition=Ready node/node-1 node/node-2 --timeout=30s").ok();
    assert_eq!((pod_names(&cluster), object(&cluster, "service/hello")["metadata"]["uid"].clone()), before);
    cluster.sh("minisvc scale deployment hello --replicas 3").ok();
    cluster.sh("minisvc wait --for=jsonpath={.status.replicas}=3 deployment/hello --timeout=30s").ok();
}

#[test]
fn a_pod_whose_process_dies_is_started_again_and_a_silent_node_is_left_out() {
    let cluster = Cluster::up("dying", 2);
    hello(&cluster, 30_053);
    let pods = pod_names(&cluster);
    cluster.run(&["exec", &pods[0], "--", "sh", "-c", "kill -9 $(pgrep -f 'minisvc echo')"]);
    let target = format!("pod/{}", pods[0]);
    let restarted = "--for=jsonpath={.status.containerStatuses[0].restartCount}=1";
    cluster.run(&["wait", restarted, &target, "--timeout=30s"]).ok();
    cluster.run(&["wait", "--for=condition=Ready", &target, "--timeout=30s"]).ok();

    // A node whose agent stands still is NotReady within seconds, and its pods get no traffic.
    let footprint = cluster.footprint();
    let [agent] = pids_with(&footprint, &["agent", "--node-name", "node-2"])[..] else {
        panic!("{footprint:?}")
    };
    kill(Pid::from_raw(agent), Signal::SIGSTOP).unwrap();
    cluster.sh("minisvc wait --for=condition=Ready=Unknown node/node-2 --timeout=20s").ok();
    let on_node_2 = cluster.sh("minisvc get pods -o name --field-selector spec.nodeName=node-2").ok();
    let silent: BTreeSet<&str> = on_node_2.lines().map(|l| l.trim_start_matches("pod/")).collect();
    assert!(!silent.is_empty() && silent.len() < 4, "{silent:?}");
    for pod in &silent {
        cluster.sh(&format!("minisvc wait --for=condition=Ready=False pod/{pod} --timeout=20s")).ok();
    }
    cluster.sh("minisvc wait --for=condition=Programmed service/hello --timeout=20s").ok();
    for _ in 0..40 {
        let out =
            cluster.sh("minisvc node exec node-1 -- curl -sS --max-time 5 http://192.168.77.11:30053/").ok();
        assert!(!silent.contains(pod_of(&out).as_str()), "{out}");
    }
    kill(Pid::from_raw(agent), Signal::SIGCONT).unwrap();
    cluster.sh("minisvc wait --for=condition=Ready node/node-2 --timeout=20s").ok();
    for pod in &silent {
        cluster.sh(&format!("minisvc wait --for=condition=Ready pod/{pod} --timeout=20s")).ok();
    }
}

#[test]
fn kill_9_in_the_midst_of_writes_loses_none_that_was_acknowledged_and_none_by_half() {
    let cluster = Cluster::up("writes", 1);
    let client = client(&cluster);
    let footprint = cluster.footprint();
    let [server] = pids_with(&footprint, &["server", "--listen"])[..] else { panic!("{footprint:?}") };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let target = Target::collection(&SERVICES, Some("default"));
    let acknowledged: BTreeSet<String> = runtime.block_on(async {
        let written = Arc::new(Mutex::new(BTreeSet::new()));
        let writers = (0..8).map(|writer| {
            let (client, target, written) = (client.clone(), target.clone(), written.clone());
            tokio::spawn(async move {
                for i in 0.. {
                    let mut service = Object::new(&SERVICES, Some("default"), &format!("w{writer}-{i}"));
                    service.spec_mut().insert("ports".into(), serde_json::json!([{"port": 80}]));
                    if client.create(&target, &service, false).await.is_err() {
                        return;
                    }
                    written.lock().unwrap().insert(service.name().to_owned());
                    if written.lock().unwrap().len() == 300 {
                        kill_9(server);
                    }
                }
            })
        });
        futures::future::join_all(writers.collect::<Vec<_>>()).await;
        Arc::try_unwrap(written).unwrap().into_inner().unwrap()
    });
    assert!(acknowledged.len() >= 300, "{}", acknowledged.len());
    let services = listed(&cluster, &SERVICES);
    let stored: BTreeSet<String> = services.iter().map(|s| s.name().to_owned()).collect();
    let lost: Vec<_> = acknowledged.difference(&stored).collect();
    assert!(lost.is_empty(), "{lost:?}");
    // Object and address are one transaction: every service has one, and no two have the same.
    let addresses: BTreeSet<&str> = services.iter().filter_map(|s| s.str_at("/spec/clusterIP")).collect();
    assert_eq!(addresses.len(), services.len());
}
