//! What becomes of the pods of nodes that fall silent, and when the nodes are back.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use minisvc_proto::resource::{DEPLOYMENTS, ENDPOINT_SLICES, EVENTS, NODES, PODS, SERVICES};
use minisvc_proto::{Object, ObjectKey};
use serde_json::{Value, json};

use super::cluster::Cluster;
use crate::{
    conditions::{self, Condition},
    controllers::{pod, taints::UNREACHABLE},
    registry::{DeleteOptions, Part, testing},
};

async fn cluster(timeout: Duration, nodes: &[&str]) -> (Cluster, Vec<tokio_util::sync::CancellationToken>) {
    let cluster = Cluster::evicting_after(timeout, testing::registry()).await;
    let mut agents = Vec::new();
    for name in nodes {
        agents.push(cluster.node(name).await);
    }
    (cluster, agents)
}

fn taints(node: &Object) -> Vec<(&str, &str)> {
    let all = node.pointer("/spec/taints").and_then(Value::as_array).into_iter().flatten();
    all.filter_map(|t| Some((t["key"].as_str()?, t["effect"].as_str()?))).collect()
}

/// `targetRef.name`, ready and serving of each endpoint.
fn endpoints(cluster: &Cluster, service: &str) -> Vec<(String, bool, bool)> {
    let (_, slices) = cluster.registry.list(&ENDPOINT_SLICES, None);
    let ours = slices.iter().filter(|s| s.label("kubernetes.io/service-name") == Some(service));
    let all = ours.filter_map(|s| s.pointer("/endpoints")?.as_array()).flatten();
    all.map(|e| {
        let is = |field: &str| e["conditions"][field] == true;
        (e["targetRef"]["name"].as_str().unwrap().to_owned(), is("ready"), is("serving"))
    })
    .collect()
}

fn on(node: &str) -> impl Fn(&&std::sync::Arc<Object>) -> bool {
    move |p| pod::node(p) == Some(node)
}

async fn say_ready(cluster: &Cluster, p: &Object) {
    let ready = Condition { kind: "Ready", status: "True", reason: "", message: String::new() };
    let set = |p: &mut Object| Ok(conditions::set(p, &ready, &conditions::now()));
    cluster.registry.modify(&p.key().unwrap(), Part::Status, set).await.unwrap();
}

