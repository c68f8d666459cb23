//! What each kind of client meets at each kind of address, under each policy, wherever the endpoints are.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use minisvc_tests::{
    netns::{Namespace, isolated},
    traffic::{self, Answer, Connection, Flow, SILENCE},
};
use serde_json::{Value, json};

use crate::cluster::{CLIENT, CLIENT6, Cluster, POD_PORT, node_ip, node_ip6};

const NODE_PORT: u16 = 30_080;
const NODES: [u8; 3] = [1, 2, 3];
/// Questions per way; every answer must be right.
const QUESTIONS: usize = 3;

/// Endpoints: pod, node, ready, terminating.
type Endpoints<'e> = &'e [(&'e str, u8, bool, bool)];

/// Three nodes, with a client in a pod on each; servers `a` on node 1, `b` on node 2. All that is asked is of one family.
struct World {
    cluster: Cluster,
    six: bool,
}

impl World {
    fn new(six: bool) -> anyhow::Result<Self> {
        let mut cluster = if six { Cluster::dual(3)? } else { Cluster::new(3)? };
        for (node, pod) in [(1, "a"), (2, "b"), (1, "x1"), (2, "x2"), (3, "x3")] {
            cluster.pod(node, pod)?;
        }
        for n in NODES {
            // Every single refusal counts here; the kernel sends one client only so many a second.
            cluster.node(n).enter(|| {
                std::fs::write("/proc/sys/net/ipv4/icmp_ratemask", "0")?;
                Ok(std::fs::write("/proc/sys/net/ipv6/icmp/ratelimit", "0")?)
            })?;
        }
        Ok(World { cluster, six })
    }

    fn cluster_ip(&self) -> IpAddr {
        if self.six {
            Ipv6Addr::new(0xfd69, 0x6d69, 0x6e69, 0xffff, 0, 0, 0, 0x707).into()
        } else {
            Ipv4Addr::new(10, 96, 7, 7).into()
        }
    }

    /// An address that no machine has: the client's network sends it to some node.
    fn external(&self) -> IpAddr {
        if self.six {
            Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x10).into()
        } else {
            Ipv4Addr::new(203, 0, 113, 10).into()
        }
    }

    fn node_ip(&self, n: u8) -> IpAddr {
        if self.six { node_ip6(n).into() } else { node_ip(n).into() }
    }

    fn client_ip(&self) -> IpAddr {
        if self.six { CLIENT6.into() } else { CLIENT.into() }
    }

    fn pod_ip(&self, pod: &str) -> IpAddr {
        if self.six { self.cluster.ip6(pod).into() } else { self.cluster.ip(pod).into() }
    }

    /// A LoadBalancer service on port 80, TCP and UDP, with every kind of address.
    fn service(&self, change: &Value) -> anyhow::Result<Service> {
        let port = |proto: &str| {
            json!({"name": proto.to_lowercase(), "port": 80, "protocol": proto,
            "targetPort": POD_PORT, "nodePort": NODE_PORT})
        };
        let ingress: Vec<_> = NODES.iter().map(|n| json!({"ip": self.node_ip(*n)})).collect();
        let mut service = json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {
                "type": "LoadBalancer", "clusterIP": self.cluster_ip(), "clusterIPs": [self.cluster_ip()],
                "externalIPs": [self.external()], "ports": [port("TCP"), port("UDP")],
            },
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        for (field, value) in change.as_object().into_iter().flatten() {
            service["spec"][field] = value.clone();
        }
        Ok(serde_json::from_value(service)?)
    }

    fn slices(&self, endpoints: Endpoints<'_>) -> anyhow::Result<Vec<EndpointSlice>> {
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|(pod, node, ready, terminating)| {
                json!({"addresses": [self.pod_ip(pod)], "nodeName": format!("node-{node}"),
                    "conditions": {"ready": ready, "serving": true, "terminating": terminating}})
            })
            .collect();
        self.slice(&json!(endpoints))
    }

    fn slice(&self, endpoints: &Value) -> anyhow::Result<Vec<EndpointSlice>> {
        let port = |proto: &str| json!({"name": proto.to_lowercase(), "port": POD_PORT, "protocol": proto});
        let family = if self.six { "IPv6" } else { "IPv4" };
        let slice = json!({"metadata": {"name": "web-1"}, "addressType": family, "endpoints": endpoints,
            "ports": [port("TCP"), port("UDP")]});
        Ok(vec![serde_json::from_value(slice)?])
    }

    /// The client's network sends the external address to a node.
    fn external_at(&self, node: u8) -> anyhow::Result<()> {
        let (to, via) = (self.external().to_string(), self.node_ip(node).to_string());
        self.cluster.outside().run("ip", &["route", "replace", &to, "via", &via]).map(drop)
    }

    fn namespace(&self, client: Client) -> &Namespace {
        match client {
            Client::Pod(n) => self.cluster.ns(["x1", "x2", "x3"][usize::from(n) - 1]),
            Client::Node(n) => self.cluster.node(n),
            Client::Outside => self.cluster.outside(),
        }
    }

    /// The sources that a server on a node may see.
    fn sources(&self, client: Client, at: u8, address: Address, server_node: u8) -> Vec<IpAddr> {
        let own = match client {
            Client::Pod(n) => self.pod_ip(["x1", "x2", "x3"][usize::from(n) - 1]),
            Client::Node(n) => self.node_ip(n),
            Client::Outside => self.client_ip(),
        };
        // What is held to local endpoints, or finds one, keeps its source; so does every pod that calls a ClusterIP.
        if address == Address::ClusterIp || server_node == at {
            return vec![own];
        }
        vec![own, self.node_ip(at)]
    }

    /// Every answer must be of one of the servers, from a right source; refusals and silence need one question each.
    fn check(
        &self,
        client: Client,
        at: u8,
        address: Address,
        meets: &Meets,
        endpoints: Endpoints<'_>,
    ) -> anyhow::Result<()> {
        let to = match address {
            Address::ClusterIp => SocketAddr::new(self.cluster_ip(), 80),
            Address::NodePort => SocketAddr::new(self.node_ip(at), NODE_PORT),
            Address::LoadBalancer => SocketAddr::new(self.node_ip(at), 80),
            Address::External => SocketAddr::new(self.external(), 80),
        };
        for (proto, ask) in [("TCP", ask_tcp as Ask), ("UDP", ask_udp)] {
            let context = || format!("{client:?} to {address:?} at node {at} by {proto}, {endpoints:?}");
            let questions = if matches!(meets, Meets::Servers(_)) { QUESTIONS } else { 1 };
            let patience = if *meets == Meets::Silence { SILENCE } else { PATIENCE };
            let answers = self
                .namespace(client)
                .enter(|| Ok((0..questions).map(|_| ask(to, patience)).collect::<Vec<_>>()))
                .with_context(context)?;
            for answer in answers {
                match (meets, answer) {
                    (Meets::Servers(names), Ok(answer)) => {
                        assert!(names.contains(&answer.server), "{}: {answer:?}, not {names:?}", context());
                        let node = endpoints.iter().find(|e| e.0 == answer.server).map_or(0, |e| e.1);
                        let wanted = self.sources(client, at, address, node);
                        let source = answer.client.ip();
                        assert!(wanted.contains(&source), "{}: {answer:?}, not {wanted:?}", context());
                    }
                    (Meets::Refusal, Err(ErrorKind::ConnectionRefused))
                    | (Meets::Silence, Err(ErrorKind::TimedOut | ErrorKind::WouldBlock)) => {}
                    // The kernel tells a process of the node itself that its datagram was not let out.
                    (Meets::Refusal | Meets::Silence, Err(ErrorKind::PermissionDenied))
                        if proto == "UDP" && matches!(client, Client::Node(_)) => {}
                    (_, got) => panic!("{}: {got:?}, not {meets:?}", context()),
                }
            }
        }
        Ok(())
    }
}

