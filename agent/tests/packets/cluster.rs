//! Nodes on a LAN, each with a network and a dataplane of its own, and pods behind them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use anyhow::Context;
use k8s_openapi::api::{core::v1::Service as ApiService, discovery::v1::EndpointSlice};
use minisvc_agent::{
    dataplane::{self, Dataplane, Handle},
    net::{Family6, LinkName, Net, NetConfig, NodeRoute, NodeRoute6, Way, mac_of},
    plan::{Backends, Proto, ServiceKey, ServicePlan, ServicePort, Viewpoint, plan_service},
    source::{self, Peer, socket::Responder},
};
use minisvc_tests::{
    netns::{Lan, Namespace},
    traffic::Server,
};
use tokio::time::timeout;

/// The client outside of the cluster.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
/// Pods listen here, TCP and UDP.
pub const POD_PORT: u16 = 8080;
/// The LAN's router.
pub const LAN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// UDP port of VXLAN.
pub const VXLAN_PORT: u16 = 8473;
/// The router of the other network.
pub const FAR_LAN: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// The client outside of the cluster on the other network.
pub const FAR_CLIENT: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 100);
/// How long a node may take to see that something has changed.
const PATIENCE: Duration = Duration::from_secs(20);

/// Address of the n-th node of the other network.
pub fn far_ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 10 + n)
}

/// Address of the n-th node, from 1.
pub fn node_ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + n)
}

/// The client's second address.
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x100);

/// Second address of the n-th node, from 1.
pub fn node_ip6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10 + u16::from(n))
}

/// The router's second addresses.
const LAN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const FAR_LAN6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1);

/// Second address of the n-th node of the other network.
pub fn far_ip6(n: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 0x10 + u16::from(n))
}

/// Second address of the node with this one.
fn second_of(ip: Ipv4Addr) -> Ipv6Addr {
    let n = ip.octets()[3] - 10;
    if ip == far_ip(n) { far_ip6(n) } else { node_ip6(n) }
}

fn family6(n: u8, ip: Ipv4Addr) -> Family6 {
    Family6 {
        node_ip: second_of(ip),
        local_pod_cidr: format!("fd69:6d69:6e6a:{n}::/64").parse().unwrap(),
        pod_cidr: "fd69:6d69:6e6a::/48".parse().unwrap(),
        service_cidr: "fd69:6d69:6e69:ffff::/112".parse().unwrap(),
        dns_ip: "fd69:6d69:6e69:ffff::a".parse().unwrap(),
    }
}

fn pod_cidr(n: u8) -> ipnet::Ipv4Net {
    format!("10.244.{n}.0/24").parse().unwrap()
}

/// A service on port 80, TCP and UDP.
#[derive(Clone, Debug)]
pub struct Service {
    pub number: u16,
    pub ip: Ipv4Addr,
    pub node_port: Option<u16>,
    pub affinity: Option<u32>,
    pub endpoints: BTreeSet<(IpAddr, u16)>,
    pub draining: BTreeSet<(IpAddr, u16)>,
    /// Ports of the second family.
    pub second: Vec<ServicePort>,
}

impl Service {
    pub fn new(number: u16) -> Self {
        let [high, low] = number.to_be_bytes();
        let ip = Ipv4Addr::new(10, 96, 1 + high, low);
        let none = BTreeSet::new();
        Service {
            number,
            ip,
            node_port: None,
            affinity: None,
            endpoints: none.clone(),
            draining: none,
            second: vec![],
        }
    }

    pub fn node_port(self, node_port: u16) -> Self {
        Service { node_port: Some(node_port), ..self }
    }

    pub fn affinity(self, seconds: u32) -> Self {
        Service { affinity: Some(seconds), ..self }
    }

    pub fn endpoints(self, cluster: &Cluster, pods: &[&str]) -> Self {
        Service { endpoints: pods.iter().map(|p| (cluster.ip(p).into(), POD_PORT)).collect(), ..self }
    }

    pub fn draining(self, cluster: &Cluster, pods: &[&str]) -> Self {
        Service { draining: pods.iter().map(|p| (cluster.ip(p).into(), POD_PORT)).collect(), ..self }
    }

