//! UDP flows that the kernel remembers. A flow keeps its translation as long as datagrams come: when its endpoint stops
//! serving, or when it began before there was a service to translate it, its entry must go, and no other.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use ipnet::IpNet;
use nix::errno::Errno;

use crate::{
    plan::{Family, Origin, Reach, UdpAddress},
    sys::netlink::{DUMP, NetfilterSocket, attr, attributes, find, message, nest},
};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const ACKNOWLEDGED_REQUEST: u16 = 5;
const UDP: u8 = 17;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
/// `CTA_FILTER_F_CTA_PROTO_NUM`.
const FILTER_PROTOCOL: u32 = 1 << 3;
/// A dump that a change cut through is taken again so often.
const ATTEMPTS: usize = 3;

/// A flow as its first datagram was, and as answers are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The client, as the first datagram came.
    pub from: IpAddr,
    /// Where the client sends to.
    pub to: SocketAddr,
    /// Who answers: differs from `to` if the destination is translated.
    pub answered_by: SocketAddr,
}

/// What decides whether a flow is right.
#[derive(Debug)]
pub struct Desired<'d, R> {
    /// ClusterIPs are from here.
    pub service_cidrs: &'d [IpNet],
    /// Pods are from here.
    pub pod_cidrs: &'d [IpNet],
    /// First and last nodePort.
    pub node_port_range: (u16, u16),
    /// The node's own addresses.
    pub local: &'d BTreeSet<IpAddr>,
    /// All nodes' addresses.
    pub nodes: &'d BTreeSet<IpAddr>,
    /// Where flows to an address may lead; `None` if no service has it.
    pub reach: R,
}

impl<R: Fn(UdpAddress) -> Option<Rc<Reach>>> Desired<'_, R> {
    /// The addresses of services that a flow may be sent to, in the order in which the rules ask for them.
    pub fn addresses(&self, flow: &Flow) -> impl Iterator<Item = UdpAddress> {
        let (ip, port) = (flow.to.ip(), flow.to.port());
        let (first, last) = self.node_port_range;
        let is_node_port = (first..=last).contains(&port) && !ip.is_loopback() && self.local.contains(&ip);
        [UdpAddress::Service(ip, port)].into_iter().chain(is_node_port.then_some(UdpAddress::NodePort(port)))
    }

    /// Whether the flow's next datagram would go elsewhere than where it should.
    pub fn is_wrong(&self, flow: &Flow) -> bool {
        let pod = (flow.answered_by.ip(), flow.answered_by.port());
        match self.addresses(flow).find_map(|address| (self.reach)(address)) {
            Some(reach) => {
                let right = reach.of(flow.from, self.origin(flow.from));
                right.is_none_or(|pods| !pods.contains(&pod))
            }
            None if within(self.service_cidrs, flow.to.ip()) => true,
            // A process of the node, or somebody else's service, may use an address that no service of ours has.
            None => flow.to != flow.answered_by && within(self.pod_cidrs, pod.0),
        }
    }

    fn origin(&self, from: IpAddr) -> Origin {
        if self.local.contains(&from) || from.is_loopback() {
            Origin::Node
        } else if self.nodes.contains(&from) || within(self.pod_cidrs, from) {
            Origin::Inside
        } else {
            Origin::Outside
        }
    }
}

fn within(ranges: &[IpNet], ip: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&ip))
}

/// The connection tracking table of one network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: NetfilterSocket,
    seq: u32,
}

impl Conntrack {
    /// Opens it in the thread's network namespace.
    pub fn open() -> Result<Self, Errno> {
        Ok(Conntrack { socket: NetfilterSocket::open()?, seq: 1 })
    }

    /// Deletes the UDP flows of a family that `is_wrong`; returns how many.
    pub fn delete_udp(&mut self, family: Family, is_wrong: impl Fn(&Flow) -> bool) -> Result<usize, Errno> {
        let mut wrong = Vec::new();
        for attempt in 1..=ATTEMPTS {
            wrong.clear();
            let dump = self.ask(family, GET, DUMP | 1, &udp_only(), |body| {
                if read(body).is_some_and(|flow| is_wrong(&flow)) {
                    wrong.push(name_of(body));
                }
            });
            match dump {
                // The table changed while it was read: what was read is still worth acting on in the end.
                Err(Errno::EINTR) if attempt < ATTEMPTS => {}
                Err(Errno::EINTR) => break,
                other => {
                    other?;
                    break;
                }
            }
        }
        let mut deleted = 0;
        for name in &wrong {
            match self.ask(family, DELETE, ACKNOWLEDGED_REQUEST, name, |_| {}) {
                Ok(()) => deleted += 1,
                // It ended by itself.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(deleted)
    }

    fn ask(
        &mut self,
        family: Family,
        kind: u16,
        flags: u16,
        attrs: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), Errno> {
        let seq = self.seq;
        self.seq += 1;
        let mut request = Vec::new();
        message(&mut request, kind, flags, seq, |v| {
            // `nfgenmsg`: the family, as `AF_INET` and `AF_INET6`.
            v.extend([if family == Family::V4 { 2 } else { 10 }, 0, 0, 0]);
            v.extend(attrs);
        });
        self.socket.ask(&request, seq, |_, body| each(body))
    }
}

/// Lets the kernel leave out what is not UDP: most of a large table.
fn udp_only() -> Vec<u8> {
    let mut filter = Vec::new();
    nest(&mut filter, ORIGINAL, |v| nest(v, 2, |v| attr(v, 1, &[UDP])));
    nest(&mut filter, FILTER, |v| attr(v, 1, &FILTER_PROTOCOL.to_ne_bytes()));
    filter
}

/// The attributes by which an entry is deleted: the very entry that was seen, not a later one of the same addresses.
fn name_of(body: &[u8]) -> Vec<u8> {
    let mut name = Vec::new();
    for (kind, data) in attributes(body).filter(|(kind, _)| [ORIGINAL, ID, ZONE].contains(kind)) {
        let nested = if kind == ORIGINAL { 0x8000 } else { 0 };
        attr(&mut name, kind | nested, data);
    }
    name
}

fn read(body: &[u8]) -> Option<Flow> {
    let original = find(body, ORIGINAL)?;
    let reply = find(body, REPLY)?;
    let proto = find(find(original, 2)?, 1)?;
    if proto != [UDP] {
        return None;
    }
    let (from, to) = (side(original, SOURCE)?, side(original, DESTINATION)?);
    Some(Flow { from: from.ip(), to, answered_by: side(reply, SOURCE)? })
}

/// The attributes of one end: an IPv4 address, an IPv6 address, a port.
type End = (u16, u16, u16);
const SOURCE: End = (1, 3, 2);
const DESTINATION: End = (2, 4, 3);

fn side(tuple: &[u8], (v4, v6, port): End) -> Option<SocketAddr> {
    let addresses = find(tuple, 1)?;
    let ip: IpAddr = match find(addresses, v4) {
        Some(ip) => <[u8; 4]>::try_from(ip).ok()?.into(),
        None => <[u8; 16]>::try_from(find(addresses, v6)?).ok()?.into(),
    };
    let port: [u8; 2] = find(find(tuple, 2)?, port)?.try_into().ok()?;
    Some(SocketAddr::new(ip, u16::from_be_bytes(port)))
}

#[cfg(test)]
mod tests;
