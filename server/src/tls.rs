//! Connections: TLS, who is at the other end, HTTP/1.1 and HTTP/2, and the limits that keep one client from costing all others.

mod greeting;
mod places;

use std::{
    fmt::Debug,
    hash::Hash,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use self::places::{Place, Places};
use crate::{
    http::{Peer, User},
    identity::Identities,
    sparse::Sparse,
};

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections with a certificate. Of these, those without one and those that shake hands, the oldest of the user or address
    /// that has most gives way to a newcomer.
    pub connections: usize,
    /// Connections without one.
    pub anonymous: usize,
    /// Handshakes that are not done.
    pub handshakes: usize,
    /// How long a handshake may take.
    pub handshake_time: Duration,
    /// How long the head of an HTTP/1.1 request may take to come, the wait for its first byte included.
    pub header_time: Duration,
    /// How long a connection without a certificate lives: it has nothing to see but whether the server is well.
    pub anonymous_time: Duration,
    /// How long answers that are under way at the end may take.
    pub end_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            connections: 4096,
            anonymous: 256,
            handshakes: 128,
            handshake_time: Duration::from_secs(5),
            header_time: Duration::from_secs(30),
            anonymous_time: Duration::from_secs(30),
            end_time: Duration::from_secs(3),
        }
    }
}

/// How often an HTTP/2 client that says nothing is asked whether it lives, and how long it may take to answer.
const PING: Duration = Duration::from_secs(15);
const MAX_STREAMS: u32 = 256;
const MAX_HEAD: usize = 32 << 10;
/// After an accept that failed for want of resources.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

struct Server {
    acceptor: TlsAcceptor,
    router: Router,
    limits: Limits,
    identities: Arc<Identities>,
    handshakes: Arc<Places<IpAddr>>,
    known: Arc<Places<String>>,
    anonymous: Arc<Places<IpAddr>>,
    /// What strangers may write into the log.
    refusals: Sparse,
    crowds: Sparse,
    shutdown: CancellationToken,
}

