//! What README and `up --demo` promise.

use std::{
    collections::BTreeSet,
    sync::{Mutex, MutexGuard, PoisonError},
};

use minisvc_tests::cluster::Cluster;

use super::{answers, object, pod_names, pod_of};

/// README and `up` both name this machine's port 30080.
static USUAL_PORT: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    // A test that failed has left nothing behind.
    USUAL_PORT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The lines of README's block for the other terminal.
fn readme_lines() -> Vec<String> {
    let readme = include_str!("../../../README.md");
    let block = readme.split("```sh\n").nth(1).expect("README has a block of commands");
    let block = block.split("```").next().unwrap();
    block.lines().map(str::to_owned).collect()
}

#[test]
fn the_lines_of_the_readme_answer_as_they_stand() {
    let _alone = alone();
    let cluster = Cluster::up("readme", 3);
    let lines = readme_lines();
    assert!(lines.len() >= 6, "{lines:?}");
    for line in &lines {
        let out = cluster.sh(line).ok();
        if line.contains("curl") {
            assert!(pod_of(&out).starts_with("web-"), "{line}: {out}");
        }
        if line.starts_with("minisvc get") {
            for part in ["node-3", "192.168.77.13", "10.244.", "10.96.", "80:30080/TCP", "Running"] {
                assert!(out.contains(part), "{line}: no {part} in\n{out}");
            }
        }
    }
}

#[test]
fn the_demo_shows_answers_from_every_node() {
    let cluster = Cluster::prepared("demo");
    let port = cluster.api_port().to_string();
    let name = cluster.name().to_owned();
    let out = cluster.run(&["up", "--detach", "--demo", "--name", &name, "--api-port", &port]).ok();
    for part in ["node-1", "node-2", "node-3", "hello-", "10.96.", "10.244.", "127.0.0.1:"] {
        assert!(out.contains(part), "no {part} in\n{out}");
    }
    // What it names can be pasted: the binary's path, and no word that is not there.
    assert!(out.contains(&cluster.binary().display().to_string()), "{out}");
    let footprint = cluster.footprint();
    cluster.stop().ok();
    assert_eq!(cluster.left_of(&footprint), Vec::<String>::new());
}

#[test]
fn addresses_ports_and_objects_survive_down_and_up() {
    let cluster = Cluster::up("lasting", 3);
    super::hello(&cluster, 30_011);
    let fields = |what: &str, pointers: &[&str]| -> Vec<serde_json::Value> {
        let object = object(&cluster, what);
        pointers.iter().map(|p| object.pointer(p).unwrap_or_else(|| panic!("{what} {p}")).clone()).collect()
    };
    let service =
        ["/spec/clusterIP", "/spec/ports/0/nodePort", "/metadata/uid", "/metadata/creationTimestamp"];
    let before =
        (fields("service/hello", &service), fields("node/node-2", &["/spec/podCIDR", "/metadata/uid"]));
    let footprint = cluster.footprint();
    cluster.stop().ok();
    assert_eq!(cluster.left_of(&footprint), Vec::<String>::new());
    cluster.start(3).ok();
    let after =
        (fields("service/hello", &service), fields("node/node-2", &["/spec/podCIDR", "/metadata/uid"]));
    assert_eq!(before, after);
    cluster.sh("minisvc wait --for=condition=Available deployment/hello --timeout=30s").ok();
    cluster.sh("minisvc wait --for=condition=Programmed service/hello --timeout=30s").ok();
    let pods: BTreeSet<String> = pod_names(&cluster).into_iter().collect();
    let seen: BTreeSet<String> = answers("http://127.0.0.1:30011/", 60).into_keys().collect();
    assert!(seen.is_subset(&pods) && seen.len() > 1, "{seen:?} of {pods:?}");
}

#[test]
fn what_up_prints_can_be_pasted_as_it_is() {
    let _alone = alone();
    let cluster = Cluster::prepared("pasted");
    let out = cluster.start(3).ok();
    let hints: Vec<&str> = out.lines().skip_while(|l| !l.contains("Try:")).skip(1).map(str::trim).collect();
    assert!(hints.len() >= 7, "{out}");
    for hint in hints {
        let output = cluster.command("sh").args(["-c", hint]).output().unwrap();
        let (text, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{hint}: {text}{errors}");
        if hint.contains("curl") {
            assert!(pod_of(&text).starts_with("hello-"), "{hint}: {text}");
        }
    }
    // The last one was `down`.
    assert!(cluster.stop().ok().contains("does not run"));
    let config = cluster.home().join("XDG_CONFIG_HOME/minisvc/config");
    assert!(config.exists());
    cluster.run(&["down", "--purge", "--name", cluster.name()]).ok();
    assert!(!config.exists(), "the key of a cluster that is no more");
}
