//! Load that costs little itself: one thread with epoll on either side, so that what is measured is the kernel's way.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream},
    ops::Range,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use minisvc_tests::netns::Namespace;
use nix::{
    errno::Errno,
    sys::{
        epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, connect, getsockopt, socket, sockopt::SocketError,
        },
    },
    unistd,
};

/// Connections that a client has open at any time.
const IN_FLIGHT: usize = 16;
const MESSAGE: [u8; 64] = [b'.'; 64];
/// Until all connections are under way, and caches warm from what a new table costs.
const WARM: Duration = Duration::from_millis(50);
/// A client that sees nothing for so long is stuck.
const PATIENCE_MS: u16 = 5000;
/// How often a server looks whether it should end.
const LOOK_MS: u16 = 50;
const CHUNK: usize = 128 << 10;

/// A thread that serves until this is dropped.
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<anyhow::Result<()>>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(Ok(())))) | None => {}
            other => eprintln!("a server of the load ended badly: {other:?}"),
        }
    }
}

fn spawn(
    at: &Namespace,
    ports: Range<u16>,
    serve: impl FnOnce(Vec<TcpListener>, &AtomicBool) -> anyhow::Result<()> + Send + 'static,
) -> anyhow::Result<Server> {
    let listeners = at.enter(|| {
        let bind = |port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port));
        Ok(ports.map(bind).collect::<Result<Vec<_>, _>>()?)
    })?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let thread = at.spawn(move || serve(listeners, &stopped))?;
    Ok(Server { stop, thread: Some(thread) })
}

/// On each of these ports: accepts, reads a request, replies, closes.
pub fn request_server(at: &Namespace, ports: Range<u16>) -> anyhow::Result<Server> {
    spawn(at, ports, |listeners, stop| {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut listening: Vec<Option<TcpListener>> = Vec::new();
        let mut open: Vec<Option<TcpStream>> = Vec::new();
        for listener in listeners {
            listener.set_nonblocking(true)?;
            watch(&epoll, &listener, EpollFlags::EPOLLIN)?;
            put(&mut listening, listener);
        }
        let mut events = [EpollEvent::empty(); 64];
        let mut request = [0; MESSAGE.len()];
        while !stop.load(Ordering::Relaxed) {
            let count = wait(&epoll, &mut events, LOOK_MS)?;
            for event in &events[..count] {
                let at = event.data() as usize;
                if let Some(Some(listener)) = listening.get(at) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            watch(&epoll, &stream, EpollFlags::EPOLLIN)?;
                            put(&mut open, stream);
                        }
                        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                        Err(e) => return Err(e.into()),
                    }
                } else if let Some(mut stream) = open.get_mut(at).and_then(Option::take) {
                    // A client that ends in the middle of a connection at the end of its time is no fault.
                    if matches!(stream.read(&mut request), Ok(n) if n > 0) {
                        let _ = stream.write(&MESSAGE);
                    }
                }
            }
        }
        Ok(())
    })
}

