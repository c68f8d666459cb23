//! What somebody can do who is on the network, or has a node's key.

use std::os::unix::fs::PermissionsExt as _;

use minisvc_tests::machines::{Machine, World, in_room};

use super::{answers, cluster_ip, hello, join, placed, text};

/// Certificate and key of a node as two files that curl takes.
fn pem_files(world: &World, node: &str) -> [String; 2] {
    let stolen = world.credentials_of(node);
    [stolen.certificate, stolen.key].map(|pem| world.file(std::str::from_utf8(&pem).unwrap()))
}

/// The status that a URL answers with, and what it says.
fn curl(from: &Machine, args: &[&str]) -> (String, String) {
    // HTTP/1.1: an answer that comes before the whole question was read is an error of the stream to curl's HTTP/2.
    let all =
        [&["-sS", "--http1.1", "--insecure", "--max-time", "10", "--write-out", "\n%{http_code}"], args]
            .concat();
    let out = from.program("curl", &all).ok();
    let (body, code) = out.rsplit_once('\n').unwrap();
    (code.to_owned(), body.to_owned())
}

#[test]
fn a_stolen_nodes_key_opens_what_that_node_needs_and_no_more() {
    in_room("attacks::a_stolen_nodes_key_opens_what_that_node_needs_and_no_more", |home| {
        let world = World::on_one_network(home, "stolen", &["node-1", "node-2", "thief"]);
        let _server = world.server(&[]);
        let _agents = join(&world, &["node-1", "node-2"]);
        hello(&world, 4);
        let pods = placed(&world);
        let on = |node: &str| pods.iter().find(|(_, n)| *n == node).unwrap().0.clone();
        let (own, others) = (on("node-1"), on("node-2"));
        let token = world.token("");
        // The thief copies the file to a machine of their own.
        let stolen = world.machine("node-1").path("/var/lib/minisvc/agent/node.kubeconfig");
        let mode = std::fs::metadata(&stolen).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let config = world.file(&std::fs::read_to_string(&stolen).unwrap());
        let thief = world.machine("thief");
        let run = |args: &[&str]| thief.run(&[&["--config", &config], args].concat());
        let patched = |name: &str, object: &str| {
            let file = world.file(object);
            let [certificate, key] = pem_files(&world, "node-1");
            let kind = "content-type: application/merge-patch+json";
            let url = format!("{}/{name}", world.url());
            let data = format!("@{file}");
            curl(
                thief,
                &["--cert", &certificate, "--key", &key, "-X", "PATCH", "-H", kind, "-d", &data, &url],
            )
        };

        for args in [
            &["get", "nodes"][..],
            &["get", "services", "-A"],
            &["get", "endpointslices", "-A"],
            &["get", "pod", &own],
        ] {
            run(args).ok();
        }
        for args in [
            &["get", "pods", "-A"][..],
            &["get", "pod", &others],
            &["get", "deployments"],
            &["get", "events"],
            &["get", "jointokens"],
            &["get", "nodecredentials"],
            &["token", "create"],
            &["token", "revoke", &token],
            &["node", "remove", "node-2"],
            &["delete", "node", "node-2"],
            &["delete", "node", "node-1"],
            &["delete", "pod", &others],
            &["delete", "service", "hello"],
            &["scale", "deployment", "hello", "--replicas=0"],
            &["create", "service", "clusterip", "mine", "--tcp=80"],
            &["run", "mine", "--", "true"],
            &["exec", &own, "--", "true"],
            &["exec", &others, "--", "true"],
            &["logs", &others],
            &["node", "exec", "node-2", "--", "true"],
            &["node", "exec", "node-1", "--", "true"],
        ] {
            let line = run(args).refused(1);
            assert!(line.contains("Forbidden") || line.contains("forbidden"), "{args:?}: {line}");
        }
        let gone = r#"{"status": {"conditions": [{"type": "Ready", "status": "False"}]}}"#;
        let (code, body) = patched("apis/minisvc.io/v1/nodes/node-2/status", gone);
        assert!(code == "403" || code == "404", "{code} {body}");
        for (path, object, wanted) in [
            ("api/v1/nodes/node-2/status", gone, "403"),
            (&*format!("api/v1/namespaces/default/pods/{others}/status"), gone, "403"),
            ("api/v1/nodes/node-1", r#"{"spec": {"podCIDR": "10.244.2.0/24"}}"#, "403"),
            ("api/v1/namespaces/default/services/hello", r#"{"spec": {"selector": {"app": "x"}}}"#, "403"),
            // An address that another node has, and one of the services': traffic of others would come here.
            (
                "api/v1/nodes/node-1/status",
                r#"{"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.12"}]}}"#,
                "422",
            ),
            (
                "api/v1/nodes/node-1/status",
                r#"{"status": {"addresses": [{"type": "InternalIP", "address": "10.96.0.10"}]}}"#,
                "422",
            ),
            // A pod's address is where its services lead.
            (
                &*format!("api/v1/namespaces/default/pods/{own}/status"),
                r#"{"status": {"podIP": "192.0.2.66", "podIPs": [{"ip": "192.0.2.66"}]}}"#,
                "422",
            ),
        ] {
            let (code, body) = patched(path, object);
            assert_eq!(code, wanted, "{path} {object}: {body}");
        }
        // Another node's certificate is not for this one to ask for.
        let [certificate, key] = pem_files(&world, "node-1");
        let url = format!("{}/apis/minisvc.io/v1/nodes/node-2/certificate", world.url());
        let (code, body) =
            curl(thief, &["--cert", &certificate, "--key", &key, "-d", "{\"csr\":\"\"}", &url]);
        assert_eq!(code, "403", "{body}");
        let url = format!("{}/apis/minisvc.io/v1/backup", world.url());
        let (code, body) = curl(thief, &["--cert", &certificate, "--key", &key, &url]);
        assert_eq!(code, "403", "{body}");
        // What docs/security.md warns of: a pod is on its machine, and so is the node's key.
        let file = "/var/lib/minisvc/agent/node.kubeconfig";
        assert!(world.run(&["exec", &own, "--", "cat", file]).ok().contains("client-key-data"));
        // All is as it was.
        assert_eq!(placed(&world), pods);
        world.ready(&["node-1", "node-2"]);

        // One command, and the key is worth nothing.
        world.sh("minisvc node remove node-1").ok();
        let line = run(&["get", "services"]).refused(1);
        assert!(line.contains("revoked"), "{line}");
    });
}

#[test]
fn an_agent_answers_the_server_alone() {
    in_room("attacks::an_agent_answers_the_server_alone", |home| {
        let world = World::on_one_network(home, "agents", &["node-1", "node-2", "thief"]);
        let _server = world.server(&[]);
        let _agents = join(&world, &["node-1", "node-2"]);
        hello(&world, 2);
        let pod = placed(&world).into_iter().find(|(_, n)| n == "node-1").unwrap().0;
        let node = world.machine("node-1").ip();
        let thief = world.machine("thief");
        let admin = world.machine("server").path("/var/lib/minisvc/server/admin.kubeconfig");
        let admin = minisvc_proto::client::Kubeconfig::load(&admin).unwrap().credentials().unwrap();
        let admin = [admin.certificate, admin.key].map(|pem| world.file(std::str::from_utf8(&pem).unwrap()));
        for path in [
            format!("logs/default/{pod}/hello"),
            format!("exec/default/{pod}/hello?command=true&stdout=1"),
            "exec-node?command=true&stdout=1".to_owned(),
            "logs/..%2f..%2fetc/passwd/x".to_owned(),
            String::new(),
        ] {
            let url = format!("https://{node}:10250/{path}");
            let (code, body) = curl(thief, &["--path-as-is", &url]);
            assert_eq!(code, "401", "{path}: {body}");
            for [certificate, key] in [&admin, &pem_files(&world, "node-2"), &pem_files(&world, "node-1")] {
                let (code, body) = curl(thief, &["--path-as-is", "--cert", certificate, "--key", key, &url]);
                assert_eq!(code, "403", "{path}: {body}");
            }
        }
        // Plain HTTP gets nothing at all.
        let said = thief.program("curl", &["-sS", "--max-time", "10", &format!("http://{node}:10250/")]);
        assert!(!said.status.success() && said.out.is_empty(), "{said}");
        // Through the server all of that works.
        assert!(world.run(&["exec", &pod, "--", "hostname"]).ok().contains(&pod));
        world.run(&["logs", &pod]).ok();
        assert_eq!(world.sh("minisvc node exec node-1 -- hostname").ok().trim(), "node-1");
    });
}

#[test]
fn a_machine_that_is_no_node_reaches_nodeports_alone() {
    in_room("attacks::a_machine_that_is_no_node_reaches_nodeports_alone", |home| {
        let world = World::on_one_network(home, "routes", &["node-1", "node-2", "thief"]);
        let _server = world.server(&[]);
        let _agents = join(&world, &["node-1", "node-2"]);
        hello(&world, 2);
        let pod = placed(&world).into_iter().find(|(_, n)| n == "node-1").unwrap().0;
        let ip = text(&world.object(&format!("pod/{pod}"))["status"]["podIP"]);
        let service = cluster_ip(&world);
        let url = format!("http://{ip}:8080/");
        // A node gets there; so does whoever asks for the nodePort.
        assert_eq!(answers(world.machine("node-2"), &url, 1), [pod].into());
        let thief = world.machine("thief");
        answers(thief, "http://192.0.2.11:30080/", 4);
        // All that it takes is a route, if nodes were not particular.
        for range in ["10.244.0.0/16", "10.96.0.0/16"] {
            thief.net().run("ip", &["route", "add", range, "via", "192.0.2.11"]).unwrap();
        }
        for url in [&url, &format!("http://{service}/"), "http://10.96.0.10:53/", "http://10.96.0.1:443/"] {
            let said = thief.program("curl", &["-sS", "--max-time", "2", url]);
            assert_eq!(said.status.code(), Some(28), "curl says 28 for silence: {said}");
        }
    });
}

#[test]
fn a_stranger_learns_nothing_from_the_server() {
    in_room("attacks::a_stranger_learns_nothing_from_the_server", |home| {
        let world = World::on_one_network(home, "stranger", &["node-1", "thief"]);
        let server = world.server(&[]);
        let _agents = join(&world, &["node-1"]);
        let thief = world.machine("thief");
        for path in [
            "api/v1/nodes",
            "api/v1/namespaces/default/pods",
            "apis/minisvc.io/v1/jointokens",
            "apis/minisvc.io/v1/cluster",
            "apis/minisvc.io/v1/backup",
            "api/v1/namespaces/..%2f..%2f/pods",
        ] {
            let (code, body) = curl(thief, &["--path-as-is", &format!("{}/{path}", world.url())]);
            assert_eq!(code, "401", "{path}: {body}");
            assert!(!body.contains("node-1") && !body.contains("192.0.2.11"), "{path}: {body}");
        }
        // A token is good for joining, and for nothing else.
        let token: minisvc_proto::join::JoinToken = world.token("").parse().unwrap();
        let header = format!("authorization: Bearer {}", token.bearer());
        for path in ["api/v1/nodes", "apis/minisvc.io/v1/backup", "apis/minisvc.io/v1/cluster"] {
            let (code, body) = curl(thief, &["-H", &header, &format!("{}/{path}", world.url())]);
            assert_eq!(code, "401", "{path}: {body}");
        }
        // Plain HTTP on the TLS port is told what would be right.
        let url = world.url().replace("https", "http");
        let said = thief.program("curl", &["-sS", "--max-time", "10", "-i", &url]).ok();
        assert!(said.starts_with("HTTP/1.1 400") && said.contains("https"), "{said}");
        // Connections that say nothing keep nobody out.
        let silent: Vec<std::net::TcpStream> = thief
            .net()
            .enter(|| {
                let connect = |_| std::net::TcpStream::connect((world.machine("server").ip(), 7443));
                Ok((0..300).map(connect).collect::<Result<_, _>>()?)
            })
            .unwrap();
        world.sh("minisvc get nodes").ok();
        world.ready(&["node-1"]);
        drop(silent);
        assert_eq!(server.lines_with("panicked"), Vec::<String>::new());
    });
}
