//! The client's side of TLS, with the ring provider and nothing of the system's.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, client::WantsClientCert, crypto::ring};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::{ClientError, Identity, kubeconfig::Access, trust::Pinned};

/// Trusts the CA of a kubeconfig.
pub(super) fn client_config(
    access: &Access,
    identity: Option<&Arc<Identity>>,
    alpn: &[&[u8]],
) -> Result<ClientConfig, ClientError> {
    let bad = |what: &str, why: &dyn std::fmt::Display| ClientError::Tls(format!("{what}: {why}"));
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(&access.ca) {
        let cert = cert.map_err(|e| bad("certificate-authority-data", &e))?;
        roots.add(cert).map_err(|e| bad("certificate-authority-data", &e))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| bad("protocol versions", &e))?
        .with_root_certificates(roots);
    Ok(with_identity(builder, identity, alpn))
}

/// Trusts the CA whose key has this hash.
pub(super) fn pinned_config(ca_hash: &str, alpn: &[&[u8]]) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| ClientError::Tls(format!("protocol versions: {e}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned::new(ca_hash, provider)));
    Ok(with_identity(builder, None, alpn))
}

fn with_identity(
    builder: rustls::ConfigBuilder<ClientConfig, WantsClientCert>,
    identity: Option<&Arc<Identity>>,
    alpn: &[&[u8]],
) -> ClientConfig {
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => builder.with_client_cert_resolver(identity.clone()),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    config
}
