//! Connections: TLS, who is at the other end, HTTP/1.1 and HTTP/2, and the limits that keep one client from costing all others.

use std::{io, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::http::User;

/// What clients may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections with a certificate.
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
            anonymous: 64,
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
    known: Arc<Semaphore>,
    anonymous: Arc<Semaphore>,
    shutdown: CancellationToken,
}

/// Serves until `shutdown`, then lets the answers under way finish.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    limits: Limits,
    shutdown: CancellationToken,
) {
    let handshakes = Arc::new(Semaphore::new(limits.handshakes));
    let server = Arc::new(Server {
        acceptor: TlsAcceptor::from(tls),
        router,
        limits,
        known: Arc::new(Semaphore::new(limits.connections)),
        anonymous: Arc::new(Semaphore::new(limits.anonymous)),
        shutdown: shutdown.clone(),
    });
    let tasks = TaskTracker::new();
    let abort = CancellationToken::new();
    loop {
        let next = async {
            // Those who come while too many shake hands wait in the kernel's queue. The semaphore is never closed.
            let permit = handshakes.clone().acquire_owned().await.ok();
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((tcp, _)) => {
                let (server, abort) = (server.clone(), abort.clone());
                tasks.spawn(async move {
                    tokio::select! { () = abort.cancelled() => {}, () = server.connection(tcp, permit) => {} }
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
    async fn connection(&self, tcp: TcpStream, handshake: Option<OwnedSemaphorePermit>) {
        let _ = tcp.set_nodelay(true);
        let shaken = tokio::select! {
            () = self.shutdown.cancelled() => return,
            shaken = timeout(self.limits.handshake_time, self.acceptor.accept(tcp)) => shaken,
        };
        drop(handshake);
        let stream = match shaken.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).flatten() {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(%error, "a TLS handshake failed"),
        };
        let Some(user) = user_of(&stream) else {
            return tracing::warn!("a certificate of this CA cannot be read");
        };
        let pool = if user.is_anonymous() { &self.anonymous } else { &self.known };
        let Ok(_permit) = pool.clone().try_acquire_owned() else {
            return tracing::warn!(user = %user.name, "there are too many connections: one was closed");
        };
        self.serve(stream, user).await;
    }

    async fn serve(&self, stream: TlsStream<TcpStream>, user: User) {
        let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        let lifetime = if user.is_anonymous() { self.limits.anonymous_time } else { Duration::MAX };
        let user = Arc::new(user);
        let service = self.router.clone().map_request(move |mut request: http::Request<_>| {
            request.extensions_mut().insert(user.clone());
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
        Some(certificate) => user_in(certificate),
    }
}

fn user_in(der: &[u8]) -> Option<User> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| Some(o.as_str().ok()?.to_owned())).collect();
    let identity =
        subject.iter_organizational_unit().next().and_then(|ou| Some(ou.as_str().ok()?.to_owned()));
    Some(User { name, groups, identity })
}
