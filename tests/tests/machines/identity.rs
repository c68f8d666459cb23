//! Which machine a name is for, and how long.

use std::collections::BTreeSet;

use minisvc_tests::machines::{ADMIN, World, in_room};
use nix::sys::signal::Signal;

use super::{NODES, answers, cluster_ip, hello, join, placed, text, until};

#[test]
fn a_name_is_for_one_machine_at_a_time() {
    in_room("identity::a_name_is_for_one_machine_at_a_time", |home| {
        let world = World::on_one_network(home, "twins", &["node-1", "node-2", "twin"]);
        let _server = world.server(&[]);
        let agents = join(&world, &["node-1", "node-2"]);
        hello(&world, 4);
        let pods = placed(&world);
        let identity = || text(&world.object("nodecredential/node-1")["spec"]["identity"]);
        let first = identity();

        let token = world.file(&world.token(""));
        let url = world.url();
        let flags = ["--server", &url, "--token-file", &token, "--node-name", "node-1"];
        let line = world.refused("twin", &flags);
        for part in ["node-1", "is Ready", "192.0.2.11", "--node-name", "minisvc node remove node-1"] {
            assert!(line.contains(part), "no {part:?} in {line}");
        }
        assert_eq!(identity(), first, "nothing has come of it");
        assert_eq!(agents[0].lines_with("revoked"), Vec::<String>::new());

        // Once nothing is heard of it, the name is free.
        world.cut("node-1");
        world.sh("minisvc wait --for=condition=Ready=Unknown node/node-1 --timeout=20s").ok();
        let _twin = world.machine("twin").start(&[&["agent"], &flags[..]].concat());
        world.ready(&["node-1"]);
        assert_ne!(identity(), first);
        let node = world.object("node/node-1");
        assert_eq!(node["status"]["addresses"][0]["address"], "192.0.2.13");
        // Its pods start there, and answer.
        let all: BTreeSet<String> = pods.keys().cloned().collect();
        let ip = cluster_ip(&world);
        for name in ["node-2", "twin"] {
            let url = format!("http://{ip}/");
            until("all pods answer", || {
                let said = world.machine(name).program("sh", &["-c", &super::asking(&url, 40)]);
                said.status.success() && super::pods_in(&said.out) == all
            });
        }

        // The first comes back and hears that it is a node no more: a line in its log, and its end.
        world.heal("node-1");
        let mut agents = agents.into_iter();
        let line = agents.next().unwrap().refused();
        assert!(line.contains("certificate of node node-1 was revoked"), "{line}");
        let line = world.refused("node-1", &[]);
        assert!(line.contains("certificate of node node-1 was revoked"), "{line}");
        world.ready(&["node-1"]);
        assert_eq!(world.object("node/node-1")["status"]["addresses"][0]["address"], "192.0.2.13");
    });
}

#[test]
fn a_removed_node_is_refused_until_it_joins_anew() {
    in_room("identity::a_removed_node_is_refused_until_it_joins_anew", |home| {
        let world = World::on_one_network(home, "removed", &["node-1"]);
        let _server = world.server(&[]);
        let agent = join(&world, &["node-1"]).remove(0);
        world.sh("minisvc node remove node-1").ok();
        let line = agent.refused();
        assert!(line.contains("revoked") && line.contains("minisvc token create"), "{line}");
        assert_eq!(world.sh("minisvc get nodes -o name").ok(), "");
        let _again = world.join("node-1", &world.token("--uses 1"));
        world.ready(&["node-1"]);
    });
}

