//! The controllers at work, over a store in memory and with nodes that run their pods by writing that they run.

mod cluster;
mod load_balancer;
mod mirroring;
mod rollouts;
mod silence;

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use minisvc_proto::Object;
use minisvc_proto::resource::{
    DEPLOYMENTS, ENDPOINT_SLICES, ENDPOINTS, EVENTS, NAMESPACES, NODES, PODS, REPLICA_SETS, SERVICES,
};

use self::cluster::Cluster;
use super::*;
use crate::{
    conditions,
    registry::{self, DeleteOptions, Propagation},
};

fn with(propagation: Propagation) -> DeleteOptions {
    DeleteOptions { propagation, ..DeleteOptions::default() }
}

#[tokio::test]
async fn a_deployment_becomes_pods_spread_over_the_nodes_and_endpoints_that_every_node_has() {
    let cluster = Cluster::start().await;
    for name in ["n1", "n2", "n3"] {
        cluster.node(name).await;
    }
    cluster.service("web").await;
    cluster.deployment("web", 6).await;
    let mut per_node: BTreeMap<String, usize> = BTreeMap::new();
    for p in cluster.ready_pods(6).await {
        *per_node.entry(pod::node(&p).unwrap().to_owned()).or_default() += 1;
    }
    assert_eq!(per_node.into_values().collect::<Vec<_>>(), [2, 2, 2]);
    cluster.endpoints("web", 6).await;
    cluster
        .until(&DEPLOYMENTS, |all| {
            conditions::is_true(&all[0], "Available")
                && all[0].pointer("/status/readyReplicas") == Some(&6.into())
        })
        .await;
    cluster.until(&SERVICES, |all| all.iter().all(|s| conditions::is_true(s, "Programmed"))).await;

    cluster.scale("web", 0).await;
    cluster.endpoints("web", 0).await;
    cluster.until(&PODS, <[_]>::is_empty).await;
    cluster.scale("web", 2).await;
    cluster.ready_pods(2).await;
    cluster.endpoints("web", 2).await;

    cluster.delete(&SERVICES, "web", DeleteOptions::default()).await;
    cluster.until(&ENDPOINT_SLICES, |all| all.iter().all(|s| s.name() == "kubernetes")).await;
    cluster.until(&ENDPOINTS, |all| all.iter().all(|e| e.name() == "kubernetes")).await;
    assert_eq!(cluster.stop().await.len(), 16, "every task ends at shutdown");
}

#[tokio::test]
async fn deleting_a_deployment_takes_its_sets_and_pods_along_before_or_after_it_or_not_at_all() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.deployment("web", 3).await;
    cluster.ready_pods(3).await;
    cluster.delete(&DEPLOYMENTS, "web", with(Propagation::Background)).await;
    cluster.until(&REPLICA_SETS, <[_]>::is_empty).await;
    cluster.until(&PODS, <[_]>::is_empty).await;

    cluster.deployment("web", 3).await;
    cluster.ready_pods(3).await;
    cluster.delete(&DEPLOYMENTS, "web", with(Propagation::Foreground)).await;
    cluster.until(&DEPLOYMENTS, <[_]>::is_empty).await;
    assert!(cluster.registry.list(&PODS, None).1.is_empty(), "the pods went first");

    cluster.deployment("web", 3).await;
    let pods = cluster.ready_pods(3).await;
    cluster.delete(&DEPLOYMENTS, "web", with(Propagation::Orphan)).await;
    cluster.until(&DEPLOYMENTS, <[_]>::is_empty).await;
    let sets = cluster.until(&REPLICA_SETS, |all| all.len() == 1 && all[0].controller_uid().is_none()).await;
    cluster.deployment("web", 3).await;
    cluster.until(&REPLICA_SETS, |all| all[0].controller_uid().is_some()).await;
    let same = |a: &[Arc<minisvc_proto::Object>]| a.iter().map(|p| p.uid().to_owned()).collect::<Vec<_>>();
    assert_eq!(same(&cluster.ready_pods(3).await), same(&pods), "adopted, not replaced");
    assert_eq!(same(&cluster.registry.list(&REPLICA_SETS, None).1), same(&sets));
}

#[tokio::test]
async fn a_pod_that_no_node_takes_says_why_and_goes_when_one_comes() {
    let cluster = Cluster::start().await;
    cluster.deployment("web", 1).await;
    let pods = cluster
        .until(&PODS, |all| all.iter().any(|p| conditions::status(p, "PodScheduled") == Some("False")))
        .await;
    let condition = conditions::get(&pods[0], "PodScheduled").unwrap();
    assert_eq!(condition["reason"], "Unschedulable");
    assert_eq!(condition["message"], "0 nodes are registered; start an agent");
    let events = cluster
        .until(&EVENTS, |all| all.iter().any(|e| e.str_at("/reason") == Some("FailedScheduling")))
        .await;
    assert!(events.iter().any(|e| e.str_at("/involvedObject/uid") == Some(pods[0].uid())));
    cluster.node("n1").await;
    cluster.ready_pods(1).await;
}

