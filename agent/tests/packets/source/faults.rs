//! Closed ports, forgotten connections, narrow networks.

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpStream},
    thread,
};

use anyhow::Context;
use minisvc_agent::sys::netlink::{NetfilterSocket, message};
use minisvc_tests::{
    netns::{Namespace, isolated},
    traffic::{Connection, Flow},
};

use super::{NODE_PORT, PATIENCE};

use crate::{
    cluster::{Cluster, POD_PORT, Service, node_ip},
    echo::Echo,
    tunnel::{eventually, inside, tcp_echo, udp_echo, udp_to},
};

const SIZE: usize = 40_000_000;

#[test]
fn what_a_pods_node_refuses_is_refused_at_once() -> anyhow::Result<()> {
    isolated("source::faults::what_a_pods_node_refuses_is_refused_at_once", || {
        for routed in [false, true] {
            let mut cluster = if routed { Cluster::routed()? } else { Cluster::with_far_client(3)? };
            let pod_node = if routed { 3 } else { 2 };
            cluster.pod(pod_node, "b")?;
            cluster.pod(1, "a")?;
            let at = |number, port: u16, ip: Ipv4Addr, node_port| Service {
                endpoints: [(ip.into(), port)].into(),
                ..Service::new(number).node_port(node_port)
            };
            // A port that is closed, and an address that no pod has.
            let nobody = Ipv4Addr::new(10, 244, pod_node, 99);
            let closed = at(1, 9, cluster.ip("b"), 30081);
            let gone = at(2, POD_PORT, nobody, 30082);
            let filtered = at(3, POD_PORT, cluster.ip("b"), 30083);
            cluster.apply([&closed, &gone, &filtered])?;
            cluster.keep_sources(&[1, 2, 3])?;
            let refused = |at: &Namespace, port: u16, wanted: ErrorKind| {
                at.enter(|| {
                    let to = (node_ip(1), port);
                    let tcp = Connection::open(to).unwrap_err().kind();
                    assert_eq!(tcp, wanted, "TCP {port} from {}", at.name());
                    // A socket for datagrams hears of closed ports only.
                    if wanted == ErrorKind::ConnectionRefused {
                        let udp = Flow::open(to)?.ask().unwrap_err().kind();
                        assert_eq!(udp, wanted, "UDP {port} from {}", at.name());
                    }
                    Ok(())
                })
            };
            let all = [cluster.outside(), cluster.far_outside(), cluster.node(2), cluster.ns("a")];
            for at in all {
                refused(at, 30081, ErrorKind::ConnectionRefused)?;
                refused(at, 30082, ErrorKind::HostUnreachable)?;
            }
            // Somebody's firewall on the pod's node says no, with an error or a reset of its own.
            let rules = "table ip firewall { chain forward { type filter hook forward priority 0; \
                         tcp dport 8080 reject with tcp reset; udp dport 8080 reject; }; }";
            cluster.node(pod_node).run("nft", &[rules])?;
            for at in [cluster.outside(), cluster.far_outside()] {
                refused(at, 30083, ErrorKind::ConnectionRefused)?;
            }
        }
        Ok(())
    })
}

/// Forgets every connection, as an administrator may.
fn forget(at: &Namespace) -> anyhow::Result<()> {
    const DELETE_ALL: u16 = (1 << 8) | 2;
    at.enter(|| {
        let mut request = Vec::new();
        message(&mut request, DELETE_ALL, 5, 1, |v| v.extend([2, 0, 0, 0]));
        Ok(NetfilterSocket::open()?.ask(&request, 1, |_, _| ())?)
    })
}

#[test]
fn connections_survive_that_the_pods_node_forgets_them() -> anyhow::Result<()> {
    isolated("source::faults::connections_survive_that_the_pods_node_forgets_them", || {
        let mut cluster = Cluster::routed()?;
        for (node, pod) in [(2, "b"), (3, "c")] {
            cluster.pod(node, pod)?;
            let echo = Echo::start(cluster.ns(pod), 9000)?;
            let web = Service {
                endpoints: [(cluster.ip(pod).into(), 9000)].into(),
                ..Service::new(1).node_port(NODE_PORT)
            };
            cluster.apply([&web])?;
            cluster.keep_sources(&[1, 2, 3])?;
            // Both ends send and receive, and the pod goes on sending while its node forgets.
            cluster.outside().enter(|| {
                let mut stream = TcpStream::connect((node_ip(1), NODE_PORT))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                let mut writer = stream.try_clone()?;
                let sent: Vec<u8> = (0..SIZE).map(|i| (i * 7 + i / 251) as u8).collect();
                thread::scope(|scope| {
                    let writing = scope
                        .spawn(|| writer.write_all(&sent).and_then(|()| writer.shutdown(Shutdown::Write)));
                    let (mut back, mut some, mut forgotten) = (Vec::<u8>::new(), vec![0; 1 << 16], 0);
                    while let n @ 1.. =
                        stream.read(&mut some).with_context(|| format!("after {}", back.len()))?
                    {
                        back.extend(&some[..n]);
                        if back.len() / (SIZE / 8) > forgotten {
                            forget(cluster.node(node))?;
                            forgotten += 1;
                        }
                    }
                    writing.join().unwrap()?;
                    anyhow::ensure!(
                        back == sent && forgotten >= 8,
                        "{} bytes, {forgotten} times",
                        back.len()
                    );
                    Ok(())
                })
            })?;
            drop(echo);
            // A connection that rests, and then the pod's client speaks.
            let mut open = cluster.outside().enter(|| {
                let web = Service::new(1).node_port(NODE_PORT).endpoints(&cluster, &[pod]);
                cluster.apply([&web])?;
                Ok(Connection::open((node_ip(1), NODE_PORT))?)
            })?;
            let answer = open.ask()?;
            forget(cluster.node(node))?;
            assert_eq!(open.ask()?, answer);
        }
        Ok(())
    })
}

