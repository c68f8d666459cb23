//! Clusters over machines of their own: how they join and stay, what lost packets, cut links and routers do to them, and what
//! somebody on the network or with a stolen key can do. Every test has machines of its own and uses the real binary as a user does.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails here")]
#![cfg(target_os = "linux")]

#[path = "machines/agent_faults.rs"]
mod agent_faults;
#[path = "machines/attacks.rs"]
mod attacks;
#[path = "machines/crashing.rs"]
mod crashing;
#[path = "machines/failing.rs"]
mod failing;
#[path = "machines/firewalls.rs"]
mod firewalls;
#[path = "machines/identity.rs"]
mod identity;
#[path = "machines/joining.rs"]
mod joining;
#[path = "machines/load_balancers.rs"]
mod load_balancers;
#[path = "machines/losses.rs"]
mod losses;
#[path = "machines/nearness.rs"]
mod nearness;
#[path = "machines/outside.rs"]
mod outside;
#[path = "machines/routers.rs"]
mod routers;
#[path = "machines/sources.rs"]
mod sources;
#[path = "machines/tokens.rs"]
mod tokens;

use std::{
    collections::BTreeMap,
    collections::BTreeSet,
    time::{Duration, Instant},
};

use minisvc_tests::machines::{Machine, Process, World};
use serde_json::Value;

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];
/// No test waits longer for what must come.
const PATIENCE: Duration = Duration::from_mins(1);

/// Joins these machines with one token, and waits until their nodes are Ready.
fn join(world: &World, nodes: &[&str]) -> Vec<Process> {
    let token = world.token("");
    let agents = nodes.iter().map(|node| world.join(node, &token)).collect();
    world.ready(nodes);
    agents
}

/// So many pods of `minisvc echo` behind the service `hello`, with nodePort 30080.
fn hello(world: &World, replicas: usize) {
    world
        .sh(&format!("minisvc create deployment hello --replicas {replicas} -- minisvc echo --port 8080"))
        .ok();
    world.sh("minisvc create service nodeport hello --tcp=80:8080 --node-port=30080 --timeout=60s").ok();
    world.sh("minisvc wait --for=condition=Available deployment/hello --timeout=60s").ok();
    world.sh("minisvc wait --for=condition=Programmed service/hello --timeout=60s").ok();
}

/// Pod and node of all pods of `hello`.
fn placed(world: &World) -> BTreeMap<String, String> {
    let list = world.object("pods -l app=hello");
    let pods = list["items"].as_array().unwrap().iter();
    pods.map(|p| (text(&p["metadata"]["name"]), text(&p["spec"]["nodeName"]))).collect()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

fn cluster_ip(world: &World) -> String {
    text(&world.object("service/hello")["spec"]["clusterIP"])
}

/// The pod in an answer of `minisvc echo`.
fn pod_of(answer: &str) -> String {
    let json: Value = serde_json::from_str(answer.trim())
        .unwrap_or_else(|e| panic!("{answer:?} is no answer of echo: {e}"));
    text(&json["pod"])
}

/// With n questions over k pods one is missed with a probability of k(1-1/k)^n: below 1e-6 for what is asked here.
///
/// A shell line that asks a URL so many times, one answer a line. Fails with the first question that has no answer.
fn asking(url: &str, times: usize) -> String {
    format!("set -e; for i in $(seq {times}); do curl -sS --max-time 10 {url}; echo; done")
}

fn pods_in(out: &str) -> BTreeSet<String> {
    out.lines().filter(|l| !l.is_empty()).map(pod_of).collect()
}

/// Which pods answer this machine; all questions must be answered.
fn answers(machine: &Machine, url: &str, times: usize) -> BTreeSet<String> {
    pods_in(&machine.program("sh", &["-c", &asking(url, times)]).ok())
}

/// Which pods answer a pod; all questions must be answered.
fn answers_to_pod(world: &World, pod: &str, url: &str, times: usize) -> BTreeSet<String> {
    pods_in(&world.run(&["exec", pod, "--", "sh", "-c", &asking(url, times)]).ok())
}

/// Looks until it is so. Every look costs at least a process, so that this does not spin.
#[track_caller]
fn until(what: &str, mut look: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !look() {
        assert!(Instant::now() < end, "it never came about: {what}");
    }
}
