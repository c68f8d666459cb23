//! The room's LAN: a bridge, and a network namespace with one link for every machine on it.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd,
};

use anyhow::{Context, anyhow};
use futures::TryStreamExt;
use ipnet::Ipv4Net;
use minisvc_agent::nft::{Gateway, Nft};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
};
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::AddressHeaderFlags,
        route::{RouteScope, RouteType},
    },
};

/// The room's own address: gateway and DNS of the machines.
pub const ROOM: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// The server's address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
const PREFIX: u8 = 24;
/// Stands for this machine's own loopback addresses, under the name `host.minisvc.internal`.
pub const MACHINE: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 254);
/// Where the relay's sockets for everything that is not of the LAN listen, TCP and UDP.
pub const GATEWAY_PORT: u16 = 173;
/// Pods and services of the cluster: their packets come here only when a node no longer knows the way.
pub const CLUSTER: [Ipv4Net; 2] = [
    Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16),
    Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16),
];
/// The room's own link.
const LINK: &str = "lan0";
const BRIDGE: &str = "bridge";

/// The address of the i-th node, from 1.
pub fn node_ip(i: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, 10_u8.saturating_add(i))
}

/// The IPv6 address of a machine of a dual-stack cluster, by its IPv4 address. Unique local: it means nothing elsewhere.
pub fn second(ip: Ipv4Addr) -> Ipv6Addr {
    Ipv6Addr::new(0xfd69, 0x6d69, 0x6e68, 0, 0, 0, 0, u16::from(ip.octets()[3]))
}
const PREFIX6: u8 = 64;

/// The LAN's range.
pub fn net() -> Ipv4Net {
    Ipv4Net::new_assert(ROOM, PREFIX).trunc()
}

/// Index of the room's own link, for a caller in its network namespace.
pub fn link() -> io::Result<u32> {
    Ok(if_nametoindex(LINK)?)
}

/// A machine on the LAN.
#[derive(Debug)]
pub struct Machine {
    /// `server`, `node-1` ...
    pub name: String,
    /// Its address on the LAN.
    pub ip: Ipv4Addr,
    netns: File,
}

impl Machine {
    /// Runs something on a thread that stands in this machine's network; what it starts and opens stays there.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        within(&self.netns, f).with_context(|| format!("cannot enter the network of {}", self.name))
    }
}

/// Runs something on a thread of its own: a change of namespace ends with it.
fn on_thread<T: Send>(f: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| scope.spawn(f).join()).unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
}

/// The machines, and what joins them.
#[derive(Debug)]
pub struct Lan {
    /// In the order in which they were asked for.
    pub machines: Vec<Machine>,
    /// Holds the bridge. It stands apart: where a bridge is, br_netfilter may put packets through the IP rules before they have
    /// come in, and a transparent socket would never get one.
    _switch: File,
}

/// Lays the LAN, and gives the network namespace of the caller the room's place on it.
/// `ipv6`: every machine has an address of each family.
pub fn lay(machines: &[(String, Ipv4Addr)], ipv6: bool) -> anyhow::Result<Lan> {
    let switch = network().context("no network namespace for the LAN")?;
    let bridge = within(&switch, || {
        with_netlink(async |netlink| {
            netlink.link().add(LinkBridge::new(BRIDGE).build()).execute().await.context("bridge")?;
            up(&netlink, BRIDGE).await
        })
    });
    bridge??;
    with_netlink(async |netlink| up(&netlink, "lo").await)?;
    let here = File::open("/proc/thread-self/ns/net")?;
    plug(&switch, 0, &here, LINK).context("the room's link")?;
    with_netlink(async |netlink| {
        let link = index(&netlink, LINK).await?;
        netlink
            .address()
            .add(link, IpAddr::V4(ROOM), PREFIX)
            .execute()
            .await
            .context("the room's address")?;
        if ipv6 {
            second_address(&netlink, link, ROOM).await?;
        }
        up(&netlink, LINK).await
    })?;
    let attached = machines.iter().enumerate().map(|(i, (name, ip))| attach(&switch, i + 1, name, *ip, ipv6));
    Ok(Lan { machines: attached.collect::<anyhow::Result<_>>()?, _switch: switch })
}

/// A new network namespace.
fn network() -> anyhow::Result<File> {
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    })
}

