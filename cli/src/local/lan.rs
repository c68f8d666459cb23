//! The room's LAN: a bridge, and a network namespace with one link for every machine on it.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::AsRawFd,
};

use anyhow::{Context, anyhow};
use futures::TryStreamExt;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder};

/// The room's own address: gateway and DNS of the machines.
pub const ROOM: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);
/// The server's address.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
const PREFIX: u8 = 24;

/// The address of the i-th node, from 1.
pub fn node_ip(i: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 77, 10_u8.saturating_add(i))
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
        on_thread(|| {
            setns(&self.netns, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("cannot enter the network of {}", self.name))?;
            Ok(f())
        })
    }
}

/// Runs something on a thread of its own: a change of namespace ends with it.
fn on_thread<T: Send>(f: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| scope.spawn(f).join()).unwrap_or_else(|_| Err(anyhow!("a thread panicked")))
}

/// Lays the LAN in the network namespace of the caller.
pub fn lay(machines: &[(String, Ipv4Addr)]) -> anyhow::Result<Vec<Machine>> {
    with_netlink(async |netlink| {
        up(&netlink, "lo").await?;
        netlink.link().add(LinkBridge::new("lan0").build()).execute().await.context("bridge lan0")?;
        let bridge = index(&netlink, "lan0").await?;
        netlink.address().add(bridge, IpAddr::V4(ROOM), PREFIX).execute().await.context("address of lan0")?;
        up(&netlink, "lan0").await
    })?;
    machines.iter().enumerate().map(|(i, (name, ip))| attach(i, name, *ip)).collect()
}

fn attach(i: usize, name: &str, ip: Ipv4Addr) -> anyhow::Result<Machine> {
    let netns = on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).with_context(|| format!("no network namespace for {name}"))?;
        Ok(File::open("/proc/thread-self/ns/net")?)
    })?;
    let (port, peer) = (format!("port{i}"), format!("peer{i}"));
    with_netlink(async |netlink| {
        netlink.link().add(LinkVeth::new(&port, &peer).build()).execute().await.context("veth")?;
        let there = index(&netlink, &peer).await?;
        let message = LinkUnspec::new_with_index(there).setns_by_fd(netns.as_raw_fd()).name("eth0").build();
        netlink.link().set(message).execute().await.context("moving a link")?;
        let bridge = index(&netlink, "lan0").await?;
        let here = index(&netlink, &port).await?;
        let message = LinkUnspec::new_with_index(here).controller(bridge).up().build();
        netlink.link().set(message).execute().await.context("attaching a link to the bridge")
    })
    .with_context(|| format!("the link of {name}"))?;
    let machine = Machine { name: name.to_owned(), ip, netns };
    machine
        .enter(|| {
            with_netlink(async |netlink| {
                up(&netlink, "lo").await?;
                let link = index(&netlink, "eth0").await?;
                netlink.address().add(link, IpAddr::V4(ip), PREFIX).execute().await.context("address")?;
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
