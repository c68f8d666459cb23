//! Routes that are ours, known by their protocol number.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
        RouteType,
    },
};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

use super::{
    NetError, ROUTE_PROTOCOL,
    kernel::{Netlink, Refused, errno},
};

/// A route of the main table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Route {
    pub(super) to: IpNet,
    pub(super) way: Way,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// To a node, through the link that carries traffic to nodes.
    Node { via: IpAddr, link: u32 },
    /// To a node through the tunnel, where it has the address `via`; what this node itself sends has this source.
    Tunnel { via: IpAddr, link: u32, source: IpAddr },
    /// Out of a link, with this source.
    Link { link: u32, source: IpAddr },
    /// Nowhere: answered with an error.
    Unreachable,
}

/// What the kernel makes of a route without a metric. [include/uapi/linux/ipv6_route.h, IP6_RT_PRIO_USER]
const NO_METRIC: u32 = 0;
const NO_METRIC6: u32 = 1024;

/// A message about routes of one family.
fn message(of: IpAddr) -> RouteMessage {
    match of {
        IpAddr::V4(_) => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        IpAddr::V6(_) => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    }
}

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

impl Route {
    fn message(&self) -> RouteMessage {
        let mut route = message(self.to.addr());
        route.header.destination_prefix_length = self.to.prefix_len();
        route.header.protocol = RouteProtocol::from(ROUTE_PROTOCOL);
        route.attributes.push(RouteAttribute::Destination(address(self.to.network())));
        let (via, link, source) = match self.way {
            Way::Node { via, link } => (Some(via), Some(link), None),
            Way::Tunnel { via, link, source } => {
                route.header.flags.insert(RouteFlags::Onlink);
                (Some(via), Some(link), Some(source))
            }
            Way::Link { link, source } => {
                route.header.scope = RouteScope::Link;
                (None, Some(link), Some(source))
            }
            Way::Unreachable => {
                route.header.kind = RouteType::Unreachable;
                (None, None, None)
            }
        };
        route.attributes.extend(via.map(|via| RouteAttribute::Gateway(address(via))));
        route.attributes.extend(link.map(RouteAttribute::Oif));
        route.attributes.extend(source.map(|source| RouteAttribute::PrefSource(address(source))));
        route
    }
}

/// A route as the kernel shows it: whose it is, and what it is if it has one of our shapes.
pub(super) struct Found {
    pub(super) to: IpNet,
    pub(super) protocol: u8,
    pub(super) route: Option<Route>,
    message: RouteMessage,
}

fn read(message: RouteMessage) -> Option<Found> {
    let header = &message.header;
    let (nowhere, no_metric) = match header.address_family {
        AddressFamily::Inet => (IpAddr::V4(Ipv4Addr::UNSPECIFIED), NO_METRIC),
        AddressFamily::Inet6 => (IpAddr::V6(Ipv6Addr::UNSPECIFIED), NO_METRIC6),
        _ => return None,
    };
    let (mut to, mut via, mut link, mut source) = (nowhere, None, None, None);
    let mut metric = NO_METRIC;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address)?,
            RouteAttribute::Gateway(address) => via = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(n) => metric = *n,
            _ => {}
        }
    }
    // Another metric or type of service is another route to the kernel: it never collides with ours.
    if header.table != RouteHeader::RT_TABLE_MAIN || metric != no_metric || header.tos != 0 {
        return None;
    }
    let to = IpNet::new(to, header.destination_prefix_length).ok()?;
    let way = match (header.kind, via, link, source) {
        (RouteType::Unreachable, None, ..) => Some(Way::Unreachable),
        (RouteType::Unicast, Some(via), Some(link), None) => Some(Way::Node { via, link }),
        (RouteType::Unicast, Some(via), Some(link), Some(source)) => Some(Way::Tunnel { via, link, source }),
        (RouteType::Unicast, None, Some(link), Some(source)) => Some(Way::Link { link, source }),
        _ => None,
    };
    let protocol = u8::from(header.protocol);
    Some(Found { to, protocol, route: way.map(|way| Route { to, way }), message })
}

/// Every route of the main table, of the family of an address.
pub(super) async fn list(netlink: &Netlink, of: impl Into<IpAddr>) -> Result<Vec<Found>, NetError> {
    let filter = message(of.into());
    let all: Vec<_> =
        netlink.handle.route().get(filter).execute().try_collect().await.refused("list", "routes")?;
    Ok(all.into_iter().filter_map(read).collect())
}

/// Where the kernel sends what goes to an address: the gateway, if any, and the link. `None`: nowhere, at the moment.
pub(super) async fn look_up(
    netlink: &Netlink,
    to: IpAddr,
) -> Result<Option<(Option<IpAddr>, u32)>, NetError> {
    let mut question = message(to);
    question.header.destination_prefix_length = IpNet::from(to).prefix_len();
    question.attributes.push(RouteAttribute::Destination(address(to)));
    let answer = match netlink.handle.route().get(question).execute().try_next().await {
        Ok(answer) => answer,
        Err(error)
            if [Errno::ENETUNREACH, Errno::EHOSTUNREACH, Errno::EACCES, Errno::EINVAL]
                .contains(&errno(&error)) =>
        {
            None
        }
        Err(error) => return Err(error).refused("look up the route to", to),
    };
    // What is refused is an error in one family, and a route in the other.
    let Some(answer) = answer.filter(|answer| {
        !matches!(answer.header.kind, RouteType::Unreachable | RouteType::BlackHole | RouteType::Prohibit)
    }) else {
        return Ok(None);
    };
    let (mut via, mut link) = (None, None);
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Gateway(address) => via = ip(address),
            // A gateway of the other family is one, too.
            RouteAttribute::Via(_) => via = Some(Ipv4Addr::UNSPECIFIED.into()),
            RouteAttribute::Oif(index) => link = Some(*index),
            _ => {}
        }
    }
    Ok(link.map(|link| (via, link)))
}

/// Makes sure of a route; one of ours to the same destination gives way, one of others does not.
pub(super) async fn put(netlink: &Netlink, route: &Route) -> Result<(), NetError> {
    let add = netlink.handle.route().add(route.message());
    match add.execute().await {
        Err(error) if errno(&error) == Errno::EEXIST => {}
        other => return other.refused("add the route to", route.to),
    }
    let there = list(netlink, route.to.addr()).await?.into_iter().find(|found| found.to == route.to);
    match there {
        Some(found) if found.route.as_ref() == Some(route) => Ok(()),
        Some(found) if found.protocol != ROUTE_PROTOCOL => {
            Err(NetError::RouteTaken { destination: route.to, protocol: found.protocol })
        }
        _ => replace(netlink, route).await,
    }
}

/// Puts a route in the place of another one of ours to the same destination, in one step.
pub(super) async fn replace(netlink: &Netlink, route: &Route) -> Result<(), NetError> {
    let replace = netlink.handle.route().add(route.message()).replace();
    replace.execute().await.refused("replace the route to", route.to)
}

/// Takes a route away; one that is gone already is fine.
pub(super) async fn remove(netlink: &Netlink, found: &Found) -> Result<(), NetError> {
    match netlink.handle.route().del(found.message.clone()).execute().await {
        Err(error) if errno(&error) == Errno::ESRCH => Ok(()),
        other => other.refused("remove the route to", found.to),
    }
}