/// How long an answer may take that must come.
const PATIENCE: Duration = Duration::from_secs(10);

type Ask = fn(SocketAddr, Duration) -> Result<Answer, ErrorKind>;

fn ask_tcp(to: SocketAddr, patience: Duration) -> Result<Answer, ErrorKind> {
    let mut connection = Connection::within(to, patience).map_err(|e| e.kind())?;
    connection.ask().map_err(|_| ErrorKind::BrokenPipe)
}

fn ask_udp(to: SocketAddr, patience: Duration) -> Result<Answer, ErrorKind> {
    Flow::open(to).and_then(|flow| flow.ask_within(patience)).map_err(|e| e.kind())
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Meets {
    /// These servers and no others.
    Servers(BTreeSet<String>),
    /// Told at once that nobody is there.
    Refusal,
    /// Nothing at all.
    Silence,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Pod(u8),
    Node(u8),
    Outside,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Address {
    ClusterIp,
    NodePort,
    LoadBalancer,
    External,
}

/// The contract, section 6.
fn expected(
    client: Client,
    at: u8,
    address: Address,
    (internal, external): (&str, &str),
    endpoints: Endpoints<'_>,
) -> Meets {
    let (here, local) = match (address, client) {
        (Address::ClusterIp, Client::Pod(n) | Client::Node(n)) => (n, internal == "Local"),
        // Pods and nodes meet all endpoints there.
        (_, Client::Outside) => (at, external == "Local"),
        _ => (at, false),
    };
    let of_scope: Vec<_> = endpoints.iter().filter(|(_, node, ..)| !local || *node == here).collect();
    let any_ready = of_scope.iter().any(|(_, _, ready, _)| *ready);
    let names: BTreeSet<String> =
        of_scope.iter().filter(|e| e.2 || !any_ready).map(|(pod, ..)| (*pod).to_owned()).collect();
    match (names.is_empty(), endpoints.is_empty()) {
        (false, _) => Meets::Servers(names),
        (true, true) => Meets::Refusal,
        (true, false) => Meets::Silence,
    }
}

/// Asks everything of everybody, under these policies.
fn ask_all(world: &World, policies: &[(&str, &str)]) -> anyhow::Result<()> {
    let clients: Vec<Client> =
        NODES.iter().flat_map(|n| [Client::Pod(*n), Client::Node(*n)]).chain([Client::Outside]).collect();
    let shapes: [Endpoints<'_>; 5] = [
        &[("a", 1, true, false), ("b", 2, true, false)],
        &[("b", 2, true, false)],
        &[("a", 1, false, true), ("b", 2, true, false)],
        // Only such as terminate: they serve until somebody else does.
        &[("a", 1, false, true)],
        &[],
    ];
    for policies in policies {
        let (internal, external) = policies;
        let change = json!({"internalTrafficPolicy": internal, "externalTrafficPolicy": external});
        let web = world.service(&change)?;
        for endpoints in shapes {
            world.cluster.serve(&web, &world.slices(endpoints)?)?;
            let check = |client, at, address| {
                let meets = expected(client, at, address, *policies, endpoints);
                world.check(client, at, address, &meets, endpoints)
            };
            for client in &clients {
                if let Client::Pod(n) | Client::Node(n) = *client {
                    check(*client, n, Address::ClusterIp)?;
                    check(*client, n, Address::External)?;
                }
                for at in NODES {
                    check(*client, at, Address::NodePort)?;
                    check(*client, at, Address::LoadBalancer)?;
                    if *client == Client::Outside {
                        world.external_at(at)?;
                        check(*client, at, Address::External)?;
                    }
                }
            }
        }
    }
    // What is the machine's own at its addresses stays its own, and so does a port that the service has not.
    let cluster = &world.cluster;
    let own = world.node_ip(1);
    let _shell = traffic::Server::start_on(cluster.node(1), own, 22)?;
    for at in [cluster.outside(), cluster.node(1), cluster.ns("x1"), cluster.ns("x2")] {
        for ask in [ask_tcp, ask_udp] {
            let answer = at.enter(|| Ok(ask(SocketAddr::new(own, 22), PATIENCE)))?;
            assert_eq!(answer.map(|a| a.server), Ok("node-1".to_owned()), "from {}", at.name());
        }
    }
    let refused = cluster.outside().enter(|| Ok(ask_tcp(SocketAddr::new(own, 81), PATIENCE)))?;
    assert_eq!(refused, Err(ErrorKind::ConnectionRefused), "the machine's own refusal");
    let family = if world.six { "ip6" } else { "ip" };
    cluster.node(1).run("nft", &["list", "table", family, "minisvc"])?;
    Ok(())
}

#[test]
fn every_client_meets_at_every_address_what_the_policies_say() -> anyhow::Result<()> {
    isolated("policies::every_client_meets_at_every_address_what_the_policies_say", || {
        ask_all(&World::new(false)?, &[("Cluster", "Cluster"), ("Local", "Local"), ("Cluster", "Local")])
    })
}

#[test]
fn and_so_it_is_in_the_second_family() -> anyhow::Result<()> {
    isolated("policies::and_so_it_is_in_the_second_family", || {
        ask_all(&World::new(true)?, &[("Cluster", "Cluster"), ("Local", "Local")])
    })
}

/// A range of one address.
fn only(ip: IpAddr) -> String {
    format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })
}

