//! The sockets.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    answer::{Code, Transport, Verdict, failure, followed, judge},
    question::Question,
    upstream::{ask, is_truncated, plain_question, read_message, records, write_message},
    zone::SharedZone,
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
    zone: SharedZone,
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
        zone: SharedZone,
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
        let verdict = shared.judge(message, Transport::Udp);
        match verdict {
            Verdict::Ignore => {}
            Verdict::Answer(answer) => send(&socket, &answer, from).await,
            elsewhere => {
                let (shared, socket, question) = (shared.clone(), socket.clone(), message.to_vec());
                waiting.spawn(async move {
                    if let Some(answer) = shared.complete(elsewhere, &question, Transport::Udp).await {
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
        let verdict = shared.judge(&message, Transport::Tcp);
        let Some(answer) = shared.complete(verdict, &message, Transport::Tcp).await else { return };
        if !matches!(timeout(IDLE, write_message(&mut stream, &answer)).await, Ok(Ok(()))) {
            return;
        }
    }
}

impl Shared {
    fn judge(&self, message: &[u8], transport: Transport) -> Verdict {
        judge(&self.zone.read(), message, transport, rand::random())
    }

    /// The answer after others were asked, if that is what the verdict says.
    async fn complete(&self, verdict: Verdict, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match verdict {
            Verdict::Ignore => None,
            Verdict::Answer(answer) => Some(answer),
            Verdict::Forward => match self.forward(message, transport).await {
                Some(answer) => Some(answer),
                None => Some(failure(&Question::parse(message).ok()?, Code::ServFail)),
            },
            Verdict::Follow(aliases) => {
                let question = Question::parse(message).ok()?;
                let asked = plain_question(aliases.last()?, question.kind);
                let found = match self.forward(&asked, transport).await {
                    // What is too long for UDP is asked again over TCP, by us.
                    Some(answer) if is_truncated(&answer) => self.forward(&asked, Transport::Tcp).await,
                    other => other,
                };
                let found = found.and_then(|answer| records(&answer));
                let (code, records) = found.unwrap_or((Code::ServFail, Vec::new()));
                Some(followed(&question, transport, &aliases, (code, &records)))
            }
        }
    }

    async fn forward(&self, question: &[u8], transport: Transport) -> Option<Vec<u8>> {
        match self.forwarded.try_acquire() {
            Ok(_place) => ask(&self.upstreams, question, transport).await,
            Err(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
