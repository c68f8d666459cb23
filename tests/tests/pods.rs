//! Pods from their object to their processes and back: a real server, a real agent's pods, logs and exec.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]
#![cfg(target_os = "linux")]

use std::{fs, net::TcpListener};

use minisvc_tests::{
    node::{TestNode, condition, container},
    rooted::as_root,
};
use serde_json::json;

#[path = "pods/life.rs"]
mod life;
#[path = "pods/streams.rs"]
mod streams;

const READY: &str = "Ready";

#[test]
fn a_pod_runs_is_restarted_and_goes() {
    as_root("a_pod_runs_is_restarted_and_goes", async |home| {
        let node = TestNode::start(&home, 0).await;
        node.run("web", &["sleep", "1000"], json!({}), json!({})).await;
        let pod = node.until("web", |p| condition(p, READY) == "True").await;
        assert_eq!(pod.str_at("/status/phase"), Some("Running"));
        let ip = pod.str_at("/status/podIP").unwrap().to_owned();
        assert!(node.range.contains(&ip.parse::<std::net::Ipv4Addr>().unwrap()));
        assert_eq!(pod.str_at("/status/hostIP"), Some("127.0.0.1"));
        for kind in ["PodScheduled", "Initialized", "ContainersReady"] {
            assert_eq!(condition(&pod, kind), "True", "{kind}");
        }
        let first = container(&pod);
        assert!(first["state"]["running"]["startedAt"].is_string());
        assert_eq!((first["restartCount"].as_u64(), first["ready"].as_bool()), (Some(0), Some(true)));

        // The process dies: not ready at once, then running again, and told what happened.
        streams::exec(&node, "web", &["sh", "-c", "kill -9 $(pgrep sleep || echo 2)"], b"").await;
        let pod = node.until("web", |p| condition(p, READY) == "False").await;
        let ended = container(&pod);
        assert_eq!(ended["state"]["waiting"]["reason"], "CrashLoopBackOff", "{ended}");
        assert_eq!(ended["lastState"]["terminated"]["signal"], 9, "{ended}");
        let pod = node.until("web", |p| condition(p, READY) == "True").await;
        assert_eq!(container(&pod)["restartCount"], 1);
        assert_eq!(pod.str_at("/status/podIP"), Some(ip.as_str()));

        // It goes, and leaves nothing.
        node.delete("web", json!({})).await;
        node.gone("web").await;
        assert_eq!(fs::read_dir(home.join("run/pods")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(home.join("log")).unwrap().count(), 0);
        node.end().await;
    });
}

#[test]
fn a_program_that_is_not_there_is_said_clearly() {
    as_root("a_program_that_is_not_there_is_said_clearly", async |home| {
        let node = TestNode::start(&home, 1).await;
        let why = "exec: \"no-such-program\": not found in PATH";
        node.run("loop", &["no-such-program"], json!({}), json!({})).await;
        let pod =
            node.until("loop", |p| container(p)["state"]["waiting"]["reason"] == "CrashLoopBackOff").await;
        assert_eq!(container(&pod)["lastState"]["terminated"]["message"], why);
        node.run("once", &["no-such-program"], json!({"restartPolicy": "Never"}), json!({})).await;
        let pod = node.until("once", |p| p.str_at("/status/phase") == Some("Failed")).await;
        let ended = container(&pod)["state"]["terminated"].clone();
        assert_eq!((ended["reason"].as_str(), ended["message"].as_str()), (Some("StartError"), Some(why)));
        node.run("good", &["true"], json!({"restartPolicy": "OnFailure"}), json!({})).await;
        let pod = node.until("good", |p| p.str_at("/status/phase") == Some("Succeeded")).await;
        assert_eq!(container(&pod)["state"]["terminated"]["exitCode"], 0);
        node.end().await;
    });
}

#[test]
fn a_pod_is_ready_while_its_probe_says_so() {
    as_root("a_pod_is_ready_while_its_probe_says_so", async |home| {
        let node = TestNode::start(&home, 2).await;
        let probe = json!({"readinessProbe": {"tcpSocket": {"port": "web"}, "periodSeconds": 1, "failureThreshold": 1},
            "ports": [{"name": "web", "containerPort": 8080}]});
        node.run("probed", &["sleep", "1000"], json!({}), probe).await;
        let pod = node.until("probed", |p| container(p)["started"] == true).await;
        assert_eq!(condition(&pod, READY), "False");
        // The test answers in the pod's place, at its address.
        let ip = pod.str_at("/status/podIP").unwrap().to_owned();
        let listener = TcpListener::bind((ip.as_str(), 8080)).unwrap();
        node.until("probed", |p| condition(p, READY) == "True").await;
        drop(listener);
        let pod = node.until("probed", |p| condition(p, READY) == "False").await;
        assert_eq!(pod.str_at("/status/phase"), Some("Running"));
        assert_eq!(container(&pod)["restartCount"], 0);
        let _listener = TcpListener::bind((ip.as_str(), 8080)).unwrap();
        node.until("probed", |p| condition(p, READY) == "True").await;
        node.end().await;
    });
}

#[test]
fn a_pod_that_serves_stays_ready_while_its_agent_is_replaced() {
    as_root("a_pod_that_serves_stays_ready_while_its_agent_is_replaced", async |home| {
        let mut node = TestNode::start(&home, 6).await;
        // Long enough for the agent to tell of a pod that it has not asked yet.
        let probe = json!({"readinessProbe": {"tcpSocket": {"port": 8080}, "initialDelaySeconds": 1, "failureThreshold": 1}});
        node.run("serves", &["sleep", "1000"], json!({}), probe).await;
        let pod = node.until("serves", |p| container(p)["started"] == true).await;
        let ip = pod.str_at("/status/podIP").unwrap().to_owned();
        let listener = TcpListener::bind((ip.as_str(), 8080)).unwrap();
        let before = node.until("serves", |p| condition(p, READY) == "True").await;
        node.stop_agent().await;
        node.start_agent().await;
        // By the time that a new pod runs, the new agent has told how the old one is.
        node.run("later", &["sleep", "1000"], json!({}), json!({})).await;
        node.until("later", |p| condition(p, READY) == "True").await;
        let after = node.until("serves", |_| true).await;
        assert_eq!(after.str_at("/metadata/resourceVersion"), before.str_at("/metadata/resourceVersion"));
        drop(listener);
        node.until("serves", |p| condition(p, READY) == "False").await;
        node.end().await;
    });
}

#[test]
fn an_agent_that_was_away_takes_up_what_it_finds() {
    as_root("an_agent_that_was_away_takes_up_what_it_finds", async |home| {
        let mut node = TestNode::start(&home, 3).await;
        let fifo = home.join("run/go");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = format!("read x < {}; exit 3", fifo.display());
        for name in ["stays", "goes"] {
            node.run(name, &["sleep", "1000"], json!({}), json!({})).await;
        }
        node.run("ends", &["sh", "-c", &script], json!({"restartPolicy": "Never"}), json!({})).await;
        let mut before = Vec::new();
        for name in ["stays", "goes", "ends"] {
            before.push(node.until(name, |p| condition(p, READY) == "True").await);
        }
        node.stop_agent().await;
        // What runs goes on without an agent; meanwhile one is deleted for good, and one ends.
        node.delete("goes", json!({"gracePeriodSeconds": 0})).await;
        let go = fifo.clone();
        tokio::task::spawn_blocking(move || fs::write(go, "go\n")).await.unwrap().unwrap();
        node.start_agent().await;
        let pod = node.until("ends", |p| p.str_at("/status/phase") == Some("Failed")).await;
        assert_eq!(container(&pod)["state"]["terminated"]["exitCode"], 3);
        let pod = node.until("stays", |p| condition(p, READY) == "True").await;
        assert_eq!(container(&pod)["state"], container(&before[0])["state"], "the same process");
        assert_eq!(pod.str_at("/status/podIP"), before[0].str_at("/status/podIP"));
        let said = streams::exec(&node, "stays", &["hostname"], b"").await;
        assert_eq!(said.out, b"stays\n");
        node.end().await;
        // `end` waits for the objects; that of `goes` went long before its process.
        assert!(!home.join("run/pods").join(before[1].uid()).exists());
    });
}

#[test]
fn what_cannot_be_had_waits_with_the_reason() {
    as_root("what_cannot_be_had_waits_with_the_reason", async |home| {
        let node = TestNode::start(&home, 4).await;
        let spec = json!({"securityContext": {"runAsNonRoot": true}});
        node.run("nobody", &["true"], spec, json!({})).await;
        let pod = node
            .until("nobody", |p| container(p)["state"]["waiting"]["reason"] == "CreateContainerConfigError")
            .await;
        let message = container(&pod)["state"]["waiting"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("runAsNonRoot"), "{message}");
        assert_eq!(pod.str_at("/status/phase"), Some("Pending"));
        node.end().await;
    });
}

#[test]
fn another_user_runs_it_with_the_program_at_hand_or_it_is_refused() {
    as_root("another_user_runs_it_with_the_program_at_hand_or_it_is_refused", async |home| {
        let node = TestNode::start(&home, 5).await;
        let spec =
            json!({"securityContext": {"runAsUser": 12345, "runAsGroup": 54321}, "restartPolicy": "Never"});
        let script =
            "test $(id -u):$(id -g):$(id -G) = 12345:54321:54321 && minisvc version --client || exit 9";
        node.run("other", &["sh", "-c", script], spec, json!({})).await;
        let rootless =
            fs::read_to_string("/proc/self/uid_map").unwrap().split_whitespace().nth(2) == Some("1");
        if rootless {
            let pod = node
                .until("other", |p| {
                    container(p)["state"]["waiting"]["reason"] == "CreateContainerConfigError"
                })
                .await;
            let message = container(&pod)["state"]["waiting"]["message"].as_str().unwrap().to_owned();
            assert!(message.starts_with("securityContext.runAsUser: 12345 "), "{message}");
        } else {
            let pod = node
                .until("other", |p| matches!(p.str_at("/status/phase"), Some("Succeeded" | "Failed")))
                .await;
            assert_eq!(container(&pod)["state"]["terminated"]["exitCode"], 0);
        }
        node.end().await;
    });
}
