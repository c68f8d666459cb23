//! The cluster's own certificate authority, and the certificates that it gives.
//!
//! On disk there is the CA alone. The server's own certificates are made at each start: they always name the addresses that it
//! has now, and their keys never leave its memory.

mod authority;
pub mod files;
pub mod issue;
pub mod request;
pub mod serving;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::crypto::{CryptoProvider, ring};

use self::authority::Authority;
pub use self::{
    issue::{Issued, Validity},
    request::{Request, RequestError},
    serving::{Reached, Serving},
};

/// Who may do everything.
pub const MASTERS: &str = "system:masters";
/// The group of all nodes.
pub const NODES: &str = "system:nodes";
/// What the name of a node's user starts with.
pub const NODE_PREFIX: &str = "system:node:";
/// The server's name when it speaks to an agent's API.
pub const SERVER_USER: &str = "minisvc-server";
const ADMIN_USER: &str = "minisvc-admin";

/// Why there are no certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// No CA was made yet.
    #[error("{} holds no CA yet: the server makes it at its first start", .0.display())]
    NoCa(PathBuf),
    /// One half of the CA is there without the other.
    #[error("{} is there, but {} is not: restore it from a backup, or remove both to make a new CA (all credentials end with the old one)", certificate.display(), key.display())]
    Half {
        /// The certificate.
        certificate: PathBuf,
        /// The key.
        key: PathBuf,
    },
    /// A file is there and is not what it should be.
    #[error("{}: {why}", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Issue(String),
}

impl From<rcgen::Error> for PkiError {
    fn from(e: rcgen::Error) -> Self {
        PkiError::Issue(e.to_string())
    }
}

impl From<rustls::Error> for PkiError {
    fn from(e: rustls::Error) -> Self {
        PkiError::Issue(e.to_string())
    }
}

/// The name in a node's certificate, by which the server knows the node's API. Below a domain of its own: a node may be called like
/// the API server's machine, and its certificate must not serve to pose as that.
pub fn node_tls_name(node: &str) -> String {
    format!("{node}.nodes.minisvc.internal")
}

/// The CA.
pub struct Pki {
    authority: Authority,
}

impl Pki {
    /// The CA in `dir`, made if there is none yet.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        Ok(Pki { authority: Authority::open(dir)? })
    }

    /// The CA in `dir`, to give credentials with.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        Ok(Pki { authority: Authority::load(dir)? })
    }

    /// The CA's certificate in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.authority.pem
    }

    /// SHA-256 of the CA's key (SubjectPublicKeyInfo in DER) in hex digits: what a join token knows it by.
    pub fn ca_hash(&self) -> &str {
        &self.authority.hash
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_path_buf();
    move |cause| PkiError::File { path, cause }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

#[cfg(test)]
mod tests;
