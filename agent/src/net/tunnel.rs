//! The VXLAN link to nodes on other networks: the link, the neighbours on it, and where each of them really is.
//!
//! Nothing is learned from packets and nothing is asked: a neighbour's MAC follows from its node's address, and both tables are ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::{
    AddressFamily,
    address::{AddressMessage, AddressScope},
    link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};
use nix::errno::Errno;
use rtnetlink::{LinkUnspec, LinkVxlan};

use super::{
    NetConfig, NetError, TUNNEL, TUNNEL_GROUP,
    family6::{is_link_local, tunnel_address6},
    kernel::{Link, Netlink, Refused, errno, local},
    links,
    pod::host_address,
    sysctl, tunnel_address, way_back,
};
use crate::source::Mac;

/// The network inside the tunnel; other VXLANs of the machine have other numbers.
const VNI: u32 = 173;
/// What VXLAN puts before a packet: Ethernet, VXLAN, UDP and IPv4 headers.
const OVERHEAD: u32 = 14 + 8 + 8 + 20;

/// A node's address on the tunnel's Ethernet; locally administered, and unlike those of pods.
pub(super) fn mac(node_ip: Ipv4Addr) -> Mac {
    let [a, b, c, d] = node_ip.octets();
    [0x06, 0x6d, a, b, c, d]
}

/// The open tunnel, and who is at its other end as far as the kernel knows.
#[derive(Debug)]
pub(super) struct Tunnel {
    pub(super) link: u32,
    own: Mac,
    /// MACs by addresses inside the tunnel, of both families.
    neighbours: BTreeMap<IpAddr, Mac>,
    /// Nodes' addresses by MACs.
    forwarding: BTreeMap<Mac, Ipv4Addr>,
}

impl Tunnel {
    /// Makes sure of the link and its address. A link that is right stays, traffic included; a wrong one is replaced. `None`: this
    /// kernel lacks VXLAN.
    pub(super) async fn open(
        netlink: &Netlink,
        config: &NetConfig,
        underlay: &Link,
    ) -> Result<Option<Self>, NetError> {
        let mtu = underlay.mtu.saturating_sub(OVERHEAD);
        let mut found = find(netlink).await?;
        if let Some(wrong) = found.take_if(|message| !is_right(message, config)) {
            tracing::warn!("link {TUNNEL} is not as it should be: it is replaced");
            remove(netlink, wrong.header.index).await?;
        }
        let message = if let Some(message) = found {
            message
        } else {
            let new = LinkVxlan::new(TUNNEL, VNI)
                .local(config.node_ip)
                .port(config.vxlan_port)
                .learning(false)
                .address(mac(config.node_ip).to_vec())
                .mtu(mtu)
                .link_group(TUNNEL_GROUP)
                .build();
            match netlink.handle.link().add(new).execute().await {
                Err(error) if errno(&error) == Errno::EOPNOTSUPP => return Ok(None),
                other => other.refused("create link", TUNNEL)?,
            }
            find(netlink).await?.ok_or_else(|| NetError::Kernel {
                operation: "find",
                object: format!("link {TUNNEL}"),
                errno: Errno::ENODEV,
            })?
        };
        let link = Link::from(&message);
        sysctl::loose_reverse_path(TUNNEL);
        if config.family6.is_some() {
            sysctl::ipv6_on(TUNNEL)?;
            links::no_link_local(netlink, &link).await?;
        } else {
            sysctl::ipv6_off(TUNNEL);
        }
        let is_up = message.header.flags.contains(LinkFlags::Up);
        if link.mtu != mtu || link.group != TUNNEL_GROUP || !is_up {
            let set = LinkUnspec::new_with_index(link.index).mtu(mtu).link_group(TUNNEL_GROUP).up().build();
            netlink.handle.link().set(set).execute().await.refused("set up link", TUNNEL)?;
        }
        let second = config.family6.map(|family| tunnel_address6(family.local_pod_cidr).into());
        let wanted = [Some(tunnel_address(config.local_pod_cidr).into()), second];
        addresses(netlink, link.index, &wanted.into_iter().flatten().collect()).await?;
        let mut tunnel = Tunnel {
            link: link.index,
            own: mac(config.node_ip),
            neighbours: BTreeMap::new(),
            forwarding: BTreeMap::new(),
        };
        tunnel.read(netlink, config.family6.is_some()).await?;
        Ok(Some(tunnel))
    }

    pub(super) fn as_link(&self) -> Link {
        Link { index: self.link, name: TUNNEL.to_owned(), mac: self.own.to_vec(), ..Link::default() }
    }

