//! Which pod has which address of this node's range. Pure.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::Ipv4Net;

/// The node's addresses. The first two and the last of the range are never given: network, what looks like a gateway, broadcast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ipam {
    range: Ipv4Net,
    used: BTreeMap<Ipv4Addr, String>,
    last: Option<Ipv4Addr>,
}

/// Every address is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no address is free in this node's pod range {0}: delete pods, or give nodes a larger range")]
pub struct RangeFull(Ipv4Net);

impl Ipam {
    /// All of a range is free.
    pub fn new(range: Ipv4Net) -> Self {
        Ipam { range, used: BTreeMap::new(), last: None }
    }

    /// The addresses that pods may have.
    fn usable(&self) -> impl Iterator<Item = Ipv4Addr> + use<> {
        let (network, broadcast) = (u32::from(self.range.network()), u32::from(self.range.broadcast()));
        (network.saturating_add(2)..broadcast).map(Ipv4Addr::from)
    }

    /// Keeps an address for the pod that has it already; false if another has it, or it is none of ours.
    pub fn reserve(&mut self, ip: Ipv4Addr, uid: &str) -> bool {
        if !self.usable().any(|u| u == ip) || self.used.get(&ip).is_some_and(|owner| owner != uid) {
            return false;
        }
        self.used.insert(ip, uid.to_owned());
        true
    }

    /// The pod's address, new or as before. Goes round, so that an address rests before another pod gets it.
    pub fn allocate(&mut self, uid: &str) -> Result<Ipv4Addr, RangeFull> {
        if let Some((ip, _)) = self.used.iter().find(|(_, owner)| *owner == uid) {
            return Ok(*ip);
        }
        let after = self.usable().filter(|ip| self.last.is_none_or(|last| *ip > last));
        let ip = after.chain(self.usable()).find(|ip| !self.used.contains_key(ip));
        let ip = ip.ok_or(RangeFull(self.range))?;
        self.used.insert(ip, uid.to_owned());
        self.last = Some(ip);
        Ok(ip)
    }

    /// The pod is gone.
    pub fn free(&mut self, uid: &str) {
        self.used.retain(|_, owner| owner != uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_kept_go_round_and_run_out() {
        let mut ipam = Ipam::new("10.244.3.0/29".parse().unwrap());
        let last = |ip: Ipv4Addr| ip.octets()[3];
        assert!(ipam.reserve("10.244.3.3".parse().unwrap(), "adopted"));
        assert!(!ipam.reserve("10.244.3.3".parse().unwrap(), "other"));
        assert!(!ipam.reserve("10.244.3.1".parse().unwrap(), "other"));
        assert!(!ipam.reserve("10.244.9.4".parse().unwrap(), "other"));
        assert_eq!(last(ipam.allocate("a").unwrap()), 2);
        assert_eq!(last(ipam.allocate("a").unwrap()), 2);
        assert_eq!(last(ipam.allocate("b").unwrap()), 4);
        ipam.free("a");
        assert_eq!(last(ipam.allocate("c").unwrap()), 5, "an address rests");
        assert_eq!(last(ipam.allocate("d").unwrap()), 6);
        assert_eq!(last(ipam.allocate("e").unwrap()), 2);
        assert!(ipam.allocate("f").is_err());
        assert_eq!(last(ipam.allocate("adopted").unwrap()), 3);
    }
}
