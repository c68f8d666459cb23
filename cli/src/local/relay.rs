//! The relay: stands in this machine's network, holds the listening sockets there, and speaks to the room through sockets that
//! one of its threads opens inside the room's network. A socket belongs to the network in which it was made, for good.

mod dns;
mod gateway;
mod services;

use std::{
    collections::BTreeSet,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{Arc, PoisonError, RwLock, mpsc},
    time::Duration,
};

use anyhow::{Context, anyhow};
use minisvc_agent::{
    plan::Proto,
    relay::{Dial, Door, DoorKey, NodeIps},
};
use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, setsockopt, socket, sockopt},
};
use tokio::{
    net::{TcpStream, UdpSocket},
    sync::oneshot,
    time::timeout,
};

use super::{args::UpArgs, lan, paths::Paths};

/// Runs the relay until it is killed with the room.
pub fn run(args: &UpArgs, paths: &Paths) -> anyhow::Result<()> {
    crate::logging::start();
    let pid = args.room_pid.context("--room-pid is missing")?;
    let netns = File::open(format!("/proc/{pid}/ns/net")).context("the room's network cannot be opened")?;
    let room = RoomSockets::open(netns)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = SocketAddr::new(lan::SERVER.into(), super::SERVER_PORT);
        let api = IntoRoom { room: room.clone(), targets: Targets::Fixed(server) };
        let _api = Door::open(Proto::Tcp, args.api_port, api)
            .await
            .with_context(|| format!("the API's port {} on 127.0.0.1", args.api_port))?;
        tokio::spawn(dns::serve(room.clone()));
        if !args.no_host_access {
            tokio::spawn(gateway::serve(room.clone()));
        }
        services::follow(paths, room).await
    })
}

/// Makes sockets inside the room's network.
#[derive(Clone)]
pub struct RoomSockets(mpsc::Sender<Work>);

/// Something to be done on the thread that stands in the room's network.
type Work = Box<dyn FnOnce() + Send>;

impl RoomSockets {
    fn open(netns: File) -> anyhow::Result<Self> {
        let (sender, requests) = mpsc::channel::<Work>();
        let (entered, result) = mpsc::channel();
        std::thread::Builder::new().name("room-sockets".into()).spawn(move || {
            let inside = setns(&netns, CloneFlags::CLONE_NEWNET);
            if entered.send(inside).is_err() || inside.is_err() {
                return;
            }
            for work in requests {
                work();
            }
        })?;
        result.recv()?.context("the room's network cannot be entered")?;
        Ok(RoomSockets(sender))
    }

    /// Makes something that belongs to the network in which it is made. It must not block: others wait behind.
    pub async fn make<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (answer, result) = oneshot::channel();
        let work = Box::new(move || {
            // Who asked may have given up; then what was made closes here.
            let _ = answer.send(make());
        });
        self.0.send(work).map_err(|_| io::Error::other("the room's thread ended"))?;
        result.await.map_err(|_| io::Error::other("the room's thread ended"))?
    }

    /// A socket of the thread's network that may have any address, also one that is somebody else's.
    pub fn transparent(kind: SockType) -> io::Result<OwnedFd> {
        let socket = plain(kind)?;
        setsockopt(&socket, sockopt::IpTransparent, &true)?;
        Ok(socket)
    }

    /// An unconnected TCP socket in the room.
    pub async fn tcp(&self) -> io::Result<tokio::net::TcpSocket> {
        let stream = std::net::TcpStream::from(self.make(|| plain(SockType::Stream)).await?);
        Ok(tokio::net::TcpSocket::from_std_stream(stream))
    }

    /// A TCP connection in the room.
    pub async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = self.make(move || of_family(family, SockType::Stream)).await?;
        tokio::net::TcpSocket::from_std_stream(socket.into()).connect(to).await
    }

    /// A UDP socket in the room.
    pub async fn udp(&self, bind: SocketAddr) -> io::Result<UdpSocket> {
        let family = if bind.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let fd = self.make(move || of_family(family, SockType::Datagram)).await?;
        let address = SockaddrStorage::from(bind);
        nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address)?;
        UdpSocket::from_std(std::net::UdpSocket::from(fd))
    }
}

/// A socket of the thread's network that never blocks.
fn plain(kind: SockType) -> io::Result<OwnedFd> {
    of_family(AddressFamily::Inet, kind)
}

fn of_family(family: AddressFamily, kind: SockType) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, kind, flags, None)?)
}

/// Who serves: the API server, or the nodes that are ready now.
#[derive(Clone, Debug)]
pub enum Targets {
    /// Always the same address.
    Fixed(SocketAddr),
    /// Any ready node, at a nodePort.
    Nodes(Nodes, DoorKey),
}

/// What is known of nodes and their ports. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Nodes {
    /// The addresses of the ready ones: of IPv4, and of IPv6 where they have it.
    pub ready: Arc<RwLock<Vec<NodeIps>>>,
    /// The nodePorts of services of IPv6 alone: they answer at no IPv4 address.
    pub only6: Arc<RwLock<BTreeSet<DoorKey>>>,
}

impl Targets {
    /// The addresses in the order in which to try them: at random, so that every node gets its share.
    pub fn in_random_order(&self) -> Vec<SocketAddr> {
        match self {
            Targets::Fixed(address) => vec![*address],
            Targets::Nodes(nodes, door) => {
                use rand::seq::SliceRandom;
                let only6 = nodes.only6.read().unwrap_or_else(PoisonError::into_inner).contains(door);
                let ready = nodes.ready.read().unwrap_or_else(PoisonError::into_inner);
                let of = |(v4, v6): &NodeIps| {
                    if only6 { v6.map(IpAddr::V6) } else { Some(IpAddr::V4(*v4)) }
                };
                let mut list: Vec<_> =
                    ready.iter().filter_map(of).map(|ip| SocketAddr::new(ip, door.1)).collect();
                list.shuffle(&mut rand::rng());
                list
            }
        }
    }
}

/// Through the wall, to one of the targets.
#[derive(Clone)]
pub struct IntoRoom {
    /// Makes the sockets.
    pub room: RoomSockets,
    /// Who serves.
    pub targets: Targets,
}

impl Dial for IntoRoom {
    async fn tcp(&self) -> io::Result<TcpStream> {
        let mut last = no_target();
        for target in self.targets.in_random_order() {
            match timeout(CONNECT, self.room.connect(target)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(e)) => last = e,
                Err(_) => last = io::ErrorKind::TimedOut.into(),
            }
        }
        Err(last)
    }

    async fn udp(&self) -> io::Result<UdpSocket> {
        let target = self.targets.in_random_order().into_iter().next().ok_or_else(no_target)?;
        let any: IpAddr =
            if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = self.room.udp(SocketAddr::new(any, 0)).await?;
        socket.connect(target).await?;
        Ok(socket)
    }
}

/// How long a node may take to accept a connection before another one is tried.
const CONNECT: Duration = Duration::from_secs(3);

/// What is said when no target can be had.
fn no_target() -> io::Error {
    io::Error::other(anyhow!("no node is ready"))
}