    /// Takes the link away, with all routes over it.
    pub(super) async fn close(netlink: &Netlink) -> Result<(), NetError> {
        match find(netlink).await? {
            Some(message) => remove(netlink, message.header.index).await,
            None => Ok(()),
        }
    }

    /// What of it is not there any more, named for people.
    pub(super) async fn lost(&self, netlink: &Netlink) -> Result<Vec<String>, NetError> {
        if find(netlink).await?.is_none_or(|message| message.header.index != self.link) {
            return Ok(vec![format!("link {TUNNEL}")]);
        }
        let mut now = Tunnel {
            link: self.link,
            own: self.own,
            neighbours: BTreeMap::new(),
            forwarding: BTreeMap::new(),
        };
        now.read(netlink, self.neighbours.keys().any(IpAddr::is_ipv6)).await?;
        let neighbours = self.neighbours.iter().filter(|(ip, mac)| now.neighbours.get(ip) != Some(mac));
        let entries = self.forwarding.iter().filter(|(mac, ip)| now.forwarding.get(*mac) != Some(ip));
        let neighbours = neighbours.map(|(ip, _)| format!("neighbour {ip} on {TUNNEL}"));
        Ok(neighbours.chain(entries.map(|(_, ip)| format!("the entry for node {ip} on {TUNNEL}"))).collect())
    }

    async fn read(&mut self, netlink: &Netlink, both: bool) -> Result<(), NetError> {
        let families = [AddressFamily::Inet, AddressFamily::Bridge, AddressFamily::Inet6];
        for family in families.into_iter().take(if both { 3 } else { 2 }) {
            let all = netlink.handle.neighbours().get().set_address_family(family).execute();
            let all: Vec<_> = all.try_collect().await.refused("list", "neighbours")?;
            for message in all.iter().filter(|m| m.header.ifindex == self.link) {
                let Some(entry) = entry(message) else { continue };
                match (family, entry) {
                    (AddressFamily::Bridge, (Some(IpAddr::V4(ip)), mac)) => {
                        let _ = self.forwarding.insert(mac, ip);
                    }
                    (AddressFamily::Inet, (Some(IpAddr::V4(way_back::GATEWAY)), _)) => {}
                    (AddressFamily::Inet | AddressFamily::Inet6, (Some(ip), mac))
                        if message.header.state == NeighbourState::Permanent =>
                    {
                        self.neighbours.insert(ip, mac);
                    }
                    // One that leads nowhere, or came without us, is as good as none.
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Makes these nodes known, as addresses inside the tunnel and outside; what is right stays untouched. All are tried; the first
    /// failure is returned.
    pub(super) async fn add(
        &mut self,
        netlink: &Netlink,
        nodes: &BTreeMap<IpAddr, Ipv4Addr>,
    ) -> Result<(), NetError> {
        let mut result = Ok(());
        for (inside, ip) in nodes {
            result = result.and(self.put(netlink, *inside, *ip).await);
        }
        result
    }

    /// Forgets all but these nodes.
    pub(super) async fn retain(
        &mut self,
        netlink: &Netlink,
        nodes: &BTreeMap<IpAddr, Ipv4Addr>,
    ) -> Result<(), NetError> {
        let mut result = Ok(());
        let gone = self.neighbours.iter().filter(|(ip, _)| !nodes.contains_key(ip));
        for (inside, mac) in gone.map(|(ip, mac)| (*ip, *mac)).collect::<Vec<_>>() {
            result = result.and(self.forget(netlink, Some(inside), mac, None).await);
            self.neighbours.remove(&inside);
        }
        let known: BTreeMap<Mac, Ipv4Addr> = nodes.values().map(|ip| (mac(*ip), *ip)).collect();
        let gone = self.forwarding.iter().filter(|(mac, ip)| known.get(*mac) != Some(*ip));
        for (mac, ip) in gone.map(|(mac, ip)| (*mac, *ip)).collect::<Vec<_>>() {
            result = result.and(self.forget(netlink, None, mac, Some(ip)).await);
            self.forwarding.remove(&mac);
        }
        result
    }

    async fn put(&mut self, netlink: &Netlink, inside: IpAddr, ip: Ipv4Addr) -> Result<(), NetError> {
        let mac = mac(ip);
        if self.forwarding.get(&mac) != Some(&ip) {
            let add = netlink.handle.neighbours().add_bridge(self.link, &mac).destination(IpAddr::V4(ip));
            let add = add.flags(NeighbourFlags::Own).replace();
            add.execute().await.refused("say where in the tunnel there is", ip)?;
            self.forwarding.insert(mac, ip);
        }
        if self.neighbours.get(&inside) != Some(&mac) {
            links::neighbour(netlink, &self.as_link(), inside, &mac).await?;
            self.neighbours.insert(inside, mac);
        }
        Ok(())
    }

    /// Removes a neighbour (`inside`) or a forwarding entry (`outside`).
    async fn forget(
        &self,
        netlink: &Netlink,
        inside: Option<IpAddr>,
        mac: Mac,
        outside: Option<Ipv4Addr>,
    ) -> Result<(), NetError> {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = self.link;
        if let Some(ip) = inside {
            let (family, address) = match ip {
                IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
                IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
            };
            message.header.family = family;
            message.attributes.push(NeighbourAttribute::Destination(address));
        } else {
            message.header.family = AddressFamily::Bridge;
            message.header.flags = NeighbourFlags::Own;
            message.attributes.push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
            message
                .attributes
                .extend(outside.map(|ip| NeighbourAttribute::Destination(NeighbourAddress::Inet(ip))));
        }
        match netlink.handle.neighbours().del(message).execute().await {
            Err(error) if errno(&error) == Errno::ENOENT => Ok(()),
            other => other.refused("forget a neighbour on", TUNNEL),
        }
    }
}

fn entry(message: &NeighbourMessage) -> Option<(Option<IpAddr>, Mac)> {
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(found)) => ip = Some((*found).into()),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(found)) => ip = Some((*found).into()),
            // Forwarding entries come without a family for their destination.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                ip = <[u8; 4]>::try_from(bytes.as_slice()).ok().map(IpAddr::from);
            }
            NeighbourAttribute::LinkLayerAddress(found) => mac = Mac::try_from(found.as_slice()).ok(),
            _ => {}
        }
    }
    Some((ip, mac?))
}