/// Serves until `shutdown`, then lets the answers under way finish.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    identities: Arc<Identities>,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let server = Arc::new(Server {
        acceptor: TlsAcceptor::from(tls),
        router,
        limits,
        identities,
        handshakes: Places::new(limits.handshakes),
        known: Places::new(limits.connections),
        anonymous: Places::new(limits.anonymous),
        refusals: Sparse::default(),
        crowds: Sparse::default(),
        shutdown: shutdown.clone(),
    });
    let tasks = TaskTracker::new();
    let abort = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let (server, abort) = (server.clone(), abort.clone());
                let (place, _) = server.handshakes.take(peer.ip());
                tasks.spawn(async move {
                    tokio::select! { () = abort.cancelled() => {}, () = server.connection(tcp, peer, place) => {} }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // Newcomers are refused at once, not left in the queue.
    drop(listener);
    tasks.close();
    if timeout(limits.end_time, tasks.wait()).await.is_err() {
        tracing::warn!(connections = tasks.len(), "connections were cut at the end");
        abort.cancel();
        tasks.wait().await;
    }
}

impl Server {
    async fn connection(&self, tcp: TcpStream, peer: SocketAddr, place: Place<IpAddr>) {
        let _ = tcp.set_nodelay(true);
        let shaken = tokio::select! {
            () = self.shutdown.cancelled() => return,
            () = place.lost() => return tracing::debug!(%peer, "a handshake gave way to others"),
            shaken = timeout(self.limits.handshake_time, self.greet(tcp, peer)) => shaken,
        };
        drop(place);
        let stream = match shaken {
            Err(_) => return tracing::debug!(%peer, "a handshake was not done in time"),
            Ok(None) => return,
            Ok(Some(stream)) => stream,
        };
        let Some(user) = user_of(&stream) else {
            return tracing::warn!(%peer, "a certificate of this CA cannot be read");
        };
        if user.is_anonymous() {
            let place = self.seat(&self.anonymous, peer.ip(), peer);
            self.serve_until_lost(&place, stream, user, peer).await;
        } else {
            let place = self.seat(&self.known, user.name.clone(), peer);
            self.serve_until_lost(&place, stream, user, peer).await;
        }
    }

    /// Takes a place, and says where that drove somebody out.
    fn seat<K: Clone + Eq + Hash + Debug>(
        &self,
        places: &Arc<Places<K>>,
        who: K,
        peer: SocketAddr,
    ) -> Place<K> {
        let (place, lost) = places.take(who);
        if let Some(lost) = lost
            && let Some(left_out) = self.crowds.may(Instant::now())
        {
            tracing::warn!(%peer, who = ?lost, left_out, "there are too many connections: the oldest of who has most was closed");
        }
        place
    }

    async fn serve_until_lost<K>(
        &self,
        place: &Place<K>,
        stream: TlsStream<TcpStream>,
        user: User,
        peer: SocketAddr,
    ) {
        // What goes on in a node's connections ends with its certificate's life.
        let revoked = self.identities.until_revoked(&user);
        // TLS looks at a certificate's end in the handshake alone.
        let left = user.until.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default());
        tokio::select! {
            () = sleep(left.unwrap_or(Duration::MAX)) => tracing::info!(%peer, user = user.name, "a certificate has ended: so does its connection"),
            () = place.lost() => {}
            () = revoked.cancelled() => {}
            () = self.serve(stream, user.clone(), peer) => {}
        }
    }

    /// TLS with whoever speaks it; `None` if that came to nothing, which is said where it matters.
    async fn greet(&self, tcp: TcpStream, peer: SocketAddr) -> Option<TlsStream<TcpStream>> {
        match greeting::is_tls(&tcp).await {
            Ok(true) => {}
            Ok(false) => {
                self.refuse(peer, "it speaks no TLS (plain HTTP, perhaps)");
                greeting::refuse_plain(tcp).await;
                return None;
            }
            Err(_) => return None,
        }
        match self.acceptor.accept(tcp).into_fallible().await {
            Ok(stream) => Some(stream),
            Err((error, mut tcp)) => {
                if let Some(meaning) = greeting::meaning(&error) {
                    self.refuse(peer, &meaning);
                } else {
                    tracing::debug!(%peer, %error, "a TLS handshake failed");
                }
                let _ = greeting::linger(&mut tcp).await;
                None
            }
        }
    }

    fn refuse(&self, peer: SocketAddr, why: &str) {
        if let Some(left_out) = self.refusals.may(Instant::now()) {
            tracing::warn!(%peer, left_out, "a client was refused: {why}");
        }
    }

    async fn serve(&self, stream: TlsStream<TcpStream>, user: User, peer: SocketAddr) {
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let lifetime = if user.is_anonymous() { self.limits.anonymous_time } else { Duration::MAX };
        let user = Arc::new(user);
        let service = self.router.clone().map_request(move |mut request: http::Request<_>| {
            request.extensions_mut().insert(user.clone());
            request.extensions_mut().insert(Peer(peer));
            request
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.header_time)
            .max_buf_size(MAX_HEAD)
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
        // What was agreed in the handshake is not guessed from the first bytes, which would wait for them without a limit.
        let builder = if is_h2 { builder.http2_only() } else { builder.http1_only() };
        let connection =
            builder.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(service));
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.end_of(lifetime) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke off");
        }
    }

    async fn end_of(&self, lifetime: Duration) {
        // A sleep that would never end overflows into the far future, which is as good.
        tokio::select! { () = self.shutdown.cancelled() => {}, () = sleep(lifetime) => {} }
    }
}

/// Who is at the other end; `None` if its certificate cannot be read.
fn user_of(stream: &TlsStream<TcpStream>) -> Option<User> {
    match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        None => Some(User::anonymous()),
        Some(certificate) => User::read(certificate),
    }
}
