//! Nodes on different networks: what a packet meets that goes through the tunnel.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use minisvc_agent::net::Way;
use minisvc_tests::{
    netns::{Namespace, isolated},
    traffic::{self, Connection, SILENCE},
};

use crate::{
    cluster::{CLIENT, Cluster, FAR_CLIENT, LAN, POD_PORT, Service, VXLAN_PORT, far_ip, node_ip},
    echo::Echo,
    names, seen,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A node's address inside the tunnel.
pub fn inside(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, n, 0)
}

#[test]
fn every_way_to_a_service_works_across_a_router() -> anyhow::Result<()> {
    isolated("tunnel::every_way_to_a_service_works_across_a_router", || {
        let mut cluster = Cluster::routed()?;
        for (node, pod) in [(1, "a"), (2, "b"), (3, "c")] {
            cluster.pod(node, pod)?;
        }
        let web = Service::new(1).node_port(30080).endpoints(&cluster, &["a", "b", "c"]);
        cluster.apply([&web])?;
        for n in [1, 2, 3] {
            // The strictest setting that a distribution may have.
            cluster.node(n).enter(|| Ok(std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1")?))?;
        }
        for (from, to, way) in [
            (1, 2, Way::Direct),
            (2, 1, Way::Direct),
            (1, 3, Way::Vxlan),
            (2, 3, Way::Vxlan),
            (3, 1, Way::Vxlan),
            (3, 2, Way::Vxlan),
        ] {
            assert_eq!(cluster.way(from, to), Some(way), "{from} to {to}");
        }
        // Pod to pod, and node to pod: pods see pods' own addresses, and nodes' addresses inside the tunnel.
        let pods = [(1, "a"), (2, "b"), (3, "c")];
        for ask in [traffic::tcp, traffic::udp] {
            for (from_node, from) in pods {
                for (to_node, to) in pods {
                    let address = (cluster.ip(to), POD_PORT);
                    let answer = cluster.ns(from).enter(|| ask(address))?;
                    assert_eq!((answer.server.as_str(), answer.client.ip()), (to, cluster.ip(from).into()));
                    let answer = cluster.node(from_node).enter(|| ask(address))?;
                    let far = (from_node == 3) != (to_node == 3);
                    let node = if far { inside(from_node) } else { cluster.address(from_node) };
                    assert_eq!((answer.server.as_str(), answer.client.ip()), (to, node.into()));
                }
            }
        }
        let all = names(["a", "b", "c"]);
        for ask in [traffic::tcp, traffic::udp] {
            for (node, pod) in pods {
                // Through the ClusterIP.
                let (servers, sources) = seen(cluster.ns(pod), web.address(), 40, ask)?;
                assert_eq!(
                    (servers, sources),
                    (all.clone(), [cluster.ip(pod), cluster.address(node)].into())
                );
                let (servers, sources) = seen(cluster.node(node), web.address(), 40, ask)?;
                assert_eq!((servers, sources), (all.clone(), [cluster.address(node), inside(node)].into()));
                // nodePorts: from outside, from either network.
                let to = (cluster.address(node), 30080);
                for (outside, ip) in [(cluster.outside(), CLIENT), (cluster.far_outside(), FAR_CLIENT)] {
                    let (servers, sources) = seen(outside, to, 40, ask)?;
                    // Endpoints of the node itself see the client.
                    let wanted = match node {
                        3 => [inside(3), ip].into(),
                        _ => [cluster.address(node), inside(node), ip].into(),
                    };
                    assert_eq!(
                        (servers, sources),
                        (all.clone(), wanted),
                        "{} to node {node}",
                        outside.name()
                    );
                }
                // From nodes and pods, of this network and the other.
                for (from, client) in pods {
                    assert_eq!(seen(cluster.node(from), to, 40, ask)?.0, all, "node {from} to node {node}");
                    assert_eq!(seen(cluster.ns(client), to, 40, ask)?.0, all, "pod {client} to node {node}");
                }
            }
        }
        // A pod reaches the outside, and nodes across the router, with its node's address; nodes on its own network with its own.
        let _clients = [
            traffic::Server::start(cluster.outside(), 7000)?,
            traffic::Server::start(cluster.far_outside(), 7000)?,
            traffic::Server::start(cluster.node(2), 7000)?,
            traffic::Server::start(cluster.node(3), 7000)?,
        ];
        for (to, source) in [
            (CLIENT, node_ip(1)),
            (FAR_CLIENT, node_ip(1)),
            (far_ip(3), node_ip(1)),
            (node_ip(2), cluster.ip("a")),
        ] {
            for ask in [traffic::tcp, traffic::udp] {
                assert_eq!(cluster.ns("a").enter(|| ask((to, 7000)))?.client.ip(), source, "a to {to}");
            }
        }
        cluster.listing(1)?;
        Ok(())
    })
}

/// What a large transfer needs to hear to know that it was too large: nothing, if segments were right from the start.
fn unreachables_told(at: &Namespace) -> anyhow::Result<u64> {
    let text = at.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))?;
    let mut lines = text.lines().filter(|l| l.starts_with("Icmp:")).map(str::split_whitespace);
    let (names, mut values) = (lines.next().unwrap(), lines.next().unwrap());
    let column = names.into_iter().position(|name| name == "OutDestUnreachs").unwrap();
    Ok(values.nth(column).unwrap().parse()?)
}

