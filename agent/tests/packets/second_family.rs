//! The second family beside the first: what is not about policies.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use minisvc_agent::{
    net::Way,
    nft::Nft,
    plan::{Proto, ServicePort},
};
use minisvc_tests::{
    netns::{Namespace, isolated},
    traffic::{self, Answer, Connection, Flow, SILENCE},
};

use crate::{
    cluster::{CLIENT6, Cluster, POD_PORT, Service, far_ip6, node_ip, node_ip6},
    names,
};

fn cluster_ip(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd69, 0x6d69, 0x6e69, 0xffff, 0, 0, 0, 0x100 + n)
}

/// A service with both families, on port 80, TCP and UDP.
fn both(cluster: &Cluster, number: u16, endpoints: &[&str]) -> Service {
    let pods = |of: &dyn Fn(&str) -> IpAddr| endpoints.iter().map(|p| (of(p), POD_PORT)).collect();
    let second = [Proto::Tcp, Proto::Udp].map(|proto| {
        let mut port = ServicePort::new(cluster_ip(number).into(), proto, 80);
        port.cluster.active = pods(&|p| cluster.ip6(p).into());
        port
    });
    Service { second: second.to_vec(), ..Service::new(number).endpoints(cluster, endpoints) }
}

fn seen(
    at: &Namespace,
    to: SocketAddr,
    n: usize,
    ask: fn(SocketAddr) -> anyhow::Result<Answer>,
) -> anyhow::Result<(BTreeSet<String>, BTreeSet<IpAddr>)> {
    at.enter(|| {
        let answers = (0..n).map(|_| ask(to)).collect::<Result<Vec<_>, _>>()?;
        Ok((
            answers.iter().map(|a| a.server.clone()).collect(),
            answers.iter().map(|a| a.client.ip()).collect(),
        ))
    })
}

const ASK: [fn(SocketAddr) -> anyhow::Result<Answer>; 2] = [traffic::tcp_to, traffic::udp_to];

#[test]
fn every_endpoint_is_reached_from_the_right_source_and_the_cluster_is_closed() -> anyhow::Result<()> {
    isolated(
        "second_family::every_endpoint_is_reached_from_the_right_source_and_the_cluster_is_closed",
        || {
            let mut cluster = Cluster::dual(2)?;
            for (node, pod) in [(1, "a"), (1, "b"), (2, "c"), (2, "d")] {
                cluster.pod(node, pod)?;
            }
            let web = both(&cluster, 1, &["a", "b", "c"]);
            let (own, empty) = (both(&cluster, 2, &["a"]), both(&cluster, 3, &[]));
            cluster.apply([&web, &own, &empty])?;
            let all = names(["a", "b", "c"]);
            let address = |n| SocketAddr::new(cluster_ip(n).into(), 80);
            let of = |pod: &str| IpAddr::from(cluster.ip6(pod));
            let node = |n| IpAddr::from(node_ip6(n));
            for ask in ASK {
                // A pod is seen with its own address by others, with the node's by itself.
                let wanted = (all.clone(), [of("a"), node(1)].into());
                assert_eq!(seen(cluster.ns("a"), address(1), 40, ask)?, wanted);
                let wanted = (all.clone(), [of("c"), node(2)].into());
                assert_eq!(seen(cluster.ns("c"), address(1), 40, ask)?, wanted);
                assert_eq!(seen(cluster.ns("a"), address(2), 3, ask)?, (names(["a"]), [node(1)].into()));
                // A process of the node.
                assert_eq!(seen(cluster.node(1), address(1), 40, ask)?, (all.clone(), [node(1)].into()));
            }
            // The first family beside it.
            assert_eq!(cluster.ns("c").enter(|| traffic::tcp(own.address()))?.server, "a");
            // A pod reaches the outside with its node's address, and nodes with its own.
            let _outside = traffic::Server::start_on(cluster.outside(), CLIENT6, 7000)?;
            let _node = traffic::Server::start_on(cluster.node(2), node_ip6(2), 7000)?;
            for ask in ASK {
                let outside = SocketAddr::new(CLIENT6.into(), 7000);
                assert_eq!(seen(cluster.ns("a"), outside, 1, ask)?.1, [node(1)].into());
                let other = SocketAddr::new(node(2), 7000);
                assert_eq!(seen(cluster.ns("a"), other, 1, ask)?.1, [of("a")].into());
            }
            // Refused: no endpoints, and a port that a live service has not. Silent: an address that no service has, and from outside
            // everything that is the cluster's own.
            // A pod that has reached itself is told less: each time, the kernel would like to send it a redirect, cannot, and counts it
            // among the errors that a host gets in a second.
            for at in [cluster.ns("b"), cluster.ns("d"), cluster.node(1)] {
                for to in [address(3), SocketAddr::new(cluster_ip(1).into(), 81)] {
                    at.enter(|| {
                        let tcp = Connection::open(to).unwrap_err().kind();
                        assert_eq!(tcp, ErrorKind::ConnectionRefused, "{to}");
                        let udp = Flow::open(to)?.ask().unwrap_err().kind();
                        let at_node = at.name().starts_with("node");
                        let wanted =
                            if at_node { ErrorKind::PermissionDenied } else { ErrorKind::ConnectionRefused };
                        assert!(
                            [wanted, ErrorKind::ConnectionRefused].contains(&udp),
                            "{} to {to}: {udp}",
                            at.name()
                        );
                        Ok(())
                    })?;
                }
            }
            let silent = |at: &Namespace, to: SocketAddr| {
                at.enter(|| {
                    assert_eq!(
                        Connection::within(to, SILENCE).unwrap_err().kind(),
                        ErrorKind::TimedOut,
                        "{to}"
                    );
                    let udp = Flow::open(to)?.ask_within(SILENCE).unwrap_err().kind();
                    assert_eq!(udp, ErrorKind::WouldBlock, "{to}");
                    Ok(())
                })
            };
            silent(cluster.ns("a"), address(99))?;
            let dns = SocketAddr::new("fd69:6d69:6e69:ffff::a".parse()?, 53);
            let _dns = traffic::Server::start_on(cluster.node(1), dns.ip(), 53)?;
            let via = node_ip6(1).to_string();
            for range in ["fd69:6d69:6e69:ffff::/112", "fd69:6d69:6e6a:1::/64"] {
                cluster.outside().run("ip", &["route", "add", range, "via", &via])?;
            }
            for to in [address(1), SocketAddr::new(of("a"), POD_PORT), dns] {
                silent(cluster.outside(), to)?;
            }
            for at in [cluster.ns("a"), cluster.node(1)] {
                for ask in ASK {
                    assert_eq!(seen(at, dns, 1, ask)?.0, names(["node-1"]));
                }
            }
            Ok(())
        },
    )
}

