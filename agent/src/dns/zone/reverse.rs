//! From addresses back to names: in-addr.arpa (RFC 1035, section 3.5) and ip6.arpa (RFC 3596, section 2.5).

use std::{
    cmp::Ordering,
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{super::name::Asked, Data, Lookup, ServiceNames};

/// A family's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tree {
    /// Four numbers below in-addr.arpa.
    V4,
    /// 32 hexadecimal digits below ip6.arpa.
    V6,
}

impl Tree {
    /// The tree that a name is in.
    pub(super) fn of(name: &Asked) -> Option<Self> {
        if name.below(b"\x07in-addr\x04arpa\x00", 2).is_some() {
            Some(Tree::V4)
        } else {
            name.below(b"\x03ip6\x04arpa\x00", 2).map(|_| Tree::V6)
        }
    }

    /// Bits of one label.
    fn bits(self) -> usize {
        match self {
            Tree::V4 => 8,
            Tree::V6 => 4,
        }
    }

    /// Labels of a whole address.
    fn labels(self) -> usize {
        match self {
            Tree::V4 => 4,
            Tree::V6 => 32,
        }
    }

    /// The value of a label.
    fn value(self, label: &[u8]) -> Option<u8> {
        let text = std::str::from_utf8(label).ok()?;
        let plain = text.bytes().all(|b| b.is_ascii_hexdigit()) && (text == "0" || !text.starts_with('0'));
        match self {
            Tree::V4 if plain => text.parse().ok(),
            Tree::V6 if text.len() == 1 && plain => u8::from_str_radix(text, 16).ok(),
            _ => None,
        }
    }

    /// The network of the labels that are an address's, from the left of the address on, and how many they are.
    fn network(self, name: &Asked) -> (IpAddr, usize) {
        let below = name.labels() - 2;
        let mut octets = [0u8; 16];
        let mut read = 0;
        while read < below.min(self.labels()) {
            let Some(value) = self.value(name.label(below - 1 - read)) else { break };
            let bit = read * self.bits();
            octets[bit / 8] |= if self.bits() == 4 && bit.is_multiple_of(8) { value << 4 } else { value };
            read += 1;
        }
        let [a, b, c, d, ..] = octets;
        let ip = match self {
            Tree::V4 => Ipv4Addr::new(a, b, c, d).into(),
            Tree::V6 => Ipv6Addr::from(octets).into(),
        };
        (ip, read)
    }
}

/// Names by address.
#[derive(Debug, Default)]
pub(super) struct Reverse {
    ranges: Vec<IpNet>,
    /// Whole names on the wire, in no order.
    names: HashMap<IpAddr, Vec<Box<[u8]>>>,
}

impl Reverse {
    /// Without any name. Within `ranges` there are no names but ours.
    pub(super) fn new(ranges: Vec<IpNet>) -> Self {
        Reverse { ranges, names: HashMap::new() }
    }

    /// Takes away what only the old names lead back to, and adds what only the new ones do.
    pub(super) fn replace(&mut self, old: Option<&ServiceNames>, new: Option<&ServiceNames>) {
        let mut old = old.into_iter().flat_map(ServiceNames::back).peekable();
        let mut new = new.into_iter().flat_map(ServiceNames::back).peekable();
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(old), Some(new)) => old.cmp(new),
            };
            match order {
                Ordering::Less => {
                    if let Some((ip, name)) = old.next() {
                        self.remove(ip, &name.concat());
                    }
                }
                Ordering::Greater => {
                    if let Some((ip, name)) = new.next() {
                        self.names.entry(ip).or_default().push(name.concat().into());
                    }
                }
                Ordering::Equal => {
                    old.next();
                    new.next();
                }
            }
        }
    }

    fn remove(&mut self, ip: IpAddr, name: &[u8]) {
        if let Some(names) = self.names.get_mut(&ip) {
            if let Some(at) = names.iter().position(|n| **n == *name) {
                names.swap_remove(at);
            }
            if names.is_empty() {
                self.names.remove(&ip);
            }
        }
    }

    /// Whether no address leads anywhere.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// What is under a name of the tree.
    pub(super) fn lookup(&self, name: &Asked, tree: Tree) -> Lookup<'_> {
        let below = name.labels() - 2;
        let (ip, read) = tree.network(name);
        let whole = read == below && read == tree.labels();
        let found = if whole { self.names.get(&ip).map(|n| Data::Pointers(n)) } else { None };
        let inside = |r: &&IpNet| read * tree.bits() >= usize::from(r.prefix_len()) && r.contains(&ip);
        match self.ranges.iter().find(inside) {
            Some(range) => {
                // The largest part of the tree that has no other addresses.
                let zone = usize::from(range.prefix_len()).div_ceil(tree.bits());
                // A network without a name in it is a name all the same: nobody counts them.
                let network = (read == below && !whole).then_some(Data::Nothing);
                Lookup::Within(below - zone, found.or(network))
            }
            None => found.map_or(Lookup::Outside, |found| Lookup::Within(0, Some(found))),
        }
    }
}
