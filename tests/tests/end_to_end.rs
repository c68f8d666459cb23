//! The whole thing as a user meets it: real processes, real packets over three nodes, the commands one types. Each test has a
//! cluster of its own. Services name their nodePort from the band that the server does not choose from, so that clusters which
//! run side by side never want the same port of this machine.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails here")]
#![cfg(target_os = "linux")]

#[path = "end_to_end/affinity.rs"]
mod affinity;
#[path = "end_to_end/crashes.rs"]
mod crashes;
#[path = "end_to_end/families.rs"]
mod families;
#[path = "end_to_end/guide.rs"]
mod guide;
#[path = "end_to_end/healing.rs"]
mod healing;
#[path = "end_to_end/host_access.rs"]
mod host_access;
#[path = "end_to_end/names.rs"]
mod names;
#[path = "end_to_end/newcomer.rs"]
mod newcomer;
#[path = "end_to_end/pods.rs"]
mod pods;
#[path = "end_to_end/refusals.rs"]
mod refusals;
#[path = "end_to_end/rollouts.rs"]
mod rollouts;
#[path = "end_to_end/services.rs"]
mod services;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use minisvc_proto::{
    Object, Resource,
    client::{Client, Informer, InformerEvent, Kubeconfig, ListParams},
    path::Target,
};
use minisvc_tests::cluster::Cluster;

/// Which pods answer on a URL, and how often, seen from this machine: a new connection for every question.
fn answers(url: &str, questions: usize) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    for _ in 0..questions {
        *seen.entry(answer(url)).or_default() += 1;
    }
    seen
}

/// The pod that answers on a URL of this machine.
fn answer(url: &str) -> String {
    let output = std::process::Command::new("curl").args(["-sS", "--max-time", "5", url]).output().unwrap();
    assert!(output.status.success(), "curl {url}: {}", String::from_utf8_lossy(&output.stderr));
    pod_of(&String::from_utf8_lossy(&output.stdout))
}

/// The pod in an answer of `minisvc echo`.
fn pod_of(answer: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(answer.trim())
        .unwrap_or_else(|e| panic!("{answer:?} is no answer of echo: {e}"));
    json["pod"].as_str().unwrap().to_owned()
}

/// The names of all pods, in order.
fn pod_names(cluster: &Cluster) -> Vec<String> {
    let list = cluster.sh("minisvc get pods -o name").ok();
    let mut names: Vec<_> = list.lines().map(|l| l.trim_start_matches("pod/").to_owned()).collect();
    names.sort();
    names
}

/// An object as JSON.
fn object(cluster: &Cluster, what: &str) -> serde_json::Value {
    serde_json::from_str(&cluster.sh(&format!("minisvc get {what} -o json")).ok()).unwrap()
}

/// The administrator's client.
fn client(cluster: &Cluster) -> Client {
    let config = cluster.home().join("XDG_CONFIG_HOME/minisvc/config");
    Client::from_kubeconfig(&Kubeconfig::load(&config).unwrap()).unwrap()
}

/// All objects of a kind, as soon as the server answers.
fn listed(cluster: &Cluster, resource: &'static Resource) -> Vec<Arc<Object>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let target = Target::collection(resource, None);
        let mut events = Informer::spawn(client(cluster), target, ListParams::default());
        let first = tokio::time::timeout(Duration::from_secs(30), events.recv()).await;
        match first.expect("the server answers within 30 s") {
            Some(InformerEvent::Reset(_, objects)) => objects,
            other => panic!("an informer begins with a list, not {other:?}"),
        }
    })
}

/// Four pods of `minisvc echo` behind a nodePort service.
fn hello(cluster: &Cluster, node_port: u16) {
    cluster.sh("minisvc create deployment hello --replicas 4 -- minisvc echo --port 8080").ok();
    cluster.sh(&format!("minisvc create service nodeport hello --tcp=80:8080 --node-port={node_port}")).ok();
}
