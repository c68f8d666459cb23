//! Links and routes of a node, with real packets between namespaces.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "net/second_family.rs"]
mod second_family;

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use minisvc_agent::net::{LinkName, Net, NetConfig, NetError, NodeRoute};
use minisvc_tests::{
    netns::{Lan, Namespace, index, isolated, netlink},
    traffic::{self, Connection, Server},
};
use netlink_packet_route::route::{RouteProtocol, RouteScope};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

const LAN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

fn config(n: u8) -> NetConfig {
    NetConfig {
        node_ip: Ipv4Addr::new(192, 0, 2, 10 + n),
        local_pod_cidr: format!("10.244.{n}.0/24").parse().unwrap(),
        pod_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        dns_ip: Ipv4Addr::new(10, 96, 0, 10),
        node_port_range: (30000, 32767),
        vxlan_port: 8473,
        family6: None,
    }
}

/// A node as the others are told of it.
fn route(n: u8) -> NodeRoute {
    NodeRoute {
        name: format!("node-{n}"),
        ip: config(n).node_ip,
        pod_cidr: config(n).local_pod_cidr,
        tunnels: false,
        family6: None,
    }
}

fn pod_ip(node: u8, n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node, n)
}

fn link_of(pod: &Namespace) -> LinkName {
    LinkName::of_pod(pod.name())
}

fn attach(node: &Namespace, net: &Net, pod: &Namespace, ip: Ipv4Addr) -> anyhow::Result<()> {
    node.block_on(async || Ok(net.attach(link_of(pod), ip, pod.fd()?).await?))
}

fn link_index(at: &Namespace, name: &str) -> anyhow::Result<u32> {
    at.enter(|| Ok(nix::net::if_::if_nametoindex(name)?))
}

/// The kernel's routes as /proc shows them: not the way by which they were set.
fn route_table(at: &Namespace) -> anyhow::Result<String> {
    at.enter(|| Ok(std::fs::read_to_string("/proc/thread-self/net/route")?))
}

/// Waits until a route to this destination, as /proc writes it, is there.
fn comes_back(at: &Namespace, destination: &str) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    while !route_table(at)?.contains(destination) {
        anyhow::ensure!(Instant::now() < end, "no route to {destination} in\n{}", route_table(at)?);
        std::thread::yield_now();
    }
    Ok(())
}

