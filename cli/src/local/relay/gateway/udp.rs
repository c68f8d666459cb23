//! UDP: a pair of sockets for everyone who asks and whom it asks, as long as something flows. The one in the room has the address
//! that was asked for, so that answers come from there.

use std::{
    collections::HashMap,
    io::{self, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket as StdSocket},
    os::fd::{AsRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use minisvc_agent::sys::{capture, register};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockType, SockaddrIn, bind, recvmsg, setsockopt, sockopt,
};
use tokio::{
    io::{Interest, Ready},
    net::UdpSocket,
    sync::mpsc,
    task::{AbortHandle, Id, JoinSet},
    time::{Instant, timeout},
};

use super::{Pair, Refusal, segment::datagram_unreachable, targets};
use crate::local::{lan, relay::RoomSockets};

/// A flow is forgotten after this long without a datagram; one that goes to and fro after the other (as connection tracking does).
const IDLE: Duration = Duration::from_secs(30);
const IDLE_STREAM: Duration = Duration::from_mins(3);
/// Answers that make a stream.
const STREAM: u32 = 2;
const LARGEST: usize = 65_535;
/// Datagrams that wait for their flow's sockets; more are dropped, as UDP does.
const QUEUE: usize = 64;
const PAUSE: Duration = Duration::from_millis(50);
const PORT_UNREACHABLE: u8 = 3;

/// Carries until it fails.
pub(super) async fn serve(room: &RoomSockets, most: usize) -> io::Result<()> {
    let (socket, sender) = room.make(|| Ok((arrivals()?, capture::sender()?))).await?;
    let socket = register(socket)?;
    let mut flows = Flows {
        room: room.clone(),
        sender: Arc::new(sender),
        most,
        known: HashMap::new(),
        tasks: JoinSet::new(),
        start: Instant::now(),
        buffer: Arc::new(Mutex::new(vec![0; LARGEST])),
    };
    let mut buffer = vec![0; LARGEST];
    loop {
        tokio::select! {
            ready = socket.readable() => match ready?.try_io(|socket| arrival(socket.get_ref(), &mut buffer)) {
                Ok(Ok((pair, length))) => flows.pass(pair, &buffer[..length]),
                Ok(Err(e)) => {
                    tracing::warn!("datagrams from the LAN: {e}");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_would_block) => {}
            },
            Some(ended) = flows.tasks.join_next_with_id() => {
                // One that was aborted is not known any more.
                if let Ok((id, pair)) = ended {
                    flows.ended(id, pair);
                }
            }
        }
    }
}

/// Where the rules bring the datagrams of flows that have no sockets yet. Made in the room.
fn arrivals() -> io::Result<OwnedFd> {
    let socket = RoomSockets::transparent(SockType::Datagram)?;
    setsockopt(&socket, sockopt::Ipv4OrigDstAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, lan::GATEWAY_PORT))?;
    Ok(socket)
}

fn arrival(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(Pair, usize)> {
    let mut control = nix::cmsg_space!(nix::libc::sockaddr_in);
    let mut parts = [IoSliceMut::new(buffer)];
    let got = recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())?;
    let mut to = None;
    for message in got.cmsgs()? {
        if let ControlMessageOwned::Ipv4OrigDstAddr(address) = message {
            to = Some(SockaddrIn::from(address));
        }
    }
    let (from, to) = got.address.zip(to).ok_or_else(|| io::Error::other("a datagram without addresses"))?;
    let v4 = |a: SockaddrIn| SocketAddrV4::new(a.ip(), a.port());
    Ok(((v4(from), v4(to)), got.bytes))
}

struct Flows {
    room: RoomSockets,
    sender: Arc<OwnedFd>,
    most: usize,
    known: HashMap<Pair, Known>,
    tasks: JoinSet<Pair>,
    start: Instant,
    /// Of all flows: none holds it while it waits, and thousands of their own would be much memory.
    buffer: Arc<Mutex<Vec<u8>>>,
}

struct Known {
    queue: mpsc::Sender<Vec<u8>>,
    /// Milliseconds from the start to its last datagram.
    last: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Flows {
    fn pass(&mut self, pair: Pair, datagram: &[u8]) {
        if let Some(known) = self.known.get(&pair)
            && let Ok(()) | Err(mpsc::error::TrySendError::Full(_)) = known.queue.try_send(datagram.to_vec())
        {
            return;
        }
        let targets = targets(pair.1);
        if targets.is_empty() {
            return;
        }
        if self.known.len() >= self.most {
            // Who has been silent for longest needs it least.
            let idlest =
                self.known.iter().min_by_key(|(_, k)| k.last.load(Ordering::Relaxed)).map(|(p, _)| *p);
            if let Some(known) = idlest.and_then(|pair| self.known.remove(&pair)) {
                known.task.abort();
            }
        }
        let (queue, datagrams) = mpsc::channel(QUEUE);
        let last = Arc::new(AtomicU64::new(0));
        let clock = Clock { start: self.start, last: last.clone() };
        clock.touch();
        let flow = Flow { pair, clock, sender: self.sender.clone(), buffer: self.buffer.clone() };
        let room = self.room.clone();
        let task = self.tasks.spawn(async move {
            if let Err(e) = flow.carry(&room, &targets, datagrams).await {
                tracing::debug!("datagrams of {} to {}: {e}", pair.0, pair.1);
            }
            pair
        });
        // There is room for it: the queue is new.
        let _ = queue.try_send(datagram.to_vec());
        self.known.insert(pair, Known { queue, last, task });
    }

    fn ended(&mut self, id: Id, pair: Pair) {
        if self.known.get(&pair).is_some_and(|known| known.task.id() == id) {
            self.known.remove(&pair);
        }
    }
}

struct Clock {
    start: Instant,
    last: Arc<AtomicU64>,
}

impl Clock {
    fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }
}

