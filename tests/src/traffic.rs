//! Servers and clients that say who they are: every answer holds the server's name and the client's address as the server saw it.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::oneshot,
};

use crate::netns::Namespace;

/// How long a client waits for what must come. What must not come is asked with [`SILENCE`].
const PATIENCE: Duration = Duration::from_secs(10);
/// How long silence must last to count as silence.
pub const SILENCE: Duration = Duration::from_millis(300);

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    /// Which server.
    pub server: String,
    /// The client's address as the server saw it.
    pub client: SocketAddr,
}

impl Answer {
    fn parse(text: &[u8]) -> anyhow::Result<Self> {
        let text = std::str::from_utf8(text)?;
        let (server, client) = text.trim().split_once(' ').with_context(|| format!("answer {text:?}"))?;
        Ok(Answer { server: server.to_owned(), client: client.parse()? })
    }
}

/// A server for TCP and UDP on one port of every address of a namespace. It answers every TCP byte and every datagram with one line.
#[derive(Debug)]
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<anyhow::Result<anyhow::Result<()>>>>,
}

impl Server {
    /// Listens at every address when this returns.
    pub fn start(at: &Namespace, port: u16) -> anyhow::Result<Self> {
        Self::start_on(at, Ipv4Addr::UNSPECIFIED, port)
    }

    /// Listens at one address, and answers from it.
    pub fn start_on(at: &Namespace, ip: impl Into<IpAddr>, port: u16) -> anyhow::Result<Self> {
        let ip = ip.into();
        let (ready, listening) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let name = at.name().to_owned();
        let thread = at.spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let tcp = tokio::net::TcpListener::bind((ip, port)).await?;
                let udp = tokio::net::UdpSocket::bind((ip, port)).await?;
                ready.send(())?;
                tokio::select! {
                    result = serve(&name, &tcp, &udp) => result,
                    _ = stopped => Ok(()),
                }
            })
        })?;
        if listening.recv().is_err() {
            let ended = thread.join().map_err(|_| anyhow::anyhow!("the server panicked"))?;
            anyhow::bail!("{name} cannot listen on {port}: {ended:?}", name = at.name());
        }
        Ok(Server { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(name: &str, tcp: &tokio::net::TcpListener, udp: &tokio::net::UdpSocket) -> anyhow::Result<()> {
    let mut connections = tokio::task::JoinSet::new();
    let mut datagram = [0; 2048];
    loop {
        tokio::select! {
            accepted = tcp.accept() => {
                let (mut stream, client) = accepted?;
                let line = format!("{name} {client}\n");
                connections.spawn(async move {
                    let mut byte = [0];
                    while stream.read_exact(&mut byte).await.is_ok() {
                        if stream.write_all(line.as_bytes()).await.is_err() {
                            return;
                        }
                    }
                });
            }
            received = udp.recv_from(&mut datagram) => {
                // Errors are the ICMP answers to earlier datagrams.
                if let Ok((_, client)) = received {
                    let _ = udp.send_to(format!("{name} {client}\n").as_bytes(), client).await;
                }
            }
        }
    }
}

/// An open TCP connection.
#[derive(Debug)]
pub struct Connection(TcpStream);

impl Connection {
    /// Connects from the calling thread's namespace.
    pub fn open(to: impl Into<SocketAddr>) -> io::Result<Self> {
        Self::within(to, PATIENCE)
    }

    /// Connects, or gives up with `TimedOut`.
    pub fn within(to: impl Into<SocketAddr>, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to.into(), patience)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Connection(stream))
    }

    /// One question, one answer.
    pub fn ask(&mut self) -> anyhow::Result<Answer> {
        self.0.write_all(b"?")?;
        let mut line = Vec::new();
        let mut byte = [0];
        while line.last() != Some(&b'\n') {
            self.0.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        Answer::parse(&line)
    }
}

/// A new TCP connection, one answer.
pub fn tcp(to: (Ipv4Addr, u16)) -> anyhow::Result<Answer> {
    tcp_to(to.into())
}

/// The same, of either family.
pub fn tcp_to(to: SocketAddr) -> anyhow::Result<Answer> {
    Connection::open(to).with_context(|| format!("connecting to {to}"))?.ask()
}

/// A connected UDP socket.
#[derive(Debug)]
pub struct Flow(UdpSocket);

impl Flow {
    /// From the calling thread's namespace.
    pub fn open(to: impl Into<SocketAddr>) -> io::Result<Self> {
        let to = to.into();
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Flow(socket))
    }

    /// One question, one answer; an ICMP error is an error.
    pub fn ask(&self) -> io::Result<Answer> {
        self.0.send(b"?")?;
        let mut datagram = [0; 2048];
        let length = self.0.recv(&mut datagram)?;
        Answer::parse(&datagram[..length]).map_err(io::Error::other)
    }

    /// The same, for what should stay silent: `WouldBlock` after a while.
    pub fn ask_within(&self, patience: Duration) -> io::Result<Answer> {
        self.0.set_read_timeout(Some(patience))?;
        let answer = self.ask();
        self.0.set_read_timeout(Some(PATIENCE))?;
        answer
    }
}

/// A new UDP flow, one answer.
pub fn udp(to: (Ipv4Addr, u16)) -> anyhow::Result<Answer> {
    udp_to(to.into())
}

/// The same, of either family.
pub fn udp_to(to: SocketAddr) -> anyhow::Result<Answer> {
    Flow::open(to)?.ask().with_context(|| format!("asking {to} over UDP"))
}