#[test]
fn pods_reach_each_other_across_nodes_and_a_second_attach_changes_nothing() -> anyhow::Result<()> {
    isolated("pods_reach_each_other_across_nodes_and_a_second_attach_changes_nothing", || {
        let mut lan = Lan::new(LAN)?;
        let nodes = [lan.machine("node-1", config(1).node_ip)?, lan.machine("node-2", config(2).node_ip)?];
        let nets =
            [1, 2].map(|n| nodes[usize::from(n) - 1].block_on(async || Ok(Net::start(config(n)).await?)));
        let [net1, net2] = nets;
        let (net1, net2) = (net1?, net2?);
        let pods: Vec<_> = ["a", "b", "c"].map(Namespace::new).into_iter().collect::<Result<_, _>>()?;
        let ips = [pod_ip(1, 2), pod_ip(1, 3), pod_ip(2, 2)];
        attach(&nodes[0], &net1, &pods[0], ips[0])?;
        attach(&nodes[0], &net1, &pods[1], ips[1])?;
        attach(&nodes[1], &net2, &pods[2], ips[2])?;
        nodes[0].block_on(async || Ok(net1.set_routes(vec![route(1), route(2)]).await?))?;
        nodes[1].block_on(async || Ok(net2.set_routes(vec![route(1), route(2)]).await?))?;
        let _servers: Vec<_> = pods.iter().map(|p| Server::start(p, 8080)).collect::<Result<_, _>>()?;

        for from in 0..3 {
            for to in 0..3 {
                for ask in [traffic::tcp, traffic::udp] {
                    let answer = pods[from].enter(|| ask((ips[to], 8080)))?;
                    assert_eq!(
                        (answer.server.as_str(), answer.client.ip()),
                        (pods[to].name(), ips[from].into())
                    );
                }
            }
        }
        assert_eq!(nodes[0].enter(|| traffic::tcp((ips[0], 8080)))?.client.ip(), config(1).node_ip);

        // Attach again, by another agent: the link is the same one, and a connection through it goes on.
        let mut open = pods[0].enter(|| Ok(Connection::open((ips[2], 8080))?))?;
        let before = link_index(&nodes[0], link_of(&pods[0]).as_str())?;
        // One at a time owns a node's routes.
        drop(net1);
        let again = nodes[0].block_on(async || Ok(Net::start(config(1)).await?))?;
        nodes[0].block_on(async || Ok(again.set_routes(vec![route(1), route(2)]).await?))?;
        attach(&nodes[0], &again, &pods[0], ips[0])?;
        assert_eq!(link_index(&nodes[0], link_of(&pods[0]).as_str())?, before);
        assert_eq!(open.ask()?.server, "c");

        // The same pod in a new sandbox: the old link gives way.
        let new = Namespace::new("a")?;
        attach(&nodes[0], &again, &new, ips[0])?;
        let _server = Server::start(&new, 9090)?;
        assert_eq!(pods[2].enter(|| traffic::tcp((ips[0], 9090)))?.client.ip(), ips[2]);
        // A pod with another pod's link in its place: both are put right.
        nodes[0].block_on(async || {
            again.attach(LinkName::of_pod("other"), pod_ip(1, 9), new.fd()?).await?;
            Ok(again.attach(link_of(&new), ips[0], new.fd()?).await?)
        })?;
        assert_eq!(pods[1].enter(|| traffic::tcp((ips[0], 9090)))?.client.ip(), ips[1]);

        let mut links = nodes[0].block_on(async || Ok(again.links().await?))?;
        let mut wanted = vec![link_of(&pods[0]), link_of(&pods[1])];
        links.sort();
        wanted.sort();
        assert_eq!(links, wanted);

        // The link to the other nodes goes down and up again, as when a cable is pulled: its routes come back.
        nodes[0].enter(|| {
            netlink(async |handle| {
                let eth0 = index(&handle, "eth0").await?;
                handle.link().set(LinkUnspec::new_with_index(eth0).down().build()).execute().await?;
                Ok(handle.link().set(LinkUnspec::new_with_index(eth0).up().build()).execute().await?)
            })
        })?;
        comes_back(&nodes[0], "0002F40A")?;
        // So does a route that somebody deletes.
        nodes[0].enter(|| {
            netlink(async |handle| {
                let route = RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(ips[0], 32)
                    .protocol(RouteProtocol::Unspec)
                    .scope(RouteScope::NoWhere)
                    .build();
                Ok(handle.route().del(route).execute().await?)
            })
        })?;
        comes_back(&nodes[0], "0201F40A")?;
        assert_eq!(pods[2].enter(|| traffic::tcp((ips[0], 9090)))?.client.ip(), ips[2]);

        // A node that goes takes its route along; a pod that goes is unreachable at once, not sent around.
        nodes[0].block_on(async || {
            again.set_routes(vec![]).await?;
            again.detach(link_of(&pods[1])).await?;
            Ok(again.detach(link_of(&pods[1])).await?)
        })?;
        assert!(!route_table(&nodes[0])?.contains("0002F40A"), "{}", route_table(&nodes[0])?);
        let error = nodes[0].enter(|| Ok(Connection::open((ips[1], 8080)).unwrap_err()))?;
        assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable);
        Ok(())
    })
}

#[test]
fn what_is_not_ours_stays_and_what_cannot_be_is_said() -> anyhow::Result<()> {
    isolated("what_is_not_ours_stays_and_what_cannot_be_is_said", || {
        let mut lan = Lan::new(LAN)?;
        let node = lan.machine("node-1", config(1).node_ip)?;
        let wrong = NetConfig { node_ip: CLIENT, ..config(1) };
        let error = node.block_on(async || Ok(Net::start(wrong).await.unwrap_err()))?;
        assert_eq!(error, NetError::NoNodeLink(CLIENT.into()));

        // A static route to what will be another node's pod range.
        node.block_on(async || {
            let (connection, handle, _) = rtnetlink::new_connection()?;
            let task = tokio::spawn(connection);
            let route = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(Ipv4Addr::new(10, 244, 2, 0), 24)
                .gateway(LAN)
                .build();
            handle.route().add(route).execute().await?;
            task.abort();
            Ok(())
        })?;
        let before = route_table(&node)?;
        let net = node.block_on(async || Ok(Net::start(config(1)).await?))?;
        let error =
            node.block_on(async || Ok(net.set_routes(vec![route(2), route(3)]).await.unwrap_err()))?;
        assert_eq!(error, NetError::RouteTaken { destination: config(2).local_pod_cidr.into(), protocol: 4 });
        let after = route_table(&node)?;
        for line in before.lines() {
            assert!(after.contains(line), "{line}\nis missing from\n{after}");
        }
        assert!(after.contains("0003F40A"), "the route to node-3 is missing:\n{after}");
        let forwarding = node.enter(|| Ok(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?))?;
        assert_eq!(forwarding.trim(), "1");
        Ok(())
    })
}

