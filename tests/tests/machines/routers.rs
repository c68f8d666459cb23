//! Nodes with a router between them that knows nothing of pods.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    time::Duration,
};

use minisvc_tests::{
    machines::{World, in_room},
    netns::Namespace,
    traffic::SILENCE,
};
use serde_json::json;

use super::{answers_to_pod, asking, cluster_ip, hello, join, placed, pods_in, text, until};

const HERE: [&str; 2] = ["node-1", "node-2"];
const THERE: [&str; 2] = ["node-3", "node-4"];
const NODES: [&str; 4] = ["node-1", "node-2", "node-3", "node-4"];
const PATIENCE: Duration = Duration::from_secs(20);

/// How a node says that it reaches the others.
fn peers(world: &World, node: &str) -> serde_json::Value {
    world.object(&format!("node/{node}"))["status"]["peers"].clone()
}

/// Sends bytes through `minisvc echo` and back; what it puts in front of every part it reads is left out of the count.
fn carried(to: (Ipv4Addr, u16), pod: &str, length: usize) -> usize {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut writer = stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        let block = vec![b'#'; 65536];
        let mut left = length;
        while left > 0 {
            let part = left.min(block.len());
            writer.write_all(&block[..part]).unwrap();
            left -= part;
        }
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    sending.join().unwrap();
    assert!(back.starts_with(pod.as_bytes()), "{}", String::from_utf8_lossy(&back[..80]));
    String::from_utf8(back).unwrap().matches('#').count()
}

/// The length of what `minisvc echo` answers to a datagram. One that is too large for the way is lost once in each direction, as on
/// any way of the internet: whoever sent it is told, and sends the next in parts.
fn told_back(socket: &UdpSocket, length: usize) -> usize {
    let mut back = vec![0; 65536];
    for patience in [Duration::from_secs(1), Duration::from_secs(1), PATIENCE] {
        socket.set_read_timeout(Some(patience)).unwrap();
        socket.send(&vec![b'#'; length]).unwrap();
        if let Ok(n) = socket.recv(&mut back) {
            return n;
        }
    }
    0
}

#[test]
fn pods_reach_each_other_across_a_router() {
    in_room("routers::pods_reach_each_other_across_a_router", |home| {
        let world = World::on_two_networks(home, "router", &HERE, &THERE);
        let _server = world.server(&[]);
        let _agents = join(&world, &NODES);
        hello(&world, 4);
        let pods = placed(&world);
        let names: BTreeSet<String> = pods.keys().cloned().collect();
        assert_eq!(pods.values().map(String::as_str).collect::<BTreeSet<_>>(), NODES.into(), "{pods:?}");

        // Direct where a machine is on the same network, and by VXLAN where it is not; and everybody is told.
        for (node, direct, vxlan) in [
            ("node-1", ["node-2"], THERE),
            ("node-2", ["node-1"], THERE),
            ("node-3", ["node-4"], HERE),
            ("node-4", ["node-3"], HERE),
        ] {
            let wanted = json!({"direct": direct, "vxlan": vxlan});
            until("the node says how it reaches the others", || peers(&world, node) == wanted);
        }

        let wide = world.sh("minisvc get nodes -o wide").ok();
        assert_eq!(wide.lines().filter(|l| l.contains("1 direct, 2 vxlan")).count(), 4, "{wide}");
        let described = world.sh("minisvc describe node node-1").ok();
        for (node, way) in [("node-2", "direct"), ("node-3", "VXLAN"), ("node-4", "VXLAN")] {
            let words = format!("{node}  {way}, ");
            assert!(described.contains(&words), "no {words:?} in {described}");
        }

        // By name, by ClusterIP, and through the nodePort of either side, from pods and machines of either side.
        let ip = cluster_ip(&world);
        let url = format!("http://{ip}/");
        for node in ["node-1", "node-4"] {
            let pod = pods.iter().find(|(_, n)| *n == node).unwrap().0;
            assert_eq!(answers_to_pod(&world, pod, "http://hello/", 60), names, "from {pod} on {node}");
            assert_eq!(answers_to_pod(&world, pod, &url, 60), names, "from {pod} on {node}");
            for through in NODES {
                let port = format!("http://{}:30080/", world.machine(through).ip());
                let said = world.machine(node).program("sh", &["-c", &asking(&port, 60)]).ok();
                assert_eq!(pods_in(&said), names, "from {node} through {through}");
            }
        }
        for through in NODES {
            let port = format!("http://{}:30080/", world.machine(through).ip());
            let said = world.outside().run("sh", &["-c", &asking(&port, 60)]).unwrap();
            assert_eq!(pods_in(&said), names, "from outside through {through}");
        }

        // A pod sees the pod that asks, wherever it is; what is large arrives whole, in streams and in datagrams.
        let address = |pod: &str| -> Ipv4Addr {
            text(&world.object(&format!("pod/{pod}"))["status"]["podIP"]).parse().unwrap()
        };
        let on = |node: &str| pods.iter().find(|(_, n)| *n == node).unwrap().0.as_str();
        for (from, to) in [("node-1", "node-4"), ("node-3", "node-2"), ("node-1", "node-2")] {
            let (client, server) = (on(from), on(to));
            let seen =
                world.sh(&format!("minisvc exec {client} -- curl -sS http://{}:8080/", address(server))).ok();
            let own = address(client).to_string();
            assert!(seen.contains(&format!("\"client\":\"{own}:")), "{own} is not the client in {seen}");
            let target = address(server);
            world
                .pod(client)
                .enter(|| {
                    let length = 8 << 20;
                    assert_eq!(carried((target, 8080), server, length), length, "from {from} to {to}");
                    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
                    socket.connect((target, 8080))?;
                    for length in [1, 1400, 1472, 8000] {
                        let whole = server.len() + 1 + length;
                        assert_eq!(
                            told_back(&socket, length),
                            whole,
                            "a datagram of {length} from {from} to {to}"
                        );
                    }
                    Ok(())
                })
                .unwrap();
        }
        // The router has seen no pod's address.
        assert_eq!(world.strangers(), 0);

        // And the ways go with the nodes.
        world.sh("minisvc node remove node-4").ok();
        let rest = json!({"direct": ["node-2"], "vxlan": ["node-3"]});
        until("node-4 is forgotten", || peers(&world, "node-1") == rest);
    });
}