#[tokio::test]
async fn pods_of_a_silent_node_are_replaced_and_end_when_it_is_back() {
    let (cluster, agents) = cluster(Duration::ZERO, &["n1", "n2", "n3"]).await;
    cluster.service("web").await;
    cluster.deployment("web", 6).await;
    cluster
        .create(
            &PODS,
            json!({"metadata": {"name": "bare"},
        "spec": {"nodeName": "n2", "containers": [{"name": "c", "command": ["true"]}]}}),
        )
        .await;
    cluster
        .create(
            &PODS,
            json!({"metadata": {"name": "patient"}, "spec": {"nodeName": "n2",
        "containers": [{"name": "c", "command": ["true"]}],
        "tolerations": [{"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute"}]}}),
        )
        .await;
    cluster.ready_pods(8).await;
    cluster.endpoints("web", 6).await;
    agents[1].cancel();
    cluster.silence("n2");

    let gone = |p: &&std::sync::Arc<Object>| pod::is_terminating(p);
    let pods = cluster
        .until(&PODS, |all| {
            all.iter().filter(gone).count() == 3 && all.iter().filter(|p| pod::is_ready(p)).count() == 6
        })
        .await;
    for p in &pods {
        let patient = p.name() == "patient";
        assert_eq!(pod::is_terminating(p), on("n2")(&p) && !patient, "{}", p.name());
        assert_eq!(pod::is_given_up(p), pod::is_terminating(p));
        assert_eq!(conditions::is_true(p, "DisruptionTarget"), pod::is_terminating(p));
    }
    cluster.endpoints("web", 6).await;
    let node = cluster.registry.get(&ObjectKey::cluster(&NODES, "n2")).unwrap();
    assert_eq!(taints(&node), [(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]);
    let events = cluster
        .until(&EVENTS, |all| {
            all.iter().filter(|e| e.str_at("/reason") == Some("TaintManagerEviction")).count() == 3
        })
        .await;
    let bare = events.iter().find(|e| {
        e.str_at("/involvedObject/name") == Some("bare")
            && e.str_at("/reason") == Some("TaintManagerEviction")
    });
    assert!(bare.unwrap().str_at("/message").unwrap().contains("it has no controller"));

    cluster.agent("n2").await;
    cluster.ready_pods(7).await;
    cluster.until(&NODES, |all| all.iter().all(|n| taints(n).is_empty())).await;
    cluster.until(&DEPLOYMENTS, |all| all[0].pointer("/status/readyReplicas") == Some(&6.into())).await;
}

#[tokio::test]
async fn what_was_replaced_serves_nobody_when_its_node_is_back_and_calls_it_ready() {
    let (cluster, agents) = cluster(Duration::ZERO, &["n1", "n2", "n3"]).await;
    cluster.service("web").await;
    cluster.deployment("web", 3).await;
    cluster.ready_pods(3).await;
    agents[1].cancel();
    let pods = cluster.registry.list(&PODS, None).1;
    let old = pods.iter().find(|p| pod::node(p) == Some("n2")).unwrap().clone();
    cluster.silence("n2");
    cluster.until(&PODS, |all| all.iter().any(|p| p.uid() == old.uid() && pod::is_given_up(p))).await;

    // The node speaks, and its agent tells what it last saw before it looks at what it has to end.
    let name = "n2".parse().unwrap();
    let mut report = cluster.progress.report(&name).unwrap();
    report.sequence += 1;
    assert!(cluster.progress.record(&name, report, Instant::now()));
    cluster.until(&NODES, |all| all.iter().all(|n| conditions::is_true(n, "Ready"))).await;
    say_ready(&cluster, &old).await;
    // A service that is made now sees the pod as it is now.
    cluster
        .create(
            &SERVICES,
            json!({"metadata": {"name": "late"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}}),
        )
        .await;
    cluster.endpoints("late", 3).await;
    let old_of =
        |service: &str| endpoints(&cluster, service).into_iter().find(|(name, ..)| name == old.name());
    assert_eq!(old_of("late"), Some((old.name().to_owned(), false, false)));
    assert_eq!(old_of("web"), Some((old.name().to_owned(), false, false)));
}

#[tokio::test]
async fn when_most_nodes_are_silent_nothing_is_replaced_and_services_keep_their_last_endpoints() {
    let (cluster, agents) = cluster(Duration::from_secs(1), &["n1", "n2", "n3"]).await;
    cluster.service("web").await;
    cluster.deployment("web", 3).await;
    cluster.service("far").await;
    let mut far = super::cluster::deployment("far", 1);
    far["spec"]["template"]["spec"]["nodeName"] = "n2".into();
    cluster.create(&DEPLOYMENTS, far).await;
    cluster.ready_pods(4).await;
    cluster.endpoints("far", 1).await;
    agents[1].cancel();
    agents[2].cancel();
    cluster.silence("n2");
    cluster.silence("n3");

    let reasons = |all: &[std::sync::Arc<Object>], wanted: &str| {
        all.iter().filter(|e| e.str_at("/reason") == Some(wanted)).count()
    };
    cluster.until(&EVENTS, |all| reasons(all, "EvictionSuspended") == 2).await;
    cluster.until(&NODES, |all| all.iter().filter(|n| !taints(n).is_empty()).count() == 2).await;
    let nodes = cluster.registry.list(&NODES, None).1;
    for node in nodes.iter().filter(|n| n.name() != "n1") {
        assert_eq!(taints(node), [(UNREACHABLE, "NoSchedule")], "nothing drives pods away");
        assert_eq!(conditions::get(node, "Ready").unwrap()["reason"], conditions::MOST_SILENT);
    }
    cluster.endpoints("web", 1).await;
    let ready = |service: &str| endpoints(&cluster, service).iter().filter(|(_, ready, _)| *ready).count();
    assert_eq!((ready("web"), ready("far")), (1, 1), "the last of a service stays");
    assert!(cluster.registry.list(&PODS, None).1.iter().all(|p| !pod::is_terminating(p)));

    // One is back: one of three is as likely dead as not, and nobody vouches for it.
    cluster.agent("n3").await;
    cluster.until(&EVENTS, |all| reasons(all, "EvictionResumed") == 1).await;
    cluster.endpoints("far", 0).await;
    cluster
        .until(&PODS, |all| all.iter().filter(on("n2")).filter(|p| pod::is_terminating(p)).count() >= 2)
        .await;
    // Who deletes the node says that nothing runs there: what waited for it goes.
    cluster.delete(&NODES, "n2", DeleteOptions::default()).await;
    cluster
        .until(&PODS, |all| all.iter().all(|p| p.label("app") == Some("far") || pod::node(p) != Some("n2")))
        .await;
    cluster.endpoints("web", 3).await;
}

#[tokio::test]
async fn a_taint_of_a_user_drives_pods_away_at_once_and_they_serve_until_they_have_ended() {
    let (cluster, agents) = cluster(Duration::from_hours(1), &["n1", "n2"]).await;
    cluster.service("web").await;
    cluster.deployment("web", 4).await;
    let pods = cluster.ready_pods(4).await;
    let there: BTreeSet<_> = pods.iter().filter(on("n2")).map(|p| p.uid().to_owned()).collect();
    // The agent does not end its pods, so that they can be looked at.
    agents[1].cancel();
    let taint = |n: &mut Object| {
        n.spec_mut().insert("taints".into(), json!([{"key": "broken", "effect": "NoExecute"}]));
        Ok(true)
    };
    cluster.registry.modify(&ObjectKey::cluster(&NODES, "n2"), Part::Main, taint).await.unwrap();
    let pods = cluster
        .until(&PODS, |all| {
            all.iter().filter(|p| pod::is_terminating(p)).count() == there.len() && all.len() == 6
        })
        .await;
    for p in pods.iter().filter(|p| pod::is_terminating(p)) {
        assert!(there.contains(p.uid()) && pod::is_ready(p) && !pod::is_given_up(p));
    }
}

#[tokio::test]
async fn a_pod_that_comes_to_a_silent_node_has_its_own_time_there() {
    let timeout = Duration::from_secs(1);
    let (cluster, agents) = cluster(timeout, &["n1", "n2"]).await;
    let mut pinned = super::cluster::deployment("pinned", 1);
    pinned["spec"]["template"]["spec"]["nodeName"] = "n2".into();
    cluster.create(&DEPLOYMENTS, pinned).await;
    cluster.ready_pods(1).await;
    agents[1].cancel();
    let start = Instant::now();
    cluster.silence("n2");
    let ended = |all: &[std::sync::Arc<Object>]| all.iter().filter(|p| pod::is_terminating(p)).count();
    for n in 1..=3 {
        cluster.until(&PODS, |all| ended(all) >= usize::try_from(n).unwrap()).await;
        assert!(start.elapsed() >= timeout * n, "the pod after the {n}th was not given its time");
    }
}