    pub fn address(&self) -> (Ipv4Addr, u16) {
        (self.ip, 80)
    }

    fn key(&self) -> ServiceKey {
        ServiceKey { namespace: "default".into(), name: format!("s{}", self.number) }
    }

    fn plan(&self) -> ServicePlan {
        let port = |proto| ServicePort {
            node_port: self.node_port,
            affinity: self.affinity,
            cluster: Backends { active: self.endpoints.clone(), draining: self.draining.clone() },
            ..ServicePort::new(self.ip.into(), proto, 80)
        };
        let first = [port(Proto::Tcp), port(Proto::Udp)];
        ServicePlan { ports: first.into_iter().chain(self.second.iter().cloned()).collect() }
    }
}

struct Node {
    namespace: Namespace,
    ip: Ipv4Addr,
    net: Net,
    dataplane: Handle,
}

impl Node {
    /// As an agent does with what the server says of nodes.
    fn tell(&self, nodes: &[NodeRoute]) -> anyhow::Result<()> {
        self.namespace.block_on(async || {
            self.dataplane.set_nodes(nodes.to_vec()).await?;
            self.net.set_routes(nodes.to_vec()).await?;
            self.set_direct(nodes).await
        })
    }

    async fn set_direct(&self, nodes: &[NodeRoute]) -> anyhow::Result<()> {
        let (ways, ways6) = (self.net.ways().borrow().clone(), self.net.ways6().borrow().clone());
        let first = nodes.iter().filter(|n| ways.get(&n.name) == Some(&Way::Direct)).map(|n| n.ip.into());
        let second = nodes.iter().filter(|n| ways6.get(&n.name) == Some(&Way::Direct));
        let second = second.filter_map(|n| Some(n.family6?.ip.into()));
        Ok(self.dataplane.set_direct(first.chain(second).collect()).await?)
    }
}

struct Pod {
    namespace: Namespace,
    ip: Ipv4Addr,
    second: Option<Ipv6Addr>,
    _servers: Vec<Server>,
}

/// The cluster of a test.
pub struct Cluster {
    lans: Vec<Lan>,
    router: Option<Namespace>,
    client: Namespace,
    far_client: Option<Namespace>,
    nodes: Vec<Node>,
    pods: BTreeMap<String, Pod>,
    /// Both families.
    is_dual: bool,
    answering: Vec<tokio::sync::oneshot::Sender<()>>,
}

async fn start(n: u8, ip: Ipv4Addr, is_dual: bool) -> anyhow::Result<(Net, Handle)> {
    let (service_cidr, all_pods) = ("10.96.0.0/16".parse()?, "10.244.0.0/16".parse()?);
    let (dns_ip, node_port_range) = (Ipv4Addr::new(10, 96, 0, 10), (30000, 32767));
    let family6 = is_dual.then(|| family6(n, ip));
    let net = Net::start(NetConfig {
        node_ip: ip,
        local_pod_cidr: pod_cidr(n),
        pod_cidr: all_pods,
        service_cidr,
        dns_ip,
        node_port_range,
        vxlan_port: VXLAN_PORT,
        family6,
    })
    .await?;
    let dataplane = Dataplane::start(dataplane::Config {
        node_ip: ip,
        dns_ip,
        service_cidr,
        pod_cidr: all_pods,
        local_pod_cidr: pod_cidr(n),
        node_port_range,
        vxlan_port: VXLAN_PORT,
        family6,
    })?;
    Ok((net, dataplane))
}

impl Cluster {
    /// Nodes on one LAN.
    pub fn new(count: u8) -> anyhow::Result<Self> {
        let mut lan = Lan::new(LAN)?;
        let client = lan.machine("client", CLIENT)?;
        let nodes = (1..=count).map(|n| Ok((lan.machine(&format!("node-{n}"), node_ip(n))?, node_ip(n))));
        let nodes = nodes.collect::<anyhow::Result<_>>()?;
        Self::with(vec![lan], None, (client, None), nodes)
    }

