//! The node's key, and the request to certify it.

use minisvc_proto::join::CertificateRequest;
use rcgen::{CertificateParams, KeyPair};

use super::IdentityError;

/// A new key; it leaves this process only into a file of mode 0600.
pub struct Key(KeyPair);

impl Key {
    /// Makes one: ECDSA on P-256.
    pub fn new() -> Result<Self, IdentityError> {
        KeyPair::generate().map(Key).map_err(|e| IdentityError::Key(e.to_string()))
    }

    /// The request. The server decides what names the certificate gets.
    pub fn request(&self) -> Result<CertificateRequest, IdentityError> {
        let request = CertificateParams::default().serialize_request(&self.0);
        let csr = request.and_then(|r| r.pem()).map_err(|e| IdentityError::Key(e.to_string()))?;
        Ok(CertificateRequest { csr })
    }

    /// As PEM.
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }
}