struct Flow {
    pair: Pair,
    clock: Clock,
    sender: Arc<OwnedFd>,
    buffer: Arc<Mutex<Vec<u8>>>,
}

impl Flow {
    async fn carry(
        &self,
        room: &RoomSockets,
        targets: &[SocketAddr],
        mut datagrams: mpsc::Receiver<Vec<u8>>,
    ) -> io::Result<()> {
        let (client, at) = self.pair;
        let here = UdpSocket::from_std(room.make(move || connected(at, client)).await?)?;
        here.writable().await?;
        let mut targets = targets.iter();
        let mut there = match dial(targets.next()).await {
            Ok(socket) => socket,
            Err(e) => {
                self.refuse(0, &e);
                return Ok(());
            }
        };
        // Until there is an answer: for the next target, if this one refuses.
        let mut last = Vec::new();
        let mut answers = 0;
        // An ICMP message is an error, and makes nothing readable.
        let heard = Interest::READABLE | Interest::ERROR;
        loop {
            let step = async {
                tokio::select! {
                    biased;
                    Some(datagram) = datagrams.recv() => Ok(Step::Out(datagram)),
                    ready = here.ready(heard) => ready.map(Step::Here),
                    ready = there.ready(heard) => ready.map(Step::There),
                }
            };
            let idle = if answers < STREAM { IDLE } else { IDLE_STREAM };
            let Ok(step) = timeout(idle, step).await else { return Ok(()) };
            self.clock.touch();
            let result = match step? {
                Step::Out(datagram) => {
                    let sent = there.send(&datagram).await.map(drop);
                    last = datagram;
                    sent
                }
                // The client is gone, says its kernel.
                Step::Here(ready) if ready.is_error() => return Ok(()),
                Step::Here(_) => {
                    let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
                    match here.try_recv(&mut buffer) {
                        Ok(length) => {
                            if answers == 0 {
                                last = buffer[..length].to_vec();
                            }
                            there.try_send(&buffer[..length]).map(drop)
                        }
                        Err(e) if e.kind() == io::ErrorKind::WouldBlock => continue,
                        Err(_) => return Ok(()),
                    }
                }
                Step::There(ready) if ready.is_error() => error(&there),
                Step::There(_) => {
                    let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
                    there.try_recv(&mut buffer).map(|length| {
                        answers = (answers + 1).min(STREAM);
                        last = Vec::new();
                        // What does not fit, or finds nobody, is lost as datagrams are.
                        let _ = here.try_send(&buffer[..length]);
                    })
                }
            };
            let Err(e) = result else { continue };
            // Nothing to read after all, no room to send, or larger than any way takes: such a datagram is lost.
            if e.kind() == io::ErrorKind::WouldBlock || e.raw_os_error() == Some(nix::libc::EMSGSIZE) {
                continue;
            }
            let Some(next) = targets.next().filter(|_| answers == 0) else {
                self.refuse(last.len(), &e);
                return Ok(());
            };
            there = dial(Some(next)).await?;
            let _ = there.send(&last).await;
        }
    }

    /// Tells the client what this machine was told.
    fn refuse(&self, size: usize, e: &io::Error) {
        let code = match Refusal::of(e) {
            Refusal::NoService => PORT_UNREACHABLE,
            Refusal::Unreachable(code) => code,
            Refusal::Silence => return,
        };
        let packet = datagram_unreachable(self.pair, size, code);
        // As any ICMP message, it may be lost.
        let _ = capture::send(&*self.sender, &packet, *self.pair.0.ip());
    }
}

enum Step {
    /// A datagram that came before the client's socket was there.
    Out(Vec<u8>),
    /// Something of the client's.
    Here(Ready),
    /// Something of the other side's.
    There(Ready),
}

/// What a socket was told by ICMP.
fn error(socket: &UdpSocket) -> io::Result<()> {
    if let Some(e) = socket.take_error()? {
        return Err(e);
    }
    // Somebody has taken it before: to be told again of the next.
    socket.try_io(Interest::ERROR, || Err(io::ErrorKind::WouldBlock.into()))
}

/// A socket of this machine's that is connected to a target.
async fn dial(target: Option<&SocketAddr>) -> io::Result<UdpSocket> {
    let target = target.ok_or(io::ErrorKind::HostUnreachable)?;
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    // The reactor has seen it: from now on an attempt to send tells whether there is room.
    socket.writable().await?;
    Ok(socket)
}

/// A socket of the room's with somebody else's address, for one client: from now on the rules bring its datagrams here.
fn connected(at: SocketAddrV4, client: SocketAddrV4) -> io::Result<StdSocket> {
    let socket = RoomSockets::transparent(SockType::Datagram)?;
    // Others have asked the same address.
    setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    bind(socket.as_raw_fd(), &SockaddrIn::from(at))?;
    let socket = StdSocket::from(socket);
    socket.connect(client)?;
    Ok(socket)
}