async fn find(netlink: &Netlink) -> Result<Option<LinkMessage>, NetError> {
    match netlink.handle.link().get().match_name(TUNNEL.to_owned()).execute().try_next().await {
        Err(error) if errno(&error) == Errno::ENODEV => Ok(None),
        other => other.refused("look up link", TUNNEL),
    }
}

/// Whether a link is what [`Tunnel::open`] would make, but for what can be changed while packets flow.
fn is_right(message: &LinkMessage, config: &NetConfig) -> bool {
    let info = message.attributes.iter().find_map(|a| match a {
        LinkAttribute::LinkInfo(info) => Some(info),
        _ => None,
    });
    let info = info.map(Vec::as_slice).unwrap_or_default();
    let facts = info.iter().find_map(|i| match i {
        LinkInfo::Data(InfoData::Vxlan(facts)) => Some(facts.as_slice()),
        _ => None,
    });
    let facts = facts.unwrap_or_default();
    let wanted = [
        InfoVxlan::Id(VNI),
        InfoVxlan::Local(config.node_ip),
        InfoVxlan::Port(config.vxlan_port),
        InfoVxlan::Learning(false),
    ];
    info.contains(&LinkInfo::Kind(InfoKind::Vxlan))
        && wanted.iter().all(|fact| facts.contains(fact))
        && Link::from(message).mac == mac(config.node_ip)
}

/// The node's addresses inside, and no others but what the kernel gives each link.
async fn addresses(netlink: &Netlink, link: u32, wanted: &BTreeSet<IpAddr>) -> Result<(), NetError> {
    let all: Vec<AddressMessage> =
        netlink.handle.address().get().execute().try_collect().await.refused("list", "addresses")?;
    let mut missing = wanted.clone();
    for message in all.into_iter().filter(|m| m.header.index == link) {
        let Some(ip) = local(&message).filter(|ip| !is_link_local(*ip)) else { continue };
        if wanted.contains(&ip) && message.header.prefix_len == IpNet::from(ip).prefix_len() {
            missing.remove(&ip);
            continue;
        }
        netlink.handle.address().del(message).execute().await.refused("remove from the tunnel", ip)?;
    }
    for ip in missing {
        let mut add = netlink.handle.address().add(link, ip, IpNet::from(ip).prefix_len());
        let mut message = host_address(link, ip);
        message.header.scope = AddressScope::Universe;
        *add.message_mut() = message;
        add.execute().await.refused("give the tunnel the address", ip)?;
    }
    Ok(())
}

async fn remove(netlink: &Netlink, index: u32) -> Result<(), NetError> {
    match netlink.handle.link().del(index).execute().await {
        Err(error) if errno(&error) == Errno::ENODEV => Ok(()),
        other => other.refused("remove link", TUNNEL),
    }
}
