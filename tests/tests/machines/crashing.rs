//! Pods that die: their own node knows it first, and does not wait for anybody.

use std::collections::BTreeSet;

use minisvc_tests::machines::{World, in_room};
use nix::sys::signal::{Signal, kill};

use super::{answers, cluster_ip, hello, join, placed, text, until};

/// A pod of `hello` on node-1 that is not started again, and a name for each pod of `hello`.
const ONCE: &str = "
apiVersion: v1
kind: Pod
metadata: {name: once, labels: {app: hello}}
spec:
  nodeName: node-1
  restartPolicy: Never
  containers: [{name: echo, command: [minisvc, echo, --port, '8080']}]
---
apiVersion: v1
kind: Service
metadata: {name: bare}
spec:
  clusterIP: None
  selector: {app: hello}
  ports: [{port: 8080}]
";

#[test]
fn a_pod_that_dies_leaves_its_own_nodes_rules_without_the_server() {
    in_room("crashing::a_pod_that_dies_leaves_its_own_nodes_rules_without_the_server", |home| {
        let nodes = ["node-1", "node-2"];
        let world = World::on_one_network(home, "crashing", &nodes);
        let mut server = world.server(&[]);
        let _agents = join(&world, &nodes);
        hello(&world, 2);
        let others: BTreeSet<String> = placed(&world).into_keys().collect();
        world.sh(&format!("minisvc create -f {}", world.file(ONCE))).ok();
        world.sh("minisvc wait --for=condition=Ready pod/once --timeout=20s").ok();
        let url = format!("http://{}/", cluster_ip(&world));
        let all: BTreeSet<String> = others.iter().cloned().chain(["once".to_owned()]).collect();
        until("the pod serves", || answers(world.machine("node-1"), &url, 80) == all);
        let names = || {
            let dig = ["+short", "@10.96.0.10", "bare.default.svc.cluster.local"];
            world.machine("node-1").program("dig", &dig).ok().lines().count()
        };
        until("the pod has a name", || names() == 3);

        let ip = text(&world.object("pod/once")["status"]["podIP"]);
        server.signal(Signal::SIGKILL);
        server.ended();
        kill(world.process_of("once"), Signal::SIGKILL).unwrap();
        // By its own eyes: a SYN that finds no pod is only sent again, to another.
        until("its own node leads nobody to it", || {
            let rules =
                world.machine("node-1").net().run("nft", &["list", "map", "ip", "minisvc", "ep"]).unwrap();
            assert!(rules.contains(". 8080"), "{rules}");
            !rules.contains(&format!(": {ip} . 8080"))
        });
        assert_eq!(answers(world.machine("node-1"), &url, 80), others);
        until("nor gives its name", || names() == 2);

        // The server hears of it when it is back, and nothing comes back with it.
        let _server = world.server(&[]);
        world.sh("minisvc wait --for=jsonpath={.status.phase}=Failed pod/once --timeout=60s").ok();
        world.sh("minisvc delete pod once").ok();
        assert_eq!(answers(world.machine("node-1"), &url, 80), others);
    });
}
