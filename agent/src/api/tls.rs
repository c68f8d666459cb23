//! Connections to the agent's API.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use minisvc_proto::client::{ClientError, Identity};
use rustls::{RootCertStore, ServerConfig, crypto::ring, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;
use x509_parser::prelude::{FromDer, X509Certificate};

/// One connection per log that is followed and per command.
const CONNECTIONS: usize = 512;
const HANDSHAKE: Duration = Duration::from_secs(5);
const HEAD: Duration = Duration::from_secs(10);
/// After an accept that failed for want of resources.
const PAUSE: Duration = Duration::from_millis(100);

/// Who is at the other end; none without a certificate of the cluster's CA.
#[derive(Clone, Debug, Default)]
pub struct Peer(pub Option<Subject>);

/// Whom a certificate names.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its common name.
    pub name: String,
    /// Its organisations.
    pub groups: Vec<String>,
}

/// The node's identity serves, the cluster's CA (in PEM) says who may ask.
pub fn server_config(ca: &[u8], identity: Arc<Identity>) -> Result<Arc<ServerConfig>, ClientError> {
    let bad = |what: &str, why: &dyn std::fmt::Display| ClientError::Tls(format!("{what}: {why}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca) {
        let certificate = certificate.map_err(|e| bad("certificate-authority-data", &e))?;
        roots.add(certificate).map_err(|e| bad("certificate-authority-data", &e))?;
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| bad("certificate-authority-data", &e))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("protocol versions", &e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(identity);
    // A WebSocket needs HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until cancelled.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(_) = tasks.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            tracing::warn!("too many logs and commands at a time: one is refused");
            continue;
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tasks.spawn(async move {
            connection(stream, acceptor, router).await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let peer = Peer(subject(&stream));
    let service = router.map_request(move |mut request: http::Request<_>| {
        request.extensions_mut().insert(peer.clone());
        request
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection broke off");
    }
}

fn subject(stream: &TlsStream<TcpStream>) -> Option<Subject> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| Some(o.as_str().ok()?.to_owned())).collect();
    Some(Subject { name, groups })
}