/// Sends so many bytes, and gets the same ones back.
pub fn tcp_echo(to: (Ipv4Addr, u16), size: usize) -> anyhow::Result<()> {
    let sent: Vec<u8> = (0..size).map(|i| (i * 7 + i / 251) as u8).collect();
    let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&sent)?;
    stream.shutdown(Shutdown::Write)?;
    let mut back = Vec::new();
    stream.read_to_end(&mut back)?;
    anyhow::ensure!(back == sent, "{} of {size} bytes came back from {to:?}", back.len());
    Ok(())
}

pub fn udp_echo(socket: &UdpSocket, size: usize) -> anyhow::Result<()> {
    let sent: Vec<u8> = (0..size).map(|i| (i * 11 + i / 253) as u8).collect();
    socket.send(&sent)?;
    let mut back = vec![0; 65_536];
    let n = socket.recv(&mut back)?;
    anyhow::ensure!(back[..n] == sent, "{n} of {size} bytes came back");
    Ok(())
}

pub fn udp_to(to: (Ipv4Addr, u16)) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Waits until a program's output is as it should be.
pub fn eventually(at: &Namespace, command: &[&str], is_right: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let text = at.run(command[0], &command[1..]).unwrap_or_else(|error| error.to_string());
        if is_right(&text) {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < end, "{}: {command:?} still says\n{text}", at.name());
        std::thread::yield_now();
    }
}

