//! The nodes' parts of the pod range.

use ipnet::IpNet;

use super::Full;

/// How long the prefix of a node's part of an IPv4 pod range is.
const NODE_PREFIX: u8 = 24;
/// The same of IPv6.
const NODE_PREFIX6: u8 = 64;

/// A range of pod addresses of one family, of which every node gets a part: a /24 of IPv4, a /64 of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodRange {
    net: IpNet,
}

/// A pod range that does not hold one node's part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pod range {0} is too small: every node takes a /{part} of it", part = node_prefix(*.0))]
pub struct NoRoomForANode(pub IpNet);

fn node_prefix(net: IpNet) -> u8 {
    if net.addr().is_ipv4() { NODE_PREFIX } else { NODE_PREFIX6 }
}

impl PodRange {
    /// A range that holds at least one node's part.
    pub fn new(net: impl Into<IpNet>) -> Result<Self, NoRoomForANode> {
        let net = net.into();
        if net.prefix_len() > node_prefix(net) {
            Err(NoRoomForANode(net))
        } else {
            Ok(PodRange { net: net.trunc() })
        }
    }

    /// The whole range.
    pub fn net(&self) -> IpNet {
        self.net
    }

    /// How long the prefix of a node's part is.
    pub fn part_len(&self) -> u8 {
        node_prefix(self.net)
    }

    /// Whether this is one of the parts that a node may have.
    pub fn is_part(&self, cidr: IpNet) -> bool {
        cidr.prefix_len() == self.part_len() && cidr == cidr.trunc() && self.net.contains(&cidr)
    }

    /// The first free part: nodes come and go rarely, and low numbers are easy to read.
    pub fn pick(&self, taken: impl Fn(IpNet) -> bool) -> Result<IpNet, Full> {
        self.net.subnets(self.part_len()).ok().and_then(|mut parts| parts.find(|p| !taken(*p))).ok_or(Full)
    }
}