/// On each of these ports: accepts, says which port it is, closes.
pub fn port_server(at: &Namespace, ports: Range<u16>) -> anyhow::Result<Server> {
    spawn(at, ports, |listeners, stop| {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut listening: Vec<Option<TcpListener>> = Vec::new();
        for listener in listeners {
            listener.set_nonblocking(true)?;
            watch(&epoll, &listener, EpollFlags::EPOLLIN)?;
            put(&mut listening, listener);
        }
        let mut events = [EpollEvent::empty(); 64];
        while !stop.load(Ordering::Relaxed) {
            let count = wait(&epoll, &mut events, LOOK_MS)?;
            for event in &events[..count] {
                let Some(Some(listener)) = listening.get(event.data() as usize) else { continue };
                match listener.accept() {
                    Ok((mut stream, at)) => {
                        let port = stream.local_addr()?.port();
                        stream.write_all(&port.to_be_bytes()).with_context(|| format!("answer {at}"))?;
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    })
}

/// Makes so many connections to a [`port_server`], one after the other, and returns the ports that answered.
pub fn ports_reached(at: &Namespace, to: (Ipv4Addr, u16), connections: usize) -> anyhow::Result<Vec<u16>> {
    at.enter(|| {
        let one = || {
            let mut port = [0; 2];
            TcpStream::connect(to)?.read_exact(&mut port)?;
            Ok(u16::from_be_bytes(port))
        };
        (0..connections).map(|_| one()).collect()
    })
    .with_context(|| format!("connections to {to:?}"))
}

/// Connections per second: connect, request, reply, close, [`IN_FLIGHT`] at a time, from a thread in the namespace.
#[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub fn connections_per_second(at: &Namespace, to: (Ipv4Addr, u16), time: Duration) -> anyhow::Result<f64> {
    let to = SocketAddrV4::new(to.0, to.1);
    at.enter(|| {
        let mut client =
            Client { to: to.into(), epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?, open: Vec::new() };
        for _ in 0..IN_FLIGHT {
            client.begin()?;
        }
        client.run(WARM)?;
        let began = Instant::now();
        let done = client.run(time)?;
        Ok(done as f64 / began.elapsed().as_secs_f64())
    })
    .with_context(|| format!("connections to {to}"))
}

struct Client {
    to: SockaddrIn,
    epoll: Epoll,
    /// By descriptor, with whether the request is sent.
    open: Vec<Option<(OwnedFd, bool)>>,
}

impl Client {
    fn begin(&mut self) -> anyhow::Result<()> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        match connect(socket.as_raw_fd(), &self.to) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(e) => return Err(e).context("connect"),
        }
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        watch(&self.epoll, &socket, flags)?;
        let at = socket.as_raw_fd().cast_unsigned() as usize;
        self.open.resize_with(self.open.len().max(at + 1), || None);
        self.open[at] = Some((socket, false));
        Ok(())
    }

    /// How many connections are over after this time.
    fn run(&mut self, time: Duration) -> anyhow::Result<u64> {
        let until = Instant::now() + time;
        let mut done = 0;
        let mut events = [EpollEvent::empty(); 64];
        while Instant::now() < until {
            let count = wait(&self.epoll, &mut events, PATIENCE_MS)?;
            if count == 0 {
                bail!("no connection has come forward for {PATIENCE_MS} ms");
            }
            for event in &events[..count] {
                if self.advance(event)? {
                    done += 1;
                    self.begin()?;
                }
            }
        }
        Ok(done)
    }

    /// Whether the connection is over.
    fn advance(&mut self, event: &EpollEvent) -> anyhow::Result<bool> {
        let at = event.data() as usize;
        let Some(Some((socket, asked))) = self.open.get_mut(at) else { return Ok(false) };
        if event.events().contains(EpollFlags::EPOLLERR) {
            bail!("{}", Errno::from_raw(getsockopt(socket, SocketError)?));
        }
        if !*asked && event.events().contains(EpollFlags::EPOLLOUT) {
            unistd::write(&*socket, &MESSAGE).context("request")?;
            *asked = true;
        }
        let mut reply = [0; 2 * MESSAGE.len()];
        while *asked && event.events().contains(EpollFlags::EPOLLIN) {
            match unistd::read(&*socket, &mut reply) {
                Ok(0) => {
                    self.open[at] = None;
                    return Ok(true);
                }
                Ok(_) => {}
                Err(Errno::EAGAIN) => break,
                Err(e) => return Err(e).context("reply"),
            }
        }
        Ok(false)
    }
}

/// Reads all that comes, and says at its end how much it was.
pub fn sink_server(at: &Namespace, ports: Range<u16>) -> anyhow::Result<Server> {
    spawn(at, ports, |listeners, stop| {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for listener in &listeners {
            watch(&epoll, listener, EpollFlags::EPOLLIN)?;
        }
        let mut events = [EpollEvent::empty(); 16];
        let mut chunk = vec![0; CHUNK];
        while !stop.load(Ordering::Relaxed) {
            let count = wait(&epoll, &mut events, LOOK_MS)?;
            for event in &events[..count] {
                let ready =
                    listeners.iter().find(|l| u64::from(l.as_raw_fd().cast_unsigned()) == event.data());
                let Some(listener) = ready else { continue };
                let mut stream = listener.accept()?.0;
                let mut total = 0u64;
                loop {
                    match stream.read(&mut chunk)? {
                        0 => break,
                        n => total += n as u64,
                    }
                }
                stream.write_all(&total.to_be_bytes())?;
            }
        }
        Ok(())
    })
}

/// Bytes per second through one connection to a [`sink_server`], until the last byte has arrived.
#[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub fn bytes_per_second(at: &Namespace, to: (Ipv4Addr, u16), time: Duration) -> anyhow::Result<f64> {
    at.enter(|| {
        let mut stream = TcpStream::connect(to)?;
        let chunk = vec![b'.'; CHUNK];
        let began = Instant::now();
        while began.elapsed() < time {
            stream.write_all(&chunk)?;
        }
        stream.shutdown(Shutdown::Write)?;
        let mut total = [0; 8];
        stream.read_exact(&mut total)?;
        Ok(u64::from_be_bytes(total) as f64 / began.elapsed().as_secs_f64())
    })
    .with_context(|| format!("bulk to {to:?}"))
}

fn watch(epoll: &Epoll, what: &(impl AsFd + AsRawFd), flags: EpollFlags) -> anyhow::Result<()> {
    Ok(epoll.add(what, EpollEvent::new(flags, u64::from(what.as_raw_fd().cast_unsigned())))?)
}

fn wait(epoll: &Epoll, events: &mut [EpollEvent], ms: u16) -> anyhow::Result<usize> {
    match epoll.wait(events, EpollTimeout::from(ms)) {
        Err(Errno::EINTR) => Ok(0),
        other => Ok(other?),
    }
}

fn put<T: AsRawFd>(all: &mut Vec<Option<T>>, one: T) {
    let at = one.as_raw_fd().cast_unsigned() as usize;
    all.resize_with(all.len().max(at + 1), || None);
    all[at] = Some(one);
}