fn ranges_change(six: bool) -> anyhow::Result<()> {
    let world = World::new(six)?;
    let cluster = &world.cluster;
    let endpoints: Endpoints<'_> = &[("a", 1, true, false), ("b", 2, true, false)];
    let slices = world.slices(endpoints)?;
    let both = Meets::Servers(["a", "b"].map(str::to_owned).into());
    let balancer = SocketAddr::new(world.node_ip(3), 80);
    let client = world.client_ip();
    // A second client outside: another address of the first one's machine.
    let (second, length, wide, pods, elsewhere) = if six {
        (
            "2001:db8::101",
            64,
            "2001:db8::/64",
            "fd69:6d69:6e6a:3::/64",
            ["2001:db8:9::/48", " 2001:db8:9::7/128"],
        )
    } else {
        ("192.0.2.101", 24, "192.0.2.0/24", "10.244.3.0/24", ["198.51.100.0/24", " 198.51.100.7/32"])
    };
    let second: IpAddr = second.parse()?;
    let address = format!("{second}/{length}");
    let nodad: &[&str] = if six { &["nodad"] } else { &[] };
    cluster.outside().run("ip", &[&["address", "add", &address, "dev", "eth0"], nodad].concat())?;
    let speak_as = |ip: IpAddr| -> anyhow::Result<()> {
        for n in NODES {
            let (to, ip) = (world.node_ip(n).to_string(), ip.to_string());
            cluster.outside().run("ip", &["route", "replace", &to, "dev", "eth0", "src", &ip])?;
        }
        Ok(())
    };
    let meets = |client, address, meets: &Meets| world.check(client, 3, address, meets, endpoints);
    let outside = |ip, is_let_in: bool| -> anyhow::Result<()> {
        speak_as(ip)?;
        let patience = if is_let_in { PATIENCE } else { SILENCE };
        let answers =
            cluster.outside().enter(|| Ok((ask_tcp(balancer, patience), ask_udp(balancer, patience))))?;
        match answers {
            (Ok(_), Ok(_)) if is_let_in => {}
            (Err(ErrorKind::TimedOut), Err(ErrorKind::WouldBlock)) if !is_let_in => {}
            _ => panic!("{ip}: {answers:?}, and should be let in: {is_let_in}"),
        }
        Ok(())
    };
    let ranges = |ranges: &[&str]| -> anyhow::Result<()> {
        cluster.serve(&world.service(&json!({"loadBalancerSourceRanges": ranges}))?, &slices)
    };
    ranges(&[])?;
    outside(client, true)?;
    let mut established = cluster.outside().enter(|| Ok(Connection::open(balancer)?))?;
    // Only the second client; a range inside of another one is as good as none.
    ranges(&[&only(second), elsewhere[0], elsewhere[1]])?;
    outside(second, true)?;
    outside(client, false)?;
    // What is established stays.
    established.ask()?;
    // Pods are sources like all others; the node itself always is one.
    meets(Client::Pod(3), Address::LoadBalancer, &Meets::Silence)?;
    meets(Client::Node(1), Address::LoadBalancer, &Meets::Silence)?;
    meets(Client::Node(3), Address::LoadBalancer, &both)?;
    // The service's other addresses are nobody's load balancer.
    speak_as(client)?;
    meets(Client::Pod(3), Address::ClusterIp, &both)?;
    meets(Client::Pod(3), Address::NodePort, &both)?;
    meets(Client::Outside, Address::NodePort, &both)?;
    world.external_at(3)?;
    meets(Client::Outside, Address::External, &both)?;
    // Live, in both directions, also where one range takes the place of others inside of it.
    ranges(&[wide, pods])?;
    outside(client, true)?;
    outside(second, true)?;
    meets(Client::Pod(3), Address::LoadBalancer, &both)?;
    world.check(Client::Pod(1), 3, Address::LoadBalancer, &Meets::Silence, endpoints)?;
    ranges(&[&only(client)])?;
    outside(client, true)?;
    outside(second, false)?;
    speak_as(client)?;
    // Under policy Local the same clients, and local endpoints alone.
    let local = json!({"loadBalancerSourceRanges": [only(client)], "externalTrafficPolicy": "Local"});
    cluster.serve(&world.service(&local)?, &slices)?;
    outside(client, false)?;
    let here = Meets::Servers(["a".to_owned()].into());
    world.check(Client::Outside, 1, Address::LoadBalancer, &here, endpoints)?;
    let family = if six { "ip6" } else { "ip" };
    let list = |set: &str| cluster.node(3).run("nft", &["list", "set", family, "minisvc", set]);
    let element = format!("{} . tcp . 80", balancer.ip());
    assert!(list("allowed")?.contains(&format!("{element} . {client}")));
    // And open to everybody again.
    ranges(&[])?;
    outside(second, true)?;
    assert!(!list("guarded")?.contains(&element));
    Ok(())
}

