//! One packet as the kernel would see it.

use std::net::Ipv4Addr;

/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;

/// A link that a packet comes in or goes out by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its group.
    pub group: u32,
}

/// What connection tracking says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The first packet of a connection.
    New,
    /// A later one, or an answer.
    Established,
    /// It is not asked, as with our DNS.
    Untracked,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Where it comes in; `None`: it is made here.
    pub from: Option<Link>,
    /// Where it goes out; `None`: it is for this machine, or not routed yet.
    pub to: Option<Link>,
    /// Source.
    pub source: Ipv4Addr,
    /// Destination.
    pub destination: Ipv4Addr,
    /// [`TCP`] or [`UDP`].
    pub protocol: u8,
    /// Source and destination port.
    pub ports: (u16, u16),
    /// Of its connection.
    pub state: State,
    /// Its destination has been translated.
    pub is_translated: bool,
    /// The source is an address of this machine.
    pub is_from_here: bool,
    /// The destination is one.
    pub is_to_here: bool,
}

type Bytes = Vec<Option<u8>>;

fn known(bytes: &[u8]) -> Bytes {
    bytes.iter().copied().map(Some).collect()
}

impl Packet {
    /// `IPS_*` of its connection.
    pub(super) fn status(&self) -> u32 {
        let translated = if self.is_translated { 0x20 } else { 0 };
        match self.state {
            // Seen both ways, assured, confirmed.
            State::Established => translated | 2 | 4 | 8,
            State::New | State::Untracked => translated,
        }
    }

    pub(super) fn tcp_flags(&self) -> u8 {
        if self.state == State::Established { 0x10 } else { 0x02 }
    }

    /// `NFT_META_*`; `None` where the kernel ends the rule.
    pub(super) fn meta(&self, key: u32, marks: bool) -> Option<Bytes> {
        let name = |link: &Link| {
            let mut bytes = link.name.clone().into_bytes();
            bytes.resize(16, 0);
            known(&bytes)
        };
        let number = |n: u32| known(&n.to_ne_bytes());
        Some(match key {
            1 => known(&0x0800u16.to_be_bytes()),
            3 if marks => vec![None; 4],
            // Priority, mark, class, security mark, path through IPsec.
            2 | 3 | 13 | 14 | 25 => number(0),
            4 => number(self.from.as_ref().map_or(0, |l| l.index)),
            5 => number(self.to.as_ref().map_or(0, |l| l.index)),
            6 => self.from.as_ref().map_or_else(|| known(&[0; 16]), name),
            7 => self.to.as_ref().map_or_else(|| known(&[0; 16]), name),
            // Ethernet.
            8 => self.from.as_ref().map(|_| known(&1u16.to_ne_bytes()))?,
            9 => self.to.as_ref().map(|_| known(&1u16.to_ne_bytes()))?,
            15 => known(&[2]),
            16 => known(&[self.protocol]),
            17 | 18 => return None,
            19 => known(&[0]),
            21 => number(self.from.as_ref()?.group),
            22 => number(self.to.as_ref()?.group),
            _ => vec![None; 16],
        })
    }

    /// Bytes of the network (1) or transport header (2).
    pub(super) fn payload(&self, base: u32, offset: usize, len: usize) -> Bytes {
        let mut bytes = match base {
            1 => {
                // Version and length, service, total length, id, do not fragment, hops, protocol, checksum.
                let mut header = known(&[0x45, 0]);
                header.extend([None; 4]);
                header.extend(known(&[0x40, 0, 64, self.protocol]));
                header.extend([None; 2]);
                header.extend(known(&self.source.octets()));
                header.extend(known(&self.destination.octets()));
                header
            }
            2 => {
                let mut header = known(&self.ports.0.to_be_bytes());
                header.extend(known(&self.ports.1.to_be_bytes()));
                if self.protocol == TCP {
                    header.extend([None; 8]);
                    header.extend([None, Some(self.tcp_flags())]);
                }
                header
            }
            _ => Bytes::new(),
        };
        bytes.resize(bytes.len().max(offset + len), None);
        bytes.split_off(offset).into_iter().take(len).collect()
    }

    /// `NFT_CT_*`; `None` where the kernel ends the rule.
    pub(super) fn ct(&self, key: u32) -> Option<Bytes> {
        let number = |n: u32| known(&n.to_ne_bytes());
        match (key, self.state) {
            (0, State::New) => Some(number(8)),
            (0, State::Established) => Some(number(2)),
            (0, State::Untracked) => Some(number(0x40)),
            (_, State::Untracked) => None,
            (2, _) => Some(number(self.status())),
            _ => Some(vec![None; 16]),
        }
    }

    /// A route lookup: the type of an address, or the link of the way back.
    pub(super) fn fib(&self, result: u32, flags: u32) -> Bytes {
        let of_source = flags & 1 != 0;
        let is_local = if of_source { self.is_from_here } else { self.is_to_here };
        match result {
            _ if flags & 0x20 != 0 => known(&[1]),
            3 => known(&(if is_local { 2u32 } else { 1 }).to_ne_bytes()),
            // The way back leads where the packet came from, or there is another to fault than a firewall.
            1 if of_source && flags & 8 != 0 => {
                known(&self.from.as_ref().map_or(1, |l| l.index).to_ne_bytes())
            }
            _ => vec![None; 16],
        }
    }
}
