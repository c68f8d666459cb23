//! Machines become nodes.

use std::collections::BTreeSet;

use minisvc_tests::machines::{World, in_room};

use super::{NODES, answers, answers_to_pod, cluster_ip, hello, placed, until};

#[test]
fn one_command_on_each_machine_makes_a_cluster() {
    in_room("joining::one_command_on_each_machine_makes_a_cluster", |home| {
        let world = World::on_one_network(home, "three", &NODES);
        let _server = world.server(&[]);
        // Each in another way.
        let token = world.token("");
        let file = world.file(&token);
        let settings = world.file(&format!("server = '{}'\ntoken-file = '{file}'\n", world.url()));
        let _agents = [
            world.machine("node-1").start(&["agent", "--server", &world.url(), "--token", &token]),
            world.machine("node-2").start(&["agent", "--server", &world.url(), "--token-file", &file]),
            world.machine("node-3").start(&["agent", "--settings", &settings]),
        ];
        world.ready(&NODES);
        hello(&world, 3);
        let pods = placed(&world);
        let nodes: BTreeSet<&str> = pods.values().map(String::as_str).collect();
        assert_eq!(nodes, NODES.into(), "{pods:?}");
        let names: BTreeSet<String> = pods.keys().cloned().collect();
        let ip = cluster_ip(&world);
        for machine in NODES.map(|n| world.machine(n)) {
            assert_eq!(answers(machine, &format!("http://{ip}/"), 60), names, "from {}", machine.name());
            let url = format!("http://{}:30080/", machine.ip());
            assert_eq!(answers(world.machine("server"), &url, 60), names, "through {}", machine.name());
        }
        for (pod, node) in &pods {
            assert_eq!(answers_to_pod(&world, pod, "http://hello/", 60), names, "from {pod} on {node}");
        }
        until("each node says how it reaches the others", || {
            let wide = world.sh("minisvc get nodes -o wide").ok();
            wide.lines().filter(|l| l.contains("2 direct")).count() == 3
        });
        for (pod, node) in &pods {
            assert!(world.sh(&format!("minisvc get pod {pod} -o wide")).ok().contains(node.as_str()));
        }
    });
}
