//! Choosing cluster IPs, node ports and the nodes' parts of the pod range. Pure: what is taken comes in, a choice goes out; the reservation itself is made by the
//! store's transaction, so a choice that lost a race is simply made again.
//!
//! The bands follow KEP-3070 (cluster IPs) and KEP-3668 (node ports): explicit requests are expected in the lower band, so
//! dynamic choices come from above it and fall through to it only when the upper band is full.

use std::{net::Ipv4Addr, ops::RangeInclusive};

use ipnet::Ipv4Net;

/// Nothing is left to choose from. The message is the one that clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("range is full")]
pub struct Full;

/// A range of numbers with a static band at its lower end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bands {
    first: u32,
    last: u32,
    /// Size of the static band, at most the whole range.
    fixed: u32,
}

impl Bands {
    fn size(self) -> u32 {
        self.last - self.first + 1
    }

    /// A free number: from a random start in the upper band, once around, then the same in the static band. `random` is any
    /// number; the random start makes it rare that a freed number is given out again at once.
    fn pick(self, random: u32, taken: impl Fn(u32) -> bool) -> Result<u32, Full> {
        let upper = (self.first + self.fixed, self.size() - self.fixed);
        let lower = (self.first, self.fixed);
        [upper, lower]
            .into_iter()
            .filter(|(_, size)| *size > 0)
            .find_map(|(base, size)| {
                let start = random % size;
                (0..size).map(|i| base + (start + i) % size).find(|n| !taken(*n))
            })
            .ok_or(Full)
    }
}

/// The service range: addresses that may be given out, without network and broadcast address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    net: Ipv4Net,
    bands: Bands,
}

/// A service range too small to hold the API server's address, the DNS address and a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("service range {0} is too small: at least /28 is needed")]
pub struct TooSmall(pub Ipv4Net);

impl ServiceRange {
    /// A range of at least 16 addresses.
    pub fn new(net: Ipv4Net) -> Result<Self, TooSmall> {
        if net.prefix_len() > 28 {
            return Err(TooSmall(net));
        }
        let net = net.trunc();
        let (first, last) = (u32::from(net.network()) + 1, u32::from(net.broadcast()) - 1);
        // min(max(16, size / 16), 256), as pkg/registry/core/service/ipallocator computes it; a range of less than 32
        // addresses keeps its band within itself.
        let size = last - first + 1;
        let fixed = (size / 16).clamp(16, 256);
        let fixed = if fixed >= size { 0 } else { fixed };
        Ok(ServiceRange { net, bands: Bands { first, last, fixed } })
    }

    /// The address of the service `kubernetes`: the first.
    pub fn api_server(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.bands.first)
    }

    /// The address of the cluster's DNS: the tenth.
    pub fn dns(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.bands.first + 9)
    }

    /// The whole range.
    pub fn net(&self) -> Ipv4Net {
        self.net
    }

    /// Whether a service may have this address: in the range, and neither network nor broadcast address.
    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        (self.bands.first..=self.bands.last).contains(&u32::from(ip))
    }

    /// A free address for a service that names none.
    pub fn pick(&self, random: u32, taken: impl Fn(Ipv4Addr) -> bool) -> Result<Ipv4Addr, Full> {
        let kept = [self.api_server(), self.dns()];
        self.bands
            .pick(random, |n| kept.contains(&Ipv4Addr::from(n)) || taken(Ipv4Addr::from(n)))
            .map(Ipv4Addr::from)
    }
}

/// The range of node ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePortRange {
    ports: RangeInclusive<u16>,
    bands: Bands,
}

impl NodePortRange {
    /// A range, first and last included; `None` if it is empty or holds port 0.
    pub fn new(ports: RangeInclusive<u16>) -> Option<Self> {
        let (first, last) = (*ports.start(), *ports.end());
        if first == 0 || first > last {
            return None;
        }
        let size = u32::from(last - first) + 1;
        // min(max(16, size / 32), 128); a range of 16 or fewer has no static band (KEP-3668).
        let fixed = if size <= 16 { 0 } else { (size / 32).clamp(16, 128) };
        Some(NodePortRange { ports, bands: Bands { first: first.into(), last: last.into(), fixed } })
    }

    /// Whether the port is in the range.
    pub fn contains(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// A free port for a service that names none.
    pub fn pick(&self, random: u32, taken: impl Fn(u16) -> bool) -> Result<u16, Full> {
        // Within the range, so within u16.
        let port = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        self.bands.pick(random, |n| taken(port(n))).map(port)
    }
}

impl std::fmt::Display for NodePortRange {
    /// `30000-32767`, as error messages name it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ports.start(), self.ports.end())
    }
}

/// How long the prefix of a node's part of the pod range is.
const NODE_PREFIX: u8 = 24;

/// The range of pod addresses, of which every node gets a /24.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRange {
    net: Ipv4Net,
}

/// A pod range that does not hold one node's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pod range {0} is too small: every node takes a /{NODE_PREFIX} of it")]
pub struct NoRoomForANode(pub Ipv4Net);

impl PodRange {
    /// A range of at least a /24.
    pub fn new(net: Ipv4Net) -> Result<Self, NoRoomForANode> {
        if net.prefix_len() > NODE_PREFIX {
            Err(NoRoomForANode(net))
        } else {
            Ok(PodRange { net: net.trunc() })
        }
    }

    /// The whole range.
    pub fn net(&self) -> Ipv4Net {
        self.net
    }

    /// Whether this is one of the parts that a node may have.
    pub fn is_part(&self, cidr: Ipv4Net) -> bool {
        cidr.prefix_len() == NODE_PREFIX && cidr == cidr.trunc() && self.net.contains(&cidr)
    }

    /// The first free part: nodes come and go rarely, and low numbers are easy to read.
    pub fn pick(&self, taken: impl Fn(Ipv4Net) -> bool) -> Result<Ipv4Net, Full> {
        self.net.subnets(NODE_PREFIX).ok().and_then(|mut parts| parts.find(|p| !taken(*p))).ok_or(Full)
    }
}

#[cfg(test)]
mod tests;