#[test]
fn transfers_of_all_sizes_pass_and_senders_learn_what_fits() -> anyhow::Result<()> {
    isolated("tunnel::transfers_of_all_sizes_pass_and_senders_learn_what_fits", || {
        let mut cluster = Cluster::routed()?;
        cluster.pod(1, "a")?;
        cluster.pod(3, "c")?;
        let port = 9000;
        let _echo = Echo::start(cluster.ns("c"), port)?;
        let endpoint = [(cluster.ip("c").into(), port)].into();
        let web = Service { endpoints: endpoint, ..Service::new(1).node_port(30080) };
        cluster.apply([&web])?;
        let ways = [
            (cluster.ns("a"), (cluster.ip("c"), port)),
            (cluster.ns("a"), web.address()),
            (cluster.node(1), web.address()),
            (cluster.outside(), (node_ip(1), 30080)),
            (cluster.far_outside(), (node_ip(1), 30080)),
            (cluster.outside(), (far_ip(3), 30080)),
        ];
        for (at, to) in ways {
            at.enter(|| {
                for size in [100, 1_399, 1_410, 1_411, 1_460, 1_461, 10_000, 1_000_000] {
                    tcp_echo(to, size)?;
                }
                let socket = udp_to(to)?;
                for size in [100, 1_400, 4_000, 30_000] {
                    udp_echo(&socket, size)?;
                }
                Ok(())
            })?;
        }
        // No segment of all these was too large for the tunnel.
        for n in [1, 3] {
            assert_eq!(unreachables_told(cluster.node(n))?, 0, "node {n}");
        }
        // A datagram that fits the sender's own link and not the tunnel: the sender is told, in the words that it knows; so is who
        // answers.
        let senders = [
            (cluster.ns("a"), (cluster.ip("c"), port), cluster.ip("a")),
            (cluster.ns("a"), web.address(), cluster.ip("a")),
            (cluster.outside(), (node_ip(1), 30080), inside(1)),
        ];
        for (at, to, source) in senders {
            let learns = |at: &Namespace, to: Ipv4Addr| {
                eventually(at, &["ip", "route", "get", &to.to_string()], |text| text.contains("mtu 1450"))
            };
            let send = || {
                at.enter(|| {
                    let socket = udp_to(to)?;
                    Ok(socket.send(&[7; 1_472])?)
                })
            };
            send()?;
            learns(at, to.0)?;
            send()?;
            learns(cluster.ns("c"), source)?;
            at.enter(|| udp_echo(&udp_to(to)?, 1_472))?;
        }
        assert!(unreachables_told(cluster.node(1))? > 0);
        Ok(())
    })
}

/// A datagram of VXLAN: for a node, with a datagram for a pod of its inside.
fn encapsulated(node: Ipv4Addr, from: Ipv4Addr, to: Ipv4Addr, port: u16, text: &[u8]) -> Vec<u8> {
    let [a, b, c, d] = node.octets();
    let mut packet = vec![0x08, 0, 0, 0, 0, 0, 173, 0];
    packet.extend([0x06, 0x6d, a, b, c, d, 0x06, 0x6d, 1, 2, 3, 4, 0x08, 0x00]);
    let length = |extra: usize| ((text.len() + extra) as u16).to_be_bytes();
    let mut ip =
        [&[0x45, 0][..], &length(28), &[0, 1, 0, 0, 64, 17, 0, 0], &from.octets(), &to.octets()].concat();
    let sum: u32 = ip.chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(ip);
    packet.extend([&4000u16.to_be_bytes()[..], &port.to_be_bytes(), &length(8), &[0, 0], text].concat());
    packet
}