#[test]
fn a_load_balancer_is_for_its_sources_alone_and_they_change_live() -> anyhow::Result<()> {
    isolated("policies::a_load_balancer_is_for_its_sources_alone_and_they_change_live", || {
        ranges_change(false)
    })
}

#[test]
fn sources_of_the_second_family_are_told_apart_too() -> anyhow::Result<()> {
    isolated("policies::sources_of_the_second_family_are_told_apart_too", || ranges_change(true))
}

fn policy_flips(six: bool) -> anyhow::Result<()> {
    let world = World::new(six)?;
    let cluster = &world.cluster;
    let endpoints: Endpoints<'_> = &[("a", 1, true, false), ("b", 2, true, false)];
    let slices = world.slices(endpoints)?;
    let both = Meets::Servers(["a", "b"].map(str::to_owned).into());
    let one = |name: &str| Meets::Servers([name.to_owned()].into());
    let with = |policy: &str, value: &str| -> anyhow::Result<()> {
        cluster.serve(&world.service(&json!({policy: value}))?, &slices)
    };
    with("externalTrafficPolicy", "Cluster")?;
    let to = SocketAddr::new(world.node_ip(3), NODE_PORT);
    let (mut open, flow) = cluster.outside().enter(|| Ok((Connection::open(to)?, Flow::open(to)?)))?;
    let server = open.ask()?.server;
    flow.ask()?;
    // Nobody is on node 3: what is established goes on, what is new is dropped, and a flow is new with its next datagram.
    with("externalTrafficPolicy", "Local")?;
    assert_eq!(open.ask()?.server, server);
    assert_eq!(flow.ask_within(SILENCE).unwrap_err().kind(), ErrorKind::WouldBlock);
    world.check(Client::Outside, 3, Address::NodePort, &Meets::Silence, endpoints)?;
    world.check(Client::Outside, 2, Address::NodePort, &one("b"), endpoints)?;
    with("externalTrafficPolicy", "Cluster")?;
    assert_eq!(open.ask()?.server, server);
    flow.ask()?;
    world.check(Client::Outside, 3, Address::NodePort, &both, endpoints)?;
    // The ClusterIP in the same way.
    let to = SocketAddr::new(world.cluster_ip(), 80);
    let flow = cluster.ns("x3").enter(|| Ok(Flow::open(to)?))?;
    flow.ask()?;
    with("internalTrafficPolicy", "Local")?;
    assert_eq!(flow.ask_within(SILENCE).unwrap_err().kind(), ErrorKind::WouldBlock);
    world.check(Client::Pod(3), 3, Address::ClusterIp, &Meets::Silence, endpoints)?;
    world.check(Client::Pod(1), 1, Address::ClusterIp, &one("a"), endpoints)?;
    with("internalTrafficPolicy", "Cluster")?;
    flow.ask()?;
    Ok(())
}

