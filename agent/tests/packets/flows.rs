//! UDP flows have no end that the kernel sees: each must be led elsewhere when what it reaches is no longer its service's, and none else.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use minisvc_agent::{
    conntrack::Conntrack,
    plan::{Backends, Family, Proto, Scope, ServiceKey, ServicePlan, ServicePort},
};
use minisvc_tests::{
    netns::{Namespace, isolated},
    traffic::{Flow, SILENCE, Server},
};

use super::cluster::{CLIENT, Cluster, POD_PORT, node_ip};

const EXTERNAL: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const BALANCED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 96, 1, 1);
const NODE_PORT: u16 = 30_080;

/// Pods on the first node, and on the second.
const HERE: &str = "a";
const THERE: &str = "c";

fn port(cluster: &Cluster, node: u8, pods: &[&str]) -> ServicePort {
    let endpoints = |is: &dyn Fn(&str) -> bool| Backends {
        active: pods.iter().filter(|p| is(p)).map(|p| (cluster.ip(p).into(), POD_PORT)).collect(),
        draining: [].into(),
    };
    ServicePort {
        node_port: Some(NODE_PORT),
        external_ips: [EXTERNAL.into()].into(),
        load_balancer_ips: [BALANCED.into()].into(),
        cluster: endpoints(&|_| true),
        local: endpoints(&|pod| (pod == THERE) == (node == 2)),
        ..ServicePort::new(OWN.into(), Proto::Udp, 80)
    }
}

/// What every node has of the service: its port as `change` leaves it; `None`: nothing.
fn program(
    cluster: &Cluster,
    pods: &[&str],
    change: Option<&dyn Fn(&mut ServicePort)>,
) -> anyhow::Result<()> {
    for node in cluster.numbers() {
        let plan = change.map(|change| {
            let mut port = port(cluster, node, pods);
            change(&mut port);
            ServicePlan { ports: vec![port] }
        });
        let key = ServiceKey { namespace: "default".into(), name: "s1".into() };
        cluster.program(node, &[(key, plan)])?;
    }
    Ok(())
}

/// So many that each endpoint has some.
fn flows(at: &Namespace, to: (Ipv4Addr, u16)) -> anyhow::Result<Vec<Flow>> {
    at.enter(|| Ok((0..20).map(|_| Flow::open(to)).collect::<Result<_, _>>()?))
}

fn servers(flows: &[Flow]) -> Vec<String> {
    flows
        .iter()
        .map(|flow| flow.ask().map_or_else(|e| e.kind().to_string(), |answer| answer.server))
        .collect()
}

fn some(servers: &[String]) -> BTreeSet<&str> {
    servers.iter().map(String::as_str).collect()
}

fn is_silent(flow: &Flow) -> bool {
    flow.ask_within(SILENCE).unwrap_err().kind() == ErrorKind::WouldBlock
}

fn plain(_: &mut ServicePort) {}

fn cluster() -> anyhow::Result<Cluster> {
    let mut cluster = Cluster::new(2)?;
    cluster.pod(1, HERE)?;
    cluster.pod(2, THERE)?;
    cluster.outside_route("203.0.113.0/24", node_ip(1))?;
    // The kernel rations errors, redirects among them: here every refusal is to be heard.
    cluster.node(1).run("sysctl", &["-qw", "net.ipv4.icmp_ratelimit=0"])?;
    Ok(cluster)
}

#[test]
fn flows_follow_policies_and_ranges_of_sources() -> anyhow::Result<()> {
    isolated("flows_follow_policies_and_ranges_of_sources", || {
        let mut cluster = cluster()?;
        let local = |port: &mut ServicePort| port.external = Scope::Local;
        program(&cluster, &[HERE, THERE], Some(&plain))?;
        for to in [(EXTERNAL, 80), (BALANCED, 80), (node_ip(1), NODE_PORT)] {
            program(&cluster, &[HERE, THERE], Some(&plain))?;
            let (outside, inside) = (flows(cluster.outside(), to)?, flows(cluster.ns(HERE), to)?);
            let (first, from_pod) = (servers(&outside), servers(&inside));
            assert_eq!(
                (some(&first), some(&from_pod)),
                ([HERE, THERE].into(), [HERE, THERE].into()),
                "{to:?}"
            );
            // What comes from outside is held to this node; a pod's flows stay where they are.
            program(&cluster, &[HERE, THERE], Some(&local))?;
            assert_eq!(some(&servers(&outside)), [HERE].into(), "{to:?}");
            assert_eq!(servers(&inside), from_pod, "{to:?}");
            // None here: silence, and from inside the one elsewhere.
            program(&cluster, &[THERE], Some(&local))?;
            assert!(is_silent(&outside[0]), "{to:?}");
            assert_eq!(some(&servers(&inside)), [THERE].into(), "{to:?}");
            // The node itself is inside, too: so its relay of 127.0.0.1 reaches the endpoint, wherever it is.
            let own = flows(cluster.node(1), to)?;
            assert_eq!(some(&servers(&own)), [THERE].into(), "{to:?}");
            // None at all: refused at once.
            program(&cluster, &[], Some(&local))?;
            assert_eq!(outside[0].ask().unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to:?}");
            program(&cluster, &[THERE], Some(&plain))?;
            assert_eq!(some(&servers(&outside)), [THERE].into(), "{to:?}");
        }
        // A new agent finds all as it should be.
        program(&cluster, &[HERE, THERE], Some(&local))?;
        let (outside, inside) =
            (flows(cluster.outside(), (EXTERNAL, 80))?, flows(cluster.ns(HERE), (EXTERNAL, 80))?);
        let before = (servers(&outside), servers(&inside));
        assert_eq!((some(&before.0), some(&before.1)), ([HERE].into(), [HERE, THERE].into()));
        cluster.restart_agents()?;
        program(&cluster, &[HERE, THERE], Some(&local))?;
        assert_eq!((servers(&outside), servers(&inside)), before);
        // Who is shut out is shut out of what he has.
        let only = |range: &'static str| {
            move |port: &mut ServicePort| port.source_ranges = Some([range.parse().unwrap()].into())
        };
        let balanced = flows(cluster.outside(), (BALANCED, 80))?;
        assert_eq!(some(&servers(&balanced)), [HERE].into());
        program(&cluster, &[HERE], Some(&only("198.51.100.0/24")))?;
        assert!(is_silent(&balanced[0]));
        let all_of_it: &'static str = Box::leak(format!("{CLIENT}/32").into_boxed_str());
        program(&cluster, &[HERE], Some(&only(all_of_it)))?;
        assert_eq!(some(&servers(&balanced)), [HERE].into());
        Ok(())
    })
}

