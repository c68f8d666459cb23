//! Networks of a test's own: namespaces, a LAN between them, and threads that stand in them. The kernel removes all of it when
//! the last thread, socket and handle is gone, however the test ends.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::Path,
    process::Command,
    thread,
};

use anyhow::{Context, bail};
use futures::TryStreamExt;

use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{
    Handle, LinkBridge, LinkUnspec, LinkVeth, RouteMessageBuilder, packet_route::address::AddressHeaderFlags,
};

const INSIDE: &str = "MINISVC_TEST_IN_USER_NAMESPACE";

/// Runs a test that makes network namespaces. Root may do so; for an ordinary user the test executable is run once more, for
/// this test alone, inside a user namespace. `name` is the test's path as the harness knows it.
pub fn isolated(name: &str, test: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() || std::env::var_os(INSIDE).is_some() {
        return test();
    }
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--net", "--mount"]).arg(std::env::current_exe()?);
    let output =
        command.args(["--exact", name, "--nocapture"]).env(INSIDE, "1").output().context("unshare")?;
    let told = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || !told.contains("1 passed") {
        bail!("inside a user namespace: {told}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// A network namespace, alive as long as this handle or anything in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    file: File,
}

impl Namespace {
    /// A new one, `lo` up.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let file = on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET).context("no network namespace")?;
            netlink(async |handle| up(&handle, 1).await)?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        })?;
        Ok(Namespace { name: name.to_owned(), file })
    }

    /// One that is there already, such as `/proc/PID/ns/net`.
    pub fn open(name: &str, file: &Path) -> anyhow::Result<Self> {
        let file = File::open(file).with_context(|| format!("{name}: {}", file.display()))?;
        Ok(Namespace { name: name.to_owned(), file })
    }

    /// For messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A handle of its own for whoever wants to put something inside.
    pub fn fd(&self) -> anyhow::Result<OwnedFd> {
        Ok(self.file.as_fd().try_clone_to_owned()?)
    }

    /// Does something on a thread that stands inside; what it opens stays there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        on_thread(|| {
            self.step_in()?;
            work()
        })
        .with_context(|| format!("in {}", self.name))
    }

    /// A thread that stands inside until its work is done.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> anyhow::Result<thread::JoinHandle<anyhow::Result<T>>> {
        let file = self.file.try_clone()?;
        Ok(thread::Builder::new().name(self.name.clone()).spawn(move || {
            setns(file.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?)
    }

    /// Runs a future inside, on a runtime of its own.
    pub fn block_on<T: Send>(
        &self,
        work: impl AsyncFnOnce() -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.enter(|| runtime()?.block_on(work()))
    }

    /// What a program prints that stands inside.
    pub fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        self.enter(|| {
            let path = "/usr/sbin:/sbin:/usr/bin:/bin";
            let output = Command::new(program).args(args).env("PATH", path).output();
            let output = output.with_context(|| format!("{program}: tests/run --install brings it"))?;
            if !output.status.success() {
                let error = String::from_utf8_lossy(&output.stderr);
                bail!("{program} {args:?}: {}: {error}", output.status);
            }
            Ok(String::from_utf8(output.stdout)?)
        })
    }

    fn step_in(&self) -> anyhow::Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).context("entering")
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// A bridge in a namespace of its own, and machines on it.
#[derive(Debug)]
pub struct Lan {
    hub: Namespace,
    gateway: Ipv4Addr,
    ports: usize,
}

impl Lan {
    /// An empty LAN; `gateway` is the address of the bridge, the default route of every machine.
    pub fn new(gateway: Ipv4Addr) -> anyhow::Result<Self> {
        let lan = Self::switch(gateway)?;
        lan.hub.block_on(async || {
            with_handle(async |handle| {
                let bridge = index(&handle, "lan0").await?;
                Ok(handle.address().add(bridge, IpAddr::V4(gateway), 24).execute().await?)
            })
            .await
        })?;
        Ok(lan)
    }