#[test]
fn a_policy_flips_under_traffic() -> anyhow::Result<()> {
    isolated("policies::a_policy_flips_under_traffic", || policy_flips(false))
}

#[test]
fn a_policy_of_the_second_family_flips_under_traffic() -> anyhow::Result<()> {
    isolated("policies::a_policy_of_the_second_family_flips_under_traffic", || policy_flips(true))
}

#[test]
fn a_machine_outside_is_an_endpoint_like_pods() -> anyhow::Result<()> {
    isolated("policies::a_machine_outside_is_an_endpoint_like_pods", || {
        for six in [false, true] {
            let world = World::new(six)?;
            let cluster = &world.cluster;
            let database = world.client_ip();
            let _database = traffic::Server::start_on(cluster.outside(), database, POD_PORT)?;
            let endpoint = json!([{"addresses": [database], "conditions": {"ready": true}}]);
            cluster.serve(&world.service(&json!({}))?, &world.slice(&endpoint)?)?;
            for ask in [ask_tcp, ask_udp] {
                for (at, ip, port, node) in [
                    (cluster.ns("x1"), world.cluster_ip(), 80, 1),
                    (cluster.node(2), world.cluster_ip(), 80, 2),
                    (cluster.ns("x1"), world.node_ip(2), NODE_PORT, 2),
                    // The machine calls itself by way of a node: without the node's address it would answer itself.
                    (cluster.outside(), world.node_ip(3), NODE_PORT, 3),
                ] {
                    let answer = at.enter(|| Ok(ask(SocketAddr::new(ip, port), PATIENCE)))?;
                    let answer = answer.map(|a| (a.server, a.client.ip()));
                    let wanted = ("client".to_owned(), world.node_ip(node));
                    assert_eq!(answer, Ok(wanted), "{} to {ip}", at.name());
                }
            }
        }
        Ok(())
    })
}

