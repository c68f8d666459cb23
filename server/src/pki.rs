//! The cluster's own certificate authority, and the certificates that it gives.
//!
//! On disk there is the CA alone. The server's own certificates are made at each start: they always name the addresses that it
//! has now, and their keys never leave its memory.

pub mod files;

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use minisvc_proto::NodeName;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject};
use serde_json::json;

/// Who may do everything.
pub const MASTERS: &str = "system:masters";
/// The group of all nodes.
pub const NODES: &str = "system:nodes";
/// What the name of a node's user starts with.
pub const NODE_PREFIX: &str = "system:node:";
/// The server's name when it speaks to an agent's API.
pub const SERVER_USER: &str = "minisvc-server";
const ADMIN_USER: &str = "minisvc-admin";

/// For clocks that do not agree.
const BACKDATED: Duration = Duration::from_hours(24);
/// Ten years.
const VALID: Duration = Duration::from_hours(10 * 365 * 24);

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

/// A certificate of this CA, with its key.
pub struct Issued {
    /// Whom it names.
    user: String,
    certificate: Certificate,
    key: KeyPair,
}

impl Issued {
    /// The name in it.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The certificate in PEM.
    pub fn certificate_pem(&self) -> String {
        self.certificate.pem()
    }

    /// The key in PEM.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.der().clone()]
    }

    fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

/// The name in a node's certificate, by which the server knows the node's API. Below a domain of its own: a node may be called like
/// the API server's machine, and its certificate must not serve to pose as that.
pub fn node_tls_name(node: &str) -> String {
    format!("{node}.nodes.minisvc.internal")
}

/// The CA.
pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    names: Vec<String>,
    ips: Vec<IpAddr>,
}

impl Pki {
    /// The CA in `dir`, made if there is none yet, for a server that is reached by these names and addresses.
    pub fn open(dir: &Path, names: &[String], ips: &[IpAddr]) -> Result<Self, PkiError> {
        let pki = match Self::load(dir) {
            Err(PkiError::NoCa(_)) => {
                create_ca(dir)?;
                Self::load(dir)?
            }
            other => other?,
        };
        Ok(Pki { names: names.to_vec(), ips: ips.to_vec(), ..pki })
    }

