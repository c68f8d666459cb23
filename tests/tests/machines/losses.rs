//! Packets that are lost, and cables that are pulled.

use std::collections::BTreeSet;

use minisvc_tests::machines::{World, in_room};

use super::{NODES, answers, cluster_ip, hello, join, placed, text, until};

#[test]
fn a_lossy_network_slows_a_cluster_down_and_no_more() {
    in_room("losses::a_lossy_network_slows_a_cluster_down_and_no_more", |home| {
        let world = World::on_one_network(home, "lossy", &NODES);
        let _server = world.server(&[]);
        world.lose(20);
        let _agents = join(&world, &NODES);
        hello(&world, 3);
        // A cluster cannot come up with fewer than some hundred frames, of which a fifth is lost.
        assert!(world.lost() > 20, "{} frames were lost", world.lost());
        world.lose(0);
        // All nodes have come to the same: every one leads to every pod.
        let names: BTreeSet<String> = placed(&world).into_keys().collect();
        world.ready(&NODES);
        let url = format!("http://{}/", cluster_ip(&world));
        for machine in NODES.map(|n| world.machine(n)) {
            assert_eq!(answers(machine, &url, 40), names, "from {}", machine.name());
        }
    });
}

#[test]
fn a_node_whose_cable_is_pulled_gets_no_traffic_until_it_is_back() {
    in_room("losses::a_node_whose_cable_is_pulled_gets_no_traffic_until_it_is_back", |home| {
        let world = World::on_one_network(home, "cut", &NODES);
        // Long enough that nothing is replaced.
        let _server = world.server(&["--pod-eviction-timeout", "1h"]);
        let _agents = join(&world, &NODES);
        hello(&world, 6);
        let pods = placed(&world);
        let all: BTreeSet<String> = pods.keys().cloned().collect();
        let there: BTreeSet<String> =
            pods.iter().filter(|(_, n)| *n != "node-2").map(|(p, _)| p.clone()).collect();
        let url = format!("http://{}/", cluster_ip(&world));
        let node = |name| world.machine(name);

        world.cut("node-2");
        world.sh("minisvc wait --for=condition=Ready=Unknown node/node-2 --timeout=20s").ok();
        for pod in all.difference(&there) {
            world.sh(&format!("minisvc wait --for=condition=Ready=False pod/{pod} --timeout=20s")).ok();
        }
        world.sh("minisvc wait --for=condition=Programmed service/hello --timeout=20s").ok();
        for name in ["node-1", "node-3"] {
            assert_eq!(answers(node(name), &url, 60), there, "from {name}");
        }
        // Its own pods live on, and are served by it.
        for pod in all.difference(&there) {
            let ip = text(&world.object(&format!("pod/{pod}"))["status"]["podIP"]);
            let own = answers(node("node-2"), &format!("http://{ip}:8080/"), 1);
            assert_eq!(own, [pod.clone()].into());
        }

        world.heal("node-2");
        world.ready(&["node-2"]);
        for name in NODES {
            until("the pods of the node are back", || answers(node(name), &url, 40) == all);
        }
        assert_eq!(placed(&world), pods, "nothing was moved");
    });
}

#[test]
fn traffic_does_not_need_the_server() {
    in_room("losses::traffic_does_not_need_the_server", |home| {
        let world = World::on_one_network(home, "serverless", &NODES);
        let _server = world.server(&[]);
        let _agents = join(&world, &NODES);
        hello(&world, 3);
        let names: BTreeSet<String> = placed(&world).into_keys().collect();
        let ip = cluster_ip(&world);

        world.cut("server");
        world.sh("minisvc wait --for=condition=Ready=Unknown node/node-1 --timeout=20s").ok();
        for name in NODES {
            let machine = world.machine(name);
            assert_eq!(answers(machine, &format!("http://{ip}/"), 40), names, "from {name}");
            let next = format!("http://{}:30080/", world.machine("node-2").ip());
            assert_eq!(answers(machine, &next, 40), names, "from {name}");
        }

        world.heal("server");
        world.ready(&NODES);
        world.sh("minisvc scale deployment hello --replicas 4").ok();
        world.sh("minisvc wait --for=jsonpath={.status.readyReplicas}=4 deployment/hello --timeout=60s").ok();
    });
}