#[tokio::test]
async fn room_that_becomes_free_goes_to_the_waiting_pod_of_the_highest_priority() {
    let cluster = Cluster::start().await;
    let node = serde_json::json!({"metadata": {"name": "n1"}, "status": {"allocatable": {"cpu": "1"}}});
    cluster.create(&NODES, node).await;
    cluster.agent("n1").await;
    let pod = async |name: &str, priority: i64| {
        let container = serde_json::json!(
            {"name": "c", "command": ["true"], "resources": {"requests": {"cpu": "600m"}}});
        let spec = serde_json::json!({"priority": priority, "containers": [container]});
        cluster.create(&PODS, serde_json::json!({"metadata": {"name": name}, "spec": spec})).await;
        cluster.until(&PODS, |all| all.iter().all(|p| conditions::get(p, "PodScheduled").is_some())).await
    };
    pod("first", 0).await;
    cluster.until(&PODS, |all| all.iter().all(|p| pod::is_ready(p))).await;
    for (name, priority) in [("low", 0), ("high", 5), ("lower", -5)] {
        pod(name, priority).await;
    }
    for expected in ["first", "high", "low", "lower"] {
        let pods = cluster.until(&PODS, |all| all.iter().any(|p| pod::is_ready(p))).await;
        let (ready, waiting): (Vec<_>, Vec<_>) = pods.iter().partition(|p| pod::is_ready(p));
        assert_eq!(ready.iter().map(|p| p.name()).collect::<Vec<_>>(), [expected]);
        for p in waiting {
            let message = conditions::get(p, "PodScheduled").unwrap()["message"].as_str().unwrap();
            assert_eq!(message, "0/1 nodes are available: 1 Insufficient cpu. n1: Insufficient cpu");
        }
        cluster.delete(&PODS, expected, DeleteOptions::default()).await;
    }
}

#[tokio::test]
async fn pods_of_a_node_that_left_are_replaced_elsewhere() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let second = cluster.node("n2").await;
    cluster.deployment("web", 4).await;
    cluster.ready_pods(4).await;
    second.cancel();
    cluster.delete(&NODES, "n2", DeleteOptions::default()).await;
    cluster
        .until(&PODS, |all| {
            all.len() == 4 && all.iter().all(|p| pod::is_ready(p) && pod::node(p) == Some("n1"))
        })
        .await;
}

#[tokio::test]
async fn a_namespace_goes_with_all_it_holds_and_default_stays() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.create(&NAMESPACES, serde_json::json!({"metadata": {"name": "team"}})).await;
    let target = minisvc_proto::path::Target::collection(&DEPLOYMENTS, Some("team"));
    let deployment = cluster::object(cluster::deployment("web", 2));
    let options = crate::registry::WriteOptions::default();
    cluster.registry.create(&target, deployment.clone(), options).await.unwrap();
    cluster.ready_pods(2).await;
    cluster.delete(&NAMESPACES, "team", DeleteOptions::default()).await;
    cluster.until(&NAMESPACES, |all| all.iter().all(|n| n.name() != "team")).await;
    for kind in [&DEPLOYMENTS, &REPLICA_SETS, &PODS] {
        assert!(cluster.registry.list(kind, None).1.is_empty(), "{}", kind.plural);
    }
    assert_eq!(cluster.registry.create(&target, deployment, options).await.unwrap_err().code, 404);
    let key = ObjectKey::cluster(&NAMESPACES, "default");
    assert_eq!(cluster.registry.delete(&key, DeleteOptions::default()).await.unwrap_err().code, 403);
}

#[tokio::test]
async fn a_silent_node_is_unknown_and_its_endpoints_leave_until_it_speaks_again() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let second = cluster.node("n2").await;
    cluster.service("web").await;
    cluster.deployment("web", 4).await;
    cluster.ready_pods(4).await;
    cluster.endpoints("web", 4).await;
    second.cancel();
    cluster.silence("n2");
    let nodes = cluster.until(&NODES, |all| conditions::status(&all[1], "Ready") == Some("Unknown")).await;
    assert!(conditions::is_true(&nodes[0], "Ready"));
    cluster.endpoints("web", 2).await;
    let pods = cluster.registry.list(&PODS, None).1;
    for p in pods.iter().filter(|p| pod::node(p) == Some("n2")) {
        assert_eq!(conditions::get(p, "Ready").unwrap()["reason"], "NodeNotReady");
    }
    cluster.until(&EVENTS, |all| all.iter().any(|e| e.str_at("/reason") == Some("NodeNotReady"))).await;
    // What the agent had sent before it died comes late.
    let late = pods.iter().find(|p| pod::node(p) == Some("n2")).unwrap().key().unwrap();
    let ready =
        conditions::Condition { kind: "Ready", status: "True", reason: "Late", message: String::new() };
    let set = |p: &mut Object| Ok(conditions::set(p, &ready, &conditions::now()));
    cluster.registry.modify(&late, registry::Part::Status, set).await.unwrap();
    cluster.until(&PODS, |all| all.iter().filter(|p| pod::is_ready(p)).count() == 2).await;
    cluster.endpoints("web", 2).await;
    cluster.agent("n2").await;
    cluster.endpoints("web", 4).await;
}