#[test]
fn a_server_that_moved_is_found_where_agents_are_told_it_is() {
    in_room("identity::a_server_that_moved_is_found_where_agents_are_told_it_is", |home| {
        let world = World::on_one_network(home, "moved", &NODES);
        let server = world.server(&[]);
        let mut agents = join(&world, &NODES);
        hello(&world, 3);
        let names: BTreeSet<String> = placed(&world).into_keys().collect();
        let ip = cluster_ip(&world);

        server.stop();
        let net = world.machine("server").net();
        net.run("ip", &["address", "flush", "dev", "eth0"]).unwrap();
        net.run("ip", &["address", "add", "192.0.2.99/24", "dev", "eth0"]).unwrap();
        net.run("ip", &["route", "replace", "default", "via", "192.0.2.1"]).unwrap();
        // Long enough that nothing is replaced.
        let _server = world.server(&["--pod-eviction-timeout", "1h"]);

        // Who is told nothing says once that the server is gone, and goes on serving.
        let last = agents.pop().unwrap();
        let line = last.until("the server does not answer");
        assert!(line.contains("https://192.0.2.10:7443"), "{line}");
        for agent in agents {
            agent.stop();
        }
        let told = ["node-1", "node-2"]
            .map(|name| world.machine(name).start(&["agent", "--server", "https://192.0.2.99:7443"]));
        world.ready(&["node-1", "node-2"]);
        world.sh("minisvc wait --for=condition=Ready=Unknown node/node-3 --timeout=20s").ok();
        for name in NODES {
            let seen = answers(world.machine(name), &format!("http://{ip}/"), 20);
            assert!(seen.is_subset(&names), "from {name}: {seen:?}");
        }
        assert_eq!(last.lines_with("the server does not answer").len(), 1);
        // The address is remembered.
        told.into_iter().for_each(minisvc_tests::machines::Process::stop);
        let _agents = ["node-1", "node-2"].map(|name| world.machine(name).start(&["agent"]));
        world.ready(&["node-1", "node-2"]);
        drop(last);
        let _last = world.machine("node-3").start(&["agent", "--server", "https://192.0.2.99:7443"]);
        world.ready(&["node-3"]);
        for name in NODES {
            let machine = world.machine(name);
            until("all pods answer", || answers(machine, &format!("http://{ip}/"), 40) == names);
        }
    });
}

#[test]
fn a_new_ca_ends_every_certificate_of_the_old_one() {
    in_room("identity::a_new_ca_ends_every_certificate_of_the_old_one", |home| {
        let world = World::on_one_network(home, "new-ca", &["node-1"]);
        let server = world.server(&[]);
        let agent = join(&world, &["node-1"]).remove(0);
        hello(&world, 2);
        let pods = placed(&world);
        let names: BTreeSet<String> = pods.keys().cloned().collect();
        let url = format!("http://{}/", cluster_ip(&world));
        let place = world.machine("server");
        let old = std::fs::read_to_string(place.path(ADMIN)).unwrap();
        let old = world.file(&old);

        // As docs/security.md has it.
        server.stop();
        let pki = place.path("/var/lib/minisvc/server/pki");
        std::fs::rename(&pki, pki.with_extension("stolen")).unwrap();
        let _server = world.server(&[]);
        let line = place.run(&["--config", &old, "get", "nodes"]).refused(1);
        assert!(line.contains("another CA"), "{line}");
        agent.until("of another CA");
        let machine = world.machine("node-1");
        assert_eq!(answers(machine, &url, 40), names);
        agent.stop();
        let token = world.file(&world.token(""));
        let flags = ["agent", "--server", &world.url(), "--token-file", &token];
        let line = machine.start(&flags).refused();
        assert!(line.contains("another cluster") && line.contains("node.kubeconfig"), "{line}");

        std::fs::remove_file(machine.path("/var/lib/minisvc/agent/node.kubeconfig")).unwrap();
        let agent = machine.start(&flags);
        agent.until("registered");
        for pod in &names {
            until("the server and the node know each other", || {
                let said = world.run(&["exec", pod, "--", "echo", "here"]);
                said.status.success() && said.out.trim() == "here"
            });
        }
        world.ready(&["node-1"]);
        assert_eq!(placed(&world), pods, "the same pods");
        assert_eq!(answers(machine, &url, 40), names);
    });
}

