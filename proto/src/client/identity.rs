//! A certificate with its key that can be changed while connections come and go.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::ClientError;

/// Who we are to the other side of a connection, as client or as server. New connections show what was set last; those that are
/// there already stay.
#[derive(Debug)]
pub struct Identity(ArcSwap<CertifiedKey>);

impl Identity {
    /// From PEM: the certificate (with those between it and the CA) and its key.
    pub fn new(certificate: &[u8], key: &[u8]) -> Result<Self, ClientError> {
        Ok(Identity(ArcSwap::from_pointee(certified(certificate, key)?)))
    }

    /// Shows another certificate from now on.
    pub fn replace(&self, certificate: &[u8], key: &[u8]) -> Result<(), ClientError> {
        self.0.store(Arc::new(certified(certificate, key)?));
        Ok(())
    }
}

fn certified(certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, ClientError> {
    let bad = |what: &str, why: &dyn std::fmt::Display| ClientError::Tls(format!("{what}: {why}"));
    let chain = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bad("client-certificate-data", &e))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad("client-key-data", &e))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider())
        .map_err(|e| bad("client-certificate-data", &e))
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}
