//! Elements as the kernel has them.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    batch::Element,
    class::{Class, Classes},
    family::octets,
    rules::ID_SHIFT,
};
use crate::plan::{Family, Id, Key, Proto, Value};

/// A client with affinity: which service port it talks to, and which endpoint it stays with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Client {
    pub(super) id: Id,
    pub(super) ip: IpAddr,
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
        [&mark(self.id, 0)[..], &octets(self.ip)].concat()
    }

    pub(super) fn data(&self) -> [u8; 4] {
        mark(self.id, u32::from(self.endpoint))
    }

    pub(super) fn read(family: Family, key: &[u8], data: &[u8], timeout: u64, left: u64) -> Option<Self> {
        let mut key = Fields { family, rest: key };
        let (id, _) = unmark(key.word()?);
        let ip = key.address()?;
        let endpoint = u16::try_from(unmark(Fields { family, rest: data }.word()?).1).ok()?;
        Some(Client { id, ip, endpoint, timeout, left })
    }
}

fn proto(proto: Proto) -> [u8; 4] {
    [proto.number(), 0, 0, 0]
}

fn port(port: u16) -> [u8; 4] {
    let [a, b] = port.to_be_bytes();
    [a, b, 0, 0]
}

fn key(key: &Key) -> Vec<u8> {
    match key {
        Key::Node(ip) | Key::Direct(ip) | Key::ClusterIp(ip) => octets(*ip),
        // Fields of a key begin at multiples of four bytes.
        Key::AtHome(mac, ip) => [&mac[..], &[0; 2], &ip.octets()].concat(),
        Key::EntryZone(mac) | Key::EntryMark(mac) => mac.to_vec(),
        Key::Returning(from, to) => [from.octets(), to.octets()].concat(),
        Key::Kept(network) => network.octets().to_vec(),
        Key::Slot(id, slot) | Key::Choice(id, slot) => [mark(*id, 0), slot.to_ne_bytes()].concat(),
        Key::Endpoint(id, number) => mark(*id, u32::from(*number)).to_vec(),
        Key::Service(ip, p, n) | Key::OutsideService(ip, p, n) | Key::Guarded(ip, p, n) => {
            [&octets(*ip)[..], &proto(*p), &port(*n)].concat()
        }
        Key::NodePort(p, n) | Key::OutsideNodePort(p, n) => [proto(*p), port(*n)].concat(),
        Key::Allowed(ip, p, n, from) => {
            [&octets(*ip)[..], &proto(*p), &port(*n), &octets(from.network())].concat()
        }
    }
}

/// The last key of a range; `None` for what is no range.
fn last(of: &Key) -> Option<Vec<u8>> {
    let Key::Allowed(_, _, _, from) = of else { return None };
    let mut last = key(of);
    last.truncate(last.len() - octets(from.network()).len());
    last.extend(octets(from.broadcast()));
    Some(last)
}

/// An element by its key alone.
pub(super) fn named(k: &Key) -> Element {
    Element { key: key(k), last: last(k), data: Vec::new() }
}

/// An element to add. Without data: the class has no number yet.
pub(super) fn element(k: &Key, v: Value, classes: &Classes) -> Element {
    Element { data: value(k, v, classes).unwrap_or_default(), ..named(k) }
}

fn value(key: &Key, value: Value, classes: &Classes) -> Option<Vec<u8>> {
    Some(match value {
        Value::Port { id, slots, affinity } => mark(id, classes.number(Class::of(slots, affinity))?).to_vec(),
        Value::Pod(ip, n) => [&octets(ip)[..], &port(n)].concat(),
        Value::Number(n) => match key {
            Key::Choice(id, _) => mark(*id, u32::from(n)).to_vec(),
            _ => Vec::new(),
        },
        Value::Drop => mark(Id(0), classes.number(Class::Drop)?).to_vec(),
        Value::Zone(zone) => zone.to_ne_bytes().to_vec(),
        Value::Mark(mark) => mark.to_ne_bytes().to_vec(),
        Value::Present => Vec::new(),
    })
}

/// The fields of a key or of data, one after the other.
#[derive(Clone, Copy)]
struct Fields<'b> {
    family: Family,
    rest: &'b [u8],
}

impl Fields<'_> {
    fn word(&mut self) -> Option<[u8; 4]> {
        self.take()
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*first)
    }

    fn address(&mut self) -> Option<IpAddr> {
        match self.family {
            Family::V4 => self.take().map(<[u8; 4]>::into),
            Family::V6 => self.take().map(<[u8; 16]>::into),
        }
    }

    fn proto(&mut self) -> Option<Proto> {
        let [number, ..] = self.word()?;
        [Proto::Tcp, Proto::Udp, Proto::Sctp].into_iter().find(|p| p.number() == number)
    }

    fn port(&mut self) -> Option<u16> {
        let [a, b, ..] = self.word()?;
        Some(u16::from_be_bytes([a, b]))
    }

    fn number(&mut self) -> Option<u32> {
        self.word().map(u32::from_ne_bytes)
    }

    fn marked(&mut self) -> Option<(Id, u32)> {
        self.word().map(unmark)
    }

    fn service(&mut self) -> Option<(IpAddr, Proto, u16)> {
        Some((self.address()?, self.proto()?, self.port()?))
    }
}

