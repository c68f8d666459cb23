//! Nodes on different networks: what a packet meets that goes through the tunnel.

use std::net::Ipv4Addr;

use minisvc_agent::net::Way;
use minisvc_tests::{netns::isolated, traffic};

use crate::{
    cluster::{CLIENT, Cluster, FAR_CLIENT, POD_PORT, Service, far_ip, node_ip},
    names, seen,
};

/// A node's address inside the tunnel.
fn inside(n: u8) -> Ipv4Addr {
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
                for outside in [cluster.outside(), cluster.far_outside()] {
                    let (servers, sources) = seen(outside, to, 40, ask)?;
                    let wanted = [cluster.address(node), inside(node)].into();
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