#[test]
fn only_nodes_send_through_the_tunnel_and_only_what_is_of_the_cluster() -> anyhow::Result<()> {
    isolated("tunnel::only_nodes_send_through_the_tunnel_and_only_what_is_of_the_cluster", || {
        let mut cluster = Cluster::routed()?;
        for (node, pod) in [(1, "a"), (2, "b"), (3, "c")] {
            cluster.pod(node, pod)?;
        }
        let (a, b, c) = (cluster.ip("a"), cluster.ip("b"), cluster.ip("c"));
        let listen = |pod: &str| {
            cluster.ns(pod).enter(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 9999))?;
                socket.set_read_timeout(Some(PATIENCE))?;
                Ok(socket)
            })
        };
        let (at_a, at_b) = (listen("a")?, listen("b")?);
        let send = |at: &Namespace, to: Ipv4Addr, packet: &[u8]| {
            at.enter(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?.send_to(packet, (to, VXLAN_PORT))?))
        };
        let (near, good) = (node_ip(1), encapsulated(node_ip(1), c, a, 9999, b"known"));
        let bad = |from, to| encapsulated(near, from, to, 9999, b"bad");
        // The very packet that a node may send, from others: machines outside, pods (node 3 would give its own address to what its pod
        // sends to node 1), and the node itself.
        let strangers = [
            cluster.outside(),
            cluster.far_outside(),
            cluster.ns("a"),
            cluster.ns("b"),
            cluster.ns("c"),
            cluster.node(1),
        ];
        for at in strangers {
            send(at, near, &bad(c, a))?;
        }
        // What is not of the cluster, and what is not for this node.
        for (from, to) in [
            (Ipv4Addr::new(203, 0, 113, 9), a),
            (FAR_CLIENT, a),
            (far_ip(3), a),
            (c, b),
            (c, near),
            (c, CLIENT),
            (c, Ipv4Addr::new(10, 96, 0, 10)),
        ] {
            send(cluster.node(3), near, &bad(from, to))?;
        }
        send(cluster.node(3), near, &good)?;
        let mut text = [0; 16];
        let (n, from) = at_a.recv_from(&mut text)?;
        assert_eq!((&text[..n], from.ip()), (&b"known"[..], c.into()));
        for socket in [&at_a, &at_b] {
            socket.set_read_timeout(Some(SILENCE))?;
            assert_eq!(socket.recv(&mut text).unwrap_err().kind(), ErrorKind::WouldBlock);
        }
        // A node that is none any more.
        cluster.set_nodes(1, &[1, 2])?;
        send(cluster.node(3), near, &good)?;
        assert_eq!(at_a.recv(&mut text).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert!(!cluster.listing(1)?.contains("198.51.100.13"));
        Ok(())
    })
}

const LINK: &str = "minisvc-vx";