#[test]
fn affinity_repair_and_restart_know_both_families() -> anyhow::Result<()> {
    isolated("second_family::affinity_repair_and_restart_know_both_families", || {
        let mut cluster = Cluster::dual(2)?;
        for (node, pod) in [(1, "a"), (2, "b"), (1, "c"), (2, "d")] {
            cluster.pod(node, pod)?;
        }
        let to = SocketAddr::new(cluster_ip(1).into(), 80);
        let with = |cluster: &Cluster, affinity: Option<u32>, endpoints: &[&str]| {
            let mut service = both(cluster, 1, endpoints);
            service.affinity = affinity;
            service.second.iter_mut().for_each(|port| port.affinity = affinity);
            service
        };
        let stays = |cluster: &Cluster, pod: &str| -> anyhow::Result<String> {
            let servers = seen(cluster.ns(pod), to, 8, traffic::tcp_to)?.0;
            assert_eq!(servers.len(), 1, "{pod} is spread: {servers:?}");
            Ok(servers.into_iter().collect())
        };
        let clients =
            |cluster: &Cluster| cluster.node(1).run("nft", &["list", "map", "ip6", "minisvc", "clients"]);
        let three = with(&cluster, Some(10_800), &["a", "b", "d"]);
        cluster.apply([&three])?;
        let before = (stays(&cluster, "a")?, stays(&cluster, "c")?);
        assert!(clients(&cluster)?.contains(&format!(". {} ", cluster.ip6("a"))));
        // More endpoints, another agent, and a table that somebody removed: nobody moves but those whose entries went.
        cluster.apply([&with(&cluster, Some(10_800), &["a", "b", "c", "d"])])?;
        assert_eq!((stays(&cluster, "a")?, stays(&cluster, "c")?), before);
        let generation = |cluster: &Cluster| cluster.node(1).enter(|| Ok(Nft::open()?.generation()?));
        let generation_before = generation(&cluster)?;
        cluster.restart_agents()?;
        let four = with(&cluster, Some(10_800), &["a", "b", "c", "d"]);
        cluster.apply([&four])?;
        assert_eq!(generation(&cluster)?, generation_before, "nothing was to do");
        assert_eq!((stays(&cluster, "a")?, stays(&cluster, "c")?), before);
        for harm in [
            &["delete", "table", "ip6", "minisvc"][..],
            &["flush", "map", "ip6", "minisvc", "sticky_ep"],
            &["delete", "element", "ip6", "minisvc", "class", "{ 0x00000002 }"],
        ] {
            let word = cluster.next_notice(1, || cluster.node(1).run("nft", harm).map(drop))?;
            assert!(word.contains("minisvc"), "{word}");
            stays(&cluster, "a")?;
        }
        // Off and on again, live.
        cluster.apply([&with(&cluster, None, &["a", "b", "c", "d"])])?;
        assert_eq!(seen(cluster.ns("a"), to, 60, traffic::tcp_to)?.0.len(), 4);
        assert!(!clients(&cluster)?.contains("expires"));
        cluster.apply([&four])?;
        stays(&cluster, "a")?;
        // Who loses its endpoint gets another one, and stays there.
        let left = stays(&cluster, "c")?;
        let rest: Vec<&str> = ["a", "b", "c", "d"].into_iter().filter(|pod| *pod != left).collect();
        cluster.apply([&with(&cluster, Some(10_800), &rest)])?;
        assert_ne!(stays(&cluster, "c")?, left);
        // UDP flows follow their endpoints.
        let udp = with(&cluster, None, &["b"]);
        cluster.apply([&udp])?;
        let flow = cluster.ns("a").enter(|| Ok(Flow::open(to)?))?;
        assert_eq!(flow.ask()?.server, "b");
        cluster.apply([&with(&cluster, None, &["c"])])?;
        assert_eq!(flow.ask()?.server, "c");
        // The first family has noticed nothing.
        assert_eq!(
            cluster.node(2).enter(|| traffic::tcp(three.address()))?.client.ip(),
            IpAddr::from(node_ip(2))
        );
        Ok(())
    })
}