/// The network of all addresses from one to another, if there is one.
fn network(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let (common, bits) = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ((a.to_bits() ^ b.to_bits()).leading_zeros(), 32),
        (IpAddr::V6(a), IpAddr::V6(b)) => ((a.to_bits() ^ b.to_bits()).leading_zeros(), 128),
        _ => return None,
    };
    let net = IpNet::new(first, u8::try_from(common.min(bits)).ok()?).ok()?;
    (net.network() == first && net.broadcast() == last).then_some(net)
}

/// What an element of one of the planner's sets says; `None` if it is none that we write.
pub(super) fn read(
    family: Family,
    set: &str,
    (key, last): (&[u8], &[u8]),
    data: &[u8],
    classes: &Classes,
) -> Option<(Key, Value)> {
    let mut key = Fields { family, rest: key };
    let mut data = Fields { family, rest: data };
    let pod = |mut data: Fields<'_>| Some(Value::Pod(data.address()?, data.port()?));
    let port_value = |mut data: Fields<'_>| {
        let (id, number) = data.marked()?;
        let (slots, affinity) = match classes.of_number(number)? {
            Class::Drop => return Some(Value::Drop),
            Class::Reject => (0, None),
            Class::Plain(n) => (n, None),
            Class::Sticky(n, seconds) => (n, Some(seconds)),
        };
        Some(Value::Port { id, slots, affinity })
    };
    Some(match set {
        "nodes" => (Key::Node(key.address()?), Value::Present),
        "direct" => (Key::Direct(key.address()?), Value::Present),
        "at_home" => {
            let mac = key.take()?;
            key.take::<2>()?;
            (Key::AtHome(mac, key.word()?.into()), Value::Present)
        }
        "entry_zone" => (Key::EntryZone(key.take()?), Value::Zone(u16::from_ne_bytes(data.take()?))),
        "entry_mark" => (Key::EntryMark(key.take()?), Value::Mark(data.number()?)),
        "returning" => (Key::Returning(key.word()?.into(), key.word()?.into()), Value::Present),
        "kept" => (Key::Kept(key.word()?.into()), Value::Present),
        "cluster_ips" => (Key::ClusterIp(key.address()?), Value::Present),
        "ep" => (Key::Slot(key.marked()?.0, key.number()?), pod(data)?),
        "choice" => {
            let number = u16::try_from(data.marked()?.1).ok()?;
            (Key::Choice(key.marked()?.0, key.number()?), Value::Number(number))
        }
        "sticky_ep" => {
            let (id, number) = key.marked()?;
            (Key::Endpoint(id, u16::try_from(number).ok()?), pod(data)?)
        }
        "svc" | "svc_outside" => {
            let (ip, proto, port) = key.service()?;
            let make = if set == "svc" { Key::Service } else { Key::OutsideService };
            (make(ip, proto, port), port_value(data)?)
        }
        "np" => (Key::NodePort(key.proto()?, key.port()?), port_value(data)?),
        "np_outside" => (Key::OutsideNodePort(key.proto()?, key.port()?), port_value(data)?),
        "guarded" => {
            let (ip, proto, port) = key.service()?;
            (Key::Guarded(ip, proto, port), Value::Present)
        }
        "allowed" => {
            let (ip, proto, port) = key.service()?;
            let mut last = Fields { family, rest: last };
            if last.service()? != (ip, proto, port) {
                return None;
            }
            (Key::Allowed(ip, proto, port, network(key.address()?, last.address()?)?), Value::Present)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_as_what_it_was() {
        let classes = Classes::fixed();
        for (family, ip, range) in [
            (Family::V4, "192.0.2.10", ["0.0.0.0/0", "198.51.100.0/23", "198.51.100.7/32"]),
            (Family::V6, "2001:db8::10", ["::/0", "2001:db8:1::/63", "2001:db8::7/128"]),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            let mut keys = vec![
                (Key::Node(ip), Value::Present),
                (Key::Direct(ip), Value::Present),
                (Key::Slot(Id(7), 70_000), Value::Pod(ip, 8080)),
                (Key::Endpoint(Id(7), 4095), Value::Pod(ip, 8080)),
                (Key::Choice(Id(7), 3), Value::Number(4095)),
                (Key::ClusterIp(ip), Value::Present),
                (Key::Service(ip, Proto::Sctp, 80), Value::Port { id: Id(7), slots: 3, affinity: None }),
                (Key::NodePort(Proto::Udp, 30_080), Value::Port { id: Id(7), slots: 0, affinity: None }),
                (Key::OutsideService(ip, Proto::Tcp, 80), Value::Drop),
                (Key::OutsideNodePort(Proto::Tcp, 30_080), Value::Drop),
                (Key::Guarded(ip, Proto::Tcp, 80), Value::Present),
            ];
            keys.extend(
                range.map(|r| (Key::Allowed(ip, Proto::Tcp, 80, r.parse().unwrap()), Value::Present)),
            );
            for (key, value) in keys {
                let written = element(&key, value, &classes);
                let last = written.last.unwrap_or_default();
                let set = super::super::rules::set_of(&key);
                let found = read(family, set, (&written.key, &last), &written.data, &classes);
                assert_eq!(found, Some((key, value)));
            }
        }
        let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert_eq!(network(a, b), None, "no range that we write");
    }
}
