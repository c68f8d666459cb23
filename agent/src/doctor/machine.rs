//! What a machine has: addresses, routes, links.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    link::LinkAttribute,
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use rtnetlink::RouteMessageBuilder;

/// `RT_TABLE_LOCAL`: the kernel's routes to the machine's own addresses.
const LOCAL_TABLE: u8 = 255;

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link's name.
    pub link: String,
    /// Address and prefix.
    pub net: IpNet,
}

/// A route, of any table but the kernel's own of local addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The link's name; empty where it leads nowhere.
    pub link: String,
    /// Where it leads.
    pub to: IpNet,
    /// `rtm_protocol`.
    pub protocol: u8,
}

/// What a machine has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Its routes.
    pub routes: Vec<Route>,
    /// Names of its links.
    pub links: Vec<String>,
}

/// The kernel did not answer.
#[derive(Debug, thiserror::Error)]
#[error("cannot look at this machine's {what}: {cause}")]
pub struct ObserveError {
    /// Links, addresses or routes.
    pub what: &'static str,
    /// Why.
    pub cause: String,
}

/// Looks at the network namespace of the calling thread; needs no privileges.
pub async fn observe() -> Result<Machine, ObserveError> {
    let failed =
        |what: &'static str| move |e: &dyn std::fmt::Display| ObserveError { what, cause: e.to_string() };
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| failed("links")(&e))?;
    let task = tokio::spawn(connection);
    let looked = async {
        let links: Vec<_> =
            handle.link().get().execute().try_collect().await.map_err(|e| failed("links")(&e))?;
        let name = |attributes: &[LinkAttribute]| {
            attributes
                .iter()
                .find_map(|a| if let LinkAttribute::IfName(n) = a { Some(n.clone()) } else { None })
        };
        let names: BTreeMap<u32, String> =
            links.iter().filter_map(|l| Some((l.header.index, name(&l.attributes)?))).collect();
        let of = |index: u32| names.get(&index).cloned().unwrap_or_default();
        let addresses: Vec<_> =
            handle.address().get().execute().try_collect().await.map_err(|e| failed("addresses")(&e))?;
        let addresses = addresses.iter().filter_map(|a| {
            let net = IpNet::new(crate::net::local(a)?, a.header.prefix_len).ok()?;
            Some(Address { link: of(a.header.index), net })
        });
        let filter = RouteMessageBuilder::<Ipv4Addr>::new().table_id(0).build();
        let mut routes: Vec<_> =
            handle.route().get(filter).execute().try_collect().await.map_err(|e| failed("routes")(&e))?;
        // A kernel without IPv6 has no routes of it.
        let filter = RouteMessageBuilder::<Ipv6Addr>::new().table_id(0).build();
        let second: Result<Vec<_>, _> = handle.route().get(filter).execute().try_collect().await;
        routes.extend(second.unwrap_or_default());
        let routes = routes.iter().filter_map(|r| route(r, &of));
        Ok(Machine {
            addresses: addresses.collect(),
            routes: routes.collect(),
            links: names.values().cloned().collect(),
        })
    }
    .await;
    task.abort();
    looked
}

fn route(message: &RouteMessage, of: &impl Fn(u32) -> String) -> Option<Route> {
    if message.header.table == LOCAL_TABLE {
        return None;
    }
    let mut to: IpAddr = match message.header.address_family {
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => Ipv4Addr::UNSPECIFIED.into(),
    };
    let mut link = String::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = (*ip).into(),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => to = (*ip).into(),
            RouteAttribute::Oif(index) => link = of(*index),
            _ => {}
        }
    }
    let to = IpNet::new(to, message.header.destination_prefix_length).ok()?;
    Some(Route { link, to, protocol: u8::from(message.header.protocol) })
}
