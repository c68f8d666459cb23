//! UDP flows that the kernel remembers. A flow keeps its translation as long as datagrams come: when its endpoint stops
//! serving, or when it began before there was a service to translate it, its entry must go, and no other.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddrV4},
};

use ipnet::Ipv4Net;
use nix::errno::Errno;

use crate::{
    plan::{Pod, UdpAddress},
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
    /// Where the client sends to.
    pub to: SocketAddrV4,
    /// Who answers: differs from `to` if the destination is translated.
    pub answered_by: SocketAddrV4,
}

/// What decides whether a flow is right.
#[derive(Debug)]
pub struct Desired<'d, E> {
    /// ClusterIPs are from here.
    pub service_cidr: Ipv4Net,
    /// Pods are from here.
    pub pod_cidr: Ipv4Net,
    /// First and last nodePort.
    pub node_port_range: (u16, u16),
    /// The node's own addresses.
    pub local: &'d BTreeSet<Ipv4Addr>,
    /// The endpoints of an address; `None` if no service has it.
    pub endpoints: E,
}

impl<E: Fn(UdpAddress) -> Option<BTreeSet<Pod>>> Desired<'_, E> {
    /// The service address that a flow is sent to, if it is one.
    pub fn address(&self, flow: &Flow) -> Option<UdpAddress> {
        let (ip, port) = (*flow.to.ip(), flow.to.port());
        let (first, last) = self.node_port_range;
        if self.service_cidr.contains(&ip) {
            Some(UdpAddress::Service(ip.into(), port))
        } else if (first..=last).contains(&port) && !ip.is_loopback() && self.local.contains(&ip) {
            Some(UdpAddress::NodePort(port))
        } else {
            None
        }
    }

    /// Whether the flow's next datagram would go elsewhere than where it should.
    pub fn is_wrong(&self, flow: &Flow) -> bool {
        let Some(address) = self.address(flow) else { return false };
        let answers = *flow.answered_by.ip();
        let pod = (answers.into(), flow.answered_by.port());
        match ((self.endpoints)(address), address) {
            (Some(endpoints), _) => !endpoints.contains(&pod),
            (None, UdpAddress::Service(..)) => true,
            // A process of the node may use the number while no service does.
            (None, UdpAddress::NodePort(_)) => {
                flow.to != flow.answered_by && self.pod_cidr.contains(&answers)
            }
        }
    }
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

    /// Deletes the UDP flows that `is_wrong`; returns how many.
    pub fn delete_udp(&mut self, is_wrong: impl Fn(&Flow) -> bool) -> Result<usize, Errno> {
        let mut wrong = Vec::new();
        for attempt in 1..=ATTEMPTS {
            wrong.clear();
            let dump = self.ask(GET, DUMP | 1, &udp_only(), |body| {
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
            match self.ask(DELETE, ACKNOWLEDGED_REQUEST, name, |_| {}) {
                Ok(()) => deleted += 1,
                // It ended by itself.
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(deleted)
    }

    fn ask(&mut self, kind: u16, flags: u16, attrs: &[u8], mut each: impl FnMut(&[u8])) -> Result<(), Errno> {
        let seq = self.seq;
        self.seq += 1;
        let mut request = Vec::new();
        message(&mut request, kind, flags, seq, |v| {
            v.extend([2, 0, 0, 0]); // IPv4
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
    Some(Flow { to: side(original, 2, 3)?, answered_by: side(reply, 1, 2)? })
}

fn side(tuple: &[u8], ip: u16, port: u16) -> Option<SocketAddrV4> {
    let ip: [u8; 4] = find(find(tuple, 1)?, ip)?.try_into().ok()?;
    let port: [u8; 2] = find(find(tuple, 2)?, port)?.try_into().ok()?;
    Some(SocketAddrV4::new(ip.into(), u16::from_be_bytes(port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(to: &str, answered_by: &str) -> Flow {
        Flow { to: to.parse().unwrap(), answered_by: answered_by.parse().unwrap() }
    }

    #[test]
    fn only_flows_of_services_that_lead_elsewhere_are_wrong() {
        let local = ["192.0.2.11", "127.0.0.1"].map(|ip| ip.parse().unwrap()).into();
        let desired = Desired {
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            node_port_range: (30000, 32767),
            local: &local,
            endpoints: |address| match address {
                UdpAddress::Service(ip, 53) if ip == Ipv4Addr::new(10, 96, 0, 9) => {
                    Some([(Ipv4Addr::new(10, 244, 1, 2).into(), 5353)].into())
                }
                UdpAddress::NodePort(30053) => Some([(Ipv4Addr::new(10, 244, 1, 2).into(), 5353)].into()),
                _ => None,
            },
        };
        for right in [
            flow("10.96.0.9:53", "10.244.1.2:5353"),
            flow("192.0.2.11:30053", "10.244.1.2:5353"),
            // Others' traffic, whatever it looks like.
            flow("198.51.100.7:30053", "198.51.100.7:30053"),
            flow("127.0.0.1:30053", "127.0.0.1:30053"),
            flow("192.0.2.11:30054", "192.0.2.11:30054"),
            flow("192.0.2.11:8080", "10.244.1.9:80"),
        ] {
            assert!(!desired.is_wrong(&right), "{right:?}");
        }
        for wrong in [
            flow("10.96.0.9:53", "10.244.1.3:5353"),
            flow("10.96.0.9:53", "10.96.0.9:53"),
            flow("10.96.0.8:53", "10.244.1.2:5353"),
            flow("192.0.2.11:30053", "192.0.2.11:30053"),
            flow("192.0.2.11:30054", "10.244.1.2:5353"),
        ] {
            assert!(desired.is_wrong(&wrong), "{wrong:?}");
        }
    }
}