#[test]
fn what_somebody_takes_away_is_back_and_is_named() -> anyhow::Result<()> {
    isolated("what_somebody_takes_away_is_back_and_is_named", || {
        let mut lan = Lan::new(LAN)?;
        let nodes = [lan.machine("node-1", config(1).node_ip)?, lan.machine("node-2", config(2).node_ip)?];
        let (net, far) = (
            nodes[0].block_on(async || Ok(Net::start(config(1)).await?))?,
            nodes[1].block_on(async || Ok(Net::start(config(2)).await?))?,
        );
        nodes[0].block_on(async || Ok(net.set_routes(vec![route(1), route(2)]).await?))?;
        nodes[1].block_on(async || Ok(far.set_routes(vec![route(1), route(2)]).await?))?;
        let pods: Vec<_> = ["a", "b", "c"].map(Namespace::new).into_iter().collect::<Result<_, _>>()?;
        let ips = [pod_ip(1, 2), pod_ip(1, 3), pod_ip(2, 2)];
        for (at, (pod, ip)) in [(0, (&pods[0], ips[0])), (0, (&pods[1], ips[1])), (1, (&pods[2], ips[2]))] {
            attach(&nodes[at], if at == 0 { &net } else { &far }, pod, ip)?;
        }
        let _servers: Vec<_> = pods.iter().map(|p| Server::start(p, 8080)).collect::<Result<_, _>>()?;
        let (link, ip) = (link_of(&pods[0]).to_string(), ips[0].to_string());
        let (range, dns) = (config(1).service_cidr.to_string(), format!("{}/32", config(1).dns_ip));
        let far_pods = config(2).local_pod_cidr.to_string();
        // Somebody else's, which nobody may touch.
        nodes[0].run("ip", &["route", "add", "203.0.113.0/24", "dev", "eth0", "metric", "7"])?;

        let mut repairs = net.repairs();
        let mut after = |at: &Namespace, command: &[&str], names: &[&str]| {
            at.run("ip", command)?;
            let told = nodes[0].block_on(async || {
                let told = tokio::time::timeout(std::time::Duration::from_secs(20), repairs.recv()).await;
                Ok(told.with_context(|| format!("nothing was told after ip {command:?}"))??)
            })?;
            for name in names {
                anyhow::ensure!(told.to_string().contains(name), "{told} does not name {name}");
            }
            for other in [&pods[1], &pods[2]] {
                let answer = other.enter(|| traffic::tcp((ips[0], 8080)))?;
                anyhow::ensure!(answer.server == "a", "after ip {command:?}");
            }
            Ok(())
        };
        after(&nodes[0], &["link", "del", &link], &[&format!("link {link} of the pod {ip}")])?;
        after(&pods[0], &["link", "del", "eth0"], &[&format!("link {link} of the pod {ip}")])?;
        let neighbour = format!("neighbour {ip} on {link}");
        after(&nodes[0], &["neigh", "del", &ip, "dev", &link], &[&neighbour])?;
        after(&nodes[0], &["route", "del", &ip], &[&format!("route to {ip}/32")])?;
        after(&nodes[0], &["route", "del", &far_pods], &[&format!("route to {far_pods}")])?;
        after(&nodes[0], &["route", "del", &range], &[&format!("route to {range}")])?;
        after(&nodes[0], &["addr", "del", &dns, "dev", "lo"], &[&format!("address {}", config(1).dns_ip)])?;
        // The program `ip` sees what is back.
        let neighbours = nodes[0].run("ip", &["neigh", "show", "dev", &link])?;
        anyhow::ensure!(neighbours.contains(&ip) && neighbours.contains("PERMANENT"), "{neighbours}");
        let routes = nodes[0].run("ip", &["route", "show"])?;
        for wanted in [&ip, &far_pods, &range, "203.0.113.0/24"] {
            anyhow::ensure!(routes.contains(wanted), "{wanted} is not in {routes}");
        }
        Ok(())
    })
}
