//! Our traffic: one packet for each kind that a firewall may treat in its own way, each way, TCP and UDP.

use std::{fmt, net::Ipv4Addr};

use ipnet::Ipv4Net;

use super::{
    packet::{Link, Packet, State, TCP, UDP},
    ruleset::Hook,
};
use crate::net::{LINK_GROUP, TUNNEL, TUNNEL_GROUP};

/// What of this node's traffic depends on the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ours {
    /// Address of this node.
    pub node_ip: Ipv4Addr,
    /// The link that has it: name and index.
    pub uplink: (String, u32),
    /// Pods of this node are from here.
    pub local_pod_cidr: Ipv4Net,
    /// All pods of the cluster are from here.
    pub pod_cidr: Ipv4Net,
    /// ClusterIPs are from here.
    pub service_cidr: Ipv4Net,
    /// Where this node's DNS listens.
    pub dns_ip: Ipv4Addr,
    /// UDP port of VXLAN.
    pub vxlan_port: u16,
    /// The server's address, where it is known.
    pub server: Option<Ipv4Addr>,
}

/// Kinds of traffic, as users know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Traffic {
    /// Between pods of this node.
    Pods,
    /// Between pods of this node and those of others.
    OtherNodes,
    /// From pods to the world.
    Outside,
    /// From the world to pods.
    NodePorts,
    /// From the node itself to pods: the agent's probes.
    NodeToPods,
    /// Names that pods ask for.
    Dns,
    /// Logs and exec.
    AgentApi,
    /// Between nodes of different networks.
    Vxlan,
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Traffic::Pods => "pod to pod",
            Traffic::OtherNodes => "pods to and from other nodes",
            Traffic::Outside => "pods to the outside",
            Traffic::NodePorts => "nodePorts from the outside",
            Traffic::NodeToPods => "this node to pods",
            Traffic::Dns => "pods' names (DNS)",
            Traffic::AgentApi => "the server to this agent (logs, exec)",
            Traffic::Vxlan => "VXLAN between nodes",
        })
    }
}

/// A packet at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Of what traffic.
    pub traffic: Traffic,
    /// Where.
    pub hook: Hook,
    /// What.
    pub packet: Packet,
}

/// A client's port and a pod's: numbers that no rule of a firewall is likely to name.
const PORTS: (u16, u16) = (47_193, 18_473);
const DNS_PORT: u16 = 53;
/// A host of the world (RFC 5737).
const WORLD: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);
/// No link has such a number.
const ANY_POD: u32 = 0x7fff_0001;

struct Way<'a> {
    from: Option<&'a Link>,
    to: Option<&'a Link>,
    source: Ipv4Addr,
    destination: Ipv4Addr,
}

