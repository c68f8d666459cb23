//! Two nodes as agents make them, a client and a server on the first, a server on the second.

use std::net::Ipv4Addr;

use minisvc_agent::{
    dataplane::{Config, Dataplane, NodeRoute},
    net::{LinkName, Net, NetConfig, mac_of},
    nft::TABLE,
    plan::{ServiceKey, ServicePlan},
    source::{Peer, Way},
    sys::netlink::{NetfilterSocket, message, text},
};
use minisvc_tests::netns::{Lan, Namespace};

const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Families of tables: `NFPROTO_IPV4` and `NFPROTO_NETDEV`.
const IPV4: u8 = 2;
const NETDEV: u8 = 5;
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);

/// Where the server is, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the client's node.
    Local,
    /// On another node.
    Remote,
}

/// See the module.
pub struct Topology {
    /// A pod on the first node.
    pub client: Namespace,
    /// Another one.
    pub local: Namespace,
    /// A pod on the second node.
    pub remote: Namespace,
    /// A machine outside of the cluster, on the nodes' LAN. It knows the way to pods, which nobody lets it use once there are tables.
    pub outside: Namespace,
    nodes: [Namespace; 2],
    _nets: Vec<Net>,
    _lan: Lan,
}

fn node_ip(node: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + node)
}

fn net_config(node: u8) -> anyhow::Result<NetConfig> {
    Ok(NetConfig {
        node_ip: node_ip(node),
        local_pod_cidr: format!("10.244.{node}.0/24").parse()?,
        pod_cidr: "10.244.0.0/16".parse()?,
        service_cidr: "10.96.0.0/16".parse()?,
        dns_ip: Ipv4Addr::new(10, 96, 0, 10),
        node_port_range: (30000, 32767),
        vxlan_port: 8473,
        family6: None,
    })
}

/// What the dataplane of a node is told.
pub fn dataplane_config(node: u8) -> anyhow::Result<Config> {
    let net = net_config(node)?;
    Ok(Config {
        node_ip: net.node_ip,
        service_cidr: net.service_cidr,
        pod_cidr: net.pod_cidr,
        local_pod_cidr: net.local_pod_cidr,
        dns_ip: net.dns_ip,
        node_port_range: net.node_port_range,
        vxlan_port: net.vxlan_port,
        family6: net.family6,
    })
}

fn routes() -> anyhow::Result<Vec<NodeRoute>> {
    let route = |node: u8| -> anyhow::Result<NodeRoute> {
        let pod_cidr = net_config(node)?.local_pod_cidr;
        Ok(NodeRoute {
            name: format!("node-{node}"),
            ip: node_ip(node),
            pod_cidr,
            tunnels: false,
            family6: None,
        })
    };
    [1, 2].into_iter().map(route).collect()
}

impl Topology {
    /// Without any table of ours.
    pub fn new() -> anyhow::Result<Self> {
        let mut lan = Lan::new(GATEWAY)?;
        let nodes = [lan.machine("node-1", node_ip(1))?, lan.machine("node-2", node_ip(2))?];
        let outside = lan.machine("outside", OUTSIDE)?;
        for node in [1, 2] {
            let (pods, via) = (net_config(node)?.local_pod_cidr.to_string(), node_ip(node).to_string());
            outside.run("ip", &["route", "add", &pods, "via", &via])?;
        }
        let [client, local, remote] = ["client", "local", "remote"].map(Namespace::new);
        let (client, local, remote) = (client?, local?, remote?);
        let mut nets = Vec::new();
        for (number, node) in (1..).zip(&nodes) {
            let net = node.block_on(async || {
                let net = Net::start(net_config(number)?).await?;
                net.set_routes(routes()?).await?;
                Ok(net)
            })?;
            nets.push(net);
        }
        let all = [(0, &client, 2), (0, &local, 3), (1, &remote, 2)];
        for (node, pod, last) in all {
            let ip = Ipv4Addr::new(10, 244, if node == 0 { 1 } else { 2 }, last);
            nodes[node].block_on(async || {
                Ok(nets[node].attach(LinkName::of_pod(pod.name()), ip, pod.fd()?).await?)
            })?;
        }
        Ok(Topology { client, local, remote, outside, nodes, _nets: nets, _lan: lan })
    }

    /// Address of a server.
    pub fn server(place: Place) -> Ipv4Addr {
        match place {
            Place::Local => Ipv4Addr::new(10, 244, 1, 3),
            Place::Remote => Ipv4Addr::new(10, 244, 2, 2),
        }
    }

    /// Where the outside enters: the first node's address.
    pub fn entry() -> Ipv4Addr {
        node_ip(1)
    }

    /// The node of the client.
    pub fn entry_node(&self) -> &Namespace {
        &self.nodes[0]
    }

    /// Loads these services, and nothing that was there before, on both nodes.
    pub fn load(&self, services: &[(ServiceKey, Option<ServicePlan>)]) -> anyhow::Result<()> {
        self.unload()?;
        for (number, node) in (1..).zip(&self.nodes) {
            node.block_on(async || {
                let dataplane = Dataplane::start(dataplane_config(number)?)?;
                dataplane.apply(services.to_vec()).await?;
                dataplane.set_nodes(routes()?).await?;
                dataplane.set_direct([1, 2].map(|node| node_ip(node).into()).into()).await?;
                // The nodes have probed each other: sources are kept.
                let other = self.peer(3 - number)?;
                let all = net_config(number)?.pod_cidr;
                dataplane.set_entries(other.entry(all).into_iter().collect()).await?;
                Ok(dataplane.set_kept([other.keep()].into()).await?)
            })?;
        }
        Ok(())
    }

    /// A node as the other one sees it.
    fn peer(&self, number: u8) -> anyhow::Result<Peer> {
        let ip = node_ip(number);
        let mac = self.nodes[usize::from(number) - 1].enter(|| Ok(mac_of(ip)))?;
        let pod_cidr = net_config(number)?.local_pod_cidr;
        Ok(Peer { ip, pod_cidr, way: Some(Way::Uplink), mac })
    }

    /// Removes our tables from both nodes, if they are there.
    pub fn unload(&self) -> anyhow::Result<()> {
        self.nodes.iter().try_for_each(|node| {
            remove_table(node, IPV4)?;
            remove_table(node, NETDEV)
        })
    }
}

/// In one transaction that works whether or not the table is there.
fn remove_table(node: &Namespace, family: u8) -> anyhow::Result<()> {
    const NEW_TABLE: u16 = 10 << 8;
    const DELETE_TABLE: u16 = NEW_TABLE | 2;
    const REQUEST: u16 = 1;
    const ACKNOWLEDGE: u16 = 4;
    const CREATE: u16 = 0x400;
    let bound = |v: &mut Vec<u8>| v.extend([0, 0, 0, 10]);
    let table = |v: &mut Vec<u8>| {
        v.extend([family, 0, 0, 0]);
        text(v, 1, TABLE);
    };
    node.enter(|| {
        let socket = NetfilterSocket::open()?;
        let mut batch = Vec::new();
        message(&mut batch, 0x10, REQUEST, 1, bound);
        message(&mut batch, NEW_TABLE, REQUEST | CREATE, 2, table);
        message(&mut batch, DELETE_TABLE, REQUEST | ACKNOWLEDGE, 3, table);
        message(&mut batch, 0x11, REQUEST, 4, bound);
        socket.send(&batch)?;
        socket.acknowledged(1, 3).map_err(|(_, errno)| anyhow::anyhow!("delete table {TABLE}: {errno}"))
    })
}