#[tokio::test]
async fn what_happened_while_no_controller_ran_is_caught_up() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    for name in ["a", "b", "c"] {
        cluster.service(name).await;
        cluster.deployment(name, 2).await;
    }
    cluster.ready_pods(6).await;
    let registry = cluster.registry.clone();
    cluster.stop().await;

    let delete = async |resource, name: &str| {
        let key = ObjectKey::namespaced(resource, "default", name);
        registry.delete(&key, DeleteOptions::default()).await.unwrap();
    };
    delete(&SERVICES, "a").await;
    delete(&DEPLOYMENTS, "a").await;
    let key = ObjectKey::namespaced(&DEPLOYMENTS, "default", "b");
    let scale = cluster::object(serde_json::json!({"kind": "Scale", "spec": {"replicas": 5}}));
    registry.update_scale(&key, scale, crate::registry::WriteOptions::default()).await.unwrap();

    let cluster = Cluster::over(registry).await;
    cluster.agent("n1").await;
    cluster.ready_pods(7).await;
    cluster.endpoints("b", 5).await;
    cluster.endpoints("c", 2).await;
    cluster
        .until(&ENDPOINT_SLICES, |all| all.iter().all(|s| s.label("kubernetes.io/service-name") != Some("a")))
        .await;
}

/// Something that a user does.
#[derive(Clone, Debug)]
enum Step {
    Deployment(u8, usize),
    NoDeployment(u8),
    Service(u8),
    NoService(u8),
    NoPod(usize),
    Node(u8),
    NoNode(u8),
}

fn steps() -> impl proptest::strategy::Strategy<Value = Vec<Step>> {
    use proptest::prelude::*;
    let step = prop_oneof![
        4 => (0_u8..3, 0_usize..6).prop_map(|(n, replicas)| Step::Deployment(n, replicas)),
        1 => (0_u8..3).prop_map(Step::NoDeployment),
        2 => (0_u8..3).prop_map(Step::Service),
        1 => (0_u8..3).prop_map(Step::NoService),
        3 => any::<usize>().prop_map(Step::NoPod),
        1 => (0_u8..3).prop_map(Step::Node),
        1 => (0_u8..3).prop_map(Step::NoNode),
    ];
    proptest::collection::vec(step, 1..25)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(12))]
    #[test]
    fn whatever_is_done_in_whatever_order_ends_as_wished(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(steps));
    }
}

