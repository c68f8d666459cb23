//! The same of IPv6, beside IPv4.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use minisvc_agent::net::{Family6, NodeRoute6, Way};

use super::*;

fn node_ip6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10 + u16::from(n))
}

fn family(n: u8) -> Family6 {
    Family6 {
        node_ip: node_ip6(n),
        local_pod_cidr: format!("fd69:6d69:6e6a:{n}::/64").parse().unwrap(),
        pod_cidr: "fd69:6d69:6e6a::/48".parse().unwrap(),
        service_cidr: "fd69:6d69:6e69:ffff::/112".parse().unwrap(),
        dns_ip: "fd69:6d69:6e69:ffff::a".parse().unwrap(),
    }
}

fn both(n: u8) -> NetConfig {
    NetConfig { family6: Some(family(n)), ..config(n) }
}

fn route(n: u8) -> NodeRoute {
    NodeRoute {
        name: format!("node-{n}"),
        ip: config(n).node_ip,
        pod_cidr: config(n).local_pod_cidr,
        tunnels: false,
        family6: Some(NodeRoute6 { ip: node_ip6(n), pod_cidr: family(n).local_pod_cidr }),
    }
}

fn pod_ip6(node: u8, n: u8) -> Ipv6Addr {
    family(node).pod_address(pod_ip(node, n), config(node).local_pod_cidr)
}

fn start(node: &Namespace, config: NetConfig) -> anyhow::Result<Net> {
    node.block_on(async || Ok(Net::start(config).await?))
}

fn set_routes(node: &Namespace, net: &Net, routes: Vec<NodeRoute>) -> anyhow::Result<()> {
    node.block_on(async || Ok(net.set_routes(routes).await?))
}

/// What `ip -6` says.
fn ip6(at: &Namespace, words: &str) -> anyhow::Result<String> {
    let words: Vec<&str> = ["-6"].into_iter().chain(words.split(' ')).collect();
    at.run("ip", &words)
}

fn has(at: &Namespace, words: &str, line: &str) -> anyhow::Result<()> {
    let told = ip6(at, words)?;
    anyhow::ensure!(told.contains(line), "no {line} in\n{told}");
    Ok(())
}

/// Waits until `ip -6` says it.
fn comes_to_have(at: &Namespace, words: &str, line: &str) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while let Err(missing) = has(at, words, line) {
        anyhow::ensure!(Instant::now() < end, missing);
        std::thread::yield_now();
    }
    Ok(())
}