#[test]
fn a_restore_brings_back_the_nodes_and_tokens_that_were() {
    in_room("identity::a_restore_brings_back_the_nodes_and_tokens_that_were", |home| {
        let world = World::on_one_network(home, "restored", &["node-1", "node-2"]);
        let server = world.server(&[]);
        let token = world.token("");
        let [first, second] = ["node-1", "node-2"].map(|node| world.join(node, &token));
        world.ready(&["node-1", "node-2"]);
        hello(&world, 2);
        let (pods, ip) = (placed(&world), cluster_ip(&world));
        let names: BTreeSet<String> = pods.keys().cloned().collect();
        let place = world.machine("server");
        place.run(&["server", "backup", "/run/cluster.backup"]).ok();
        let mode = std::fs::metadata(place.path("/run/cluster.backup")).unwrap().permissions();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);

        // What happens after a backup is forgotten by a restore: the removal of a node, too, as docs/security.md warns.
        world.sh("minisvc node remove node-1").ok();
        first.refused();
        world.run(&["token", "revoke", &token]).ok();
        world.sh("minisvc delete service hello").ok();
        server.stop();
        place.run(&["server", "restore", "--force", "/run/cluster.backup"]).ok();
        let _server = world.server(&[]);
        let _first = world.machine("node-1").start(&["agent"]);
        world.ready(&["node-1", "node-2"]);
        assert_eq!((placed(&world), cluster_ip(&world)), (pods, ip.clone()));
        for name in ["node-1", "node-2"] {
            let machine = world.machine(name);
            let ask = super::asking(&format!("http://{ip}/"), 40);
            until("the service is back", || {
                let said = machine.program("sh", &["-c", &ask]);
                said.status.success() && super::pods_in(&said.out) == names
            });
        }
        // The other agent has not been touched: it has found its server and its service again.
        assert_eq!(second.lines_with("revoked"), Vec::<String>::new());
        let id = token.split('.').nth(1).unwrap();
        assert!(world.sh("minisvc token list").ok().contains(id));
    });
}

#[test]
fn certificates_are_renewed_under_traffic() {
    in_room("identity::certificates_are_renewed_under_traffic", |home| {
        let world = World::on_one_network(home, "renewed", &["node-1", "node-2"]);
        let server = world.server(&["--node-certificate-ttl", "6s"]);
        let agents = join(&world, &["node-1", "node-2"]);
        hello(&world, 2);
        let names: BTreeSet<String> = placed(&world).into_keys().collect();
        let url = format!("http://{}/", cluster_ip(&world));
        let expires = || text(&world.object("nodecredential/node-1")["spec"]["expires"]);
        let first = expires();
        let serial = world.credentials_of("node-1").certificate;
        // Past the end of the first ones, and of the second ones.
        until("each node has its fourth certificate", || {
            assert_eq!(answers(world.machine("node-1"), &url, 40), names);
            agents.iter().all(|a| a.lines_with("the node's certificate was renewed").len() >= 3)
        });
        assert!(expires() > first);
        assert_ne!(world.credentials_of("node-1").certificate, serial);
        for node in ["node-1", "node-2"] {
            let transition = world.object(&format!("node/{node}"))["status"]["conditions"][0].clone();
            assert_eq!(transition["status"], "True", "{transition}");
        }
        // Both directions work with the new ones: the server asks the agents, the agents the server.
        for pod in &names {
            assert_eq!(world.run(&["exec", pod, "--", "echo", "here"]).ok().trim(), "here");
        }
        world.sh("minisvc create service clusterip later --tcp=81:8080 --timeout=30s").ok();
        world.sh("minisvc wait --for=condition=Programmed service/later --timeout=30s").ok();
        let events = world.sh("minisvc get events -A").ok();
        assert!(!events.contains("NodeNotReady"), "{events}");
        for process in agents.iter().chain([&server]) {
            assert_eq!(process.lines_with("expired"), Vec::<String>::new());
        }

        // An agent that stood still past the end of its certificate is told so.
        agents[0].signal(Signal::SIGSTOP);
        let end: std::time::SystemTime = expires().parse::<jiff::Timestamp>().unwrap().into();
        until("the certificate has ended", || {
            world.sh("minisvc get nodes").ok();
            std::time::SystemTime::now() > end + std::time::Duration::from_secs(1)
        });
        agents[0].signal(Signal::SIGCONT);
        let line = agents[0].until("has expired");
        assert!(line.contains("with a token"), "{line}");
        drop(agents);
        let _again = world.join("node-1", &world.token(""));
        world.ready(&["node-1"]);
    });
}
