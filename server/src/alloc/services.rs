//! The addresses of services.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;

use super::{Bands, Full};

/// A family of addresses, by the name that it has in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// `IPv4`.
    V4,
    /// `IPv6`.
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The family of this name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        }
    }

    /// `IPv4`, `IPv6`.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    /// The other of the two.
    pub fn other(self) -> Self {
        match self {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The range of cluster IPs of one family: the addresses that may be given out, without the network's own and, of IPv4, the broadcast address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceRange {
    net: IpNet,
    bands: Bands,
}

/// A service range that does not hold the API server's address, the DNS address and a service, or that is larger than can be
/// drawn from evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WrongSize {
    /// Fewer than 16 addresses.
    #[error("service range {0} is too small: at least /{least} is needed", least = .0.max_prefix_len() - 4)]
    Small(IpNet),
    /// More than 2^64 addresses.
    #[error("service range {0} is too large: at most /64 can be had")]
    Large(IpNet),
}

impl ServiceRange {
    /// A range of at least 16 addresses: /28 and larger of IPv4, /64 to /124 of IPv6.
    pub fn new(net: impl Into<IpNet>) -> Result<Self, WrongSize> {
        let net = net.into().trunc();
        let bits = net.max_prefix_len() - net.prefix_len();
        if bits < 4 {
            return Err(WrongSize::Small(net));
        }
        if bits > 64 {
            return Err(WrongSize::Large(net));
        }
        let first = number(net.network()) + 1;
        // IPv6 has no broadcast: the last address is as good as any. [ipallocator, NewIPAllocator]
        let last = number(net.broadcast()) - u128::from(net.addr().is_ipv4());
        // min(max(16, size / 16), 256), as pkg/registry/core/service/ipallocator computes it; a range of less than 32
        // addresses keeps its band within itself.
        let size = last - first + 1;
        let fixed = (size / 16).clamp(16, 256);
        let fixed = if fixed >= size { 0 } else { fixed };
        Ok(ServiceRange { net, bands: Bands { first, last, fixed } })
    }

    fn address(&self, number: u128) -> IpAddr {
        match self.net {
            // Of an IPv4 range all numbers are within 32 bits.
            IpNet::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
            IpNet::V6(_) => Ipv6Addr::from(number).into(),
        }
    }

    /// Of which family the addresses are.
    pub fn family(&self) -> Family {
        Family::of(self.net.addr())
    }

    /// The first address: that of the service `kubernetes`. The range of a second family keeps it too, though that service has
    /// one family.
    pub fn api_server(&self) -> IpAddr {
        self.address(self.bands.first)
    }

    /// The address of the cluster's DNS: the tenth.
    pub fn dns(&self) -> IpAddr {
        self.address(self.bands.first + 9)
    }

    /// The whole range.
    pub fn net(&self) -> IpNet {
        self.net
    }

    /// Whether a service may have this address: in the range, and neither network nor broadcast address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        Family::of(ip) == self.family() && self.bands.contains(number(ip))
    }

    /// A free address for a service that names none.
    pub fn pick(&self, random: u64, taken: impl Fn(IpAddr) -> bool) -> Result<IpAddr, Full> {
        let kept = [self.bands.first, self.bands.first + 9];
        self.bands.pick(random, |n| kept.contains(&n) || taken(self.address(n))).map(|n| self.address(n))
    }

    #[cfg(test)]
    pub(super) fn bands(&self) -> Bands {
        self.bands
    }
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u32::from(ip).into(),
        IpAddr::V6(ip) => ip.into(),
    }
}
