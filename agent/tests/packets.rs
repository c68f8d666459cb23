//! What a packet meets, with real packets: two nodes on a LAN, pods behind each, and a client outside of the cluster.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "packets/cluster.rs"]
mod cluster;
#[path = "packets/echo.rs"]
mod echo;
#[path = "packets/flows.rs"]
mod flows;
#[path = "packets/golden.rs"]
mod golden;
#[path = "packets/policies.rs"]
mod policies;
#[path = "packets/second_family.rs"]
mod second_family;
#[path = "packets/source.rs"]
mod source;
#[path = "packets/tunnel.rs"]
mod tunnel;
#[path = "packets/walk.rs"]
mod walk;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    net::Ipv4Addr,
};

use cluster::{CLIENT, Cluster, LAN, POD_PORT, Service, node_ip};
use minisvc_agent::{nft::Nft, plan::Proto, relay::keep_node_ports};
use minisvc_tests::{
    netns::{Namespace, isolated, netlink},
    traffic::{self, Answer, Connection, Flow, SILENCE},
};
use tokio::sync::{mpsc, watch};

/// The servers that answer `n` new connections, and the client addresses they see.
fn seen(
    at: &Namespace,
    to: (Ipv4Addr, u16),
    n: usize,
    ask: fn((Ipv4Addr, u16)) -> anyhow::Result<Answer>,
) -> anyhow::Result<(BTreeSet<String>, BTreeSet<Ipv4Addr>)> {
    at.enter(|| {
        let answers = (0..n).map(|_| ask(to)).collect::<Result<Vec<_>, _>>()?;
        let ip = |a: &Answer| match a.client.ip() {
            std::net::IpAddr::V4(ip) => ip,
            std::net::IpAddr::V6(ip) => panic!("{ip}"),
        };
        Ok((answers.iter().map(|a| a.server.clone()).collect(), answers.iter().map(ip).collect()))
    })
}

fn names<const N: usize>(list: [&str; N]) -> BTreeSet<String> {
    list.map(str::to_owned).into()
}