    /// An empty LAN whose bridge has no address: somebody else, see [`Lan::connect`], is the gateway.
    pub fn switch(gateway: Ipv4Addr) -> anyhow::Result<Self> {
        let hub = Namespace::new("lan")?;
        hub.block_on(async || {
            with_handle(async |handle| {
                handle.link().add(LinkBridge::new("lan0").build()).execute().await?;
                let bridge = index(&handle, "lan0").await?;
                up(&handle, bridge).await
            })
            .await
        })?;
        Ok(Lan { hub, gateway, ports: 0 })
    }

    /// The namespace of the bridge: the world outside of the cluster.
    pub fn hub(&self) -> &Namespace {
        &self.hub
    }

    /// A machine with this address (/24) on its `eth0`.
    pub fn machine(&mut self, name: &str, ip: Ipv4Addr) -> anyhow::Result<Namespace> {
        let machine = Namespace::new(name)?;
        self.connect(&machine, "eth0", ip)?;
        let gateway = self.gateway;
        machine.block_on(async || {
            with_handle(async |handle| {
                let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).build();
                Ok(handle.route().add(route).execute().await?)
            })
            .await
        })?;
        Ok(machine)
    }

    /// Gives a machine a link to this LAN with this address (/24). Returns the name of the bridge's port.
    pub fn connect(&mut self, machine: &Namespace, link: &str, ip: Ipv4Addr) -> anyhow::Result<String> {
        self.ports += 1;
        let (port, peer) = (format!("port{}", self.ports), format!("peer{}", self.ports));
        self.hub.block_on(async || {
            with_handle(async |handle| {
                handle.link().add(LinkVeth::new(&port, &peer).build()).execute().await?;
                let there = index(&handle, &peer).await?;
                let moved = LinkUnspec::new_with_index(there).setns_by_fd(machine.file.as_raw_fd());
                handle.link().set(moved.name(link.to_owned()).build()).execute().await?;
                let (here, bridge) = (index(&handle, &port).await?, index(&handle, "lan0").await?);
                let member = LinkUnspec::new_with_index(here).controller(bridge).up().build();
                Ok(handle.link().set(member).execute().await?)
            })
            .await
        })?;
        machine.block_on(async || {
            with_handle(async |handle| {
                let link = index(&handle, link).await?;
                handle.address().add(link, IpAddr::V4(ip), 24).execute().await?;
                up(&handle, link).await
            })
            .await
        })?;
        Ok(port)
    }

    /// Gives a machine's link an address of IPv6 (/64) beside the one it has.
    pub fn second_address(machine: &Namespace, link: &str, ip: Ipv6Addr) -> anyhow::Result<()> {
        machine.block_on(async || {
            with_handle(async |handle| {
                let mut add = handle.address().add(index(&handle, link).await?, IpAddr::V6(ip), 64);
                // Nobody else has it, and a test has no second to make sure.
                add.message_mut().header.flags = AddressHeaderFlags::Nodad;
                Ok(add.execute().await?)
            })
            .await
        })
    }

    /// The name of the bridge's port that was made last.
    pub fn last_port(&self) -> String {
        format!("port{}", self.ports)
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn on_thread<T: Send>(work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Speaks rtnetlink in the namespace of the calling thread.
pub fn netlink<T>(work: impl AsyncFnOnce(Handle) -> anyhow::Result<T>) -> anyhow::Result<T> {
    runtime()?.block_on(with_handle(work))
}

async fn with_handle<T>(work: impl AsyncFnOnce(Handle) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let (connection, handle, _) = rtnetlink::new_connection()?;
    let task = tokio::spawn(connection);
    let result = work(handle).await;
    task.abort();
    result
}

/// Index of a link in the namespace that the handle speaks to.
pub async fn index(handle: &Handle, name: &str) -> anyhow::Result<u32> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await.with_context(|| format!("link {name}"))?;
    Ok(link.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?.header.index)
}

async fn up(handle: &Handle, index: u32) -> anyhow::Result<()> {
    Ok(handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await?)
}
