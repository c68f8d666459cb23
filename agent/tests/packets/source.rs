//! The address of a client outside, seen by pods on other nodes than the one that it called.

#[path = "source/faults.rs"]
mod faults;
#[path = "source/probes.rs"]
mod probes;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::Context as _;
use minisvc_tests::{
    netns::{Namespace, isolated},
    traffic::{self, Answer, Connection, Flow, SILENCE},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpSocket,
    time::timeout,
};

use crate::{
    cluster::{CLIENT, Cluster, FAR_CLIENT, POD_PORT, Service, node_ip},
    tunnel::{eventually, inside},
};

const NODE_PORT: u16 = 30080;
const PATIENCE: Duration = Duration::from_secs(20);
/// Pods and their nodes; two on the second.
const PODS: [(u8, &str); 4] = [(1, "a"), (2, "b"), (2, "d"), (3, "c")];

type Ask = fn((Ipv4Addr, u16)) -> anyhow::Result<Answer>;
const BOTH: [Ask; 2] = [traffic::tcp, traffic::udp];
/// The addresses that each server saw.
type Views = BTreeMap<String, BTreeSet<Ipv4Addr>>;

/// Asks until every server has answered.
fn views(at: &Namespace, to: (Ipv4Addr, u16), servers: usize, ask: Ask) -> anyhow::Result<Views> {
    at.enter(|| {
        let mut views = Views::new();
        for _ in 0..400 {
            let Answer { server, client } = ask(to)?;
            let IpAddr::V4(ip) = client.ip() else { panic!("{client}") };
            views.entry(server).or_default().insert(ip);
            if views.len() == servers {
                return Ok(views);
            }
        }
        anyhow::bail!("only {views:?} answered at {to:?}");
    })
}

fn pods(cluster: &mut Cluster) -> anyhow::Result<Service> {
    for (node, pod) in PODS {
        cluster.pod(node, pod)?;
    }
    let web = Service::new(1).node_port(NODE_PORT).endpoints(cluster, &["a", "b", "c", "d"]);
    cluster.apply([&web])?;
    Ok(web)
}

fn everybody_sees(source: impl Fn(u8, &str) -> Ipv4Addr) -> Views {
    PODS.map(|(node, pod)| (pod.to_owned(), [source(node, pod)].into())).into()
}

/// Everybody calls every node, and the ClusterIP. `far`: on different networks.
fn matrix(cluster: &Cluster, web: &Service, far: impl Fn(u8, u8) -> bool) -> anyhow::Result<()> {
    // What stands for a client whose answer would not come back.
    let hidden = |entry: u8, to: u8| if far(entry, to) { inside(entry) } else { cluster.address(entry) };
    for ask in BOTH {
        for entry in [1, 2, 3] {
            let to = (cluster.address(entry), NODE_PORT);
            for (at, ip) in [(cluster.outside(), CLIENT), (cluster.far_outside(), FAR_CLIENT)] {
                let wanted = everybody_sees(|_, _| ip);
                assert_eq!(views(at, to, 4, ask)?, wanted, "{} to node {entry}", at.name());
            }
            for from in [1, 2, 3] {
                let wanted = everybody_sees(|node, _| match node {
                    _ if from == entry => hidden(entry, node),
                    _ if from == node => hidden(entry, node),
                    _ => cluster.address(from),
                });
                assert_eq!(views(cluster.node(from), to, 4, ask)?, wanted, "node {from} to node {entry}");
            }
            for (from, pod) in PODS {
                let wanted = everybody_sees(|node, server| match node {
                    _ if from == entry && pod == server => cluster.address(entry),
                    _ if from == entry => cluster.ip(pod),
                    _ if from == node => hidden(entry, node),
                    // A router knows no pods.
                    _ if far(from, entry) => cluster.address(from),
                    _ => cluster.ip(pod),
                });
                assert_eq!(views(cluster.ns(pod), to, 4, ask)?, wanted, "pod {pod} to node {entry}");
            }
        }
        for (from, pod) in PODS {
            let wanted = everybody_sees(
                |_, server| {
                    if pod == server { cluster.address(from) } else { cluster.ip(pod) }
                },
            );
            assert_eq!(views(cluster.ns(pod), web.address(), 4, ask)?, wanted, "pod {pod} to the ClusterIP");
            let wanted = everybody_sees(|node, _| hidden(from, node));
            assert_eq!(views(cluster.node(from), web.address(), 4, ask)?, wanted, "node {from}");
            for (_, server) in PODS {
                let to = (cluster.ip(server), POD_PORT);
                let seen = cluster.ns(pod).enter(|| ask(to))?;
                assert_eq!((seen.server.as_str(), seen.client.ip()), (server, cluster.ip(pod).into()));
            }
        }
    }
    Ok(())
}