/// Runs something on a thread that stands in a network.
fn within<T: Send>(netns: &File, f: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    on_thread(|| {
        setns(netns, CloneFlags::CLONE_NEWNET)?;
        Ok(f())
    })
}

/// A link from the i-th port of the bridge into a network.
fn plug(switch: &File, i: usize, into: &File, name: &str) -> anyhow::Result<()> {
    let (port, peer) = (format!("port{i}"), format!("peer{i}"));
    within(switch, || {
        with_netlink(async |netlink| {
            netlink.link().add(LinkVeth::new(&port, &peer).build()).execute().await.context("veth")?;
            let there = index(&netlink, &peer).await?;
            let message =
                LinkUnspec::new_with_index(there).setns_by_fd(into.as_raw_fd()).name(name.to_owned());
            netlink.link().set(message.build()).execute().await.context("moving a link")?;
            let bridge = index(&netlink, BRIDGE).await?;
            let here = index(&netlink, &port).await?;
            let message = LinkUnspec::new_with_index(here).controller(bridge).up().build();
            netlink.link().set(message).execute().await.context("attaching a link to the bridge")
        })
    })?
}

/// Lets the LAN's machines reach this one and what it reaches, as far as the room goes: whatever they send here is taken, for
/// any address, and is brought to the relay's sockets, or is refused. In the network namespace of the caller, which has the LAN.
pub fn open_gateway() -> anyhow::Result<()> {
    let rules = Gateway { lan: net(), machine: MACHINE, nowhere: CLUSTER.to_vec(), port: GATEWAY_PORT };
    Nft::open()?.write_gateway(&rules)?;
    with_netlink(async |netlink| {
        let link = index(&netlink, LINK).await?;
        let address = netlink.address().add(link, IpAddr::V4(MACHINE), 32);
        address.execute().await.with_context(|| format!("address {MACHINE}"))?;
        let lo = index(&netlink, "lo").await?;
        let route = RouteMessageBuilder::<Ipv4Addr>::new().kind(RouteType::Local).scope(RouteScope::Host);
        let route = route.output_interface(lo).build();
        netlink.route().add(route).execute().await.context("route for everything")
    })
}

/// Without looking for others that have it, which takes a second. No route leads out of the LAN: what is outside of it is refused at once.
async fn second_address(netlink: &Handle, link: u32, ip: Ipv4Addr) -> anyhow::Result<()> {
    let mut add = netlink.address().add(link, IpAddr::V6(second(ip)), PREFIX6);
    add.message_mut().header.flags = AddressHeaderFlags::Nodad;
    add.execute().await.context("IPv6 address: has this kernel IPv6, and is it switched on?")
}

fn attach(switch: &File, i: usize, name: &str, ip: Ipv4Addr, ipv6: bool) -> anyhow::Result<Machine> {
    let netns = network().with_context(|| format!("no network namespace for {name}"))?;
    plug(switch, i, &netns, "eth0").with_context(|| format!("the link of {name}"))?;
    let machine = Machine { name: name.to_owned(), ip, netns };
    machine
        .enter(|| {
            with_netlink(async |netlink| {
                up(&netlink, "lo").await?;
                let link = index(&netlink, "eth0").await?;
                netlink.address().add(link, IpAddr::V4(ip), PREFIX).execute().await.context("address")?;
                if ipv6 {
                    second_address(&netlink, link, ip).await?;
                }
                up(&netlink, "eth0").await?;
                let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(ROOM).build();
                netlink.route().add(route).execute().await.context("default route")
            })
        })?
        .with_context(|| format!("the network of {name}"))?;
    Ok(machine)
}

/// Speaks netlink in the network namespace of the calling thread.
fn with_netlink<T>(f: impl AsyncFnOnce(Handle) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        let task = tokio::spawn(connection);
        let result = f(handle).await;
        task.abort();
        result
    })
}

async fn index(netlink: &Handle, name: &str) -> anyhow::Result<u32> {
    let mut links = netlink.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await.with_context(|| format!("link {name}"))?;
    Ok(link
        .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        .with_context(|| name.to_owned())?
        .header
        .index)
}

async fn up(netlink: &Handle, name: &str) -> anyhow::Result<()> {
    let message = LinkUnspec::new_with_index(index(netlink, name).await?).up().build();
    netlink.link().set(message).execute().await.with_context(|| format!("setting {name} up"))
}