impl Ours {
    /// All steps of all kinds.
    pub fn steps(&self) -> Vec<Step> {
        let pod_link = |n| Link { name: format!("vp00000000000{n}"), index: ANY_POD + n, group: LINK_GROUP };
        let (link_a, link_b) = (pod_link(0), pod_link(1));
        let uplink = Link { name: self.uplink.0.clone(), index: self.uplink.1, group: 0 };
        let overlay = Link { name: TUNNEL.into(), index: ANY_POD + 2, group: TUNNEL_GROUP };
        let (a, b) = (last_but(self.local_pod_cidr, 2), last_but(self.local_pod_cidr, 3));
        let remote = self.remote_pod();
        let mut steps = Vec::new();

        for protocol in [TCP, UDP] {
            let mut through = |traffic, way: Way<'_>, is_translated| {
                let packet = Packet {
                    from: way.from.cloned(),
                    to: way.to.cloned(),
                    source: way.source,
                    destination: way.destination,
                    protocol,
                    ports: PORTS,
                    state: State::New,
                    is_translated,
                    is_from_here: false,
                    is_to_here: false,
                };
                let mut answer = Packet { state: State::Established, ..packet.clone() };
                std::mem::swap(&mut answer.from, &mut answer.to);
                std::mem::swap(&mut answer.source, &mut answer.destination);
                answer.ports = (answer.ports.1, answer.ports.0);
                for packet in [packet, answer] {
                    // What is translated looks otherwise before that, as an answer to a masqueraded packet does.
                    let is_masqueraded = traffic == Traffic::Outside && packet.state == State::Established;
                    if !is_translated && !is_masqueraded {
                        let coming = Packet { to: None, ..packet.clone() };
                        steps.push(Step { traffic, hook: Hook::Prerouting, packet: coming });
                    }
                    steps.push(Step { traffic, hook: Hook::Forward, packet: packet.clone() });
                    steps.push(Step { traffic, hook: Hook::Postrouting, packet });
                }
            };
            let way =
                |from, to, source, destination| Way { from: Some(from), to: Some(to), source, destination };
            through(Traffic::Pods, way(&link_a, &link_b, a, b), false);
            for other in [&uplink, &overlay] {
                through(Traffic::OtherNodes, way(&link_a, other, a, remote), false);
                through(Traffic::OtherNodes, way(other, &link_a, remote, a), false);
                through(Traffic::NodePorts, way(&uplink, other, WORLD, remote), true);
            }
            through(Traffic::Outside, way(&link_a, &uplink, a, WORLD), false);
            through(Traffic::NodePorts, way(&uplink, &link_a, WORLD, a), true);
            steps.extend(self.own(protocol, &link_a, &uplink, a, remote));
        }
        steps
    }

    /// What this machine itself sends and takes.
    fn own(
        &self,
        protocol: u8,
        pod_link: &Link,
        uplink: &Link,
        pod: Ipv4Addr,
        remote: Ipv4Addr,
    ) -> Vec<Step> {
        let mut steps = Vec::new();
        let base = Packet {
            from: None,
            to: None,
            source: self.node_ip,
            destination: self.node_ip,
            protocol,
            ports: PORTS,
            state: State::New,
            is_translated: false,
            is_from_here: false,
            is_to_here: false,
        };
        let mut out = |traffic, packet: Packet| {
            let packet = Packet { is_from_here: true, ..packet };
            steps.push(Step { traffic, hook: Hook::Output, packet: packet.clone() });
            steps.push(Step { traffic, hook: Hook::Postrouting, packet });
        };
        let to_pod = Packet { to: Some(pod_link.clone()), destination: pod, ..base.clone() };
        out(Traffic::NodeToPods, to_pod.clone());
        let to_remote = Packet { to: Some(uplink.clone()), destination: remote, ..base.clone() };
        out(Traffic::NodeToPods, to_remote.clone());
        let answer = Packet {
            source: self.dns_ip,
            ports: (DNS_PORT, PORTS.0),
            state: State::Untracked,
            ..to_pod.clone()
        };
        out(Traffic::Dns, answer);
        let peer = self.neighbour();
        let tunnel = Packet { ports: (PORTS.0, self.vxlan_port), ..base.clone() };
        if protocol == UDP {
            out(Traffic::Vxlan, Packet { to: Some(uplink.clone()), destination: peer, ..tunnel.clone() });
        }

        let mut take = |traffic, packet: Packet| {
            let packet = Packet { is_to_here: true, ..packet };
            steps.push(Step { traffic, hook: Hook::Prerouting, packet: packet.clone() });
            steps.push(Step { traffic, hook: Hook::Input, packet });
        };
        let question = Packet {
            from: Some(pod_link.clone()),
            source: pod,
            destination: self.dns_ip,
            ports: (PORTS.0, DNS_PORT),
            state: State::Untracked,
            ..base.clone()
        };
        take(Traffic::Dns, question);
        for asked in [to_pod, to_remote] {
            let answer = Packet {
                from: asked.to,
                source: asked.destination,
                ports: (PORTS.1, PORTS.0),
                state: State::Established,
                ..base.clone()
            };
            take(Traffic::NodeToPods, answer);
        }
        if protocol == UDP {
            take(Traffic::Vxlan, Packet { from: Some(uplink.clone()), source: peer, ..tunnel });
        } else if self.server != Some(self.node_ip) {
            let from = Packet {
                from: Some(uplink.clone()),
                source: self.server.unwrap_or(peer),
                ports: (PORTS.0, crate::config::API_PORT),
                ..base
            };
            take(Traffic::AgentApi, from);
        }
        steps
    }

    /// A pod of another node.
    fn remote_pod(&self) -> Ipv4Addr {
        let ours = |ip: &Ipv4Addr| self.local_pod_cidr.contains(ip);
        let last = last_but(self.pod_cidr, 2);
        let before = Ipv4Addr::from(u32::from(self.local_pod_cidr.network()).wrapping_sub(3));
        [last, before].into_iter().find(|ip| !ours(ip)).unwrap_or(last)
    }

    /// Another node on this one's network.
    fn neighbour(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.node_ip) ^ 2)
    }
}

fn last_but(net: Ipv4Net, n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(net.broadcast()).saturating_sub(n))
}