#[test]
fn pods_of_both_families_reach_each_other_and_what_is_taken_away_comes_back() -> anyhow::Result<()> {
    isolated(
        "second_family::pods_of_both_families_reach_each_other_and_what_is_taken_away_comes_back",
        || {
            let mut lan = Lan::new(LAN)?;
            let nodes =
                [lan.machine("node-1", config(1).node_ip)?, lan.machine("node-2", config(2).node_ip)?];
            for (node, n) in nodes.iter().zip(1..) {
                Lan::second_address(node, "eth0", node_ip6(n))?;
            }
            // A machine that listens to routers goes on listening when it forwards.
            let listens = |node: &Namespace| {
                node.enter(|| Ok(std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_ra")?))
            };
            assert_eq!(listens(&nodes[0])?.trim(), "1");
            let (net1, net2) = (start(&nodes[0], both(1))?, start(&nodes[1], both(2))?);
            assert_eq!(listens(&nodes[0])?.trim(), "2");
            let pods: Vec<_> = ["a", "b", "c"].map(Namespace::new).into_iter().collect::<Result<_, _>>()?;
            let places = [(1, 2), (1, 3), (2, 2)];
            let ips = places.map(|(node, n)| pod_ip6(node, n));
            for (pod, (node, n)) in pods.iter().zip(places) {
                let (at, net) = if node == 1 { (&nodes[0], &net1) } else { (&nodes[1], &net2) };
                attach(at, net, pod, pod_ip(node, n))?;
            }
            set_routes(&nodes[0], &net1, vec![route(1), route(2)])?;
            set_routes(&nodes[1], &net2, vec![route(1), route(2)])?;
            assert_eq!(net1.ways6().borrow().get("node-2"), Some(&Way::Direct));

            // The kernel's own words.
            has(&nodes[0], "route", "fd69:6d69:6e6a:2::/64 via 2001:db8::12 dev eth0 proto 173")?;
            has(&nodes[0], "route", "unreachable fd69:6d69:6e6a:1::/64 dev lo proto 173")?;
            has(&nodes[0], "route", "fd69:6d69:6e69:ffff::/112 dev eth0 proto 173 src 2001:db8::11")?;
            has(&nodes[0], "addr show dev lo", "inet6 fd69:6d69:6e69:ffff::a/128")?;
            let host_route =
                format!("fd69:6d69:6e6a:1::2 dev {} proto 173 src 2001:db8::11", link_of(&pods[0]));
            has(&nodes[0], "route", &host_route)?;
            has(&pods[0], "addr show dev eth0", "inet6 fd69:6d69:6e6a:1::2/128 scope global nodad")?;
            has(&pods[0], "route", "default via fe80::1 dev eth0")?;
            let gateway = "fe80::1 dev eth0 lladdr 02:6d:73:76:63:01";
            has(&pods[0], "neigh show nud permanent", gateway)?;

            let servers = pods.iter().zip(ips).map(|(pod, ip)| Server::start_on(pod, ip, 8080));
            let _servers: Vec<_> = servers.collect::<Result<_, _>>()?;
            for from in 0..3 {
                for to in 0..3 {
                    for ask in [traffic::tcp_to, traffic::udp_to] {
                        let answer = pods[from].enter(|| ask(SocketAddr::new(ips[to].into(), 8080)))?;
                        let client = IpAddr::from(ips[from]);
                        assert_eq!((answer.server.as_str(), answer.client.ip()), (pods[to].name(), client));
                    }
                }
            }
            // The node itself speaks by its own address, and not by the one where the DNS listens.
            for to in [ips[0], ips[2]] {
                let answer = nodes[0].enter(|| traffic::tcp_to(SocketAddr::new(to.into(), 8080)))?;
                assert_eq!(answer.client.ip(), IpAddr::from(node_ip6(1)));
            }
            // IPv4 goes on beside it.
            let _server = Server::start_on(&pods[2], pod_ip(2, 2), 8081)?;
            assert_eq!(pods[0].enter(|| traffic::tcp((pod_ip(2, 2), 8081)))?.client.ip(), pod_ip(1, 2));

            // Another agent adopts what is there: a connection goes on.
            let mut open = pods[0].enter(|| Ok(Connection::open((ips[2], 8080))?))?;
            drop(net1);
            let again = start(&nodes[0], both(1))?;
            set_routes(&nodes[0], &again, vec![route(1), route(2)])?;
            attach(&nodes[0], &again, &pods[0], pod_ip(1, 2))?;
            assert_eq!(open.ask()?.server, "c");

            // What somebody deletes comes back.
            for words in [
                "route del fd69:6d69:6e6a:2::/64",
                "route del fd69:6d69:6e6a:1::2",
                "route del fd69:6d69:6e69:ffff::/112",
                "addr del fd69:6d69:6e69:ffff::a/128 dev lo",
            ] {
                ip6(&nodes[0], words)?;
            }
            comes_to_have(&nodes[0], "route", "fd69:6d69:6e6a:2::/64 via 2001:db8::12")?;
            comes_to_have(&nodes[0], "route", &host_route)?;
            comes_to_have(&nodes[0], "route", "fd69:6d69:6e69:ffff::/112 dev eth0")?;
            comes_to_have(&nodes[0], "addr show dev lo", "fd69:6d69:6e69:ffff::a")?;
            assert_eq!(open.ask()?.server, "c");
            // A link that goes down loses its IPv6 addresses; once they are back, so are the routes that need them.
            nodes[0].run("ip", &["link", "set", "eth0", "down"])?;
            nodes[0].run("ip", &["link", "set", "eth0", "up"])?;
            comes_back(&nodes[0], "0002F40A")?;
            Lan::second_address(&nodes[0], "eth0", node_ip6(1))?;
            comes_to_have(&nodes[0], "route", "fd69:6d69:6e6a:2::/64 via 2001:db8::12")?;
            comes_to_have(
                &nodes[0],
                "route",
                "fd69:6d69:6e69:ffff::/112 dev eth0 proto 173 src 2001:db8::11",
            )?;
            comes_to_have(&nodes[0], "route", &host_route)?;
            assert_eq!(open.ask()?.server, "c");

            // A pod that goes is unreachable at once, and a node that goes takes its route along.
            set_routes(&nodes[0], &again, vec![])?;
            nodes[0].block_on(async || Ok(again.detach(link_of(&pods[0])).await?))?;
            let error = nodes[0].enter(|| Ok(Connection::open((ips[0], 8080)).unwrap_err()))?;
            assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error}");
            assert!(!ip6(&nodes[0], "route")?.contains("fd69:6d69:6e6a:2::/64"));
            // An agent of one family leaves nothing of the other.
            drop(again);
            let single = start(&nodes[0], config(1))?;
            assert!(!ip6(&nodes[0], "route")?.contains("proto 173"), "{}", ip6(&nodes[0], "route")?);
            drop(single);
            Ok(())
        },
    )
}

#[test]
fn a_node_behind_a_router_is_reached_through_the_tunnel_in_both_families() -> anyhow::Result<()> {
    isolated("second_family::a_node_behind_a_router_is_reached_through_the_tunnel_in_both_families", || {
        let mut lan = Lan::new(LAN)?;
        let nodes = [lan.machine("node-1", config(1).node_ip)?, lan.machine("node-2", config(2).node_ip)?];
        // One LAN for IPv4; in IPv6 each has a network of its own, and no way to the other.
        Lan::second_address(&nodes[0], "eth0", node_ip6(1))?;
        Lan::second_address(&nodes[1], "eth0", "2001:db8:0:9::12".parse()?)?;
        let far = Family6 { node_ip: "2001:db8:0:9::12".parse()?, ..family(2) };
        let to_far = NodeRoute {
            family6: Some(NodeRoute6 { ip: far.node_ip, pod_cidr: far.local_pod_cidr }),
            ..route(2)
        };
        let net1 = start(&nodes[0], both(1))?;
        let net2 = start(&nodes[1], NetConfig { family6: Some(far), ..config(2) })?;
        let pods = ["a", "b"].map(Namespace::new);
        let [a, b] = pods;
        let (a, b) = (a?, b?);
        attach(&nodes[0], &net1, &a, pod_ip(1, 2))?;
        attach(&nodes[1], &net2, &b, pod_ip(2, 2))?;
        set_routes(&nodes[0], &net1, vec![route(1), to_far.clone()])?;
        set_routes(&nodes[1], &net2, vec![route(1), to_far])?;
        assert_eq!(net1.ways().borrow().get("node-2"), Some(&Way::Direct));
        assert_eq!(net1.ways6().borrow().get("node-2"), Some(&Way::Vxlan));
        has(&nodes[0], "route", "fd69:6d69:6e6a:2::/64 via fd69:6d69:6e6a:2:: dev minisvc-vx proto 173")?;
        has(
            &nodes[0],
            "neigh show dev minisvc-vx nud permanent",
            "fd69:6d69:6e6a:2:: lladdr 06:6d:c0:00:02:0c",
        )?;
        has(&nodes[0], "addr show dev minisvc-vx", "inet6 fd69:6d69:6e6a:1::/128")?;
        let server = pod_ip6(2, 2);
        let _server = Server::start_on(&b, server, 8080)?;
        for ask in [traffic::tcp_to, traffic::udp_to] {
            let to = SocketAddr::new(server.into(), 8080);
            assert_eq!(a.enter(|| ask(to))?.client.ip(), IpAddr::from(pod_ip6(1, 2)));
            // The node itself: by its address inside.
            let inside: IpAddr = family(1).local_pod_cidr.network().into();
            assert_eq!(nodes[0].enter(|| ask(to))?.client.ip(), inside);
        }
        // Once both are on one network, the tunnel goes.
        Lan::second_address(&nodes[1], "eth0", node_ip6(2))?;
        Lan::second_address(&nodes[0], "eth0", "2001:db8:0:9::11".parse()?)?;
        comes_to_have(&nodes[0], "route", "fd69:6d69:6e6a:2::/64 via 2001:db8:0:9::12 dev eth0")?;
        comes_to_have(&nodes[1], "route", "fd69:6d69:6e6a:1::/64 via 2001:db8::11 dev eth0")?;
        let end = Instant::now() + Duration::from_secs(20);
        while nodes[0].run("ip", &["link"])?.contains("minisvc-vx") {
            anyhow::ensure!(Instant::now() < end, "the tunnel stays");
            std::thread::yield_now();
        }
        assert_eq!(a.enter(|| traffic::tcp_to(SocketAddr::new(server.into(), 8080)))?.server, "b");
        Ok(())
    })
}

#[test]
fn a_machine_without_ipv6_is_a_node_of_one_family_and_no_other() -> anyhow::Result<()> {
    isolated("second_family::a_machine_without_ipv6_is_a_node_of_one_family_and_no_other", || {
        let mut lan = Lan::new(LAN)?;
        let node = lan.machine("node-1", config(1).node_ip)?;
        let refused = |config: NetConfig| node.block_on(async || Ok(Net::start(config).await.unwrap_err()));
        assert_eq!(refused(both(1))?, NetError::NoNodeLink(node_ip6(1).into()));
        for link in ["all", "default"] {
            let setting = format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6");
            node.enter(|| Ok(std::fs::write(setting, "1")?))?;
        }
        let net = start(&node, config(1))?;
        let pod = Namespace::new("a")?;
        pod.enter(|| Ok(std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?))?;
        attach(&node, &net, &pod, pod_ip(1, 2))?;
        let _server = Server::start_on(&pod, pod_ip(1, 2), 8080)?;
        assert_eq!(node.enter(|| traffic::tcp((pod_ip(1, 2), 8080)))?.client.ip(), config(1).node_ip);
        Ok(())
    })
}