#[test]
fn the_tunnel_is_adopted_repaired_and_replaced_under_running_connections() -> anyhow::Result<()> {
    isolated("tunnel::the_tunnel_is_adopted_repaired_and_replaced_under_running_connections", || {
        let mut cluster = Cluster::routed()?;
        cluster.pod(1, "a")?;
        cluster.pod(3, "c")?;
        let link = cluster.node(1).run("ip", &["-d", "link", "show", LINK])?;
        for fact in [
            "vxlan id 173 local 192.0.2.11",
            "dstport 8473",
            "nolearning",
            "mtu 1450",
            "group 174",
            "udpcsum",
        ] {
            assert!(link.contains(fact), "{fact} in\n{link}");
        }
        assert!(!link.contains("noudpcsum") && link.contains("06:6d:c0:00:02:0b"), "{link}");
        let of_node_3 = |command: &'static [&'static str], text: &'static str| {
            let (at, right) = (cluster.node(1), move |told: &str| told.lines().any(|l| l.contains(text)));
            eventually(at, command, right)
        };
        let everything_is_there = || {
            of_node_3(
                &["ip", "route", "show", "proto", "173"],
                "10.244.3.0/24 via 10.244.3.0 dev minisvc-vx src 10.244.1.0 onlink",
            )?;
            of_node_3(
                &["ip", "neigh", "show", "dev", LINK],
                "10.244.3.0 lladdr 06:6d:c6:33:64:0d PERMANENT",
            )?;
            of_node_3(
                &["bridge", "fdb", "show", "dev", LINK],
                "06:6d:c6:33:64:0d dst 198.51.100.13 self permanent",
            )
        };
        everything_is_there()?;
        // Node 2 is a neighbour.
        let routes = cluster.node(1).run("ip", &["route", "show", "proto", "173"])?;
        assert!(routes.contains("10.244.2.0/24 via 192.0.2.12 dev eth0"), "{routes}");
        assert!(!cluster.node(1).run("bridge", &["fdb", "show", "dev", LINK])?.contains("192.0.2.12"));

        let mut open = cluster.ns("a").enter(|| Ok(Connection::open((cluster.ip("c"), POD_PORT))?))?;
        assert_eq!(open.ask()?.server, "c");
        // Somebody takes away one part after the other, and then everything.
        for harm in [
            &["ip", "route", "del", "10.244.3.0/24"][..],
            &["ip", "neigh", "del", "10.244.3.0", "dev", LINK],
            &["bridge", "fdb", "del", "06:6d:c6:33:64:0d", "dev", LINK, "dst", "198.51.100.13", "self"],
            &["ip", "addr", "flush", "dev", LINK],
            &["ip", "link", "set", LINK, "down"],
            &["ip", "link", "del", LINK],
        ] {
            cluster.node(1).run(harm[0], &harm[1..])?;
            everything_is_there()?;
            eventually(cluster.node(1), &["ip", "addr", "show", LINK], |text| {
                text.contains("10.244.1.0/32")
            })?;
            assert_eq!(open.ask()?.server, "c", "after {harm:?}");
        }
        // A larger or smaller network underneath.
        cluster.node(1).run("ip", &["link", "set", "eth0", "mtu", "1400"])?;
        eventually(cluster.node(1), &["ip", "link", "show", LINK], |text| text.contains("mtu 1350"))?;
        cluster.node(1).run("ip", &["link", "set", "eth0", "mtu", "1500"])?;
        eventually(cluster.node(1), &["ip", "link", "show", LINK], |text| text.contains("mtu 1450"))?;

        let index = |cluster: &Cluster| cluster.node(1).enter(|| Ok(nix::net::if_::if_nametoindex(LINK)?));
        let before = index(&cluster)?;
        // Another agent leaves it as it is.
        cluster.restart_agents()?;
        cluster.apply([])?;
        for n in [1, 2, 3] {
            cluster.set_nodes(n, &[1, 2, 3])?;
        }
        assert_eq!(index(&cluster)?, before);
        assert_eq!(open.ask()?.server, "c");
        // One that finds a wrong link does not: another port, another network, another kind of link.
        for wrong in [
            &["type", "vxlan", "id", "173", "dstport", "4000", "local", "192.0.2.11", "nolearning"][..],
            &["type", "vxlan", "id", "174", "dstport", "8473", "local", "192.0.2.11", "nolearning"],
            &["type", "bridge"],
        ] {
            cluster.restart_agents()?;
            cluster.node(1).run("ip", &["link", "del", LINK])?;
            cluster.node(1).run("ip", &[&["link", "add", LINK], wrong].concat())?;
            cluster.apply([])?;
            for n in [1, 2, 3] {
                cluster.set_nodes(n, &[1, 2, 3])?;
            }
            let link = cluster.node(1).run("ip", &["-d", "link", "show", LINK])?;
            assert!(
                link.contains("vxlan id 173 local 192.0.2.11") && link.contains("dstport 8473"),
                "{link}"
            );
            assert_eq!(open.ask()?.server, "c", "after {wrong:?}");
        }
        // The last node that needs it takes it along.
        cluster.set_nodes(1, &[1, 2])?;
        assert!(cluster.node(1).run("ip", &["link", "show", LINK]).is_err());
        Ok(())
    })
}

