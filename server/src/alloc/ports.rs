//! Node ports.

use std::ops::RangeInclusive;

use super::{Bands, Full};

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
        let size = u128::from(last - first) + 1;
        // min(max(16, size / 32), 128); a range of 16 or fewer has no static band (KEP-3668).
        let fixed = if size <= 16 { 0 } else { (size / 32).clamp(16, 128) };
        Some(NodePortRange { ports, bands: Bands { first: first.into(), last: last.into(), fixed } })
    }

    /// Whether the port is in the range.
    pub fn contains(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// A free port for a service that names none.
    pub fn pick(&self, random: u64, taken: impl Fn(u16) -> bool) -> Result<u16, Full> {
        // Within the range, so within u16.
        let port = |n: u128| u16::try_from(n).unwrap_or(u16::MAX);
        self.bands.pick(random, |n| taken(port(n))).map(port)
    }
}

impl std::fmt::Display for NodePortRange {
    /// `30000-32767`, as error messages name it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.ports.start(), self.ports.end())
    }
}
