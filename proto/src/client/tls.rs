//! The client's side of TLS, with the ring provider and nothing of the system's.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{ClientError, kubeconfig::Access};

pub(super) fn client_config(access: &Access, alpn: &[&[u8]]) -> Result<ClientConfig, ClientError> {
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
    let mut config = match &access.identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let certs = CertificateDer::pem_slice_iter(cert)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| bad("client-certificate-data", &e))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| bad("client-key-data", &e))?;
            builder.with_client_auth_cert(certs, key).map_err(|e| bad("client-certificate-data", &e))?
        }
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(config)
}