    /// The CA in `dir`, to give credentials with.
    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let (certificate, key) = ca_files(dir);
        // The certificate is written last: without it nothing was ever issued.
        let Some(ca_pem) = files::read(&certificate).map_err(failed(&certificate))? else {
            return Err(PkiError::NoCa(dir.to_path_buf()));
        };
        let Some(key_pem) = files::read_secret(&key).map_err(failed(&key))? else {
            return Err(PkiError::Half { certificate, key });
        };
        let damaged = |path: &Path, why: &dyn std::fmt::Display| PkiError::Damaged {
            path: path.to_path_buf(),
            why: why.to_string(),
        };
        let pair = KeyPair::from_pem(&key_pem).map_err(|e| damaged(&key, &e))?;
        check_pair(&ca_pem, &pair).map_err(|why| damaged(&certificate, &why))?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, pair).map_err(|e| damaged(&certificate, &e))?;
        Ok(Pki { issuer, ca_pem, names: Vec::new(), ips: Vec::new() })
    }

    /// The CA's certificate in PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// TLS for the API: a certificate for the names and addresses given to [`Pki::open`]; clients may show one of this CA.
    pub fn server_config(&self) -> Result<ServerConfig, PkiError> {
        let mut params = leaf("minisvc", None, &[ExtendedKeyUsagePurpose::ServerAuth]);
        for name in &self.names {
            params.subject_alt_names.push(dns_name(name)?);
        }
        params.subject_alt_names.extend(self.ips.iter().copied().map(SanType::IpAddress));
        let issued = self.sign("minisvc", params)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| PkiError::Issue(e.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(issued.chain(), issued.private_key())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// TLS for calls to the agents' APIs, as the server. HTTP/1.1 alone: exec is an upgrade.
    pub fn client_config_for_agents(&self) -> Result<ClientConfig, PkiError> {
        let params = leaf(SERVER_USER, Some(MASTERS), &[ExtendedKeyUsagePurpose::ClientAuth]);
        let issued = self.sign(SERVER_USER, params)?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(issued.chain(), issued.private_key())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Credentials that may do everything.
    pub fn issue_admin(&self) -> Result<Issued, PkiError> {
        self.sign(ADMIN_USER, leaf(ADMIN_USER, Some(MASTERS), &[ExtendedKeyUsagePurpose::ClientAuth]))
    }

    /// A node's credentials, for the API and for its own.
    pub fn issue_node(&self, node: &NodeName) -> Result<Issued, PkiError> {
        let user = format!("{NODE_PREFIX}{node}");
        let usages = [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        let mut params = leaf(&user, Some(NODES), &usages);
        params.subject_alt_names.push(dns_name(&node_tls_name(node.as_str()))?);
        self.sign(&user, params)
    }

    /// A kubeconfig with these credentials for the server at this URL.
    pub fn kubeconfig(&self, who: &Issued, server: &str) -> Result<String, PkiError> {
        let base64 = |pem: &str| STANDARD.encode(pem);
        let value = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "minisvc",
            "clusters": [{"name": "minisvc", "cluster": {
                "server": server,
                "certificate-authority-data": base64(&self.ca_pem),
            }}],
            "users": [{"name": who.user(), "user": {
                "client-certificate-data": base64(&who.certificate_pem()),
                "client-key-data": base64(&who.key_pem()),
            }}],
            "contexts": [{"name": "minisvc", "context": {"cluster": "minisvc", "user": who.user()}}],
        });
        serde_saphyr::to_string(&value).map_err(|e| PkiError::Issue(e.to_string()))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, PkiError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.ca_pem.as_bytes()) {
            roots.add(certificate.map_err(|e| PkiError::Issue(e.to_string()))?)?;
        }
        Ok(Arc::new(roots))
    }

    fn sign(&self, user: &str, params: CertificateParams) -> Result<Issued, PkiError> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { user: user.to_owned(), certificate, key })
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_path_buf();
    move |cause| PkiError::File { path, cause }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn ca_files(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("ca.crt"), dir.join("ca.key"))
}

fn create_ca(dir: &Path) -> Result<(), PkiError> {
    files::create_dir(dir).map_err(failed(dir))?;
    // A name of its own, so that a client with another cluster's CA hears of an unknown issuer, not of a bad signature.
    let mut params = subject(&format!("minisvc-ca-{:08x}", rand::random::<u32>()), None);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pair = KeyPair::generate()?;
    let ca = params.self_signed(&pair)?;
    let (certificate, key) = ca_files(dir);
    files::write(&key, pair.serialize_pem().as_bytes()).map_err(failed(&key))?;
    files::write(&certificate, ca.pem().as_bytes()).map_err(failed(&certificate))
}

fn check_pair(ca_pem: &str, pair: &KeyPair) -> Result<(), String> {
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|e| e.to_string())?;
    let (_, certificate) = x509_parser::parse_x509_certificate(&der).map_err(|e| e.to_string())?;
    if *certificate.public_key().subject_public_key.data != *pair.public_key_raw() {
        return Err("its key is not the one in ca.key beside it".into());
    }
    Ok(())
}

fn subject(user: &str, group: Option<&str>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, user);
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + VALID).into();
    params
}

fn leaf(user: &str, group: Option<&str>, usages: &[ExtendedKeyUsagePurpose]) -> CertificateParams {
    let mut params = subject(user, group);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params
}

fn dns_name(name: &str) -> Result<SanType, PkiError> {
    let text =
        name.try_into().map_err(|_| PkiError::Issue(format!("\"{name}\" is no name for a certificate")))?;
    Ok(SanType::DnsName(text))
}

#[cfg(test)]
mod tests;