async fn play(steps: Vec<Step>) {
    let cluster = Cluster::start().await;
    let (mut wished, mut services, mut agents) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
    let remove = async |resource, namespace: Option<&str>, name: &str| {
        let key = ObjectKey { resource, namespace: namespace.map(str::to_owned), name: name.to_owned() };
        let _ = cluster.registry.delete(&key, DeleteOptions::default()).await;
    };
    for step in steps.into_iter().chain([Step::Node(0)]) {
        match step {
            Step::Deployment(n, replicas) => {
                let name = format!("d{n}");
                if wished.insert(name.clone(), replicas).is_none() {
                    cluster.deployment(&name, replicas).await;
                } else {
                    cluster.scale(&name, replicas.try_into().unwrap()).await;
                }
            }
            Step::NoDeployment(n) => {
                wished.remove(&format!("d{n}"));
                remove(&DEPLOYMENTS, Some("default"), &format!("d{n}")).await;
            }
            Step::Service(n) => {
                if services.insert(format!("d{n}")) {
                    cluster.service(&format!("d{n}")).await;
                }
            }
            Step::NoService(n) => {
                services.remove(&format!("d{n}"));
                remove(&SERVICES, Some("default"), &format!("d{n}")).await;
            }
            Step::NoPod(n) => {
                let (_, pods) = cluster.registry.list(&PODS, None);
                if let Some(p) = pods.get(n % pods.len().max(1)) {
                    remove(&PODS, Some("default"), p.name()).await;
                }
            }
            Step::Node(n) => {
                if let Entry::Vacant(entry) = agents.entry(format!("n{n}")) {
                    let agent = cluster.node(entry.key()).await;
                    entry.insert(agent);
                }
            }
            Step::NoNode(n) => {
                if let Some(agent) = agents.remove(&format!("n{n}")) {
                    agent.cancel();
                    remove(&NODES, None, &format!("n{n}")).await;
                }
            }
        }
    }
    let pods = cluster.ready_pods(wished.values().sum()).await;
    for p in &pods {
        assert!(agents.contains_key(pod::node(p).unwrap()), "{} runs on no node", p.name());
    }
    for (name, replicas) in &wished {
        let own = pods.iter().filter(|p| p.label("app") == Some(name)).count();
        assert_eq!(own, *replicas, "{name}");
        cluster
            .until(&DEPLOYMENTS, |all| {
                let d = all.iter().find(|d| d.name() == name).unwrap();
                d.pointer("/status/availableReplicas") == Some(&(*replicas).into())
            })
            .await;
    }
    for name in &services {
        cluster.endpoints(name, wished.get(name).copied().unwrap_or(0)).await;
    }
    let slices = |s: &Arc<minisvc_proto::Object>| {
        let service = s.label("kubernetes.io/service-name").unwrap();
        service == "kubernetes" || services.contains(service)
    };
    cluster.until(&ENDPOINT_SLICES, |all| all.iter().all(slices)).await;
    let ready = |e: &Object| {
        let subsets = e.pointer("/subsets").and_then(serde_json::Value::as_array).into_iter().flatten();
        subsets.filter_map(|s| s["addresses"].as_array()).map(Vec::len).sum::<usize>()
    };
    cluster
        .until(&ENDPOINTS, |all| {
            let own = || all.iter().filter(|e| e.name() != "kubernetes");
            own().count() == services.len()
                && own().all(|e| {
                    services.contains(e.name()) && ready(e) == wished.get(e.name()).copied().unwrap_or(0)
                })
        })
        .await;
    cluster.until(&REPLICA_SETS, |all| all.len() == wished.len()).await;
    cluster.until(&SERVICES, |all| all.iter().all(|s| conditions::is_true(s, "Programmed"))).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_new_template_replaces_every_pod_and_the_endpoints_follow() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    cluster.service("web").await;
    let key = cluster.deployment("web", 4).await.key().unwrap();
    let before = cluster.ready_pods(4).await;
    let change = |d: &mut minisvc_proto::Object| {
        let template = d.spec_mut()["template"]["spec"]["containers"][0].as_object_mut().unwrap();
        template.insert("args".into(), serde_json::json!(["again"]));
        Ok(true)
    };
    cluster.registry.modify(&key, crate::registry::Part::Main, change).await.unwrap();
    let after = cluster
        .until(&PODS, |all| {
            all.len() == 4
                && all.iter().all(|p| pod::is_ready(p) && before.iter().all(|b| b.uid() != p.uid()))
        })
        .await;
    cluster
        .until(&ENDPOINT_SLICES, |all| {
            let slices = all.iter().filter(|s| s.label("kubernetes.io/service-name") == Some("web"));
            let uids: BTreeSet<_> = slices
                .filter_map(|s| s.pointer("/endpoints")?.as_array())
                .flatten()
                .filter_map(|e| e.pointer("/targetRef/uid")?.as_str())
                .collect();
            uids == after.iter().map(|p| p.uid()).collect()
        })
        .await;
    cluster
        .until(&DEPLOYMENTS, |all| {
            conditions::get(&all[0], "Progressing").is_some_and(|c| c["reason"] == "NewReplicaSetAvailable")
                && all[0].pointer("/status/updatedReplicas") == Some(&4.into())
        })
        .await;
}

#[tokio::test]
async fn a_pod_on_a_node_that_never_was_goes_when_it_is_deleted_and_another_schedulers_pod_is_left_to_it() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let pod = |name: &str, field: &str, value: &str| {
        let mut pod = serde_json::json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "command": ["true"]}]}});
        pod["spec"][field] = value.into();
        pod
    };
    cluster.create(&PODS, pod("lost", "nodeName", "ghost")).await;
    cluster.create(&PODS, pod("theirs", "schedulerName", "mine")).await;
    cluster.create(&PODS, pod("ours", "restartPolicy", "Always")).await;
    let pods = cluster.until(&PODS, |all| all.iter().any(|p| p.name() == "ours" && pod::is_ready(p))).await;
    let node = |name: &str| pods.iter().find(|p| p.name() == name).and_then(|p| pod::node(p));
    assert_eq!((node("lost"), node("theirs")), (Some("ghost"), None));
    cluster.delete(&PODS, "lost", DeleteOptions::default()).await;
    cluster.until(&PODS, |all| all.iter().all(|p| p.name() != "lost")).await;
}