fn reverse_path(cluster: &Cluster, value: &str) -> anyhow::Result<()> {
    for n in cluster.numbers() {
        cluster.node(n).enter(|| {
            for link in ["all", "default", "eth0"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter"), value)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_client_is_seen_by_its_address_whichever_node_it_calls() -> anyhow::Result<()> {
    isolated("source::a_client_is_seen_by_its_address_whichever_node_it_calls", || {
        let mut cluster = Cluster::with_far_client(3)?;
        let web = pods(&mut cluster)?;
        cluster.keep_sources(&[1, 2, 3])?;
        for value in ["0", "2", "1"] {
            reverse_path(&cluster, value)?;
            matrix(&cluster, &web, |_, _| false)?;
        }
        Ok(())
    })
}

/// What the agent reads out of the settings is what the kernel does.
#[test]
fn settings_that_drop_answers_through_others_are_known() -> anyhow::Result<()> {
    isolated("source::settings_that_drop_answers_through_others_are_known", || {
        let mut cluster = Cluster::with_far_client(2)?;
        cluster.pod(2, "b")?;
        let web = Service::new(1).node_port(NODE_PORT).endpoints(&cluster, &["b"]);
        cluster.apply([&web])?;
        cluster.keep_sources(&[1, 2])?;
        for (filter, mark, is_answered) in
            [("0", "1", true), ("1", "0", true), ("2", "0", true), ("1", "1", false), ("2", "1", false)]
        {
            reverse_path(&cluster, filter)?;
            cluster.node(2).enter(|| {
                std::fs::write("/proc/sys/net/ipv4/conf/all/src_valid_mark", mark)?;
                let hindrance = minisvc_agent::net::reverse_path().hindrance();
                assert_eq!(hindrance.is_none(), is_answered, "{filter} {mark}");
                Ok(())
            })?;
            let answer = cluster.outside().enter(|| traffic::udp((node_ip(1), NODE_PORT)));
            assert_eq!(answer.is_ok(), is_answered, "rp_filter {filter}, src_valid_mark {mark}: {answer:?}");
        }
        Ok(())
    })
}

#[test]
fn a_client_is_seen_by_its_address_through_the_tunnel_too() -> anyhow::Result<()> {
    isolated("source::a_client_is_seen_by_its_address_through_the_tunnel_too", || {
        let mut cluster = Cluster::routed()?;
        let web = pods(&mut cluster)?;
        cluster.keep_sources(&[1, 2, 3])?;
        for value in ["0", "2", "1"] {
            reverse_path(&cluster, value)?;
            matrix(&cluster, &web, |a, b| (a == 3) != (b == 3))?;
        }
        // A marked packet must not send the tunnel into itself.
        for n in [1, 2, 3] {
            let link = cluster.node(n).run("ip", &["-s", "-j", "link", "show", "minisvc-vx"])?;
            assert!(link.contains(r#""errors":0"#) && link.contains(r#""collisions":0"#), "node {n}: {link}");
        }
        Ok(())
    })
}

#[test]
fn towards_nodes_that_are_not_confirmed_the_entry_is_seen() -> anyhow::Result<()> {
    isolated("source::towards_nodes_that_are_not_confirmed_the_entry_is_seen", || {
        let mut cluster = Cluster::routed()?;
        pods(&mut cluster)?;
        for kept in [&[1, 3][..], &[1, 2], &[]] {
            cluster.keep_sources(kept)?;
            for ask in BOTH {
                for entry in [1, 3] {
                    let wanted = everybody_sees(|node, _| match node {
                        _ if node == entry || kept.contains(&node) => CLIENT,
                        _ if (node == 3) != (entry == 3) => inside(entry),
                        _ => cluster.address(entry),
                    });
                    let to = (cluster.address(entry), NODE_PORT);
                    assert_eq!(views(cluster.outside(), to, 4, ask)?, wanted, "{kept:?}, node {entry}");
                }
            }
        }
        // A node that nobody knows as an entry cannot keep anything; it does not try.
        Ok(())
    })
}

#[test]
fn what_is_open_goes_on_when_nodes_become_known_as_entries() -> anyhow::Result<()> {
    isolated("source::what_is_open_goes_on_when_nodes_become_known_as_entries", || {
        let mut cluster = Cluster::routed()?;
        for (node, pod) in PODS {
            cluster.pod(node, pod)?;
        }
        let web = Service::new(1).node_port(NODE_PORT).endpoints(&cluster, &["b"]);
        cluster.apply([&web])?;
        let mut open = Vec::new();
        for kept in [&[1, 2, 3][..], &[], &[1, 2, 3]] {
            // On one network with the pod's node, and through the tunnel.
            for (entry, pod) in [(1, "a"), (3, "c")] {
                let door = (cluster.address(entry), NODE_PORT);
                for (at, to) in [
                    (cluster.outside(), door),
                    (cluster.ns(pod), web.address()),
                    (cluster.ns(pod), (cluster.ip("b"), POD_PORT)),
                    (cluster.node(entry), web.address()),
                    (cluster.node(entry), door),
                ] {
                    let name = format!("{} to {to:?} by node {entry}, opened before {kept:?}", at.name());
                    let mut tcp = at.enter(|| Ok(Connection::open(to)?))?;
                    let udp = at.enter(|| Ok(Flow::open(to)?))?;
                    open.push((tcp.ask().context(name.clone())?, udp.ask()?, name, tcp, udp));
                }
            }
            cluster.keep_sources(kept)?;
            for (was, was_udp, name, tcp, udp) in &mut open {
                assert_eq!(
                    tcp.ask().with_context(|| format!("TCP of {name}, {kept:?}"))?,
                    *was,
                    "{name}, {kept:?}"
                );
                assert_eq!(
                    udp.ask().with_context(|| format!("UDP of {name}, {kept:?}"))?,
                    *was_udp,
                    "{name}, {kept:?}"
                );
            }
        }
        Ok(())
    })
}

/// A TCP connection from a port that other connections use, too: the answer to one question.
async fn tcp_from(port: u16, to: (Ipv4Addr, u16)) -> anyhow::Result<(String, tokio::net::TcpStream)> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind((CLIENT, port).into())?;
    let mut stream = timeout(PATIENCE, socket.connect(to.into())).await??;
    stream.write_all(b"?").await?;
    let mut line = vec![0; 64];
    let n = timeout(PATIENCE, stream.read(&mut line)).await??;
    Ok((String::from_utf8_lossy(&line[..n]).trim().to_owned(), stream))
}

#[test]
fn one_port_of_a_client_serves_for_connections_to_several_nodes() -> anyhow::Result<()> {
    isolated("source::one_port_of_a_client_serves_for_connections_to_several_nodes", || {
        let mut cluster = Cluster::new(3)?;
        cluster.pod(2, "b")?;
        let web = Service::new(1).node_port(NODE_PORT).endpoints(&cluster, &["b"]);
        cluster.apply([&web])?;
        cluster.keep_sources(&[1, 2, 3])?;
        let nodes = [1, 3, 2].map(|n| (node_ip(n), NODE_PORT));
        // All open at a time: the pod sees one client address, and as many ports.
        let seen = cluster.outside().block_on(async || {
            let mut open = Vec::new();
            for to in nodes {
                open.push(tcp_from(4001, to).await.with_context(|| format!("beside others, to {to:?}"))?);
            }
            Ok(open.into_iter().map(|(line, _)| line).collect::<BTreeSet<_>>())
        })?;
        assert!(seen.len() == 3 && seen.iter().all(|line| line.starts_with("b 192.0.2.100:")), "{seen:?}");
        assert!(seen.contains("b 192.0.2.100:4001"), "{seen:?}");
        // One UDP socket, several nodes: each answer comes from the node that was asked.
        cluster.outside().enter(|| {
            let socket = UdpSocket::bind((CLIENT, 4002))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            let mut answers = BTreeMap::<SocketAddr, usize>::new();
            let mut buffer = [0; 64];
            for _ in 0..5 {
                for to in nodes {
                    socket.send_to(b"?", to)?;
                    let (_, from) = socket.recv_from(&mut buffer)?;
                    assert_eq!(from, to.into());
                    *answers.entry(from).or_default() += 1;
                }
            }
            assert_eq!(answers.into_values().collect::<Vec<_>>(), [5, 5, 5]);
            Ok(())
        })?;
        // One after the other, again and again: what has just closed is not in the way.
        cluster.outside().block_on(async || {
            for (round, to) in nodes.iter().cycle().take(30).enumerate() {
                let (line, stream) = tcp_from(4003, *to).await.with_context(|| format!("round {round}"))?;
                assert!(line.starts_with("b 192.0.2.100:"), "{line}");
                // A reset leaves nothing behind at the client. Closing would not do: while another test starts a program, that has the socket,
                // too, until it becomes the program.
                rustix::net::connect_unspec(&stream)?;
            }
            Ok(())
        })
    })
}

#[test]
fn foreign_marks_and_rules_for_them_change_nothing() -> anyhow::Result<()> {
    isolated("source::foreign_marks_and_rules_for_them_change_nothing", || {
        let mut cluster = Cluster::routed()?;
        pods(&mut cluster)?;
        cluster.keep_sources(&[1, 2, 3])?;
        for n in [1, 2, 3] {
            for (mark, mask) in
                [(0x80000, 0x00ff_0000), (0x4000, 0x4000), (0x8000, 0x8000), (0xca6c, u32::MAX)]
            {
                cluster.black_hole(n, mark, mask)?;
            }
            // A VPN that gives UDP packets the marks of their connections.
            cluster.node(n).run(
                "nft",
                &["table ip vpn { chain premangle { type filter hook prerouting priority mangle; \
                   meta l4proto udp meta mark set ct mark; }; \
                   chain output { type route hook output priority mangle; meta l4proto udp meta mark set ct mark; }; }"],
            )?;
        }
        let wanted = everybody_sees(|_, _| CLIENT);
        for entry in [1, 2, 3] {
            for ask in BOTH {
                let to = (cluster.address(entry), NODE_PORT);
                assert_eq!(views(cluster.outside(), to, 4, ask)?, wanted);
            }
            // More than the first datagram of a flow.
            cluster.outside().enter(|| {
                let flow = Flow::open((cluster.address(entry), NODE_PORT))?;
                let first = flow.ask()?;
                for _ in 0..5 {
                    assert_eq!(flow.ask()?, first);
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn flows_outlive_an_agent_and_a_node_is_one_element_of_each_map() -> anyhow::Result<()> {
    isolated("source::flows_outlive_an_agent_and_a_node_is_one_element_of_each_map", || {
        let mut cluster = Cluster::routed()?;
        let web = pods(&mut cluster)?;
        cluster.keep_sources(&[1, 2, 3])?;
        let (mut open, flow) = cluster.outside().enter(|| {
            let to = (node_ip(1), NODE_PORT);
            Ok((Connection::open(to)?, Flow::open(to)?))
        })?;
        let before = (open.ask()?, flow.ask()?);
        assert_eq!((before.0.client.ip(), before.1.client.ip()), (CLIENT.into(), CLIENT.into()));
        let tables = |cluster: &Cluster, n: u8| -> anyhow::Result<String> {
            let egress = cluster.node(n).run("nft", &["-a", "list", "table", "netdev", "minisvc"])?;
            Ok(cluster.node(n).run("nft", &["-a", "list", "table", "ip", "minisvc"])? + &egress)
        };
        let written = tables(&cluster, 2)?;
        // Agents that know nothing yet leave all of it as it is.
        cluster.restart_agents()?;
        cluster.apply([&web])?;
        assert_eq!((open.ask()?, flow.ask()?), before);
        let wanted = everybody_sees(|_, _| CLIENT);
        assert_eq!(views(cluster.outside(), (node_ip(1), NODE_PORT), 4, traffic::tcp)?, wanted);
        cluster.set_all_nodes()?;
        cluster.keep_sources(&[1, 2, 3])?;
        assert_eq!((open.ask()?, flow.ask()?), before);
        assert_eq!(tables(&cluster, 2)?, written);
        // A node less: elements go, and no rule changes.
        let lines = |text: &str| -> BTreeSet<String> {
            text.lines().filter(|l| l.contains("handle")).map(str::to_owned).collect()
        };
        cluster.keep_sources_of(&[1, 2], &[1, 2])?;
        let without = tables(&cluster, 2)?;
        assert_ne!(without, written);
        assert_eq!(lines(&without), lines(&written));
        for (gone, count) in [("0x60000004", 1), ("0x20000004", 1), ("10.244.3.0", 5)] {
            let holds = |text: &str| text.matches(gone).count();
            assert_eq!(holds(&written) - holds(&without), count, "{gone}\n{written}\n{without}");
        }
        Ok(())
    })
}

#[test]
fn what_somebody_takes_away_comes_back() -> anyhow::Result<()> {
    isolated("source::what_somebody_takes_away_comes_back", || {
        let mut cluster = Cluster::routed()?;
        pods(&mut cluster)?;
        cluster.keep_sources(&[1, 2, 3])?;
        let notice = cluster.next_notice(2, || {
            cluster.node(2).run("nft", &["delete", "table", "netdev", "minisvc"]).map(drop)
        })?;
        assert!(notice.contains("minisvc"), "{notice}");
        let mac = cluster.node(2).run("nft", &["list", "map", "netdev", "minisvc", "entry_mac"])?;
        assert!(mac.contains("0x10000002") && mac.contains("0x20000004 : 06:6d:c6:33:64:0d"), "{mac}");
        for (harm, look, there) in [
            (
                &["ip", "rule", "del", "pref", "173"][..],
                &["ip", "rule"][..],
                "173:\tfrom all fwmark 0x10000000/0xffffc000 lookup 173 proto 173",
            ),
            (
                &["ip", "rule", "del", "pref", "174"],
                &["ip", "rule"],
                "174:\tfrom all fwmark 0x20000000/0xffffc000 lookup 174 proto 173",
            ),
            (
                &["ip", "route", "flush", "table", "173"],
                &["ip", "route", "show", "table", "173"],
                "default via 169.254.1.2 dev eth0 proto 173 onlink",
            ),
            (
                &["ip", "route", "flush", "table", "174"],
                &["ip", "route", "show", "table", "174"],
                "default via 169.254.1.2 dev minisvc-vx proto 173 onlink",
            ),
            (
                &["ip", "neigh", "del", "169.254.1.2", "dev", "eth0"],
                &["ip", "neigh", "show", "dev", "eth0"],
                "169.254.1.2 lladdr 02:6d:73:76:63:02 PERMANENT",
            ),
            (
                &["ip", "neigh", "del", "169.254.1.2", "dev", "minisvc-vx"],
                &["ip", "neigh", "show", "dev", "minisvc-vx"],
                "169.254.1.2 lladdr 02:6d:73:76:63:02 PERMANENT",
            ),
        ] {
            cluster.node(2).run(harm[0], &harm[1..])?;
            eventually(cluster.node(2), look, |text| text.contains(there))?;
        }
        // The tunnel's link takes everything of its own along.
        cluster.node(2).run("ip", &["link", "del", "minisvc-vx"])?;
        eventually(cluster.node(2), &["nft", "list", "table", "netdev", "minisvc"], |text| {
            text.contains(r#"device "minisvc-vx""#)
        })?;
        eventually(cluster.node(2), &["ip", "route", "show", "table", "174"], |text| {
            text.contains("default")
        })?;
        eventually(cluster.node(2), &["ip", "route", "show", "proto", "173"], |t| {
            t.contains("10.244.3.0/24 via")
        })?;
        let wanted = everybody_sees(|_, _| CLIENT);
        for entry in [1, 3] {
            let to = (cluster.address(entry), NODE_PORT);
            assert_eq!(views(cluster.outside(), to, 4, traffic::tcp)?, wanted, "node {entry}");
        }
        Ok(())
    })
}

#[test]
fn pods_stay_closed_to_machines_that_are_no_nodes() -> anyhow::Result<()> {
    isolated("source::pods_stay_closed_to_machines_that_are_no_nodes", || {
        let mut cluster = Cluster::new(2)?;
        cluster.pod(1, "a")?;
        cluster.keep_sources(&[1, 2])?;
        cluster.outside_route("10.244.1.0/24", node_ip(1))?;
        let to = (cluster.ip("a"), POD_PORT);
        let silent = || {
            cluster.outside().enter(|| {
                assert_eq!(Connection::within(to, SILENCE).unwrap_err().kind(), ErrorKind::TimedOut);
                assert_eq!(Flow::open(to)?.ask_within(SILENCE).unwrap_err().kind(), ErrorKind::WouldBlock);
                Ok(())
            })
        };
        silent()?;
        // Nodes do not pass on what others send by pods' addresses: only answers to those who came in there.
        let client = cluster.outside().enter(|| {
            let socket = UdpSocket::bind((CLIENT, 7000))?;
            socket.set_read_timeout(Some(SILENCE))?;
            Ok(socket)
        })?;
        cluster.node(1).run("ip", &["addr", "add", "10.244.77.9/32", "dev", "lo"])?;
        cluster.node(1).run("ip", &["route", "add", "192.0.2.100", "via", "192.0.2.12"])?;
        cluster.node(1).enter(|| {
            let socket = UdpSocket::bind((Ipv4Addr::new(10, 244, 77, 9), 8080))?;
            Ok(socket.send_to(b"?", (CLIENT, 7000))?)
        })?;
        assert_eq!(client.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
        Ok(())
    })
}
