//! The host side of pods' links.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use futures::TryStreamExt;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute,
};
use nix::errno::Errno;
use rtnetlink::{LinkUnspec, LinkVeth};

use super::{
    LINK_GROUP, LinkName, NetConfig, NetError,
    kernel::{Link, Netlink, Refused, errno},
    pod,
    routes::{self, Route, Way},
    sysctl,
};

/// The address of every host side, locally administered. Both ends have addresses of our choice, so that neither needs to
/// ask for the other's, and so that no udev rule gives a new one.
pub(super) const HOST_MAC: [u8; 6] = [0x02, 0x6d, 0x73, 0x76, 0x63, 0x01];

/// The address of a pod's `eth0`.
pub(super) fn pod_mac(ip: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = ip.octets();
    [0x02, 0x6d, a, b, c, d]
}

/// Connects a pod; see [`super::Net::attach`]. Returns the index of the link's host side.
pub(super) async fn attach(
    netlink: &Netlink,
    mtu: u32,
    config: &NetConfig,
    link: &LinkName,
    ip: Ipv4Addr,
    netns: BorrowedFd<'_>,
) -> Result<u32, NetError> {
    let second = config.pod_address6(ip);
    let mac = pod_mac(ip);
    // A new pod has neither end: the first try is all it takes.
    if !create(netlink, mtu, link, ip, netns).await? {
        let here = netlink.link(link.as_str()).await?;
        let there = pod::inside(netns, link, async |netlink| netlink.link(pod::LINK).await)?;
        if !is_right(here.as_ref(), there.as_ref(), ip) {
            // Either end takes the other along.
            if let Some(here) = here {
                remove(netlink, &here).await?;
            }
            if there.is_some() {
                pod::inside(netns, link, async |netlink| match netlink.link(pod::LINK).await? {
                    Some(old) => remove(netlink, &old).await,
                    None => Ok(()),
                })?;
            }
            if !create(netlink, mtu, link, ip, netns).await? {
                let object = format!("link {link}");
                return Err(NetError::Kernel { operation: "create", object, errno: Errno::EEXIST });
            }
        }
    }
    let here = netlink.link(link.as_str()).await?;
    let here = here.ok_or_else(|| NetError::Kernel {
        operation: "find",
        object: format!("link {link}"),
        errno: Errno::ENODEV,
    })?;
    if second.is_some() {
        sysctl::ipv6_on(&here.name)?;
        no_link_local(netlink, &here).await?;
    } else {
        sysctl::deaf_to_routers(&here.name);
    }
    let up = LinkUnspec::new_with_index(here.index).mtu(mtu).link_group(LINK_GROUP).up().build();
    netlink.handle.link().set(up).execute().await.refused("set up link", link)?;
    let addresses: Vec<IpAddr> =
        [Some(IpAddr::V4(ip)), second.map(IpAddr::V6)].into_iter().flatten().collect();
    for ip in &addresses {
        neighbour(netlink, &here, *ip, &mac).await?;
    }
    pod::inside(netns, link, async |netlink| pod::configure(netlink, mtu, &addresses).await)?;
    for route in host_routes(config, here.index, ip) {
        routes::put(netlink, &route).await?;
    }
    Ok(here.index)
}

/// The routes to a pod, of each family, through the host side of its link.
pub(super) fn host_routes(config: &NetConfig, link: u32, ip: Ipv4Addr) -> Vec<Route> {
    let route = |to: IpAddr, source: IpAddr| Route { to: to.into(), way: Way::Link { link, source } };
    let second = config.family6.zip(config.pod_address6(ip));
    let second = second.map(|(family, ip)| route(ip.into(), family.node_ip.into()));
    [Some(route(ip.into(), config.node_ip.into())), second].into_iter().flatten().collect()
}

/// Has the kernel give a link no address of its own choice when it goes up, which would take a second of looking for others that
/// have it.
pub(super) async fn no_link_local(netlink: &Netlink, link: &Link) -> Result<(), NetError> {
    let mode = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)]);
    let set = LinkUnspec::new_with_index(link.index)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![mode]))
        .build();
    netlink.handle.link().set(set).execute().await.refused("switch off link-local addresses of", &link.name)
}

fn is_right(here: Option<&Link>, there: Option<&Link>, ip: Ipv4Addr) -> bool {
    let (Some(here), Some(there)) = (here, there) else { return false };
    here.peer == Some(there.index)
        && there.peer == Some(here.index)
        && here.mac == HOST_MAC
        && there.mac == pod_mac(ip)
}

/// Makes the pair in one step; `false` if either name is taken.
async fn create(
    netlink: &Netlink,
    mtu: u32,
    link: &LinkName,
    ip: Ipv4Addr,
    netns: BorrowedFd<'_>,
) -> Result<bool, NetError> {
    let peer = LinkUnspec::new_with_name(pod::LINK)
        .setns_by_fd(netns.as_raw_fd())
        .address(pod_mac(ip).to_vec())
        .mtu(mtu)
        .build();
    let message = LinkVeth::new(link.as_str(), pod::LINK)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .address(HOST_MAC.to_vec())
        .mtu(mtu)
        .link_group(LINK_GROUP)
        .build();
    match netlink.handle.link().add(message).execute().await {
        Ok(()) => Ok(true),
        Err(error) if errno(&error) == Errno::EEXIST => Ok(false),
        Err(error) => Err(error).refused("create link", link),
    }
}

/// A neighbour that never expires and is never asked for.
pub(super) async fn neighbour(
    netlink: &Netlink,
    link: &Link,
    ip: impl Into<IpAddr>,
    mac: &[u8],
) -> Result<(), NetError> {
    let ip = ip.into();
    let add = netlink.handle.neighbours().add(link.index, ip).link_layer_address(mac).replace();
    add.execute().await.refused("set the neighbour", format!("{ip} on {}", link.name))
}

async fn remove(netlink: &Netlink, link: &Link) -> Result<(), NetError> {
    match netlink.handle.link().del(link.index).execute().await {
        Err(error) if errno(&error) == Errno::ENODEV => Ok(()),
        other => other.refused("remove link", &link.name),
    }
}

/// Removes a pod's link.
pub(super) async fn detach(netlink: &Netlink, link: &LinkName) -> Result<(), NetError> {
    match netlink.link(link.as_str()).await? {
        Some(found) => remove(netlink, &found).await,
        None => Ok(()),
    }
}

/// The links of pods.
pub(super) async fn list(netlink: &Netlink) -> Result<Vec<LinkName>, NetError> {
    let all: Vec<_> = netlink.handle.link().get().execute().try_collect().await.refused("list", "links")?;
    Ok(all.iter().filter_map(|message| Link::from(message).name.parse().ok()).collect())
}
