//! The address of a client outside, seen by a pod on another node than the one that the client called.
//!
//! The called node (the entry) leaves the source as it is. The pod's node knows the entry by the link address that the packet came from,
//! remembers it in the connection's mark, and sends the answer back through it, where it is translated back. This is done towards a node
//! only after a datagram with a foreign source has come back from there; everywhere else the entry puts its own address in its place.
//! IPv4 only. Here is what is decided, as values; docs/dataplane.md follows a packet.

pub mod probe;
#[cfg(target_os = "linux")]
pub mod socket;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use ipnet::Ipv4Net;

use crate::plan::{Elements, Key, Value};

/// A link address.
pub type Mac = [u8; 6];

/// Packet mark: the answer leaves by the node's own link.
pub const UPLINK: u32 = 0x1000_0000;
/// Packet mark: the answer leaves through the tunnel.
pub const TUNNEL: u32 = 0x2000_0000;
/// Connection marks have this, too: a packet that somebody else gives its connection's mark is none of those that we route.
pub const REMEMBERED: u32 = 0x4000_0000;
/// Part of either mark: the number of the entry. Bits 14 to 23 (Tailscale, kube-proxy) stay free.
pub const NUMBER: u32 = 0x3fff;

/// By which link a peer's packets come, and the answers go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// The node's own link.
    Uplink,
    /// The tunnel.
    Tunnel,
}

impl Way {
    /// Its bit in packet and connection marks.
    pub fn bit(self) -> u32 {
        match self {
            Way::Uplink => UPLINK,
            Way::Tunnel => TUNNEL,
        }
    }
}

/// A node's number among all nodes: the place of its part of the pod range, from 1, so that it stays as long as the node does. `None`:
/// the range is none of the cluster's, or has more places than a mark has numbers.
pub fn number(all: Ipv4Net, part: Ipv4Net) -> Option<u16> {
    if !all.contains(&part) {
        return None;
    }
    let place =
        (u32::from(part.network()) - u32::from(all.network())).checked_shr(32 - u32::from(part.prefix_len()));
    let number = place? + 1;
    if number <= NUMBER { u16::try_from(number).ok() } else { None }
}

/// Another node, as it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its pods.
    pub pod_cidr: Ipv4Net,
    /// By which link; `None`: not at all.
    pub way: Option<Way>,
    /// The link address that it tells. `None`: none, or it cannot send answers back through others.
    pub mac: Option<Mac>,
}

impl Peer {
    /// What answers to connections that enter there need; `all` is the pod range of the cluster. In the tunnel, addresses follow from
    /// nodes' addresses and need not be told.
    pub fn entry(&self, all: Ipv4Net) -> Option<Entry> {
        let way = self.way?;
        let mac = match way {
            Way::Uplink => self.mac?,
            Way::Tunnel => crate::net::tunnel_mac(self.ip),
        };
        Some(Entry { number: number(all, self.pod_cidr)?, mac, way, ip: self.ip, pod_cidr: self.pod_cidr })
    }

    /// As a node whose pods may see sources.
    pub fn keep(&self) -> Keep {
        Keep { pod_cidr: self.pod_cidr, ip: self.ip }
    }
}

/// A node through which connections enter that are served here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// See [`number`].
    pub number: u16,
    /// Its packets come from there, and answers go there.
    pub mac: Mac,
    /// By which link.
    pub way: Way,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its pods.
    pub pod_cidr: Ipv4Net,
}

impl Entry {
    /// The mark of packets that go back through it.
    pub fn packet_mark(&self) -> u32 {
        self.way.bit() | u32::from(self.number)
    }
}

/// A node whose pods may see the sources of what enters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Keep {
    /// Its pods.
    pub pod_cidr: Ipv4Net,
    /// Its address.
    pub ip: Ipv4Addr,
}