/// A client with affinity under policy Local stays with one of the node's own endpoints, and is spread again once either is off.
#[test]
fn affinity_and_policy_local_go_together() -> anyhow::Result<()> {
    isolated("policies::affinity_and_policy_local_go_together", || {
        for six in [false, true] {
            let world = World::new(six)?;
            let endpoints: Endpoints<'_> = &[
                ("a", 1, true, false),
                ("x1", 1, true, false),
                ("b", 2, true, false),
                ("x2", 2, true, false),
            ];
            let slices = world.slices(endpoints)?;
            let to = SocketAddr::new(world.node_ip(1), NODE_PORT);
            let servers = |change: &Value| -> anyhow::Result<BTreeSet<String>> {
                world.cluster.serve(&world.service(change)?, &slices)?;
                world.cluster.outside().enter(|| {
                    let answers = (0..40).map(|_| Ok(traffic::tcp_to(to)?.server));
                    answers.collect::<anyhow::Result<BTreeSet<_>>>()
                })
            };
            let names =
                |list: &[&str]| -> BTreeSet<String> { list.iter().map(|n| (*n).to_owned()).collect() };
            let local = json!({"externalTrafficPolicy": "Local"});
            let sticky_local = json!({"externalTrafficPolicy": "Local", "sessionAffinity": "ClientIP"});
            let sticky = json!({"sessionAffinity": "ClientIP"});
            assert_eq!(servers(&local)?, names(&["a", "x1"]));
            let one = servers(&sticky_local)?;
            assert!(one.len() == 1 && one.is_subset(&names(&["a", "x1"])), "{one:?}");
            assert_eq!(servers(&sticky_local)?, one);
            assert_eq!(servers(&sticky)?.len(), 1);
            assert_eq!(servers(&local)?, names(&["a", "x1"]));
            assert_eq!(servers(&json!({}))?, names(&["a", "b", "x1", "x2"]));
        }
        Ok(())
    })
}
