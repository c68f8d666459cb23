//! Deployments over the real registry, with pods that are slow to end or cannot be made.

use serde_json::json;

use super::*;
use crate::registry::Part;

async fn change(cluster: &Cluster, name: &str, args: &str) {
    let key = ObjectKey::namespaced(&DEPLOYMENTS, "default", name);
    let change = |d: &mut Object| {
        d.spec_mut()["template"]["spec"]["containers"][0]["args"] = json!([args]);
        Ok(true)
    };
    cluster.registry.modify(&key, Part::Main, change).await.unwrap();
}

fn reason(deployment: &Object) -> Option<&str> {
    conditions::get(deployment, "Progressing")?.get("reason")?.as_str()
}

#[tokio::test]
async fn a_recreation_waits_until_the_last_old_pod_has_ended() {
    let cluster = Cluster::start().await;
    let agent = cluster.node("n1").await;
    let mut web = cluster::deployment("web", 2);
    web["spec"]["strategy"] = json!({"type": "Recreate"});
    cluster.create(&DEPLOYMENTS, web).await;
    cluster.ready_pods(2).await;
    cluster.until(&DEPLOYMENTS, |all| reason(&all[0]) == Some("NewReplicaSetAvailable")).await;
    // Nobody ends the pods.
    agent.cancel();
    change(&cluster, "web", "2").await;
    cluster.until(&PODS, |all| all.iter().all(|p| pod::is_terminating(p))).await;
    let seen = cluster
        .until(&DEPLOYMENTS, |all| {
            all[0].pointer("/status/observedGeneration") == Some(&2.into())
                && all[0].pointer("/status/replicas") == Some(&0.into())
        })
        .await;
    assert_eq!(seen[0].pointer("/status/updatedReplicas"), Some(&0.into()));
    assert_eq!(
        cluster.registry.list(&REPLICA_SETS, None).1.len(),
        1,
        "the new set is made when they are gone"
    );
    cluster.agent("n1").await;
    cluster.ready_pods(2).await;
    let all = cluster.until(&DEPLOYMENTS, |all| reason(&all[0]) == Some("NewReplicaSetAvailable")).await;
    assert_eq!(all[0].annotations()["deployment.kubernetes.io/revision"], "2");
    let events = cluster
        .until(&EVENTS, |all| {
            all.iter().filter(|e| e.str_at("/reason") == Some("ScalingReplicaSet")).count() >= 3
        })
        .await;
    let said: BTreeSet<_> = events
        .iter()
        .filter(|e| e.str_at("/reason") == Some("ScalingReplicaSet"))
        .map(|e| {
            let words: Vec<_> = e.str_at("/message").unwrap().split(' ').collect();
            format!("{} {}", words[..4].join(" "), words[5..].join(" "))
        })
        .collect();
    assert_eq!(
        said,
        ["Scaled down replica set from 2 to 0", "Scaled up replica set from 0 to 2"]
            .map(str::to_owned)
            .into()
    );
}

#[tokio::test]
async fn a_pod_counts_as_available_only_after_the_deployments_minimum() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let mut web = cluster::deployment("web", 1);
    web["spec"]["minReadySeconds"] = 500.into();
    cluster.create(&DEPLOYMENTS, web).await;
    cluster.ready_pods(1).await;
    let all =
        cluster.until(&DEPLOYMENTS, |all| all[0].pointer("/status/readyReplicas") == Some(&1.into())).await;
    assert_eq!(all[0].pointer("/status/availableReplicas"), Some(&0.into()));
    assert!(!conditions::is_true(&all[0], "Available"));
}

#[tokio::test]
async fn a_set_that_cannot_be_made_is_told_and_one_whose_name_is_taken_gets_another() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let long = "x".repeat(250);
    let mut bad = cluster::deployment("long", 1);
    bad["metadata"]["name"] = long.as_str().into();
    cluster.create(&DEPLOYMENTS, bad).await;
    let all = cluster.until(&DEPLOYMENTS, |all| reason(&all[0]) == Some("ReplicaSetCreateError")).await;
    let said = conditions::get(&all[0], "Progressing").unwrap()["message"].as_str().unwrap();
    assert!(said.starts_with("Failed to create new replica set \"xxx") && said.contains("253"), "{said}");
    cluster.delete(&DEPLOYMENTS, &long, DeleteOptions::default()).await;

    // The set of one that was just like it, and that it may not have.
    cluster.deployment("web", 1).await;
    let sets = cluster.until(&REPLICA_SETS, |all| all.len() == 1).await;
    cluster.delete(&DEPLOYMENTS, "web", with(Propagation::Orphan)).await;
    let own = |s: &mut Object| {
        s.metadata_mut().insert(
            "ownerReferences".into(),
            json!([{"apiVersion": "apps/v1", "kind": "Other", "name": "o", "uid": "o", "controller": true}]),
        );
        Ok(true)
    };
    cluster.until(&DEPLOYMENTS, <[_]>::is_empty).await;
    cluster.registry.modify(&sets[0].key().unwrap(), Part::Main, own).await.unwrap();
    cluster.deployment("web", 1).await;
    let all = cluster.until(&DEPLOYMENTS, |all| reason(&all[0]) == Some("NewReplicaSetAvailable")).await;
    assert_eq!(all[0].pointer("/status/collisionCount"), Some(&1.into()));
    assert_eq!(cluster.registry.list(&REPLICA_SETS, None).1.len(), 2);
}
