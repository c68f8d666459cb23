//! The pod's side of its link, set from a thread that enters the pod's network and is thrown away.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::BorrowedFd,
};

use ipnet::IpNet;
use netlink_packet_route::{
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope, CacheInfo},
    route::RouteScope,
};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
};
use rtnetlink::{AddressMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::{
    GATEWAY, GATEWAY6, LinkName, NetError,
    kernel::{Netlink, Refused, block_on},
    links, sysctl,
};

/// The pod's link.
pub(super) const LINK: &str = "eth0";

/// Does something inside a pod's network; `of` names the pod in errors.
pub(super) fn inside<T: Send>(
    netns: BorrowedFd<'_>,
    of: &LinkName,
    work: impl AsyncFnOnce(&Netlink) -> Result<T, NetError> + Send,
) -> Result<T, NetError> {
    let failed = |errno| NetError::Kernel {
        operation: "enter",
        object: format!("the network of the pod behind {of}"),
        errno,
    };
    let run = || {
        setns(netns, CloneFlags::CLONE_NEWNET).map_err(failed)?;
        block_on(async { work(&Netlink::open()?).await })
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("pod-network".into());
        let thread = thread.spawn_scoped(scope, run).map_err(|_| failed(Errno::EAGAIN))?;
        thread.join().unwrap_or(Err(failed(Errno::ECANCELED)))
    })
}

/// `lo` and `eth0` up, the pod's addresses, and everything else through the gateway of each family.
pub(super) async fn configure(netlink: &Netlink, mtu: u32, ips: &[IpAddr]) -> Result<(), NetError> {
    let pod = ips.first().map(ToString::to_string).unwrap_or_default();
    // The loopback link is the first of every namespace.
    let lo = LinkUnspec::new_with_index(1).up().build();
    netlink.handle.link().set(lo).execute().await.refused("set up", "lo in the pod")?;
    let found = netlink.link(LINK).await?;
    let link = found.ok_or_else(|| NetError::Kernel {
        operation: "find",
        object: format!("{LINK} in the pod {pod}"),
        errno: Errno::ENODEV,
    })?;
    if ips.iter().any(IpAddr::is_ipv6) {
        sysctl::ipv6_on(LINK)?;
        links::no_link_local(netlink, &link).await?;
    }
    let up = LinkUnspec::new_with_index(link.index).mtu(mtu).up().build();
    netlink.handle.link().set(up).execute().await.refused("set up", format!("{LINK} in the pod {pod}"))?;
    for ip in ips {
        let length = IpNet::from(*ip).prefix_len();
        let mut add = netlink.handle.address().add(link.index, *ip, length).replace();
        if ip.is_ipv6() {
            // Nobody else is on this link.
            add.message_mut().header.flags = AddressHeaderFlags::Nodad;
        }
        add.execute().await.refused("give the pod its address", ip)?;
        let gateway: IpAddr = if ip.is_ipv4() { GATEWAY.into() } else { GATEWAY6.into() };
        links::neighbour(netlink, &link, gateway, &links::HOST_MAC).await?;
    }
    let mut routes = Vec::new();
    if ips.iter().any(IpAddr::is_ipv4) {
        let route = || RouteMessageBuilder::<Ipv4Addr>::new().output_interface(link.index);
        routes.push(route().destination_prefix(GATEWAY, 32).scope(RouteScope::Link).build());
        routes.push(route().gateway(GATEWAY).build());
    }
    if ips.iter().any(IpAddr::is_ipv6) {
        routes.push(
            RouteMessageBuilder::<Ipv6Addr>::new().output_interface(link.index).gateway(GATEWAY6).build(),
        );
    }
    for route in routes {
        let add = netlink.handle.route().add(route).replace();
        add.execute().await.refused("route", format!("the pod {pod} through its gateway"))?;
    }
    Ok(())
}

/// An address that serves this machine only: nothing that it sends has it by itself.
pub(super) fn host_address(link: u32, ip: IpAddr) -> AddressMessage {
    match ip {
        IpAddr::V4(ip) => {
            let mut message = AddressMessageBuilder::<Ipv4Addr>::new().index(link).address(ip, 32).build();
            message.header.scope = AddressScope::Host;
            message
        }
        IpAddr::V6(ip) => {
            let mut message = AddressMessageBuilder::<Ipv6Addr>::new().index(link).address(ip, 128).build();
            message.header.flags = AddressHeaderFlags::Nodad;
            // Deprecated from the first: a scope for this has IPv6 not. [RFC 6724, section 5, rule 3]
            let mut life = CacheInfo::default();
            (life.ifa_preferred, life.ifa_valid) = (0, u32::MAX);
            message.attributes.push(AddressAttribute::CacheInfo(life));
            message
        }
    }
}
