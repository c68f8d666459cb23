//! Connections to the agent's API.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use minisvc_proto::client::{ClientError, kubeconfig::Credentials};
use rustls::{RootCertStore, ServerConfig, crypto::ring, server::WebPkiClientVerifier};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
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

/// The common name of who is at the other end; none without a certificate of the cluster's CA.
#[derive(Clone, Debug)]
pub struct Peer(pub Option<String>);

/// The node's certificate serves, the cluster's CA says who may ask.
pub fn server_config(credentials: &Credentials) -> Result<Arc<ServerConfig>, ClientError> {
    let bad = |what: &str, why: &dyn std::fmt::Display| ClientError::Tls(format!("{what}: {why}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&credentials.ca) {
        let certificate = certificate.map_err(|e| bad("certificate-authority-data", &e))?;
        roots.add(certificate).map_err(|e| bad("certificate-authority-data", &e))?;
    }
    let provider = Arc::new(ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|e| bad("certificate-authority-data", &e))?;
    let chain = CertificateDer::pem_slice_iter(&credentials.certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad("client-certificate-data", &e))?;
    let key = PrivateKeyDer::from_pem_slice(&credentials.key).map_err(|e| bad("client-key-data", &e))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("protocol versions", &e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| bad("client-certificate-data", &e))?;
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
    let peer = Peer(common_name(&stream));
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

fn common_name(stream: &TlsStream<TcpStream>) -> Option<String> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    Some(name)
}
