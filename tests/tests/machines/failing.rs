//! Nodes that fall silent: what ran there runs elsewhere, and serves nobody when they are back. And a server that is away.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use minisvc_tests::machines::{Machine, World, in_room};
use nix::sys::signal::Signal;

use super::{NODES, answers, cluster_ip, hello, join, placed, text, until};

/// The pods of `hello` that are not about to end and are Ready, with their nodes.
fn serving(world: &World) -> BTreeMap<String, String> {
    let list = world.object("pods -l app=hello");
    let pods = list["items"].as_array().unwrap().iter();
    let ready = pods.filter(|p| {
        let conditions = p["status"]["conditions"].as_array().into_iter().flatten();
        p["metadata"]["deletionTimestamp"].is_null()
            && conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    });
    ready.map(|p| (text(&p["metadata"]["name"]), text(&p["spec"]["nodeName"]))).collect()
}

#[test]
fn pods_of_a_cut_node_run_elsewhere_and_serve_nobody_when_it_is_back() {
    in_room("failing::pods_of_a_cut_node_run_elsewhere_and_serve_nobody_when_it_is_back", |home| {
        let world = World::on_one_network(home, "replaced", &NODES);
        let _server = world.server(&[]);
        let _agents = join(&world, &NODES);
        hello(&world, 6);
        let old: BTreeSet<String> =
            placed(&world).into_iter().filter(|(_, n)| n == "node-2").map(|(p, _)| p).collect();
        assert!(!old.is_empty());

        world.cut("node-2");
        until("six pods serve on the other nodes", || {
            let now = serving(&world);
            now.len() == 6 && now.values().all(|n| n != "node-2")
        });
        let shown = world.sh("minisvc get pods").ok();
        for pod in &old {
            let line = shown.lines().find(|l| l.starts_with(pod.as_str())).unwrap();
            assert!(line.contains("Terminating"), "{shown}");
            let told = world.sh(&format!("minisvc describe pod {pod}")).ok();
            assert!(told.contains("TaintManagerEviction"), "{told}");
        }
        world.sh("minisvc wait --for=condition=Programmed service/hello --timeout=20s").ok();
        let new: BTreeSet<String> = serving(&world).into_keys().collect();
        let url = format!("http://{}/", cluster_ip(&world));
        assert_eq!(answers(world.machine("node-1"), &url, 80), new);

        // From now on until they have ended, none of the old pods gets a connection.
        world.heal("node-2");
        until("the old pods have ended", || {
            let got = answers(world.machine("node-1"), &url, 10);
            assert!(got.is_disjoint(&old), "{got:?} has some of {old:?}");
            placed(&world).keys().all(|pod| !old.contains(pod))
        });
        world.ready(&["node-2"]);
        until("the node itself serves what replaced them", || {
            answers(world.machine("node-2"), &url, 80) == new
        });
    });
}

/// What the node's kernel holds of minisvc, without counters.
fn rules(machine: &Machine) -> BTreeSet<String> {
    let all = machine.net().run("nft", &["-s", "list", "ruleset"]).unwrap();
    all.lines().map(str::to_owned).collect()
}

#[test]
fn a_server_that_is_away_for_long_changes_no_rule_and_replaces_no_pod() {
    in_room("failing::a_server_that_is_away_for_long_changes_no_rule_and_replaces_no_pod", |home| {
        let world = World::on_one_network(home, "away", &NODES);
        // Whatever is found silent is replaced at once.
        let flags = ["--pod-eviction-timeout", "0s"];
        let mut server = world.server(&flags);
        let _agents = join(&world, &NODES);
        hello(&world, 3);
        let pods = || {
            let list = world.object("pods -l app=hello");
            let all = list["items"].as_array().unwrap().iter();
            all.map(|p| {
                (text(&p["metadata"]["uid"]), p["status"]["containerStatuses"][0]["containerID"].to_string())
            })
            .collect::<BTreeMap<_, _>>()
        };
        let (before, names) = (pods(), placed(&world).into_keys().collect::<BTreeSet<_>>());
        let url = format!("http://{}/", cluster_ip(&world));
        // Which sources stay is found out by asking the other nodes, which takes as long as it takes.
        until("each node knows that clients' addresses come back from the others", || {
            let kept = |node: &str| {
                world.object(&format!("node/{node}"))["status"]["externalSources"]["kept"].clone()
            };
            NODES.iter().all(|node| kept(node).as_array().is_some_and(|kept| kept.len() == NODES.len() - 1))
        });
        let kernels = || NODES.map(|n| rules(world.machine(n)));
        let programmed = kernels();

        server.signal(Signal::SIGKILL);
        server.ended();
        // Longer than any silence that a server puts up with.
        let end = Instant::now() + Duration::from_secs(12);
        while Instant::now() < end {
            for name in NODES {
                assert!(answers(world.machine(name), &url, 10).is_subset(&names), "from {name}");
            }
        }
        assert!(kernels() == programmed, "a rule has changed while the server was away");

        let _server = world.server(&flags);
        world.ready(&NODES);
        world.sh("minisvc wait --for=condition=Programmed service/hello --timeout=20s").ok();
        assert_eq!(pods(), before, "the same pods, and in them the same processes");
        assert!(kernels() == programmed, "a rule has changed at the server's start");
        let events = world.sh("minisvc get events").ok();
        assert!(!events.contains("TaintManagerEviction") && !events.contains("NodeNotReady"), "{events}");
    });
}
