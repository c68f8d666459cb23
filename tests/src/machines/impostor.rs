//! Somebody who stands where a server should be, and keeps what is told to it.

#![allow(clippy::unwrap_used, reason = "a test kit: what cannot go on fails the test here")]

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use minisvc_proto::client::kubeconfig::Credentials;
use minisvc_server::pki::{Pki, Reached, Serving};
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::{io::AsyncReadExt as _, net::TcpListener, sync::oneshot};
use tokio_rustls::TlsAcceptor;

use crate::netns::Namespace;

/// What an impostor has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Connections that came.
    pub connections: usize,
    /// Handshakes that the client completed.
    pub handshakes: usize,
    /// What was said over them.
    pub heard: Vec<u8>,
}

/// A TLS server that answers nothing.
pub struct Impostor {
    seen: Arc<Mutex<Seen>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<anyhow::Result<()>>>>,
}

impl Impostor {
    /// Listens when this returns.
    pub fn start(at: &Namespace, address: SocketAddr, shows: impl ResolvesServerCert + 'static) -> Self {
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(shows));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (ready, listening) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let shared = seen.clone();
        let thread = at.spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
                let listener = TcpListener::bind(address).await?;
                ready.send(())?;
                tokio::select! {
                    result = listen(listener, TlsAcceptor::from(Arc::new(config)), shared) => result,
                    _ = stopped => Ok(()),
                }
            })
        });
        listening.recv().unwrap();
        Impostor { seen, stop: Some(stop), thread: Some(thread.unwrap()) }
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn listen(listener: TcpListener, tls: TlsAcceptor, seen: Arc<Mutex<Seen>>) -> anyhow::Result<()> {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        seen.lock().unwrap().connections += 1;
        let (tls, seen) = (tls.clone(), seen.clone());
        connections.spawn(async move {
            let Ok(mut stream) = tls.accept(stream).await else { return };
            seen.lock().unwrap().handshakes += 1;
            let mut bytes = [0; 4096];
            while let Ok(n @ 1..) = stream.read(&mut bytes).await {
                seen.lock().unwrap().heard.extend(&bytes[..n]);
            }
        });
    }
}

/// Shows a certificate of a CA of its own, for the right address.
#[derive(Debug)]
pub struct OfAnotherCa {
    serving: Arc<Serving>,
    /// Shown after its own, whatever it proves.
    more: Vec<CertificateDer<'static>>,
}

impl OfAnotherCa {
    /// Keeps the CA in a directory.
    pub fn new(dir: &Path, ip: IpAddr, more: Vec<CertificateDer<'static>>) -> Self {
        let serving = Pki::open(dir).unwrap().serving(Reached::new([], [ip])).unwrap();
        OfAnotherCa { serving, more }
    }
}

impl ResolvesServerCert for OfAnotherCa {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = self.serving.resolve(hello)?;
        let chain = own.cert.iter().chain(&self.more).cloned().collect();
        Some(Arc::new(CertifiedKey::new(chain, own.key.clone())))
    }
}

/// Shows the certificate of a node of the cluster, of which it has the key.
#[derive(Debug)]
pub struct WithStolenKey(Arc<CertifiedKey>);

impl WithStolenKey {
    /// What is in a node's kubeconfig.
    pub fn new(stolen: &Credentials) -> Self {
        let pem = [&stolen.certificate[..], &stolen.ca].concat();
        let chain = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(&stolen.key).unwrap();
        WithStolenKey(Arc::new(CertifiedKey::from_der(chain, key, &ring::default_provider()).unwrap()))
    }
}

impl ResolvesServerCert for WithStolenKey {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}
