//! Clients outside, as pods on other nodes than the one that they call see them.

use std::{collections::BTreeMap, net::IpAddr};

use minisvc_tests::machines::{World, in_room};
use serde_json::{Value, json};

use super::{asking, hello, join, placed, text, until};

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];

/// The condition: its status, and what it says.
fn kept(world: &World, node: &str) -> (String, String) {
    let node = world.object(&format!("node/{node}"));
    let conditions = node["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let one = conditions.into_iter().find(|c| c["type"] == "ExternalSourceKept").unwrap_or_default();
    (one["status"].as_str().unwrap_or("").to_owned(), one["message"].as_str().unwrap_or("").to_owned())
}

/// By what pods of the other nodes see of them.
fn sources(world: &World, node: &str) -> Value {
    world.object(&format!("node/{node}"))["status"]["externalSources"].clone()
}

/// The clients' addresses that pods see of who calls a node from outside, by the pods' nodes.
fn views(world: &World, entry: &str) -> BTreeMap<String, IpAddr> {
    let pods = placed(world);
    let url = format!("http://{}:30080/", world.machine(entry).ip());
    let said = world.outside().run("sh", &["-c", &asking(&url, 60)]).unwrap();
    let mut views = BTreeMap::new();
    for (pod, node) in &pods {
        let line =
            said.lines().find(|l| l.contains(pod.as_str())).unwrap_or_else(|| panic!("no {pod}: {said}"));
        let (_, rest) = line.split_once("\"client\":\"").unwrap();
        let (client, _) = rest.split_once('"').unwrap();
        views.insert(node.clone(), client.rsplit_once(':').unwrap().0.parse().unwrap());
    }
    views
}

#[test]
fn clients_are_seen_by_their_own_address_wherever_it_is_known_to_work() {
    in_room("sources::clients_are_seen_by_their_own_address_wherever_it_is_known_to_work", |home| {
        let world = World::on_two_networks(home, "sources", &NODES[..2], &NODES[2..]);
        let _server = world.server(&[]);
        let _agents = join(&world, &NODES);
        hello(&world, 3);
        for node in NODES {
            // A node that knows of no other yet has nothing to lack.
            until("every node's probes have come back", || {
                let (status, message) = kept(&world, node);
                status == "True" && NODES.iter().all(|other| *other == node || message.contains(other))
            });
        }
        let described = world.sh("minisvc describe node node-1").ok();
        assert!(described.contains("ExternalSourceKept"), "{described}");
        assert_eq!(sources(&world, "node-1"), json!({"kept": ["node-2", "node-3"], "masqueraded": []}));
        let client = *views(&world, "node-1").values().next().unwrap();
        for entry in NODES {
            let seen = views(&world, entry);
            let one = seen["node-1"];
            assert_eq!(seen, NODES.map(|node| (node.to_owned(), one)).into(), "through {entry}");
            assert!(NODES.iter().all(|node| one != IpAddr::from(world.machine(node).ip())), "{seen:?}");
        }
        // A network that drops foreign sources on their way to node-2: its pods are reached all the same, and it is said why not otherwise.
        let nodes = NODES.map(|node| world.machine(node).ip().to_string()).join(", ");
        let rules = format!(
            "table ip port_security {{ chain in {{ type filter hook prerouting priority -400; \
             iifname \"eth0\" ip daddr 10.244.0.0/16 ip saddr != {{ 10.244.0.0/16, {nodes} }} drop; }}; }}"
        );
        world.machine("node-2").net().run("nft", &[&rules]).unwrap();
        until("node-1 sees that", || {
            let (status, message) = kept(&world, "node-1");
            status == "False" && message.contains("Pods on node-2 see this node instead")
        });
        assert_eq!(sources(&world, "node-1"), json!({"kept": ["node-3"], "masqueraded": ["node-2"]}));
        let described = world.sh("minisvc describe node node-1").ok();
        let row = |node: &str| {
            described.lines().find(|l| l.trim_start().starts_with(node) && l.contains("network")).unwrap()
        };
        assert!(row("node-2").ends_with("this node (masqueraded)"), "{described}");
        let wide = world.sh("minisvc get node node-1 -o wide").ok();
        assert!(wide.contains("EXTERNAL-SOURCE") && wide.contains("1 kept, 1 masqueraded"), "{wide}");
        let through = world.machine("node-1").ip();
        let seen = views(&world, "node-1");
        assert_eq!(seen["node-2"], IpAddr::from(through));
        assert_eq!((seen["node-1"], seen["node-3"]), (client, client));
        let events = text(&Value::from(world.sh("minisvc get events").ok()));
        assert!(events.contains("ExternalSourceMasqueraded"), "{events}");
        // And back.
        world.machine("node-2").net().run("nft", &["delete", "table", "ip", "port_security"]).unwrap();
        until("node-1 sees that, too", || kept(&world, "node-1").0 == "True");
        assert_eq!(views(&world, "node-1")["node-2"], client);
    });
}