#[test]
fn pods_behind_a_router_are_reached_through_the_tunnel() -> anyhow::Result<()> {
    isolated("second_family::pods_behind_a_router_are_reached_through_the_tunnel", || {
        let mut cluster = Cluster::routed_dual()?;
        for (node, pod) in [(1, "a"), (2, "b"), (3, "c")] {
            cluster.pod(node, pod)?;
        }
        for (from, to, way) in
            [(1, 2, Way::Direct), (1, 3, Way::Vxlan), (3, 1, Way::Vxlan), (2, 3, Way::Vxlan)]
        {
            assert_eq!(cluster.way6(from, to), Some(way), "{from} to {to}");
        }
        let inside =
            |n: u8| -> IpAddr { Ipv6Addr::new(0xfd69, 0x6d69, 0x6e6a, u16::from(n), 0, 0, 0, 0).into() };
        let of = |pod: &str| IpAddr::from(cluster.ip6(pod));
        let mut web = both(&cluster, 1, &["c"]);
        web.second.iter_mut().for_each(|port| port.node_port = Some(30_080));
        cluster.apply([&web])?;
        let service = SocketAddr::new(cluster_ip(1).into(), 80);
        let node_port = |ip: Ipv6Addr| SocketAddr::new(ip.into(), 30_080);
        let pod = SocketAddr::new(of("c"), POD_PORT);
        for ask in ASK {
            for (at, to, source) in [
                (cluster.ns("a"), pod, of("a")),
                (cluster.ns("a"), service, of("a")),
                (cluster.ns("b"), service, of("b")),
                (cluster.node(1), pod, inside(1)),
                (cluster.node(1), service, inside(1)),
                (cluster.outside(), node_port(node_ip6(1)), inside(1)),
                (cluster.outside(), node_port(far_ip6(3)), CLIENT6.into()),
                (cluster.ns("a"), node_port(node_ip6(2)), of("a")),
            ] {
                let seen = seen(at, to, 2, ask)?;
                assert_eq!(seen.0, names(["c"]), "{} to {to}", at.name());
                // A pod of another node that calls a nodePort may be seen by that node's address.
                let also = if at.name() == "a" && to == node_port(node_ip6(2)) { inside(2) } else { source };
                assert!(
                    seen.1.iter().all(|ip| [source, also].contains(ip)),
                    "{} to {to}: {seen:?}",
                    at.name()
                );
            }
        }
        // Segments fit the tunnel from the first one on: 1,500 less VXLAN over IPv4 (50) and the headers of IPv6 and TCP (60).
        for to in [pod, service] {
            let segment = cluster.ns("a").enter(|| {
                let stream = std::net::TcpStream::connect(to)?;
                Ok(nix::sys::socket::getsockopt(&stream, nix::sys::socket::sockopt::TcpMaxSeg)?)
            })?;
            assert!((1_300..=1_390).contains(&segment), "{segment} to {to}");
        }
        Ok(())
    })
}
