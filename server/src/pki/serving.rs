//! The certificate that the API is served with: whom it names, when it is made anew, and how a running server changes it.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rcgen::{ExtendedKeyUsagePurpose, SanType};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::Resumption,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
};
use rustls_pki_types::CertificateDer;

use super::{
    Pki, PkiError,
    issue::{Validity, dns_name, leaf},
    provider,
};

/// How long the API server's certificate is good for.
pub const SERVING_LIFETIME: Duration = Duration::from_hours(90 * 24);
/// It is made anew when less than this is left.
const RENEWED_AT: Duration = Duration::from_hours(30 * 24);

/// The names and addresses under which the API is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Host names, in order.
    pub names: Vec<String>,
    /// Addresses, in order.
    pub ips: Vec<IpAddr>,
}

impl Reached {
    /// In order, each once.
    pub fn new(names: impl IntoIterator<Item = String>, ips: impl IntoIterator<Item = IpAddr>) -> Self {
        let (mut names, mut ips): (Vec<String>, Vec<IpAddr>) =
            (names.into_iter().collect(), ips.into_iter().collect());
        names.sort();
        names.dedup();
        ips.sort();
        ips.dedup();
        Reached { names, ips }
    }
}

/// What the present certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Whom it names.
    pub reached: Reached,
    /// Its end.
    pub not_after: SystemTime,
}

/// Why a certificate is made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remake {
    /// The machine has other addresses than it names.
    Addresses,
    /// It ends soon.
    Age,
}

/// Whether the certificate that is served must be made anew. Pure.
pub fn remake(served: &Served, reached: &Reached, now: SystemTime) -> Option<Remake> {
    if served.reached != *reached {
        return Some(Remake::Addresses);
    }
    let left = served.not_after.duration_since(now).unwrap_or_default();
    (left < RENEWED_AT).then_some(Remake::Age)
}

/// The certificate of a running server, which can change.
#[derive(Debug)]
pub struct Serving {
    key: ArcSwap<CertifiedKey>,
    served: ArcSwap<Served>,
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.key.load_full())
    }
}

impl Serving {
    /// What it says now.
    pub fn served(&self) -> Arc<Served> {
        self.served.load_full()
    }

    /// What a client is shown now, the leaf first.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        self.key.load().cert.clone()
    }

    /// Makes it anew where that is due; new connections see the new one.
    pub fn refresh(&self, pki: &Pki, reached: Reached, now: SystemTime) -> Result<Option<Remake>, PkiError> {
        let Some(why) = remake(&self.served(), &reached, now) else { return Ok(None) };
        let (key, served) = make(pki, reached, now)?;
        self.key.store(Arc::new(key));
        self.served.store(Arc::new(served));
        Ok(Some(why))
    }
}

/// The key never leaves memory. The chain holds the CA, so that who knows its hash alone finds it there.
fn make(pki: &Pki, reached: Reached, now: SystemTime) -> Result<(CertifiedKey, Served), PkiError> {
    let validity = Validity::at(now, SERVING_LIFETIME);
    let mut params = leaf("minisvc", None, None, &[ExtendedKeyUsagePurpose::ServerAuth], validity);
    for name in &reached.names {
        params.subject_alt_names.push(dns_name(name)?);
    }
    params.subject_alt_names.extend(reached.ips.iter().copied().map(SanType::IpAddress));
    let issued = pki.sign("minisvc", params)?;
    let chain = vec![issued.der(), pki.authority.der.clone()];
    let key = CertifiedKey::from_der(chain, issued.private_key(), &provider())?;
    Ok((key, Served { reached, not_after: validity.not_after }))
}

impl Pki {
    /// A certificate for these names and addresses.
    pub fn serving(&self, reached: Reached) -> Result<Arc<Serving>, PkiError> {
        let (key, served) = make(self, reached, SystemTime::now())?;
        Ok(Arc::new(Serving { key: ArcSwap::from_pointee(key), served: ArcSwap::from_pointee(served) }))
    }

    /// TLS for the API with this certificate; clients may show one of this CA.
    pub fn server_config(&self, serving: Arc<Serving>) -> Result<ServerConfig, PkiError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots()?, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|e| PkiError::Issue(e.to_string()))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(serving);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A resumed session would bring the certificate that the client had when it began: one that was renewed since.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(config)
    }

    /// TLS for calls to the agents' APIs, as the server. HTTP/1.1 alone: exec is an upgrade.
    pub fn client_config_for_agents(&self) -> Result<ClientConfig, PkiError> {
        let issued = self.issue_for_agents()?;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.roots()?)
            .with_client_auth_cert(vec![issued.der()], issued.private_key())?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        // What an agent shows is looked at each time, and not what it showed once.
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    pub(super) fn roots(&self) -> Result<Arc<RootCertStore>, PkiError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der.clone())?;
        Ok(Arc::new(roots))
    }
}
