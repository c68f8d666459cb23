//! Load balancers without a cloud: a service's own port on the addresses of the nodes.

use std::collections::BTreeSet;

use minisvc_tests::machines::{World, in_room};
use serde_json::Value;

use super::{answers, join, placed, pod_of, text, until};

/// The addresses that a service's status lists.
fn addresses(world: &World, service: &str) -> Vec<String> {
    let service = world.object(&format!("service/{service}"));
    let ingress = service.pointer("/status/loadBalancer/ingress").and_then(Value::as_array);
    ingress.into_iter().flatten().map(|i| text(&i["ip"])).collect()
}

/// Status and reason of its condition.
fn standing(world: &World, service: &str) -> (String, String) {
    let service = world.object(&format!("service/{service}"));
    let conditions = service.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let own: Vec<_> = conditions.filter(|c| c["type"] == "PortsAllocated").collect();
    (text(&own[0]["status"]), text(&own[0]["reason"]))
}

#[test]
fn a_service_answers_at_its_port_on_the_nodes_and_leaves_a_programs_port_to_it() {
    in_room(
        "load_balancers::a_service_answers_at_its_port_on_the_nodes_and_leaves_a_programs_port_to_it",
        |home| {
            let world = World::on_one_network(home, "balanced", &["node-1", "node-2"]);
            let _server = world.server(&[]);
            let mut agents = join(&world, &["node-1", "node-2"]);
            let ips = ["node-1", "node-2"].map(|n| world.machine(n).ip().to_string());
            let program = world.machine("node-2").start(&["echo", "--port", "9000"]);

            world.sh("minisvc create deployment hello --replicas 2 -- minisvc echo --port 8080").ok();
            let made = world.sh("minisvc create service loadbalancer hello --tcp=8000:8080 --timeout=60s");
            let said = format!("reach it at {}:8000, {}:8000", ips[0], ips[1]);
            assert!(made.err.lines().any(|l| l == said), "{made}");
            made.ok();
            let pods: BTreeSet<String> = placed(&world).into_keys().collect();
            assert_eq!(pods.len(), 2);
            for ip in &ips {
                assert_eq!(answers(world.machine("server"), &format!("http://{ip}:8000/"), 40), pods, "{ip}");
            }
            let table = world.sh("minisvc get service hello").ok();
            assert!(table.contains(&ips.join(",")), "{table}");
            let second =
                world.sh("minisvc expose deployment hello --name second --type LoadBalancer --port 8000");
            let why = "TCP port 8000 of the nodes belongs to the load balancer default/hello";
            assert!(second.status.code() == Some(1) && second.err.contains(why), "{second}");
            assert_eq!(addresses(&world, "second"), [""; 0]);

            // A program of the machine has the port: it keeps it, and the other node answers.
            world
                .sh("minisvc expose deployment hello --name taken --type LoadBalancer --port 9000 --target-port 8080")
                .ok();
            until("the node that has the port no more is left out", || {
                addresses(&world, "taken") == ips[..1]
            });
            assert_eq!(standing(&world, "taken"), ("True".into(), "PortTakenOnNodes".into()));
            let ask = |ip: &str| {
                let url = format!("http://{ip}:9000/");
                let said = world.machine("server").program("curl", &["-sS", "--max-time", "5", &url]);
                said.status.success().then(|| pod_of(&said.out))
            };
            assert_eq!(ask(&ips[1]).as_deref(), Some("node-2"), "the program answers itself");
            assert!(pods.contains(&ask(&ips[0]).unwrap()));
            let events = world.sh("minisvc get events").ok();
            assert!(events.lines().any(|l| l.contains("PortTaken") && l.contains("9000")), "{events}");
            drop(program);
            until("the port is free, and the node has it", || addresses(&world, "taken") == ips);
            until("it answers there", || ask(&ips[1]).is_some_and(|pod| pods.contains(&pod)));

            world.sh("minisvc delete service hello").ok();
            until("whoever waited for the port has it", || addresses(&world, "second") == ips);
            drop(agents.pop());
            until("a node that does not speak is no address", || addresses(&world, "second") == ips[..1]);
        },
    );
}