#[test]
fn what_a_pod_has_opened_ends_at_once_when_its_node_forgets_it() -> anyhow::Result<()> {
    isolated("source::faults::what_a_pod_has_opened_ends_at_once_when_its_node_forgets_it", || {
        let mut cluster = Cluster::new(2)?;
        cluster.pod(1, "a")?;
        cluster.keep_sources(&[1, 2])?;
        let listener = cluster.outside().enter(|| Ok(std::net::TcpListener::bind(("0.0.0.0", 7000))?))?;
        let mut stream = cluster.ns("a").enter(|| {
            let stream = TcpStream::connect((crate::cluster::CLIENT, 7000))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        })?;
        let _accepted = listener.accept()?;
        stream.write_all(b"one")?;
        forget(cluster.node(1))?;
        // The next segment leaves with another port; nobody knows it there.
        stream.write_all(b"two")?;
        assert_eq!(stream.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionReset);
        Ok(())
    })
}

#[test]
fn pods_learn_what_fits_on_the_way_to_a_client() -> anyhow::Result<()> {
    isolated("source::faults::pods_learn_what_fits_on_the_way_to_a_client", || {
        for routed in [false, true] {
            let mut cluster = if routed { Cluster::routed()? } else { Cluster::with_far_client(3)? };
            let node = if routed { 3 } else { 2 };
            cluster.pod(node, "b")?;
            let _echo = Echo::start(cluster.ns("b"), 9000)?;
            let web = Service {
                endpoints: [(cluster.ip("b").into(), 9000)].into(),
                ..Service::new(1).node_port(NODE_PORT)
            };
            cluster.apply([&web])?;
            cluster.keep_sources(&[1, 2, 3])?;
            let (client, to) = (cluster.far_outside(), (node_ip(1), NODE_PORT));
            client.enter(|| {
                for size in [100, 1_399, 1_411, 1_461, 10_000, 1_000_000] {
                    tcp_echo(to, size).with_context(|| format!("TCP {size}"))?;
                }
                let socket = udp_to(to)?;
                for size in [100, 1_400, 4_000, 30_000] {
                    udp_echo(&socket, size).with_context(|| format!("UDP {size}"))?;
                }
                Ok(())
            })?;
            // The router's way to the client becomes narrow.
            let way = ["198.51.100.0/24", "dev", "far", "src", "198.51.100.1", "mtu", "lock", "1300"];
            cluster.router().run("ip", &[&["route", "replace"], &way[..]].concat())?;
            client.enter(|| tcp_echo(to, 1_000_000)).context("narrow")?;
            let seen = crate::cluster::FAR_CLIENT.to_string();
            eventually(cluster.ns("b"), &["ip", "route", "get", &seen], |text| text.contains("mtu 1300"))?;
            client
                .enter(|| udp_echo(&udp_to(to)?, 4_000))
                .with_context(|| format!("narrow UDP, routed: {routed}"))?;
        }
        Ok(())
    })
}

#[test]
fn udp_flows_of_a_zone_move_with_their_endpoint() -> anyhow::Result<()> {
    isolated("source::faults::udp_flows_of_a_zone_move_with_their_endpoint", || {
        let mut cluster = Cluster::routed()?;
        cluster.pod(1, "a")?;
        cluster.pod(1, "b")?;
        let to = |pods: &[&str]| Service::new(1).node_port(NODE_PORT).endpoints(&cluster, pods);
        cluster.apply([&to(&["a"])])?;
        cluster.keep_sources(&[1, 2, 3])?;
        // An address of node 1 that is one of its pod range, too: what comes for it is told apart by its node.
        let flow = cluster.node(3).enter(|| Ok(Flow::open((inside(1), NODE_PORT))?))?;
        let mut servers = BTreeSet::new();
        servers.insert(flow.ask()?.server);
        cluster.apply([&to(&["b"])])?;
        servers.insert(flow.ask()?.server);
        assert_eq!(servers, ["a".to_owned(), "b".to_owned()].into());
        Ok(())
    })
}
