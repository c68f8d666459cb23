//! The first contact with a server of which we know the hash of its CA's key and nothing else.

use std::{error::Error, fmt, sync::Arc};

use rustls::{
    DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::digest::sha256_hex;

/// As much of a hash as people compare.
const SHOWN: usize = 12;

/// SHA-256, in lower-case hex digits, of a certificate's public key (its SubjectPublicKeyInfo in DER); `None` if it is no certificate.
pub fn key_hash(certificate: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(sha256_hex(certificate.public_key().raw))
}

/// Takes a server whose chain holds the CA with the right hash, and whose certificate that CA gave for the name that was asked for.
#[derive(Debug)]
pub(super) struct Pinned {
    ca_hash: String,
    provider: Arc<CryptoProvider>,
}

impl Pinned {
    pub(super) fn new(ca_hash: &str, provider: Arc<CryptoProvider>) -> Self {
        Pinned { ca_hash: ca_hash.to_owned(), provider }
    }
}

/// The server is of another cluster, or somebody stands in between.
#[derive(Debug)]
struct AnotherCa {
    wanted: String,
    /// That of the last certificate that the server showed.
    found: Option<String>,
}

impl fmt::Display for AnotherCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |hash: &str| hash.chars().take(SHOWN).collect::<String>();
        let found = self.found.as_deref().map_or_else(|| "none".to_owned(), short);
        write!(
            f,
            "the server is not of the token's cluster: its CA's hash starts with {found}, the token names {}; take the token \
             from this server (`minisvc token create`), or the right --server",
            short(&self.wanted)
        )
    }
}

impl Error for AnotherCa {}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let right = |c: &&CertificateDer<'_>| key_hash(c).as_deref() == Some(self.ca_hash.as_str());
        let Some(ca) = intermediates.iter().find(right) else {
            let found = key_hash(intermediates.last().unwrap_or(end_entity));
            let error = AnotherCa { wanted: self.ca_hash.clone(), found };
            return Err(rustls::Error::Other(OtherError(Arc::new(error))));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::Other(OtherError(Arc::new(e))))?
            .verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