#[test]
fn flows_end_with_the_address_that_they_came_by() -> anyhow::Result<()> {
    isolated("flows_end_with_the_address_that_they_came_by", || {
        let cluster = cluster()?;
        let both = [HERE, THERE];
        program(&cluster, &both, Some(&plain))?;
        let own = flows(cluster.ns(HERE), (OWN, 80))?;
        let was = servers(&own);
        // The pod's own flows to itself are among them.
        assert_eq!(some(&was), [HERE, THERE].into());
        for to in [(EXTERNAL, 80), (BALANCED, 80), (node_ip(1), NODE_PORT)] {
            program(&cluster, &both, Some(&plain))?;
            let outside = flows(cluster.outside(), to)?;
            assert_eq!(some(&servers(&outside)), [HERE, THERE].into(), "{to:?}");
            // Another nodePort, no external addresses: as when the type changes.
            let another = |port: &mut ServicePort| {
                port.node_port = Some(NODE_PORT + 1);
                port.external_ips = [].into();
                port.load_balancer_ips = [].into();
            };
            program(&cluster, &both, Some(&another))?;
            assert!(outside.iter().take(4).all(|flow| flow.ask_within(SILENCE).is_err()), "{to:?}");
            assert_eq!(servers(&own), was, "{to:?}");
        }
        // Affinity on and off leaves every flow alone.
        let sticky = |port: &mut ServicePort| port.affinity = Some(60);
        program(&cluster, &both, Some(&sticky))?;
        program(&cluster, &both, Some(&plain))?;
        assert_eq!(servers(&own), was);
        // The cluster's own traffic under policy Local.
        let local = |port: &mut ServicePort| port.internal = Scope::Local;
        program(&cluster, &both, Some(&local))?;
        assert_eq!(some(&servers(&own)), [HERE].into());
        program(&cluster, &[THERE], Some(&local))?;
        assert!(is_silent(&own[0]));
        program(&cluster, &[THERE], None)?;
        assert!(is_silent(&own[0]));
        program(&cluster, &[THERE], Some(&plain))?;
        assert_eq!(some(&servers(&own)), [THERE].into());
        Ok(())
    })
}

fn is_local(at: &Namespace, ip: &str) -> bool {
    at.run("ip", &["-6", "route", "get", ip]).is_ok_and(|route| route.starts_with("local"))
}

#[test]
fn flows_of_ipv6_are_found_and_ended_too() -> anyhow::Result<()> {
    isolated("flows_of_ipv6_are_found_and_ended_too", || {
        let at = Namespace::new("six")?;
        let service: SocketAddr = "[fd69::9]:53".parse()?;
        let ips = ["fd69::9", "fd6a::2", "fd6a::3"];
        for ip in ips {
            at.run("ip", &["-6", "address", "add", ip, "dev", "lo", "nodad"])?;
        }
        // The kernel makes an address usable a moment after it has been added.
        let deadline = Instant::now() + Duration::from_secs(20);
        while !ips.iter().all(|ip| is_local(&at, ip)) {
            anyhow::ensure!(Instant::now() < deadline, "the addresses are not usable");
        }
        let pod = |n: u8| -> IpAddr { format!("fd6a::{n}").parse().unwrap() };
        let _server = Server::start_on(&at, pod(2), 5353)?;
        let lead_to = |pod: IpAddr| {
            let rules = format!(
                "table ip6 t {{}}; delete table ip6 t; table ip6 t {{ chain out {{ type nat hook output priority -100; \
                 ip6 daddr fd69::9 udp dport 53 dnat to [{pod}]:5353; }}; }}"
            );
            at.run("nft", &[&rules])
        };
        lead_to(pod(2))?;
        at.enter(|| {
            let flow = Flow::open(service)?;
            flow.ask()?;
            lead_to(pod(3))?;
            // The kernel remembers.
            flow.ask()?;
            let mut conntrack = Conntrack::open()?;
            let seen = RefCell::new(Vec::new());
            let none = conntrack.delete_udp(Family::V6, |flow| {
                seen.borrow_mut().push((flow.to, flow.answered_by));
                false
            })?;
            assert_eq!((none, seen.take()), (0, vec![(service, SocketAddr::new(pod(2), 5353))]));
            assert_eq!(conntrack.delete_udp(Family::V4, |_| true)?, 0);
            assert_eq!(conntrack.delete_udp(Family::V6, |flow| flow.to == service)?, 1);
            assert_eq!(flow.ask().unwrap_err().kind(), ErrorKind::ConnectionRefused);
            Ok(())
        })
    })
}
