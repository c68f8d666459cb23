//! ClusterIP and NodePort: who answers, from where, and who does not.

use std::collections::BTreeMap;

use minisvc_tests::cluster::Cluster;

use super::{answers, hello, object, pod_names, pod_of};

/// With n questions at random over k pods each is asked about n/k times; far from it means that the choice is no choice.
fn assert_spread(seen: &BTreeMap<String, usize>, pods: &[String]) {
    let total: usize = seen.values().sum();
    assert_eq!(seen.keys().cloned().collect::<Vec<_>>(), pods, "{seen:?}");
    // For 200 over 4: below 20 has a probability of about 1e-8.
    assert!(seen.values().all(|n| n * pods.len() * 5 >= total * 2), "{seen:?}");
}

#[test]
fn every_way_to_a_service_leads_to_every_pod() {
    let cluster = Cluster::up("ways", 3);
    hello(&cluster, 30_021);
    let pods = pod_names(&cluster);
    assert_eq!(pods.len(), 4);
    assert_spread(&answers("http://127.0.0.1:30021/", 200), &pods);
    assert_spread(&answers("http://[::1]:30021/", 200), &pods);

    let loop_of = |url: &str| format!("for i in $(seq 200); do curl -sS --max-time 5 {url}; echo; done");
    let count = |out: String| -> BTreeMap<String, usize> {
        let mut seen = BTreeMap::new();
        for line in out.lines().filter(|l| !l.is_empty()) {
            *seen.entry(pod_of(line)).or_default() += 1;
        }
        seen
    };
    // Every node serves, asked from another node, and from itself.
    for (from, to) in [("node-1", 12), ("node-2", 13), ("node-3", 11), ("node-2", 12)] {
        let script = loop_of(&format!("http://192.168.77.{to}:30021/"));
        let out = cluster.run(&["node", "exec", from, "--", "sh", "-c", &script]).ok();
        assert_spread(&count(out), &pods);
    }
    // By name, and by address, from a pod; and the address from a node.
    let ip = object(&cluster, "service/hello")["spec"]["clusterIP"].as_str().unwrap().to_owned();
    for url in [
        "http://hello/",
        "http://hello.default/",
        "http://hello.default.svc.cluster.local/",
        &format!("http://{ip}/"),
    ] {
        let out = cluster.run(&["exec", &pods[0], "--", "sh", "-c", &loop_of(url)]).ok();
        assert_spread(&count(out), &pods);
    }
    let out =
        cluster.run(&["node", "exec", "node-1", "--", "sh", "-c", &loop_of(&format!("http://{ip}/"))]).ok();
    assert_spread(&count(out), &pods);
    // On the node itself, the nodePort answers on 127.0.0.1 too.
    let out = cluster.sh("minisvc node exec node-3 -- curl -sS --max-time 5 http://127.0.0.1:30021/").ok();
    assert!(pods.contains(&pod_of(&out)), "{out}");
    // A pod sees its client's own address through the ClusterIP.
    let own = object(&cluster, &format!("pod/{}", pods[0]))["status"]["podIP"].as_str().unwrap().to_owned();
    let peer = object(&cluster, &format!("pod/{}", pods[1]))["status"]["podIP"].as_str().unwrap().to_owned();
    let out = cluster.sh(&format!("minisvc exec {} -- curl -sS http://{peer}:8080/", pods[0])).ok();
    assert!(out.contains(&own), "{own} is not seen in {out}");
}

#[test]
fn a_service_follows_its_pods() {
    let cluster = Cluster::up("follows", 3);
    hello(&cluster, 30_022);
    cluster.sh("minisvc scale deployment hello --replicas 0").ok();
    cluster.sh("minisvc wait --for=delete pod -l app=hello --timeout=60s").ok();
    cluster.sh("minisvc wait --for=condition=Programmed service/hello --timeout=30s").ok();
    // Refused at once, not after a time-out.
    for node in ["192.168.77.11", "192.168.77.12", "192.168.77.13"] {
        let said =
            cluster.sh(&format!("minisvc node exec node-1 -- curl -sS --max-time 5 http://{node}:30022/"));
        assert_eq!(said.status.code(), Some(7), "curl says 7 for a refused connection: {said}");
    }
    cluster.sh("minisvc scale deployment hello --replicas 2").ok();
    cluster.sh("minisvc wait --for=condition=Available deployment/hello --timeout=30s").ok();
    cluster
        .sh("minisvc expose deployment hello --name again --type=NodePort --port=81 --target-port=8080")
        .ok();
    let pods = pod_names(&cluster);
    assert_spread(&answers("http://127.0.0.1:30022/", 100), &pods);
    let port = object(&cluster, "service/again")["spec"]["ports"][0]["nodePort"].as_u64().unwrap();
    let out = cluster.sh(&format!("minisvc node exec node-1 -- curl -sS http://192.168.77.12:{port}/")).ok();
    assert!(pods.contains(&pod_of(&out)), "{out}");
    cluster.sh("minisvc delete service again").ok();
    let ip = object(&cluster, "service/hello")["spec"]["clusterIP"].as_str().unwrap().to_owned();
    let said = cluster.sh(&format!("minisvc exec {} -- curl -sS --max-time 5 http://{ip}:81/", pods[0]));
    assert_eq!(said.status.code(), Some(7), "an undefined port of a live ClusterIP is refused: {said}");
}

