//! Load balancers and hints, through the real controllers.

use minisvc_proto::{
    Object, ObjectKey,
    resource::{ENDPOINT_SLICES, EVENTS, NODES, SERVICES},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;
use crate::{
    conditions,
    registry::{DeleteOptions, Part},
};

async fn balancer(cluster: &Cluster, name: &str, more: Value) {
    let mut spec = json!({"type": "LoadBalancer", "selector": {"app": name}, "ports": [{"port": 80}]});
    spec.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
    cluster.create(&SERVICES, json!({"metadata": {"name": name}, "spec": spec})).await;
}

async fn change(cluster: &Cluster, key: &ObjectKey, part: Part, change: impl Fn(&mut Object)) {
    let change = |o: &mut Object| {
        change(o);
        Ok(true)
    };
    cluster.registry.modify(key, part, change).await.unwrap();
}

fn node(name: &str) -> ObjectKey {
    ObjectKey::cluster(&NODES, name)
}

fn service(name: &str) -> ObjectKey {
    ObjectKey::namespaced(&SERVICES, "default", name)
}

/// Nodes with addresses; each token ends an agent.
async fn nodes(cluster: &Cluster, addresses: &[(&str, &str)]) -> Vec<CancellationToken> {
    let mut agents = Vec::new();
    for (name, ip) in addresses {
        agents.push(cluster.node(name).await);
        let list = json!([{"type": "InternalIP", "address": ip}]);
        change(cluster, &node(name), Part::Status, |n| {
            drop(n.status_mut().insert("addresses".into(), list.clone()));
        })
        .await;
    }
    agents
}

/// Waits until a service has these addresses, and this reason for it.
async fn has(cluster: &Cluster, name: &str, ips: &[&str], reason: Option<&str>) {
    cluster
        .until(&SERVICES, |all| {
            let Some(s) = all.iter().find(|s| s.name() == name) else { return false };
            let ingress = s.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
            let seen = ingress.into_iter().flatten().filter_map(|i| i["ip"].as_str());
            let said = conditions::get(s, "PortsAllocated").and_then(|c| c["reason"].as_str());
            seen.eq(ips.iter().copied()) && said == reason
        })
        .await;
}

#[tokio::test]
async fn a_load_balancer_has_the_addresses_of_the_nodes_that_answer() {
    let cluster = Cluster::start().await;
    let agents = nodes(&cluster, &[("n1", "10.0.0.1"), ("n2", "10.0.0.2")]).await;
    balancer(&cluster, "web", json!({})).await;
    let allocated = Some("Allocated");
    has(&cluster, "web", &["10.0.0.1", "10.0.0.2"], allocated).await;
    cluster.until(&SERVICES, |all| all.iter().all(|s| conditions::is_true(s, "Programmed"))).await;

    let taken = json!([{"protocol": "TCP", "port": 80, "service": "default/web"}]);
    let say = |said: Value| {
        move |n: &mut Object| drop(n.status_mut().insert("loadBalancerPortsTaken".into(), said.clone()))
    };
    change(&cluster, &node("n1"), Part::Status, say(taken)).await;
    has(&cluster, "web", &["10.0.0.2"], Some("PortTakenOnNodes")).await;
    change(&cluster, &node("n1"), Part::Status, say(json!([]))).await;
    has(&cluster, "web", &["10.0.0.1", "10.0.0.2"], allocated).await;

    nodes(&cluster, &[("n3", "10.0.0.3")]).await;
    has(&cluster, "web", &["10.0.0.1", "10.0.0.2", "10.0.0.3"], allocated).await;
    cluster.delete(&NODES, "n3", DeleteOptions::default()).await;
    has(&cluster, "web", &["10.0.0.1", "10.0.0.2"], allocated).await;
    agents[1].cancel();
    cluster.silence("n2");
    has(&cluster, "web", &["10.0.0.1"], allocated).await;

    // Whatever somebody else writes there is put right.
    change(&cluster, &service("web"), Part::Status, |s| drop(s.status_mut().remove("loadBalancer"))).await;
    has(&cluster, "web", &["10.0.0.1"], allocated).await;
    change(&cluster, &service("web"), Part::Main, |s| {
        drop(s.spec_mut().insert("type".into(), "ClusterIP".into()));
    })
    .await;
    has(&cluster, "web", &[], None).await;
    balancer(&cluster, "theirs", json!({"loadBalancerClass": "cloud.example/x"})).await;
    balancer(&cluster, "again", json!({})).await;
    has(&cluster, "again", &["10.0.0.1"], allocated).await;
    has(&cluster, "theirs", &[], None).await;
}

#[tokio::test]
async fn of_two_with_one_port_the_first_has_it_and_the_other_is_told_and_follows() {
    let cluster = Cluster::start().await;
    nodes(&cluster, &[("n1", "10.0.0.1")]).await;
    balancer(&cluster, "first", json!({})).await;
    has(&cluster, "first", &["10.0.0.1"], Some("Allocated")).await;
    balancer(&cluster, "second", json!({})).await;
    has(&cluster, "second", &[], Some("PortConflict")).await;
    let events =
        cluster.until(&EVENTS, |all| all.iter().any(|e| e.str_at("/reason") == Some("PortConflict"))).await;
    let said: Vec<_> = events
        .iter()
        .filter(|e| e.str_at("/involvedObject/name") == Some("second"))
        .filter_map(|e| e.str_at("/message"))
        .collect();
    assert_eq!(said, ["TCP port 80 of the nodes belongs to the load balancer default/first"]);
    balancer(&cluster, "third", json!({"ports": [{"port": 80, "protocol": "UDP"}]})).await;
    has(&cluster, "third", &["10.0.0.1"], Some("Allocated")).await;
    cluster.delete(&SERVICES, "first", DeleteOptions::default()).await;
    has(&cluster, "second", &["10.0.0.1"], Some("Allocated")).await;
}

#[tokio::test]
async fn under_policy_local_the_addresses_follow_the_endpoints() {
    let cluster = Cluster::start().await;
    nodes(&cluster, &[("n1", "10.0.0.1")]).await;
    balancer(&cluster, "web", json!({"externalTrafficPolicy": "Local"})).await;
    has(&cluster, "web", &[], Some("Allocated")).await;
    cluster.deployment("web", 1).await;
    has(&cluster, "web", &["10.0.0.1"], Some("Allocated")).await;
    cluster.scale("web", 0).await;
    has(&cluster, "web", &[], Some("Allocated")).await;
}

#[tokio::test]
async fn hints_follow_the_zone_of_the_node() {
    let cluster = Cluster::start().await;
    cluster.node("n1").await;
    let spec =
        json!({"selector": {"app": "web"}, "ports": [{"port": 80}], "trafficDistribution": "PreferClose"});
    cluster.create(&SERVICES, json!({"metadata": {"name": "web"}, "spec": spec})).await;
    cluster.deployment("web", 2).await;
    cluster.endpoints("web", 2).await;
    for zone in ["a", "b"] {
        let labels = json!({"topology.kubernetes.io/zone": zone});
        change(&cluster, &node("n1"), Part::Main, |n| {
            drop(n.metadata_mut().insert("labels".into(), labels.clone()));
        })
        .await;
        cluster
            .until(&ENDPOINT_SLICES, |all| {
                let web = all.iter().find(|s| s.name() != "kubernetes").unwrap();
                (0..2).all(|i| web.str_at(&format!("/endpoints/{i}/hints/forZones/0/name")) == Some(zone))
            })
            .await;
    }
}
