//! How packets leave that go back through the node that they came by: see [`crate::source`]. Whatever their destination, a policy rule
//! sends them to a gateway that does not exist, on the link to other nodes; the rules of packets give them the true link address there.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use netlink_packet_route::{
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use nix::errno::Errno;
use rtnetlink::RouteMessageBuilder;

use super::{
    NetError, ROUTE_PROTOCOL,
    kernel::{Link, Netlink, Refused, errno},
    links,
};
use crate::source::{NUMBER, Way};

/// Stands for any node; nothing is ever sent to its link address.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
const GATEWAY_MAC: [u8; 6] = [0x02, 0x6d, 0x73, 0x76, 0x63, 0x02];
/// Before those of VPNs, which catch what they do not know. Also the numbers of the routing tables.
const UPLINK_RULE: u32 = 173;
const TUNNEL_RULE: u32 = 174;

fn number(way: Way) -> u32 {
    match way {
        Way::Uplink => UPLINK_RULE,
        Way::Tunnel => TUNNEL_RULE,
    }
}

/// Makes sure of the way through a link; what is there already stays. Returns whether its route or rule was missing.
pub(super) async fn put(netlink: &Netlink, way: Way, link: &Link) -> Result<bool, NetError> {
    // Links without Ethernet addresses never carry a marked packet.
    if link.mac.len() != GATEWAY_MAC.len() {
        return Ok(false);
    }
    links::neighbour(netlink, link, GATEWAY, &GATEWAY_MAC).await?;
    let everywhere = Ipv4Net::default();
    let route = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(everywhere.addr(), everywhere.prefix_len())
        .table_id(number(way))
        .protocol(RouteProtocol::from(ROUTE_PROTOCOL))
        .gateway(GATEWAY)
        .output_interface(link.index)
        .onlink()
        .build();
    let mut was_missing = match netlink.handle.route().add(route.clone()).execute().await {
        Err(error) if errno(&error) == Errno::EEXIST => false,
        other => other.refused("route answers through", &link.name).map(|()| true)?,
    };
    if !was_missing {
        // It may be another one.
        let replace = netlink.handle.route().add(route).replace();
        replace.execute().await.refused("route answers through", &link.name)?;
    }
    let mut rule = netlink
        .handle
        .rule()
        .add()
        .v4()
        .action(RuleAction::ToTable)
        .table_id(number(way))
        .priority(number(way))
        .fw_mark(way.bit());
    rule.message_mut().attributes.extend([
        RuleAttribute::FwMask(!NUMBER),
        RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)),
    ]);
    match rule.execute().await {
        // It is there, or this kernel knows no policy routing: then no probe comes back, and other nodes masquerade.
        Err(error) if [Errno::EEXIST, Errno::EOPNOTSUPP, Errno::EAFNOSUPPORT].contains(&errno(&error)) => {}
        other => {
            other.refused("add the policy rule for answers through", &link.name)?;
            was_missing = true;
        }
    }
    Ok(was_missing)
}

/// Whether a neighbour is the gateway.
pub(super) fn is_gateway(neighbour: &NeighbourMessage) -> bool {
    neighbour.attributes.contains(&NeighbourAttribute::Destination(NeighbourAddress::Inet(GATEWAY)))
}

/// Whether a policy rule is ours.
pub(super) fn is_ours(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL)))
}