#[test]
fn udp_has_the_same_ways() {
    let cluster = Cluster::up("udp", 3);
    cluster.sh("minisvc create deployment dgram --replicas 3 -- minisvc echo --port 8080").ok();
    let service = cluster.home().join("udp.yaml");
    std::fs::write(
        &service,
        "apiVersion: v1\nkind: Service\nmetadata: {name: dgram}\nspec:\n  type: NodePort\n  selector: {app: dgram}\n  \
         ports: [{port: 80, targetPort: 8080, protocol: UDP, nodePort: 30023}]\n",
    )
    .unwrap();
    cluster.run(&["create", "-f", service.to_str().unwrap()]).ok();
    cluster.sh("minisvc wait --for=condition=Available deployment/dgram --timeout=30s").ok();
    cluster.sh("minisvc wait --for=condition=Programmed service/dgram --timeout=30s").ok();
    let pods = pod_names(&cluster);
    // A new socket for each question is a new flow.
    let mut seen = BTreeMap::new();
    for _ in 0..60 {
        let socket = std::net::UdpSocket::bind(("127.0.0.1", 0)).unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        socket.connect(("127.0.0.1", 30_023)).unwrap();
        socket.send(b"who").unwrap();
        let mut buffer = [0; 2048];
        let n = socket.recv(&mut buffer).unwrap();
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        let pod = pods.iter().find(|p| text.contains(p.as_str())).unwrap_or_else(|| panic!("{text}"));
        *seen.entry(pod.clone()).or_default() += 1;
    }
    assert_spread(&seen, &pods);
}

#[test]
fn this_machines_own_network_gets_nothing_but_listening_sockets() {
    let state = || -> Vec<(String, String)> {
        let read = |path: &str| (path.to_owned(), std::fs::read_to_string(path).unwrap_or_default());
        let mut all =
            vec![read("/proc/net/fib_trie"), read("/proc/net/if_inet6"), read("/proc/net/ipv6_route")];
        for file in ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv4/ip_local_reserved_ports"] {
            all.push(read(file));
        }
        // Empty for those who may not look, before and after.
        let nft = std::process::Command::new("nft")
            .args(["list", "ruleset"])
            .env("PATH", "/usr/sbin:/usr/bin")
            .output();
        all.push((
            "ruleset".into(),
            nft.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default(),
        ));
        let mut links: Vec<_> =
            std::fs::read_dir("/sys/class/net").unwrap().map(|e| e.unwrap().file_name()).collect();
        links.sort();
        all.push(("links".into(), format!("{links:?}")));
        all
    };
    let before = state();
    let cluster = Cluster::up("own", 2);
    hello(&cluster, 30_024);
    assert_eq!(state(), before);
}

#[test]
fn a_port_that_another_program_has_is_said_by_the_command_and_by_an_event() {
    let _other = std::net::TcpListener::bind("127.0.0.1:30025").unwrap();
    let cluster = Cluster::up("taken", 1);
    let create = "minisvc create service nodeport taken --tcp=80:8080 --node-port=30025";
    let said = cluster.sh(create);
    let err = said.err.clone();
    said.ok();
    // The other program accepts connections: that is no answer of ours.
    assert!(err.lines().any(|l| l == "reach it at port 30025 of every node"), "{err}");
    let line = "TCP port 30025 of this machine cannot be had (it is in use by another program): default/taken answers on the nodes only";
    assert!(err.lines().any(|l| l == format!("note: {line}")), "{err}");
    let events = cluster.sh("minisvc get events").ok();
    assert!(events.lines().any(|l| l.contains("PortTaken") && l.ends_with(line)), "{events}");
}