    /// Nodes on one LAN, and a client behind the LAN's router.
    pub fn with_far_client(count: u8) -> anyhow::Result<Self> {
        let (mut lan, mut there) = (Lan::new(LAN)?, Lan::switch(FAR_LAN)?);
        there.connect(lan.hub(), "far", FAR_LAN)?;
        lan.hub().run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
        let clients = (lan.machine("client", CLIENT)?, Some(there.machine("far-client", FAR_CLIENT)?));
        let nodes = (1..=count).map(|n| Ok((lan.machine(&format!("node-{n}"), node_ip(n))?, node_ip(n))));
        let nodes = nodes.collect::<anyhow::Result<_>>()?;
        Self::with(vec![lan, there], None, clients, nodes)
    }

    /// Two nodes on one LAN and the third on another; the router in between knows nothing of pods, and drops what is from or to any
    /// address of another network.
    pub fn routed() -> anyhow::Result<Self> {
        Self::across_a_router(false)
    }

    /// The same with both families.
    pub fn routed_dual() -> anyhow::Result<Self> {
        Self::across_a_router(true)
    }

    fn across_a_router(is_dual: bool) -> anyhow::Result<Self> {
        let (mut here, mut there) = (Lan::switch(LAN)?, Lan::switch(FAR_LAN)?);
        let router = Namespace::new("router")?;
        here.connect(&router, "near", LAN)?;
        there.connect(&router, "far", FAR_LAN)?;
        router.run("sysctl", &["-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=1"])?;
        for (family, networks) in
            [("ip", "{ 192.0.2.0/24, 198.51.100.0/24 }"), ("ip6", "{ 2001:db8::/64, 2001:db8:f::/64 }")]
        {
            let rules = format!(
                "table {family} router {{ chain forward {{ type filter hook forward priority 0; policy drop; \
                 {family} saddr {networks} {family} daddr {networks} accept; }}; }}"
            );
            router.run("nft", &[&rules])?;
        }
        let clients = (here.machine("client", CLIENT)?, Some(there.machine("far-client", FAR_CLIENT)?));
        let nodes = vec![
            (here.machine("node-1", node_ip(1))?, node_ip(1)),
            (here.machine("node-2", node_ip(2))?, node_ip(2)),
            (there.machine("node-3", far_ip(3))?, far_ip(3)),
        ];
        if is_dual {
            router.run("sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"])?;
            Lan::second_address(&router, "near", LAN6)?;
            Lan::second_address(&router, "far", FAR_LAN6)?;
            Lan::second_address(&clients.0, "eth0", CLIENT6)?;
            let near = nodes.iter().map(|(node, ip)| (node, second_of(*ip)));
            for (machine, ip) in near.clone() {
                Lan::second_address(machine, "eth0", ip)?;
            }
            for (machine, ip) in near.chain([(&clients.0, CLIENT6)]) {
                let router = if ip.segments()[2] == 0 { LAN6 } else { FAR_LAN6 }.to_string();
                machine.run("ip", &["-6", "route", "add", "default", "via", &router, "dev", "eth0"])?;
            }
        }
        Self::with_families(vec![here, there], Some(router), clients, nodes, is_dual)
    }

    /// Nodes on one LAN, with both families.
    pub fn dual(count: u8) -> anyhow::Result<Self> {
        let mut lan = Lan::new(LAN)?;
        let client = lan.machine("client", CLIENT)?;
        Lan::second_address(&client, "eth0", CLIENT6)?;
        let mut nodes = Vec::new();
        for n in 1..=count {
            let node = lan.machine(&format!("node-{n}"), node_ip(n))?;
            Lan::second_address(&node, "eth0", node_ip6(n))?;
            // Somewhere to send what is for nobody on the LAN.
            let nobody = CLIENT6.to_string();
            node.run("ip", &["-6", "route", "add", "default", "via", &nobody, "dev", "eth0"])?;
            nodes.push((node, node_ip(n)));
        }
        Self::with_families(vec![lan], None, (client, None), nodes, true)
    }

    fn with(
        lans: Vec<Lan>,
        router: Option<Namespace>,
        clients: (Namespace, Option<Namespace>),
        machines: Vec<(Namespace, Ipv4Addr)>,
    ) -> anyhow::Result<Self> {
        Self::with_families(lans, router, clients, machines, false)
    }

    fn with_families(
        lans: Vec<Lan>,
        router: Option<Namespace>,
        (client, far_client): (Namespace, Option<Namespace>),
        machines: Vec<(Namespace, Ipv4Addr)>,
        is_dual: bool,
    ) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for (n, (namespace, ip)) in (1..).zip(machines) {
            let (net, dataplane) = namespace.block_on(async || start(n, ip, is_dual).await)?;
            nodes.push(Node { namespace, ip, net, dataplane });
        }
        let cluster = Cluster {
            lans,
            router,
            client,
            far_client,
            nodes,
            pods: BTreeMap::new(),
            is_dual,
            answering: Vec::new(),
        };
        cluster.apply([])?;
        for n in cluster.numbers() {
            cluster.set_nodes(n, &cluster.numbers())?;
        }
        Ok(cluster)
    }

    pub fn numbers(&self) -> Vec<u8> {
        (1..=self.nodes.len() as u8).collect()
    }

    fn routes(&self, nodes: &[u8]) -> Vec<NodeRoute> {
        let ip = |n: u8| self.nodes.get(usize::from(n) - 1).map_or(node_ip(n), |node| node.ip);
        let route = |n: u8| NodeRoute {
            name: format!("node-{n}"),
            ip: ip(n),
            pod_cidr: pod_cidr(n),
            tunnels: false,
            family6: self
                .is_dual
                .then(|| NodeRoute6 { ip: second_of(ip(n)), pod_cidr: family6(n, ip(n)).local_pod_cidr }),
        };
        nodes.iter().map(|n| route(*n)).collect()
    }

    /// A pod on a node, with a server inside.
    pub fn pod(&mut self, node: u8, name: &str) -> anyhow::Result<()> {
        let namespace = Namespace::new(name)?;
        let ip = Ipv4Addr::new(10, 244, node, 2 + self.pods.len() as u8);
        let on = self.on(node);
        let link = LinkName::of_pod(name);
        on.namespace.block_on(async || Ok(on.net.attach(link, ip, namespace.fd()?).await?))?;
        let mut servers = vec![Server::start(&namespace, POD_PORT)?];
        let second = self.is_dual.then(|| family6(node, self.on(node).ip).pod_address(ip, pod_cidr(node)));
        if let Some(ip) = second {
            servers.push(Server::start_on(&namespace, ip, POD_PORT)?);
        }
        self.pods.insert(name.to_owned(), Pod { namespace, ip, second, _servers: servers });
        Ok(())
    }

    fn on(&self, node: u8) -> &Node {
        &self.nodes[usize::from(node) - 1]
    }

    /// A pod's namespace.
    pub fn ns(&self, pod: &str) -> &Namespace {
        &self.pods[pod].namespace
    }

    pub fn ip(&self, pod: &str) -> Ipv4Addr {
        self.pods[pod].ip
    }

    /// A pod's second address.
    pub fn ip6(&self, pod: &str) -> Ipv6Addr {
        self.pods[pod].second.unwrap()
    }

    pub fn node(&self, n: u8) -> &Namespace {
        &self.on(n).namespace
    }

    pub fn outside(&self) -> &Namespace {
        &self.client
    }

    /// Programs services on every node.
    pub fn apply<'s>(&self, services: impl IntoIterator<Item = &'s Service>) -> anyhow::Result<()> {
        let touched: Vec<_> = services.into_iter().map(|s| (s.key(), Some(s.plan()))).collect();
        self.touch(&touched)
    }

    /// As another agent does: tells every node of all others again.
    pub fn set_all_nodes(&self) -> anyhow::Result<()> {
        self.numbers().into_iter().try_for_each(|n| self.set_nodes(n, &self.numbers()))
    }

    /// Takes a service away from every node.
    pub fn remove(&self, number: u16) -> anyhow::Result<()> {
        self.touch(&[(Service::new(number).key(), None)])
    }

    /// Programs one service of the API on every node, as each of them sees it.
    pub fn serve(&self, service: &ApiService, slices: &[EndpointSlice]) -> anyhow::Result<()> {
        let addresses = |node: &Node| -> BTreeSet<IpAddr> {
            std::iter::once(node.ip.into()).chain(self.is_dual.then(|| second_of(node.ip).into())).collect()
        };
        let all: BTreeSet<IpAddr> = self.nodes.iter().flat_map(addresses).collect();
        let key = ServiceKey {
            namespace: "default".into(),
            name: service.metadata.name.clone().context("a service without a name")?,
        };
        for (n, node) in (1..).zip(&self.nodes) {
            let own = addresses(node);
            let here = Viewpoint {
                node: format!("node-{n}"),
                zone: None,
                others: all.difference(&own).copied().collect(),
                addresses: own,
            };
            let plan = plan_service(service, &slices.iter().collect::<Vec<_>>(), &here);
            let touched = vec![(key.clone(), Some(plan))];
            node.namespace.block_on(async || Ok(node.dataplane.apply(touched).await?))?;
        }
        Ok(())
    }

    fn touch(&self, touched: &[(ServiceKey, Option<ServicePlan>)]) -> anyhow::Result<()> {
        for node in &self.nodes {
            node.namespace.block_on(async || Ok(node.dataplane.apply(touched.to_vec()).await?))?;
        }
        Ok(())
    }

    /// New agents on every node; the next [`Cluster::apply`] must bring all services.
    pub fn restart_agents(&mut self) -> anyhow::Result<()> {
        let is_dual = self.is_dual;
        for (n, node) in (1..).zip(&mut self.nodes) {
            (node.net, node.dataplane) =
                node.namespace.block_on(async || start(n, node.ip, is_dual).await)?;
        }
        Ok(())
    }

    /// A new agent on one node; the next [`Cluster::program`] must bring all services.
    pub fn restart_agent(&mut self, n: u8) -> anyhow::Result<()> {
        let is_dual = self.is_dual;
        let node = &mut self.nodes[usize::from(n) - 1];
        (node.net, node.dataplane) = node.namespace.block_on(async || start(n, node.ip, is_dual).await)?;
        Ok(())
    }

    /// Programs what one node makes of services.
    pub fn program(&self, n: u8, touched: &[(ServiceKey, Option<ServicePlan>)]) -> anyhow::Result<()> {
        let node = self.on(n);
        node.namespace.block_on(async || Ok(node.dataplane.apply(touched.to_vec()).await?))
    }

    pub fn set_nodes(&self, node: u8, nodes: &[u8]) -> anyhow::Result<()> {
        self.on(node).tell(&self.routes(nodes))
    }

    /// Tells a node of all nodes, and that these say that they send to it through the tunnel.
    pub fn set_tunnelling(&self, node: u8, tunnelling: &[u8]) -> anyhow::Result<()> {
        let mut routes = self.routes(&self.numbers());
        for n in tunnelling {
            routes[usize::from(*n) - 1].tunnels = true;
        }
        self.on(node).tell(&routes)
    }

    /// How a node reaches another one.
    pub fn way(&self, from: u8, to: u8) -> Option<Way> {
        self.on(from).net.ways().borrow().get(&format!("node-{to}")).copied()
    }

    /// The same of the second family.
    pub fn way6(&self, from: u8, to: u8) -> Option<Way> {
        self.on(from).net.ways6().borrow().get(&format!("node-{to}")).copied()
    }

    /// Waits until a node reaches another one like this, and tells the rules.
    pub fn await_way(&self, from: u8, to: u8, way: Way) -> anyhow::Result<()> {
        let node = self.on(from);
        node.namespace.block_on(async || {
            let mut ways = node.net.ways();
            let name = format!("node-{to}");
            timeout(PATIENCE, ways.wait_for(|ways| ways.get(&name) == Some(&way)))
                .await
                .with_context(|| format!("node {from} never reached node {to} by {way:?}"))??;
            node.set_direct(&self.routes(&self.numbers())).await
        })
    }

    /// The pods of a node.
    pub fn pods_of(node: u8) -> ipnet::Ipv4Net {
        pod_cidr(node)
    }

    /// Every node answers the others' probes, as long as the cluster stands.
    pub fn answer_probes(&mut self) -> anyhow::Result<()> {
        for n in self.numbers() {
            let (on, (end, ended)) = (self.on(n), tokio::sync::oneshot::channel::<()>());
            let (net, cidr) = (on.net.clone(), pod_cidr(n));
            let (ready, is_ready) = std::sync::mpsc::channel();
            on.namespace.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let responder = Responder::start(&net, cidr).await?;
                    ready.send(())?;
                    tokio::select! {
                        () = responder.run() => {}
                        _ = ended => {}
                    }
                    anyhow::Ok(())
                })
            })?;
            is_ready.recv().context("nobody answers probes")?;
            self.answering.push(end);
        }
        Ok(())
    }

    /// Every node sends answers back through the others, and leaves the sources of what enters on it, towards all of `kept`.
    pub fn keep_sources(&self, kept: &[u8]) -> anyhow::Result<()> {
        self.keep_sources_of(&self.numbers(), kept)
    }

    /// The same, as if there were only some nodes.
    pub fn keep_sources_of(&self, nodes: &[u8], kept: &[u8]) -> anyhow::Result<()> {
        let mut peers = BTreeMap::new();
        for n in self.numbers() {
            let mac = self.node(n).enter(|| Ok(mac_of(self.address(n))))?;
            peers.insert(n, mac.context("no MAC")?);
        }
        for n in self.numbers() {
            let others = nodes.iter().copied().filter(|other| *other != n);
            let peer = |other: u8| Peer {
                ip: self.address(other),
                pod_cidr: pod_cidr(other),
                way: match self.way(n, other) {
                    Some(Way::Direct) => Some(source::Way::Uplink),
                    Some(Way::Vxlan) => Some(source::Way::Tunnel),
                    _ => None,
                },
                mac: Some(peers[&other]),
            };
            let all = "10.244.0.0/16".parse()?;
            let entries = others.clone().filter_map(|other| peer(other).entry(all)).collect();
            let keeps = others.filter(|other| kept.contains(other)).map(|other| peer(other).keep()).collect();
            let on = self.on(n);
            on.namespace.block_on(async || {
                on.dataplane.set_entries(entries).await?;
                Ok(on.dataplane.set_kept(keeps).await?)
            })?;
        }
        Ok(())
    }

    /// Address of a node.
    pub fn address(&self, node: u8) -> Ipv4Addr {
        self.on(node).ip
    }

    /// What forwards between the networks, or on the only one.
    pub fn router(&self) -> &Namespace {
        self.router.as_ref().unwrap_or(self.lans[0].hub())
    }

    /// The client on the network of node 3.
    pub fn far_outside(&self) -> &Namespace {
        self.far_client.as_ref().unwrap()
    }

    /// What a node says after something was done to it.
    pub fn next_notice(&self, node: u8, harm: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<String> {
        let mut notices = self.on(node).dataplane.notices();
        harm()?;
        self.node(node).block_on(async || Ok(notices.recv().await.context("no notice")?.to_string()))
    }

    /// Our table as `nft` shows it: users run that, and some shapes of rules make nft 1.0.6 abort.
    pub fn listing(&self, node: u8) -> anyhow::Result<String> {
        self.node(node).run("nft", &["list", "table", "ip", "minisvc"])
    }

    /// The client sends a range by way of a node.
    pub fn outside_route(&self, range: &str, via: Ipv4Addr) -> anyhow::Result<()> {
        let range: ipnet::Ipv4Net = range.parse()?;
        let route = rtnetlink::RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(range.addr(), range.prefix_len())
            .gateway(via)
            .build();
        self.client.enter(|| {
            minisvc_tests::netns::netlink(async |handle| Ok(handle.route().add(route).execute().await?))
        })
    }

    /// Drops what leaves a node with such a mark, as a foreign policy route does.
    pub fn black_hole(&self, node: u8, mark: u32, mask: u32) -> anyhow::Result<()> {
        use netlink_packet_route::rule::{RuleAction, RuleAttribute};
        self.node(node).enter(|| {
            minisvc_tests::netns::netlink(async |handle| {
                let mut add =
                    handle.rule().add().v4().action(RuleAction::Blackhole).priority(100 + mark % 1000);
                add.message_mut()
                    .attributes
                    .extend([RuleAttribute::FwMark(mark), RuleAttribute::FwMask(mask)]);
                Ok(add.execute().await?)
            })
        })
    }
}
