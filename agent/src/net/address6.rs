//! The IPv6 address of this node, in a dual-stack cluster.

use std::{
    cmp::Reverse,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use futures::TryStreamExt;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressFlags, AddressMessage},
};
use tokio::time::Instant;

use super::{
    NetError,
    kernel::{Netlink, Refused, local},
    sysctl,
};

/// For so long an address may be one that the machine still makes sure nobody else has.
const TENTATIVE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// An address of the node's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    ip: Ipv6Addr,
    /// Given by an administrator, not learned from a router.
    permanent: bool,
    /// Not sure yet that nobody else has it.
    tentative: bool,
}

/// The second address of the node with this first one, on the same link, `asked` if that is given; and IPv6 forwarding on.
pub async fn address6(first: Ipv4Addr, asked: Option<Ipv6Addr>) -> Result<Ipv6Addr, NetError> {
    let netlink = Netlink::open()?;
    let end = Instant::now() + TENTATIVE;
    let found = loop {
        let candidates = candidates(&netlink, first).await?;
        let best = match asked {
            Some(ip) => candidates.iter().find(|c| c.ip == ip),
            None => best(&candidates),
        };
        match best {
            Some(best) if !best.tentative => break best.ip,
            Some(_) if Instant::now() < end => tokio::time::sleep(LOOK_AGAIN).await,
            _ => {
                let link = super::link_of(first).map(|(name, _)| name).unwrap_or_default();
                return Err(asked.map_or(NetError::NoAddress6(link), |ip| NetError::NoNodeLink(ip.into())));
            }
        }
    };
    sysctl::forwarding6_on()?;
    Ok(found)
}

/// Those that others reach and that stay: neither link-local nor temporary ones, nor such as are on their way out.
async fn candidates(netlink: &Netlink, first: Ipv4Addr) -> Result<Vec<Candidate>, NetError> {
    let all: Vec<AddressMessage> =
        netlink.handle.address().get().execute().try_collect().await.refused("list", "addresses")?;
    let link = all.iter().find(|m| local(m) == Some(first.into())).map(|m| m.header.index);
    let link = link.ok_or(NetError::NoNodeLink(first.into()))?;
    Ok(all.iter().filter(|m| m.header.index == link).filter_map(candidate).collect())
}

fn candidate(message: &AddressMessage) -> Option<Candidate> {
    if message.header.family != AddressFamily::Inet6 {
        return None;
    }
    let Some(IpAddr::V6(ip)) = local(message) else { return None };
    let flags = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    let flags = flags.unwrap_or(AddressFlags::empty());
    // Of an IPv6 address, "secondary" says "temporary".
    let unfit = AddressFlags::Secondary | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    if flags.intersects(unfit) || ip.is_unicast_link_local() || ip.is_multicast() || ip.is_loopback() {
        return None;
    }
    let tentative = flags.contains(AddressFlags::Tentative) && !flags.contains(AddressFlags::Optimistic);
    Some(Candidate { ip, permanent: flags.contains(AddressFlags::Permanent), tentative })
}

/// What an administrator gave before what a router did, global before unique local, then the lowest: the same at each start.
fn best(candidates: &[Candidate]) -> Option<&Candidate> {
    let order = |c: &&Candidate| (Reverse(c.permanent), c.ip.is_unique_local(), c.ip);
    candidates.iter().min_by_key(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_that_lasts_longest_is_the_nodes() {
        let one = |ip: &str, permanent| Candidate { ip: ip.parse().unwrap(), permanent, tentative: false };
        for (candidates, expected) in [
            (vec![], None),
            (vec![one("2001:db8::9", false)], Some("2001:db8::9")),
            (vec![one("2001:db8::9", false), one("fd00::1", true)], Some("fd00::1")),
            (vec![one("fd00::1", true), one("2001:db8::9", true)], Some("2001:db8::9")),
            (vec![one("2001:db8::9", false), one("2001:db8::3", false)], Some("2001:db8::3")),
        ] {
            let found = best(&candidates).map(|c| c.ip.to_string());
            assert_eq!(found.as_deref(), expected, "{candidates:?}");
        }
    }
}