/// The elements for entries. A link address that two nodes claim is neither's. Pod ranges of another size than this node's own cannot be
/// looked up.
pub fn entry_elements(entries: &BTreeSet<Entry>, prefix: u8) -> Elements {
    let mut elements = Elements::new();
    for entry in unambiguous(entries) {
        elements.insert(Key::AtHome(entry.mac, entry.ip), Value::Present);
        if entry.pod_cidr.prefix_len() == prefix {
            elements.insert(Key::AtHome(entry.mac, entry.pod_cidr.network()), Value::Present);
        }
        elements.insert(Key::EntryZone(entry.mac), Value::Zone(entry.number));
        elements.insert(Key::EntryMark(entry.mac), Value::Mark(REMEMBERED | entry.packet_mark()));
    }
    elements
}

/// The entries whose link address is theirs alone.
pub fn unambiguous(entries: &BTreeSet<Entry>) -> impl Iterator<Item = &Entry> {
    let mut owners: BTreeMap<Mac, BTreeSet<u16>> = BTreeMap::new();
    for entry in entries {
        owners.entry(entry.mac).or_default().insert(entry.number);
    }
    entries.iter().filter(move |entry| owners.get(&entry.mac).is_some_and(|numbers| numbers.len() == 1))
}

/// The elements for nodes that see sources. Ranges of another size than this node's own cannot be looked up: they are left out.
pub fn keep_elements(keeps: &BTreeSet<Keep>, prefix: u8) -> Elements {
    let mut elements = Elements::new();
    for keep in keeps.iter().filter(|k| k.pod_cidr.prefix_len() == prefix) {
        let network = keep.pod_cidr.network();
        elements.insert(Key::Kept(network), Value::Present);
        // What the node itself, or a pod of it, sends here and gets back would never be answered through here.
        elements.insert(Key::Returning(keep.ip, network), Value::Present);
        elements.insert(Key::Returning(network, network), Value::Present);
    }
    elements
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn entry(number: u16, mac: Mac, way: Way) -> Entry {
        let ip = Ipv4Addr::new(192, 0, 2, number.to_be_bytes()[1]);
        Entry { number, mac, way, ip, pod_cidr: net(&format!("10.244.{}.0/24", number & 0xff)) }
    }

    #[test]
    fn a_node_has_the_number_of_its_place() {
        let all = net("10.244.0.0/16");
        for (part, wanted) in [
            ("10.244.0.0/24", Some(1)),
            ("10.244.3.0/24", Some(4)),
            ("10.244.255.0/24", Some(256)),
            ("10.245.0.0/24", None),
            ("10.244.0.0/16", Some(1)),
        ] {
            assert_eq!(number(all, net(part)), wanted, "{part}");
        }
        assert_eq!(number(net("10.0.0.0/8"), net("10.63.254.0/24")), Some(0x3fff));
        assert_eq!(number(net("10.0.0.0/8"), net("10.63.255.0/24")), None);
        assert_eq!(number(net("0.0.0.0/0"), net("0.0.0.0/0")), None);
    }

    #[test]
    fn marks_stay_clear_of_those_of_others() {
        for number in [1, 0x2a6c, 0x3fff] {
            for way in [Way::Uplink, Way::Tunnel] {
                let packet = entry(number, [2; 6], way).packet_mark();
                for mark in [packet, packet | REMEMBERED] {
                    // Tailscale, kube-proxy's two, wg-quick.
                    assert!(mark & 0x00ff_0000 == 0 && mark & 0xc000 == 0 && mark != 0xca6c, "{mark:#x}");
                }
            }
        }
    }

    #[test]
    fn a_link_address_of_two_nodes_is_neithers() {
        let own = [2, 0, 0, 0, 0, 1];
        let entries = [(1, own), (2, [2; 6]), (3, [2; 6])].map(|(n, mac)| entry(n, mac, Way::Uplink)).into();
        let elements = entry_elements(&entries, 24);
        assert_eq!(elements.len(), 4);
        for home in ["192.0.2.1", "10.244.1.0"] {
            assert_eq!(elements[&Key::AtHome(own, home.parse().unwrap())], Value::Present, "{home}");
        }
        assert_eq!(entry_elements(&entries, 25).len(), 3);
        assert_eq!(elements[&Key::EntryMark(own)], Value::Mark(0x5000_0001));
        assert_eq!(elements[&Key::EntryZone(own)], Value::Zone(1));
    }
}
