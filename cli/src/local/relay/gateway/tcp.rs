//! TCP: a client of the LAN gets its connection when the one on this machine is there, and the same refusal if it is refused.
//! The kernel would accept for us before we know: so an opening is held back, and sent on once we do.

use std::{
    collections::HashMap,
    io,
    net::{SocketAddr, SocketAddrV4},
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use minisvc_agent::sys::{capture, register};
use nix::sys::socket::{SockType, setsockopt, sockopt};
use tokio::{
    io::unix::AsyncFd,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{Pair, Refusal, segment::Opening, targets};
use crate::local::{lan, relay::RoomSockets};

/// How long this machine tries for a connection. A client that still waits asks again.
const CONNECT: Duration = Duration::from_mins(1);
/// How long a client may take for its part of a handshake that we have taken up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After something failed that should not: trying at once again would only burn the processor.
const PAUSE: Duration = Duration::from_millis(50);
/// Openings that may wait to be accepted.
const BACKLOG: u32 = 4096;
/// Of each direction of a connection.
const BUFFER: usize = 16 << 10;
/// An opening is one packet of a link.
const LARGEST: usize = 2048;
/// Silence, in seconds, after which the other side is asked whether it is there; pause between questions; questions.
const KEEP_ALIVE: (u32, u32, u32) = (60, 15, 4);

/// Carries until it fails.
pub(super) async fn serve(room: &RoomSockets, most: usize) -> io::Result<()> {
    let (listener, seen, sender) = room
        .make(|| {
            let listener = std::net::TcpListener::from(RoomSockets::transparent(SockType::Stream)?);
            Ok((OwnedFd::from(listener), capture::openings(lan::link()?)?, capture::sender()?))
        })
        .await?;
    let listener = tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(listener));
    listener.set_reuseaddr(true)?;
    listener.bind(SocketAddr::from(([0, 0, 0, 0], lan::GATEWAY_PORT)))?;
    let listener = listener.listen(BACKLOG)?;
    let gateway = Arc::new(Gateway {
        asked: Mutex::default(),
        places: Arc::new(Semaphore::new(most)),
        got: AtomicU64::new(0),
        sender,
    });
    tokio::try_join!(gateway.watch(register(seen)?), gateway.accept(listener)).map(|_| ())
}

struct Gateway {
    /// Connections that clients have asked for and do not have yet.
    asked: Mutex<HashMap<Pair, Asked>>,
    places: Arc<Semaphore>,
    /// How many this machine has got so far.
    got: AtomicU64,
    sender: OwnedFd,
}

enum Asked {
    /// This machine is trying.
    Trying,
    /// It has it, and waits for the client; with a number that tells it from a later one of the same two ends.
    Open(TcpStream, OwnedSemaphorePermit, u64),
}

impl Gateway {
    async fn watch(self: &Arc<Self>, seen: AsyncFd<OwnedFd>) -> io::Result<()> {
        let mut buffer = vec![0; LARGEST];
        loop {
            let mut ready = seen.readable().await?;
            match ready.try_io(|socket| capture::next(socket, &mut buffer)) {
                Ok(Ok(length)) => {
                    if let Some(opening) = Opening::read(&buffer[..length]) {
                        self.clone().asked(opening);
                    }
                }
                Ok(Err(e)) => {
                    tracing::warn!("openings from the LAN: {e}");
                    tokio::time::sleep(PAUSE).await;
                }
                Err(_would_block) => {}
            }
        }
    }

    fn asked(self: Arc<Self>, opening: Opening) {
        let targets = targets(opening.pair.1);
        if targets.is_empty() {
            // The rules refuse it.
            return;
        }
        match self.lock().get(&opening.pair) {
            Some(Asked::Trying) => return,
            // The answer may be lost.
            Some(Asked::Open(..)) => return self.send(&opening.again(), *opening.pair.1.ip()),
            None => {}
        }
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            tracing::warn!("too many connections from the LAN: {} refused", opening.pair.0);
            return self.send(&opening.reset(), *opening.pair.0.ip());
        };
        self.lock().insert(opening.pair, Asked::Trying);
        tokio::spawn(async move {
            match connect(&targets).await {
                Ok(stream) => {
                    let number = self.got.fetch_add(1, Ordering::Relaxed);
                    self.lock().insert(opening.pair, Asked::Open(stream, place, number));
                    self.send(&opening.again(), *opening.pair.1.ip());
                    tokio::time::sleep(HANDSHAKE).await;
                    let mut asked = self.lock();
                    if matches!(asked.get(&opening.pair), Some(Asked::Open(_, _, n)) if *n == number) {
                        asked.remove(&opening.pair);
                    }
                }
                Err(e) => {
                    self.lock().remove(&opening.pair);
                    let answer = match Refusal::of(&e) {
                        Refusal::NoService => opening.reset(),
                        Refusal::Unreachable(code) => opening.unreachable(code),
                        Refusal::Silence => return,
                    };
                    self.send(&answer, *opening.pair.0.ip());
                }
            }
        });
    }

    async fn accept(&self, listener: TcpListener) -> io::Result<()> {
        loop {
            match listener.accept().await {
                Ok((client, from)) => {
                    let asked = pair(from, client.local_addr()).and_then(|pair| self.lock().remove(&pair));
                    // Without a connection to go with it, it is one that we have given up.
                    let Some(Asked::Open(there, place, _)) = asked else {
                        let _ = client.set_zero_linger();
                        continue;
                    };
                    tokio::spawn(async move {
                        let _place = place;
                        carry(client, there).await;
                    });
                }
                Err(e) => {
                    tracing::warn!("accepting a connection from the LAN: {e}");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pair, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A packet that cannot be sent is one that was lost: the client asks again.
    fn send(&self, packet: &[u8], to: std::net::Ipv4Addr) {
        if let Err(e) = capture::send(&self.sender, packet, to) {
            tracing::debug!("a packet into the LAN: {e}");
        }
    }
}

fn pair(from: SocketAddr, to: io::Result<SocketAddr>) -> Option<Pair> {
    let v4 = |address| match address {
        SocketAddr::V4(a) => Some(SocketAddrV4::new(*a.ip(), a.port())),
        SocketAddr::V6(_) => None,
    };
    Some((v4(from)?, v4(to.ok()?)?))
}

/// The first of these that answers; the error is that of the first, which is the one that was meant.
async fn connect(targets: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut first = None;
    for target in targets {
        match timeout(CONNECT, TcpStream::connect(target)).await.unwrap_or_else(|e| Err(e.into())) {
            Ok(stream) => return Ok(stream),
            Err(e) => first = first.or(Some(e)),
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::HostUnreachable.into()))
}

/// Copies both ways. An end of one side's stream is passed on while the other still flows; a slow side slows the other down; one
/// that breaks off breaks the other off.
async fn carry(mut client: TcpStream, mut there: TcpStream) {
    for side in [&client, &there] {
        // Their own options end here: what one side sends at once the other gets at once, and who is gone is found out.
        let _ = side.set_nodelay(true);
        let _ = keep_alive(side);
    }
    if tokio::io::copy_bidirectional_with_sizes(&mut client, &mut there, BUFFER, BUFFER).await.is_err() {
        let _ = client.set_zero_linger();
        let _ = there.set_zero_linger();
    }
}

fn keep_alive(side: &TcpStream) -> nix::Result<()> {
    let (idle, pause, questions) = KEEP_ALIVE;
    setsockopt(side, sockopt::KeepAlive, &true)?;
    setsockopt(side, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(side, sockopt::TcpKeepInterval, &pause)?;
    setsockopt(side, sockopt::TcpKeepCount, &questions)
}