#[test]
fn nodes_follow_the_machines_routes_and_may_disagree_about_them() -> anyhow::Result<()> {
    isolated("tunnel::nodes_follow_the_machines_routes_and_may_disagree_about_them", || {
        let mut cluster = Cluster::new(2)?;
        cluster.pod(1, "a")?;
        cluster.pod(2, "c")?;
        let web = Service::new(1).node_port(30080).endpoints(&cluster, &["a", "c"]);
        cluster.apply([&web])?;
        let router = cluster.router();
        router.run("sysctl", &["-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0"])?;
        router.run("sysctl", &["-qw", "net.ipv4.conf.lan0.send_redirects=0"])?;
        let works = |what: &str| -> anyhow::Result<()> {
            for ask in [traffic::tcp, traffic::udp] {
                for (node, pod) in [(1, "a"), (2, "c")] {
                    for at in [cluster.ns(pod), cluster.node(node)] {
                        assert_eq!(
                            seen(at, web.address(), 20, ask)?.0,
                            names(["a", "c"]),
                            "{what}: {}",
                            at.name()
                        );
                    }
                    let to = (node_ip(node), 30080);
                    assert_eq!(
                        seen(cluster.outside(), to, 20, ask)?.0,
                        names(["a", "c"]),
                        "{what}: node {node}"
                    );
                }
            }
            Ok(())
        };
        let has_link = |n: u8| cluster.node(n).run("ip", &["link", "show", LINK]).is_ok();
        let mut open = cluster.ns("a").enter(|| Ok(Connection::open((cluster.ip("c"), POD_PORT))?))?;
        open.ask()?;
        works("neighbours")?;
        assert!(!has_link(1) && !has_link(2));
        // Node 1 now sends to node 2 by way of a router; node 2 knows nothing of that until it is told.
        let (gateway, other) = (LAN.to_string(), node_ip(2).to_string());
        cluster.node(1).run("ip", &["route", "add", &other, "via", &gateway])?;
        cluster.await_way(1, 2, Way::Vxlan)?;
        assert!(has_link(1) && !has_link(2));
        cluster.set_tunnelling(2, &[1])?;
        assert!(has_link(2));
        assert_eq!(cluster.way(2, 1), Some(Way::Direct));
        assert_eq!(open.ask()?.server, "c");
        works("one by the tunnel, one without")?;
        // Node 2 follows, and both come back.
        cluster.node(2).run("ip", &["route", "add", &node_ip(1).to_string(), "via", &gateway])?;
        cluster.await_way(2, 1, Way::Vxlan)?;
        assert_eq!(open.ask()?.server, "c");
        works("both by the tunnel")?;
        cluster.node(1).run("ip", &["route", "del", &other])?;
        cluster.await_way(1, 2, Way::Direct)?;
        cluster.set_tunnelling(1, &[2])?;
        assert!(has_link(1));
        assert_eq!(open.ask()?.server, "c");
        works("the other one by the tunnel")?;
        cluster.node(2).run("ip", &["route", "del", &node_ip(1).to_string()])?;
        cluster.await_way(2, 1, Way::Direct)?;
        cluster.set_tunnelling(1, &[])?;
        cluster.set_tunnelling(2, &[])?;
        assert!(!has_link(1) && !has_link(2));
        assert_eq!(open.ask()?.server, "c");
        works("neighbours again")
    })
}

#[test]
fn without_a_tunnel_pods_behind_it_are_unreachable_at_once_and_neighbours_are_not() -> anyhow::Result<()> {
    isolated("tunnel::without_a_tunnel_pods_behind_it_are_unreachable_at_once_and_neighbours_are_not", || {
        let mut cluster = Cluster::routed()?;
        for (node, pod) in [(1, "a"), (2, "b"), (3, "c")] {
            cluster.pod(node, pod)?;
        }
        // A kernel without VXLAN cannot be had here; one whose VXLAN somebody else has taken can.
        cluster.set_nodes(1, &[1, 2])?;
        let same = ["type", "vxlan", "id", "173", "dstport", "8473", "local", "192.0.2.11"];
        cluster.node(1).run("ip", &[&["link", "add", "foreign"][..], &same].concat())?;
        let error = cluster.set_nodes(1, &[1, 2, 3]).unwrap_err();
        assert!(format!("{error:#}").contains("cannot create link minisvc-vx: EEXIST"), "{error:#}");
        assert_eq!(cluster.way(1, 3), Some(Way::Unreachable));
        cluster.ns("a").enter(|| {
            assert_eq!(traffic::tcp((cluster.ip("b"), POD_PORT))?.server, "b");
            let error = Connection::open((cluster.ip("c"), POD_PORT)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::HostUnreachable);
            Ok(())
        })?;
        cluster.node(1).run("ip", &["link", "del", "foreign"])?;
        cluster.set_nodes(1, &[1, 2, 3])?;
        assert_eq!(cluster.ns("a").enter(|| traffic::tcp((cluster.ip("c"), POD_PORT)))?.server, "c");
        Ok(())
    })
}