#[test]
fn every_way_to_a_service_reaches_every_endpoint_from_the_right_source() -> anyhow::Result<()> {
    isolated("every_way_to_a_service_reaches_every_endpoint_from_the_right_source", || {
        let mut cluster = Cluster::new(2)?;
        for (node, pod) in [(1, "a"), (1, "b"), (2, "c")] {
            cluster.pod(node, pod)?;
        }
        let web = Service::new(1).node_port(30080).endpoints(&cluster, &["a", "b", "c"]);
        cluster.apply([&web])?;
        for n in [1, 2] {
            // The strictest setting that a distribution may have.
            cluster.node(n).enter(|| Ok(std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1")?))?;
        }
        let all = names(["a", "b", "c"]);
        for ask in [traffic::tcp, traffic::udp] {
            // A pod is seen with its own address by others, with the node's by itself.
            let (servers, sources) = seen(cluster.ns("a"), web.address(), 40, ask)?;
            assert_eq!(servers, all);
            assert_eq!(sources, [cluster.ip("a"), node_ip(1)].into());
            let (servers, sources) = seen(cluster.ns("c"), web.address(), 40, ask)?;
            assert_eq!(servers, all);
            assert_eq!(sources, [cluster.ip("c"), node_ip(2)].into());
            // A process of the node.
            let (servers, sources) = seen(cluster.node(1), web.address(), 40, ask)?;
            assert_eq!((servers, sources), (all.clone(), [node_ip(1)].into()));
            // nodePorts: on every node, from outside, from nodes, from pods.
            for n in [1, 2] {
                let to = (node_ip(n), 30080);
                let (servers, sources) = seen(cluster.outside(), to, 40, ask)?;
                // Endpoints of the node itself see the client.
                let wanted = [node_ip(n), CLIENT].into();
                assert_eq!((servers, sources), (all.clone(), wanted), "outside to node {n}");
                for from in [1, 2] {
                    let (servers, _) = seen(cluster.node(from), to, 40, ask)?;
                    assert_eq!(servers, all, "node {from} to node {n}");
                }
                let (servers, sources) = seen(cluster.ns("a"), to, 40, ask)?;
                let wanted = [node_ip(n), cluster.ip("a")].into();
                assert_eq!((servers, sources), (all.clone(), wanted), "pod to node {n}");
            }
        }
        // A pod that is its service's only endpoint reaches itself.
        let own = Service::new(2).endpoints(&cluster, &["a"]);
        cluster.apply([&own])?;
        for ask in [traffic::tcp, traffic::udp] {
            let (servers, sources) = seen(cluster.ns("a"), own.address(), 3, ask)?;
            assert_eq!((servers, sources), (names(["a"]), [node_ip(1)].into()));
        }
        // A pod reaches the outside with its node's address, and nodes with its own.
        let _outside = traffic::Server::start(cluster.outside(), 7000)?;
        let _node = traffic::Server::start(cluster.node(2), 7000)?;
        assert_eq!(cluster.ns("a").enter(|| traffic::tcp((CLIENT, 7000)))?.client.ip(), node_ip(1));
        assert_eq!(cluster.ns("a").enter(|| traffic::tcp((node_ip(2), 7000)))?.client.ip(), cluster.ip("a"));
        // A node without a default route.
        cluster.node(1).enter(|| {
            netlink(async |handle| {
                let default = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new().gateway(LAN).build();
                Ok(handle.route().del(default).execute().await?)
            })
        })?;
        let (servers, sources) = seen(cluster.node(1), web.address(), 40, traffic::tcp)?;
        assert_eq!((servers, sources), (all, [node_ip(1)].into()));
        cluster.listing(1)?;
        Ok(())
    })
}

#[test]
fn node_ports_answer_on_loopback_addresses_too() -> anyhow::Result<()> {
    isolated("node_ports_answer_on_loopback_addresses_too", || {
        let mut cluster = Cluster::new(2)?;
        for (node, pod) in [(1, "a"), (2, "c")] {
            cluster.pod(node, pod)?;
        }
        let web = Service::new(1).node_port(30080).endpoints(&cluster, &["a", "c"]);
        cluster.apply([&web])?;
        cluster.node(1).block_on(async || {
            let wanted = [Proto::Tcp, Proto::Udp].map(|proto| ((proto, 30080), "web")).into();
            let (_wanted, receiver) = watch::channel(wanted);
            let (taken, mut words) = mpsc::channel(1);
            let relay = tokio::spawn(keep_node_ports((node_ip(1), None), receiver, |_| false, taken));
            let ask = tokio::task::spawn_blocking(|| {
                let (v4, v6) = (Ipv4Addr::LOCALHOST, std::net::Ipv6Addr::LOCALHOST);
                while Connection::open((v6, 30080)).is_err() {
                    std::thread::yield_now();
                }
                let mut servers = BTreeSet::new();
                for _ in 0..20 {
                    servers.insert(Connection::open((v4, 30080))?.ask()?.server);
                    servers.insert(Connection::open((v6, 30080))?.ask()?.server);
                }
                assert_eq!(servers, names(["a", "c"]));
                let by_udp = (0..20).map(|_| Ok(traffic::udp((v4, 30080))?.server));
                assert_eq!(by_udp.collect::<anyhow::Result<BTreeSet<_>>>()?, names(["a", "c"]));
                anyhow::Ok(())
            });
            tokio::select! {
                done = ask => done??,
                Some(word) = words.recv() => anyhow::bail!("{word:?}"),
            }
            relay.abort();
            Ok(())
        })
    })
}

#[test]
fn what_has_no_endpoint_is_refused_at_once_and_the_cluster_is_closed_to_the_outside() -> anyhow::Result<()> {
    isolated("what_has_no_endpoint_is_refused_at_once_and_the_cluster_is_closed_to_the_outside", || {
        let mut cluster = Cluster::new(2)?;
        for (node, pod) in [(1, "a"), (2, "c")] {
            cluster.pod(node, pod)?;
        }
        let empty = Service::new(1).node_port(30081);
        let web = Service::new(2).node_port(30082).endpoints(&cluster, &["a"]);
        cluster.apply([&empty, &web])?;
        let refused = |at: &Namespace, to: (Ipv4Addr, u16)| {
            at.enter(|| {
                assert_eq!(
                    Connection::open(to).unwrap_err().kind(),
                    ErrorKind::ConnectionRefused,
                    "TCP {to:?}"
                );
                // The kernel tells a process of the node itself that its datagram was not let out.
                let at_node = at.name().starts_with("node");
                let wanted = if at_node { ErrorKind::PermissionDenied } else { ErrorKind::ConnectionRefused };
                let udp = Flow::open(to)?.ask().unwrap_err().kind();
                assert!([wanted, ErrorKind::ConnectionRefused].contains(&udp), "UDP {to:?}: {udp}");
                Ok(())
            })
        };
        for at in [cluster.ns("a"), cluster.ns("c"), cluster.node(1)] {
            refused(at, empty.address())?;
            // A port that the service does not have.
            refused(at, (web.ip, 81))?;
        }
        for at in [cluster.outside(), cluster.ns("c"), cluster.node(1), cluster.node(2)] {
            refused(at, (node_ip(1), 30081))?;
        }
        let silent = |at: &Namespace, to: (Ipv4Addr, u16)| {
            at.enter(|| {
                let tcp = Connection::within(to, SILENCE).unwrap_err().kind();
                assert_eq!(tcp, ErrorKind::TimedOut, "TCP {to:?}");
                let udp = Flow::open(to)?.ask_within(SILENCE).unwrap_err().kind();
                assert_eq!(udp, ErrorKind::WouldBlock, "UDP {to:?}");
                Ok(())
            })
        };
        // An address that no service has.
        silent(cluster.ns("a"), (Ipv4Addr::new(10, 96, 9, 9), 80))?;
        // From outside, by way of a node.
        let dns = Ipv4Addr::new(10, 96, 0, 10);
        let _dns = traffic::Server::start_on(cluster.node(1), dns, 53)?;
        cluster.outside_route("10.96.0.0/16", node_ip(1))?;
        cluster.outside_route("10.244.1.0/24", node_ip(1))?;
        silent(cluster.outside(), web.address())?;
        silent(cluster.outside(), (cluster.ip("a"), POD_PORT))?;
        silent(cluster.outside(), (dns, 53))?;
        // The same addresses answer those inside; the DNS without connection tracking.
        for at in [cluster.ns("a"), cluster.node(1)] {
            at.enter(|| {
                for ask in [traffic::tcp, traffic::udp] {
                    assert_eq!(ask((dns, 53))?.server, "node-1");
                    assert_eq!(ask(web.address())?.server, "a");
                }
                Ok(())
            })?;
        }
        assert!(cluster.node(1).run("nft", &["list", "table", "ip", "minisvc"])?.contains("notrack"));
        let tracked =
            cluster.node(1).enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")));
        if let Ok(Ok(tracked)) = tracked {
            assert!(!tracked.contains("10.96.0.10"), "{tracked}");
        }
        Ok(())
    })
}

#[test]
fn affinity_survives_scaling_restarts_and_ends_with_its_endpoint() -> anyhow::Result<()> {
    isolated("affinity_survives_scaling_restarts_and_ends_with_its_endpoint", || {
        let mut cluster = Cluster::new(2)?;
        let pods = ["a", "b", "c", "d", "e"];
        for (n, pod) in pods.iter().enumerate() {
            cluster.pod(1 + (n % 2) as u8, pod)?;
        }
        let clients = ["a", "b", "c", "d", "e"];
        let base = Service::new(1).node_port(30080).affinity(10_800);
        let with = |endpoints: &[&str]| base.clone().endpoints(&cluster, endpoints);
        let (four, five, two) = (with(&pods[..4]), with(&pods), with(&["b", "e"]));
        cluster.apply([&four])?;
        let asked = |cluster: &Cluster, client: &str| -> anyhow::Result<String> {
            let (servers, _) = seen(cluster.ns(client), four.address(), 6, traffic::tcp)?;
            let (more, _) = seen(cluster.ns(client), four.address(), 6, traffic::udp)?;
            assert_eq!((servers.len(), more.len()), (1, 1), "{client} is spread");
            Ok(servers.into_iter().next().unwrap())
        };
        let first: Vec<_> = clients.iter().map(|c| asked(&cluster, c)).collect::<Result<_, _>>()?;
        cluster.listing(1)?;
        let outside = seen(cluster.outside(), (node_ip(1), 30080), 6, traffic::tcp)?.0;
        assert_eq!(outside.len(), 1);
        // More endpoints, fewer again, and another agent: nobody moves.
        let same = |cluster: &Cluster| -> anyhow::Result<()> {
            for (client, server) in clients.iter().zip(&first) {
                assert_eq!(&asked(cluster, client)?, server, "{client}");
            }
            assert_eq!(seen(cluster.outside(), (node_ip(1), 30080), 6, traffic::tcp)?.0, outside);
            Ok(())
        };
        cluster.apply([&five])?;
        same(&cluster)?;
        cluster.restart_agents()?;
        cluster.apply([&five])?;
        same(&cluster)?;
        cluster.apply([&four])?;
        same(&cluster)?;
        // Only clients whose endpoint goes move, and then stay.
        cluster.apply([&two])?;
        for (client, before) in clients.iter().zip(&first) {
            let now = asked(&cluster, client)?;
            assert!(
                ["b", "e"].contains(&now.as_str()) && (before != "b" || now == "b"),
                "{client}: {before} {now}"
            );
        }
        // An entry that leads to an endpoint that is gone, as a race may leave it, is replaced by the next connection.
        let node = cluster.node(2);
        let stale = format!("{{ 0x00001000 . {} timeout 1h : 0x00001fff }}", cluster.ip("b"));
        node.run(
            "nft",
            &[
                "delete",
                "element",
                "ip",
                "minisvc",
                "clients",
                &format!("{{ 0x00001000 . {} }}", cluster.ip("b")),
            ],
        )?;
        node.run("nft", &["add", "element", "ip", "minisvc", "clients", &stale])?;
        assert!(["b", "e"].contains(&asked(&cluster, "b")?.as_str()));
        assert!(!cluster.listing(2)?.contains("0x00001fff"));
        // Off: everybody is spread; no entry stays.
        let off = Service { affinity: None, ..five.clone() };
        cluster.apply([&off])?;
        let (servers, _) = seen(cluster.ns("a"), off.address(), 60, traffic::tcp)?;
        assert_eq!(servers.len(), 5);
        assert!(!cluster.listing(1)?.contains("expires"));
        // And on again.
        cluster.apply([&five])?;
        asked(&cluster, "a")?;
        Ok(())
    })
}

#[test]
fn flows_follow_their_endpoints_and_established_connections_stay() -> anyhow::Result<()> {
    isolated("flows_follow_their_endpoints_and_established_connections_stay", || {
        let mut cluster = Cluster::new(2)?;
        for (node, pod) in [(1, "a"), (1, "b"), (2, "c"), (2, "d")] {
            cluster.pod(node, pod)?;
        }
        let of = |cluster: &Cluster, pods: &[&str]| Service::new(1).node_port(30080).endpoints(cluster, pods);
        // A flow that began before there was a service to translate it.
        let early = cluster.outside().enter(|| {
            let flow = Flow::open((node_ip(1), 30080))?;
            assert_eq!(flow.ask().unwrap_err().kind(), ErrorKind::ConnectionRefused);
            Ok(flow)
        })?;
        let all = of(&cluster, &["b", "c", "d"]);
        cluster.apply([&all])?;
        assert!(["b", "c", "d"].contains(&early.ask()?.server.as_str()));
        let (flows, mut connections) = cluster.ns("a").enter(|| {
            let flows = (0..30).map(|_| Flow::open(all.address())).collect::<Result<Vec<_>, _>>()?;
            let connections =
                (0..30).map(|_| Connection::open(all.address())).collect::<Result<Vec<_>, _>>()?;
            Ok((flows, connections))
        })?;
        let before: Vec<_> = flows.iter().map(|f| f.ask().unwrap().server).collect();
        let connected: Vec<_> = connections.iter_mut().map(|c| c.ask().unwrap().server).collect();
        // One that drains keeps what it has: an answer that is under way must arrive.
        cluster.apply([&of(&cluster, &["b", "c"]).draining(&cluster, &["d"])])?;
        assert!(before.iter().any(|s| s == "d"), "no flow to the endpoint that goes: {before:?}");
        for (flow, was) in flows.iter().zip(&before) {
            assert_eq!(flow.ask()?.server, *was, "while it drains");
        }
        cluster.apply([&of(&cluster, &["b", "c"])])?;
        for (flow, was) in flows.iter().zip(&before) {
            let now = flow.ask()?.server;
            assert!(if was == "d" { now != "d" } else { now == *was }, "{was} became {now}");
        }
        let mut established = |cluster: &str| {
            for (connection, was) in connections.iter_mut().zip(&connected) {
                assert_eq!(&connection.ask().unwrap().server, was, "{cluster}");
            }
        };
        established("an endpoint less");
        assert!(connected.iter().any(|s| s == "d"), "no connection to the endpoint that went: {connected:?}");
        // Another agent, of the same version, leaves everything alone.
        let now: Vec<_> = flows.iter().map(|f| f.ask().unwrap().server).collect();
        cluster.restart_agents()?;
        cluster.apply([&of(&cluster, &["b", "c"])])?;
        established("a restart");
        assert_eq!(now, flows.iter().map(|f| f.ask().unwrap().server).collect::<Vec<_>>());
        // One with other rules replaces the table.
        cluster.node(1).run("nft", &["insert", "rule", "ip", "minisvc", "forward", "counter"])?;
        cluster.restart_agents()?;
        cluster.apply([&of(&cluster, &["b", "c"])])?;
        established("another table");
        assert_eq!(now, flows.iter().map(|f| f.ask().unwrap().server).collect::<Vec<_>>());
        // The last endpoint goes, then the service: flows are refused, then silent.
        cluster.apply([&of(&cluster, &[])])?;
        cluster.ns("a").enter(|| {
            assert_eq!(flows[0].ask().unwrap_err().kind(), ErrorKind::ConnectionRefused);
            Ok(())
        })?;
        established("no endpoint");
        cluster.remove(1)?;
        assert_eq!(flows[0].ask_within(SILENCE).unwrap_err().kind(), ErrorKind::WouldBlock);
        established("no service");
        Ok(())
    })
}

#[test]
fn others_neither_break_us_nor_are_touched() -> anyhow::Result<()> {
    isolated("others_neither_break_us_nor_are_touched", || {
        let mut cluster = Cluster::new(2)?;
        for (node, pod) in [(1, "a"), (2, "c")] {
            cluster.pod(node, pod)?;
        }
        let web = Service::new(1).node_port(30080).endpoints(&cluster, &["a", "c"]);
        let sticky = Service::new(2).affinity(60).endpoints(&cluster, &["a", "c"]);
        let foreign = "add table ip foreign; add chain ip foreign x { type filter hook forward priority 10; }; add rule ip foreign x counter";
        for n in [1, 2] {
            // Somebody else's mark sends packets into a black hole.
            cluster.black_hole(n, 0x8_0000, 0xff_0000)?;
            cluster.black_hole(n, 0x1000, 0xf000)?;
            cluster.node(n).run("nft", &[foreign])?;
        }
        let others = |cluster: &Cluster| cluster.node(1).run("nft", &["list", "table", "ip", "foreign"]);
        cluster.apply([&web, &sticky])?;
        let works = |cluster: &Cluster, when: &[&str]| -> anyhow::Result<()> {
            for at in [cluster.ns("a"), cluster.ns("c"), cluster.node(1), cluster.node(2)] {
                for (name, ask) in [("TCP", traffic::tcp as fn(_) -> _), ("UDP", traffic::udp)] {
                    let place = format!("{name} from {} after {when:?}", at.name());
                    assert_eq!(seen(at, web.address(), 20, ask)?.0, names(["a", "c"]), "{place}");
                    assert_eq!(seen(at, sticky.address(), 4, ask)?.0.len(), 1, "{place}");
                }
            }
            assert_eq!(seen(cluster.outside(), (node_ip(2), 30080), 20, traffic::tcp)?.0, names(["a", "c"]));
            Ok(())
        };
        works(&cluster, &[])?;
        let table = others(&cluster)?;
        let same = |now: String| assert_eq!(now.split("counter").next(), table.split("counter").next());
        // Each of these is put right within a second or so, with a word about it.
        for harm in [
            &["flush", "table", "ip", "minisvc"][..],
            &["delete", "table", "ip", "minisvc"],
            &["delete", "element", "ip", "minisvc", "svc", "{ 10.96.1.1 . tcp . 80 }"],
            &["flush", "map", "ip", "minisvc", "ep"],
            &["delete", "element", "ip", "minisvc", "class", "{ 0x00000002 }"],
            &["add", "rule", "ip", "minisvc", "services", "drop"],
        ] {
            let word = cluster.next_notice(1, || {
                cluster.node(1).run("nft", harm)?;
                Ok(())
            })?;
            assert!(word.contains("tables minisvc"), "{word}");
            works(&cluster, harm)?;
        }
        same(others(&cluster)?);
        // Somebody else's changes of their own tables are none of our business.
        cluster.node(1).run("nft", &["add", "chain", "ip", "foreign", "y"])?;
        // A node that comes and goes changes one element.
        let before = cluster.listing(1)?;
        cluster.set_nodes(1, &[1, 2, 3])?;
        assert!(cluster.listing(1)?.contains("192.0.2.13"));
        cluster.set_nodes(1, &[1, 2])?;
        let stable =
            |text: &str| text.lines().filter(|l| !l.contains("expires")).collect::<Vec<_>>().join("\n");
        assert_eq!(stable(&before), stable(&cluster.listing(1)?));
        works(&cluster, &["nodes"])?;
        Ok(())
    })
}

/// The elements of a map. The kernel's table grows in the background after many are added, and a listing that it grows under names
/// some elements twice and others not at all: that is no picture, so another one is taken.
fn whole_map(node: &Namespace, name: &str) -> anyhow::Result<BTreeMap<String, String>> {
    loop {
        let listed = node.run("nft", &["list", "map", "ip", "minisvc", name])?;
        let body = listed.split_once("elements = {").map_or("", |(_, body)| body);
        let elements: Vec<(&str, &str)> =
            body.split([',', '}']).filter_map(|e| e.trim().split_once(" : ")).collect();
        let map: BTreeMap<String, String> =
            elements.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        if map.len() == elements.len() {
            return Ok(map);
        }
    }
}

#[test]
fn more_endpoints_than_chains_are_spread_and_chains_do_not_pile_up() -> anyhow::Result<()> {
    isolated("more_endpoints_than_chains_are_spread_and_chains_do_not_pile_up", || {
        let mut cluster = Cluster::new(1)?;
        cluster.pod(1, "a")?;
        let ip = cluster.ip("a");
        let many = |n: u16, affinity| {
            let endpoints = (0..n).map(|i| (ip.into(), if i == 0 { POD_PORT } else { 20_000 + i })).collect();
            Service { affinity, endpoints, ..Service::new(1) }
        };
        for n in [64, 65, 103, 1000, 102, 64, 63] {
            cluster.apply([&many(n, None)])?;
            let listed = whole_map(cluster.node(1), "ep")?;
            let slots = listed.len();
            let mine = listed.values().filter(|pod| **pod == format!("{ip} . {POD_PORT}")).count();
            // Within 5 % of slots / n.
            let (mine, slots, n) = (mine * 100 * usize::from(n), slots * 100, usize::from(n));
            assert!(mine.abs_diff(slots) * 20 <= slots, "{n} endpoints: {mine} of {slots}");
        }
        // Ever new combinations of count and timeout.
        for n in 1..=300 {
            cluster.apply([&many(1 + n % 3, Some(u32::from(n)))])?;
        }
        let chains = cluster.listing(1)?.matches("chain c").count();
        assert!(chains < 250, "{chains} chains");
        cluster.apply([&many(1, Some(5))])?;
        assert_eq!(cluster.ns("a").enter(|| traffic::tcp(many(1, None).address()))?.server, "a");
        Ok(())
    })
}

#[test]
fn a_thousand_services_are_adopted_without_a_single_change() -> anyhow::Result<()> {
    isolated("a_thousand_services_are_adopted_without_a_single_change", || {
        let mut cluster = Cluster::new(1)?;
        cluster.pod(1, "a")?;
        let ip = cluster.ip("a");
        let services: Vec<_> = (1..=1000u16)
            .map(|n| {
                let affinity = (n % 10 == 0).then_some(60);
                let endpoints =
                    (0..10).map(|i| (ip.into(), if i == n % 10 { POD_PORT } else { 20_000 + i })).collect();
                Service { affinity, endpoints, ..Service::new(n).node_port(30_000 + n) }
            })
            .collect();
        cluster.apply(&services)?;
        let addresses = cluster.node(1).run("nft", &["list", "map", "ip", "minisvc", "svc"])?;
        assert_eq!(addresses.matches("10.96.").count(), 2000);
        let generation = |cluster: &Cluster| cluster.node(1).enter(|| Ok(Nft::open()?.generation()?));
        let before = generation(&cluster)?;
        cluster.restart_agents()?;
        cluster.apply(&services)?;
        assert_eq!(generation(&cluster)?, before);
        let one =
            Service { affinity: None, endpoints: [(ip.into(), POD_PORT)].into(), ..services[998].clone() };
        cluster.apply([&one])?;
        assert_eq!(generation(&cluster)?, before + 1);
        for to in [one.address(), (node_ip(1), 30_999)] {
            assert_eq!(cluster.node(1).enter(|| traffic::tcp(to))?.server, "a");
        }
        Ok(())
    })
}
