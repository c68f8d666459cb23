//! Elements as the kernel has them.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    class::{Class, Classes},
    rules::ID_SHIFT,
};
use crate::plan::{Id, Key, Proto, Value};

/// A client with affinity: which service port it talks to, and which endpoint it stays with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) id: Id,
    pub(super) ip: Ipv4Addr,
    pub(super) endpoint: u16,
    /// Milliseconds for which it stays after a new connection.
    pub(super) timeout: u64,
    /// Milliseconds until it is forgotten.
    pub(super) left: u64,
}

fn mark(id: Id, low: u32) -> [u8; 4] {
    ((id.0 << ID_SHIFT) | low).to_ne_bytes()
}

fn unmark(bytes: [u8; 4]) -> (Id, u32) {
    let mark = u32::from_ne_bytes(bytes);
    (Id(mark >> ID_SHIFT), mark & ((1 << ID_SHIFT) - 1))
}

impl Client {
    pub(super) fn key(&self) -> Vec<u8> {
        [mark(self.id, 0), self.ip.octets()].concat()
    }

    pub(super) fn data(&self) -> [u8; 4] {
        mark(self.id, u32::from(self.endpoint))
    }

    pub(super) fn read(key: &[u8], data: &[u8], timeout: u64, left: u64) -> Option<Self> {
        let (id, _) = unmark(field(key, 0)?);
        let endpoint = u16::try_from(unmark(field(data, 0)?).1).ok()?;
        Some(Client { id, ip: field(key, 4)?.into(), endpoint, timeout, left })
    }
}

fn proto(proto: Proto) -> [u8; 4] {
    [proto.number(), 0, 0, 0]
}

fn address(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn port(port: u16) -> [u8; 4] {
    let [a, b] = port.to_be_bytes();
    [a, b, 0, 0]
}

pub(super) fn key(key: &Key) -> Vec<u8> {
    match key {
        Key::Node(ip) | Key::Direct(ip) | Key::ClusterIp(ip) => address(*ip),
        Key::Slot(id, slot) | Key::Choice(id, slot) => [mark(*id, 0), slot.to_ne_bytes()].concat(),
        Key::Endpoint(id, number) => mark(*id, u32::from(*number)).to_vec(),
        Key::Service(ip, p, n) | Key::OutsideService(ip, p, n) | Key::Guarded(ip, p, n) => {
            [&address(*ip)[..], &proto(*p), &port(*n)].concat()
        }
        Key::NodePort(p, n) | Key::OutsideNodePort(p, n) => [proto(*p), port(*n)].concat(),
        Key::Allowed(ip, p, n, from) => {
            [&address(*ip)[..], &proto(*p), &port(*n), &address(from.network())].concat()
        }
    }
}

/// `None`: the class has no number yet.
pub(super) fn value(key: &Key, value: Value, classes: &Classes) -> Option<Vec<u8>> {
    Some(match value {
        Value::Port { id, slots, affinity } => mark(id, classes.number(Class::of(slots, affinity))?).to_vec(),
        Value::Pod(ip, n) => [&address(ip)[..], &port(n)].concat(),
        Value::Number(n) => match key {
            Key::Choice(id, _) => mark(*id, u32::from(n)).to_vec(),
            _ => Vec::new(),
        },
        Value::Drop => mark(Id(0), classes.number(Class::Drop)?).to_vec(),
        Value::Present => Vec::new(),
    })
}

fn field(bytes: &[u8], at: usize) -> Option<[u8; 4]> {
    bytes.get(at..at + 4)?.try_into().ok()
}

fn read_proto(bytes: [u8; 4]) -> Option<Proto> {
    [Proto::Tcp, Proto::Udp, Proto::Sctp].into_iter().find(|p| p.number() == bytes[0])
}

fn read_port([a, b, ..]: [u8; 4]) -> u16 {
    u16::from_be_bytes([a, b])
}

/// What an element of one of the planner's sets says; `None` if it is none that we write.
pub(super) fn read(set: &str, k: &[u8], data: &[u8], classes: &Classes) -> Option<(Key, Value)> {
    let first = field(k, 0)?;
    let slot = || Some(u32::from_ne_bytes(field(k, 4)?));
    let ip = |at| Some(IpAddr::V4(field(k, at)?.into()));
    let pod = || Some(Value::Pod(IpAddr::V4(field(data, 0)?.into()), read_port(field(data, 4)?)));
    let port_value = || {
        let (id, number) = unmark(field(data, 0)?);
        let (slots, affinity) = match classes.of_number(number)? {
            Class::Drop => return Some(Value::Drop),
            Class::Reject => (0, None),
            Class::Plain(n) => (n, None),
            Class::Sticky(n, seconds) => (n, Some(seconds)),
        };
        Some(Value::Port { id, slots, affinity })
    };
    Some(match set {
        "nodes" => (Key::Node(ip(0)?), Value::Present),
        "direct" => (Key::Direct(ip(0)?), Value::Present),
        "cluster_ips" => (Key::ClusterIp(ip(0)?), Value::Present),
        "ep" => (Key::Slot(unmark(first).0, slot()?), pod()?),
        "choice" => {
            let number = u16::try_from(unmark(field(data, 0)?).1).ok()?;
            (Key::Choice(unmark(first).0, slot()?), Value::Number(number))
        }
        "sticky_ep" => {
            let (id, number) = unmark(first);
            (Key::Endpoint(id, u16::try_from(number).ok()?), pod()?)
        }
        "svc" => {
            let key = Key::Service(ip(0)?, read_proto(field(k, 4)?)?, read_port(field(k, 8)?));
            (key, port_value()?)
        }
        "np" => (Key::NodePort(read_proto(first)?, read_port(field(k, 4)?)), port_value()?),
        _ => return None,
    })
}