#[test]
fn a_cluster_comes_up_across_a_router_that_loses_packets() {
    in_room("routers::a_cluster_comes_up_across_a_router_that_loses_packets", |home| {
        let world = World::on_two_networks(home, "lossy-router", &["node-1"], &["node-3"]);
        // Long enough that nothing is replaced.
        let _server = world.server(&["--pod-eviction-timeout", "1h"]);
        world.lose(15);
        let _agents = join(&world, &["node-1", "node-3"]);
        hello(&world, 4);
        world.lose(0);
        let names: BTreeSet<String> = placed(&world).into_keys().collect();
        let url = format!("http://{}/", cluster_ip(&world));
        world.ready(&["node-1", "node-3"]);
        for name in ["node-1", "node-3"] {
            until("every pod answers", || super::answers(world.machine(name), &url, 40) == names);
        }

        // The way between the networks is gone: each side goes on with what it has, and comes back.
        world.router().run("ip", &["link", "set", "eth1", "down"]).unwrap();
        world.sh("minisvc wait --for=condition=Ready=Unknown node/node-3 --timeout=20s").ok();
        world.sh("minisvc wait --for=condition=Programmed service/hello --timeout=20s").ok();
        let here: BTreeSet<String> =
            placed(&world).into_iter().filter(|(_, n)| n == "node-1").map(|(p, _)| p).collect();
        assert_eq!(super::answers(world.machine("node-1"), &url, 40), here);
        world.router().run("ip", &["link", "set", "eth1", "up"]).unwrap();
        world.ready(&["node-3"]);
        for name in ["node-1", "node-3"] {
            until("every pod answers", || super::answers(world.machine(name), &url, 40) == names);
        }
        assert_eq!(world.strangers(), 0);
    });
}

#[test]
fn the_tunnel_takes_the_packets_of_nodes_alone() {
    in_room("routers::the_tunnel_takes_the_packets_of_nodes_alone", |home| {
        let world = World::on_two_networks(home, "tunnel", &["node-1", "node-2", "thief"], &["node-3"]);
        let _server = world.server(&[]);
        let _agents = join(&world, &["node-1", "node-2", "node-3"]);
        hello(&world, 3);
        let on = |node: &str| placed(&world).into_iter().find(|(_, n)| n == node).unwrap().0;
        let (here, there) = (on("node-1"), on("node-3"));
        let address = text(&world.object(&format!("pod/{here}"))["status"]["podIP"]);
        let target: (Ipv4Addr, u16) = (address.parse().unwrap(), 9999);
        // Who listens in the pod says what has arrived, whether or not it could be answered.
        let arrived = |patience: Duration, send: &dyn Fn()| -> Option<Vec<u8>> {
            let socket = world.pod(&here).enter(|| Ok(UdpSocket::bind(target)?)).unwrap();
            socket.set_read_timeout(Some(patience)).unwrap();
            send();
            let mut datagram = [0; 64];
            socket.recv(&mut datagram).ok().map(|n| datagram[..n].to_vec())
        };
        let send = |from: &Namespace, what: &[u8]| {
            from.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(what, target)?)).unwrap();
        };
        let pod = world.pod(&there);
        assert_eq!(arrived(PATIENCE, &|| send(&pod, b"pod")), Some(b"pod".to_vec()));

        // The thief builds what a node has: the same network number and port, node-1's MAC, and a pod's address.
        let inside = "10.244.77.7";
        let thief = world.machine("thief").net();
        let ip = |line: &str| thief.run("ip", &line.split_whitespace().collect::<Vec<_>>()).unwrap();
        let link: serde_json::Value = {
            let out = world.machine("node-1").net().run("ip", &["-j", "link", "show", "minisvc-vx"]).unwrap();
            serde_json::from_str(&out).unwrap()
        };
        let mac = text(&link[0]["address"]);
        let build = |local: &str| {
            ip(&format!(
                "link add vx0 type vxlan id 173 dstport 8473 local {local} remote 192.0.2.11 dev eth0 nolearning"
            ));
            ip(&format!("address add {inside}/32 dev vx0"));
            ip("link set vx0 up mtu 1400");
            ip(&format!("neighbour add {address} lladdr {mac} dev vx0"));
            ip(&format!("route add {address}/32 dev vx0 src {inside}"));
        };
        build("192.0.2.13");
        assert_eq!(arrived(SILENCE, &|| send(thief, b"thief")), None);
        // It was well built: from a node's address it arrives. That is what docs/security.md warns of.
        ip("link del vx0");
        ip("address add 192.0.2.12/32 dev eth0");
        build("192.0.2.12");
        assert_eq!(arrived(PATIENCE, &|| send(thief, b"forged")), Some(b"forged".to_vec()));
    });
}
