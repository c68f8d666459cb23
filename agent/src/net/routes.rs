//! Routes that are ours, known by their protocol number.

use std::net::Ipv4Addr;

use futures::TryStreamExt;
use ipnet::Ipv4Net;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
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
    pub(super) to: Ipv4Net,
    pub(super) way: Way,
}

/// Where a route leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// To a node, through the link that carries traffic to nodes.
    Node { via: Ipv4Addr, link: u32 },
    /// To a node through the tunnel, where it has the address `via`; what this node itself sends has this source.
    Tunnel { via: Ipv4Addr, link: u32, source: Ipv4Addr },
    /// Out of a link, with this source.
    Link { link: u32, source: Ipv4Addr },
    /// Nowhere: answered with an error.
    Unreachable,
}

impl Route {
    fn message(&self) -> RouteMessage {
        let route = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(self.to.network(), self.to.prefix_len())
            .protocol(RouteProtocol::from(ROUTE_PROTOCOL));
        match self.way {
            Way::Node { via, link } => route.gateway(via).output_interface(link),
            Way::Tunnel { via, link, source } => {
                route.gateway(via).output_interface(link).pref_source(source).onlink()
            }
            Way::Link { link, source } => {
                route.output_interface(link).pref_source(source).scope(RouteScope::Link)
            }
            Way::Unreachable => route.kind(RouteType::Unreachable),
        }
        .build()
    }
}

/// A route as the kernel shows it: whose it is, and what it is if it has one of our shapes.
pub(super) struct Found {
    pub(super) to: Ipv4Net,
    pub(super) protocol: u8,
    pub(super) route: Option<Route>,
    message: RouteMessage,
}

fn read(message: RouteMessage) -> Option<Found> {
    let (mut to, mut via, mut link, mut source) = (Ipv4Addr::UNSPECIFIED, None, None, None);
    let mut metric = 0;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = *ip,
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => via = Some(*ip),
            RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => source = Some(*ip),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(n) => metric = *n,
            _ => {}
        }
    }
    let header = &message.header;
    // Another metric or type of service is another route to the kernel: it never collides with ours.
    if header.table != RouteHeader::RT_TABLE_MAIN || metric != 0 || header.tos != 0 {
        return None;
    }
    let to = Ipv4Net::new(to, header.destination_prefix_length).ok()?;
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

/// Every IPv4 route of the main table.
pub(super) async fn list(netlink: &Netlink) -> Result<Vec<Found>, NetError> {
    let filter = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let all: Vec<_> =
        netlink.handle.route().get(filter).execute().try_collect().await.refused("list", "routes")?;
    Ok(all.into_iter().filter_map(read).collect())
}

/// Where the kernel sends what goes to an address: the gateway, if any, and the link. `None`: nowhere, at the moment.
pub(super) async fn look_up(
    netlink: &Netlink,
    to: Ipv4Addr,
) -> Result<Option<(Option<Ipv4Addr>, u32)>, NetError> {
    let question = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, 32).build();
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
    let Some(answer) = answer else { return Ok(None) };
    let (mut via, mut link) = (None, None);
    for attribute in &answer.attributes {
        match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => via = Some(*ip),
            // A gateway of the other family is one, too.
            RouteAttribute::Via(_) => via = Some(Ipv4Addr::UNSPECIFIED),
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
    let there = list(netlink).await?.into_iter().find(|found| found.to == route.to);
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
