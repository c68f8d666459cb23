//! The pod's side of its link, set from a thread that enters the pod's network and is thrown away.

use std::{net::Ipv4Addr, os::fd::BorrowedFd};

use netlink_packet_route::route::RouteScope;
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
};
use rtnetlink::{AddressMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::{
    GATEWAY, LinkName, NetError,
    kernel::{Netlink, Refused, block_on},
    links,
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

/// `lo` and `eth0` up, the pod's address, and everything else through the gateway.
pub(super) async fn configure(netlink: &Netlink, mtu: u32, ip: Ipv4Addr) -> Result<(), NetError> {
    // The loopback link is the first of every namespace.
    let lo = LinkUnspec::new_with_index(1).up().build();
    netlink.handle.link().set(lo).execute().await.refused("set up", "lo in the pod")?;
    let found = netlink.link(LINK).await?;
    let link = found.ok_or_else(|| NetError::Kernel {
        operation: "find",
        object: format!("{LINK} in the pod {ip}"),
        errno: Errno::ENODEV,
    })?;
    let up = LinkUnspec::new_with_index(link.index).mtu(mtu).up().build();
    netlink.handle.link().set(up).execute().await.refused("set up", format!("{LINK} in the pod {ip}"))?;
    let address = netlink.handle.address().add(link.index, ip.into(), 32).replace();
    address.execute().await.refused("give the pod its address", ip)?;
    links::gateway(netlink, &link).await?;
    let on_link = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(GATEWAY, 32)
        .output_interface(link.index)
        .scope(RouteScope::Link)
        .build();
    let default =
        RouteMessageBuilder::<Ipv4Addr>::new().gateway(GATEWAY).output_interface(link.index).build();
    for route in [on_link, default] {
        let add = netlink.handle.route().add(route).replace();
        add.execute().await.refused("route", format!("the pod {ip} through {GATEWAY}"))?;
    }
    Ok(())
}

/// An address that is valid on this machine only.
pub(super) fn host_address(link: u32, ip: Ipv4Addr) -> netlink_packet_route::address::AddressMessage {
    let mut message = AddressMessageBuilder::<Ipv4Addr>::new().index(link).address(ip, 32).build();
    message.header.scope = netlink_packet_route::address::AddressScope::Host;
    message
}
