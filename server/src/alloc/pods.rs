//! The nodes' parts of the pod range.

use ipnet::Ipv4Net;

use super::Full;

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
