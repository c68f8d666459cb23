//! The sockets.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use hickory_proto::op::ResponseCode;
use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    answer::{Transport, Verdict, failure, judge},
    upstream::{ask, read_message, write_message},
    zone::Zone,
};

const LARGEST: usize = 65_535;
/// Forwarded questions that wait at once; a question more is refused, so that a dead resolver costs bounded memory.
const MOST_FORWARDED: usize = 1024;
/// TCP clients at once, for an address.
const MOST_CLIENTS: usize = 256;
/// How long a TCP client may say nothing, or take to say or hear something.
const IDLE: Duration = Duration::from_secs(10);
/// Pause after an error of a socket that goes on afterwards (no memory, no file descriptors).
const AFTER_ERROR: Duration = Duration::from_millis(50);

/// What answers are made of.
struct Shared {
    zone: Arc<ArcSwap<Zone>>,
    upstreams: Vec<SocketAddr>,
    forwarded: Semaphore,
}

/// Sockets that are open but not served yet.
#[derive(Debug)]
pub struct Listeners(Vec<(UdpSocket, TcpListener)>);

impl Listeners {
    /// Opens UDP and TCP on each address.
    pub async fn bind(addresses: &[SocketAddr]) -> io::Result<Self> {
        let mut pairs = Vec::new();
        for address in addresses {
            let name = |e: io::Error| {
                let advice = match e.kind() {
                    io::ErrorKind::AddrInUse => {
                        ": does another agent run on this machine, or a name server that takes all its addresses? Stop that one"
                    }
                    _ => "",
                };
                io::Error::new(e.kind(), format!("DNS on {address}: {e}{advice}"))
            };
            // A socket for each address: the answer then leaves from where the question went.
            let tcp = TcpListener::bind(address).await.map_err(name)?;
            // Port 0 gives one port for both.
            let udp = UdpSocket::bind(tcp.local_addr()?).await.map_err(name)?;
            pairs.push((udp, tcp));
        }
        Ok(Listeners(pairs))
    }

    /// Where they listen.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.0.iter().map(|(udp, _)| udp.local_addr()).collect()
    }

    /// Answers until cancelled: the zone's names from the newest zone, all others by asking `upstreams` in turn.
    pub async fn serve(
        self,
        zone: Arc<ArcSwap<Zone>>,
        upstreams: Vec<SocketAddr>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let shared = Arc::new(Shared { zone, upstreams, forwarded: Semaphore::new(MOST_FORWARDED) });
        // Ends with us, and its tasks with it.
        let mut sockets = JoinSet::new();
        for (udp, tcp) in self.0 {
            sockets.spawn(serve_udp(shared.clone(), Arc::new(udp)));
            sockets.spawn(serve_tcp(shared.clone(), tcp));
        }
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            Some(ended) = sockets.join_next() => {
                let why = ended.err().map_or_else(|| "it ended".to_owned(), |e| e.to_string());
                Err(io::Error::other(format!("DNS: a socket's task died: {why}")))
            }
        }
    }
}

async fn serve_udp(shared: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut waiting = JoinSet::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        let (length, from) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                Err(error) => {
                    tracing::warn!(%error, "DNS over UDP");
                    sleep(AFTER_ERROR).await;
                    continue;
                }
            },
            Some(_) = waiting.join_next() => continue,
        };
        let message = &buffer[..length];
        match judge(&shared.zone.load(), message, Transport::Udp) {
            Verdict::Ignore => {}
            Verdict::Answer(answer) => send(&socket, &answer, from).await,
            Verdict::Forward => {
                let (shared, socket, question) = (shared.clone(), socket.clone(), message.to_vec());
                waiting.spawn(async move {
                    if let Some(answer) = shared.forward(&question, Transport::Udp).await {
                        send(&socket, &answer, from).await;
                    }
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    // A client that went away, or a full buffer: the client asks again if it still wants to know.
    if let Err(error) = socket.send_to(answer, to).await {
        tracing::debug!(%error, %to, "a DNS answer was not sent");
    }
}

async fn serve_tcp(shared: Arc<Shared>, listener: TcpListener) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if clients.len() < MOST_CLIENTS => accepted,
            Some(_) = clients.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                clients.spawn(serve_client(shared.clone(), stream));
            }
            Err(error) => {
                tracing::warn!(%error, "DNS over TCP");
                sleep(AFTER_ERROR).await;
            }
        }
    }
}

/// One question after the other until the client has none.
async fn serve_client(shared: Arc<Shared>, mut stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    while let Ok(Ok(message)) = timeout(IDLE, read_message(&mut stream)).await {
        let verdict = judge(&shared.zone.load(), &message, Transport::Tcp);
        let answer = match verdict {
            Verdict::Ignore => None,
            Verdict::Answer(answer) => Some(answer),
            Verdict::Forward => shared.forward(&message, Transport::Tcp).await,
        };
        let Some(answer) = answer else { return };
        if !matches!(timeout(IDLE, write_message(&mut stream, &answer)).await, Ok(Ok(()))) {
            return;
        }
    }
}

impl Shared {
    async fn forward(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let answer = match self.forwarded.try_acquire() {
            Ok(_place) => ask(&self.upstreams, question, transport).await,
            Err(_) => None,
        };
        answer.or_else(|| failure(question, ResponseCode::ServFail))
    }
}

#[cfg(test)]
mod tests;
