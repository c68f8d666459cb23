//! The sockets.

mod quota;
mod tcp;
mod udp;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;

use self::quota::{Place, Quota};
use super::{
    answer::{Code, Transport, Verdict, failure, followed, judge},
    forward::Forwarder,
    question::Question,
    zone::SharedZone,
};

/// Questions of all clients, and of one, that wait for resolvers at a time; one more is refused.
const WAITING: (usize, usize) = (1024, 256);
/// TCP connections of all clients, and of one.
const CONNECTIONS: (usize, usize) = (256, 32);

/// Whom to ask for names outside the zone.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The servers in this file, which may change.
    pub resolv_conf: PathBuf,
    /// Never these, as they are ourselves.
    pub own: Vec<IpAddr>,
}

/// What answers are made of.
struct Shared {
    zone: SharedZone,
    forwarder: Arc<Forwarder>,
    waiting: Quota,
    connections: Quota,
}

/// What is known at once of a message.
enum Judged {
    /// Nothing is said.
    Ignored,
    Answered(Vec<u8>),
    /// Others have to be asked.
    Open(Open),
}

/// A question whose answer takes time.
struct Open {
    message: Vec<u8>,
    transport: Transport,
    /// The names that it leads through, if it is one of ours.
    aliases: Vec<Vec<u8>>,
    place: Place,
}

/// Sockets that are open but not served yet.
#[derive(Debug)]
pub struct Listeners(Vec<(std::net::UdpSocket, TcpListener)>);

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
            let udp = udp::bind(tcp.local_addr()?).map_err(name)?;
            pairs.push((udp, tcp));
        }
        Ok(Listeners(pairs))
    }

    /// Where they listen.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.0.iter().map(|(udp, _)| udp.local_addr()).collect()
    }

    /// Answers until cancelled: the zone's names from the zone as it is then, all others by asking the resolvers.
    pub async fn serve(
        self,
        zone: SharedZone,
        upstream: Upstream,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let forwarder = Arc::new(Forwarder::new(upstream.resolv_conf, upstream.own));
        self.serve_with(zone, forwarder, shutdown).await
    }

    async fn serve_with(
        self,
        zone: SharedZone,
        forwarder: Arc<Forwarder>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let shared = Arc::new(Shared {
            zone,
            forwarder,
            waiting: Quota::new(WAITING),
            connections: Quota::new(CONNECTIONS),
        });
        // Ends with us, and its tasks and threads with it.
        let mut sockets = JoinSet::new();
        for (udp, tcp) in self.0 {
            sockets.spawn(udp::serve(shared.clone(), udp));
            let shared = shared.clone();
            sockets.spawn(async move {
                tcp::serve(shared, tcp).await;
                Ok(())
            });
        }
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            Some(ended) = sockets.join_next() => {
                let why = match ended {
                    Ok(Ok(())) => "it ended".to_owned(),
                    Ok(Err(error)) => error.to_string(),
                    Err(error) => error.to_string(),
                };
                Err(io::Error::other(format!("DNS: a socket is not served any more: {why}")))
            }
        }
    }
}

impl Shared {
    fn judge(&self, message: &[u8], from: IpAddr, transport: Transport) -> Judged {
        let verdict = judge(&self.zone.read(), message, transport, rand::random());
        let aliases = match verdict {
            Verdict::Ignore => return Judged::Ignored,
            Verdict::Answer(answer) => return Judged::Answered(answer),
            Verdict::Forward => Vec::new(),
            Verdict::Follow(aliases) => aliases,
        };
        let Ok(question) = Question::parse(message) else { return Judged::Ignored };
        if aliases.is_empty()
            && let Some(answer) = self.forwarder.kept(&question, transport)
        {
            return Judged::Answered(answer);
        }
        match self.waiting.take(from) {
            Some(place) => Judged::Open(Open { message: message.to_vec(), transport, aliases, place }),
            None => Judged::Answered(failure(&question, Code::ServFail)),
        }
    }

    /// The answer after others were asked.
    async fn complete(&self, open: Open) -> Vec<u8> {
        let Open { message, transport, aliases, place: _place } = open;
        // It has been one.
        let Ok(question) = Question::parse(&message) else { return Vec::new() };
        let Some(last) = aliases.last() else { return self.forwarder.answer(&question, transport).await };
        let found = self.forwarder.records(last, question.kind).await;
        let (code, records) = found.unwrap_or((Code::ServFail, Vec::new()));
        followed(&question, transport, &aliases, (code, &records))
    }
}

#[cfg(test)]
mod tests;
