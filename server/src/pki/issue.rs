//! What stands in the certificates that the CA gives, and for how long they are good.

use std::time::{Duration, SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use minisvc_proto::{NodeName, join::BACKDATED};
use rcgen::{
    Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;

use super::{
    ADMIN_USER, MASTERS, NODE_PREFIX, NODES, Pki, PkiError, SERVER_USER, node_tls_name, request::Request,
};

/// Ten years: of the CA, and of what nobody renews.
pub const LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// Of the file that the server makes at each start.
pub const ADMIN_LIFETIME: Duration = Duration::from_hours(365 * 24);

/// From when until when a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// A day before it is made.
    pub not_before: SystemTime,
    /// Its end.
    pub not_after: SystemTime,
}

impl Validity {
    /// Of a certificate that is made at this time and good for so long.
    pub fn at(now: SystemTime, lifetime: Duration) -> Self {
        Validity { not_before: now - BACKDATED, not_after: now + lifetime }
    }

    /// Of one that is made now.
    pub fn now(lifetime: Duration) -> Self {
        Self::at(SystemTime::now(), lifetime)
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

    pub(super) fn der(&self) -> CertificateDer<'static> {
        self.certificate.der().clone()
    }

    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }
}

impl Pki {
    /// Credentials that may do everything.
    pub fn issue_admin(&self) -> Result<Issued, PkiError> {
        self.issue_admin_for(LIFETIME)
    }

    /// The same for a shorter time.
    pub fn issue_admin_for(&self, lifetime: Duration) -> Result<Issued, PkiError> {
        let usages = [ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(ADMIN_USER, leaf(ADMIN_USER, Some(MASTERS), None, &usages, Validity::now(lifetime)))
    }

    /// A certificate in PEM for the key of a node's request. Its names are ours: of the request, only the key is taken.
    pub fn sign_node(
        &self,
        request: &Request,
        node: &NodeName,
        identity: &str,
        validity: Validity,
    ) -> Result<String, PkiError> {
        let params = node_leaf(node, identity, validity)?;
        Ok(params.signed_by(&request.csr.public_key, &self.authority.issuer)?.pem())
    }

    pub(super) fn issue_for_agents(&self) -> Result<Issued, PkiError> {
        let usages = [ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(SERVER_USER, leaf(SERVER_USER, Some(MASTERS), None, &usages, Validity::now(LIFETIME)))
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
                "certificate-authority-data": base64(self.ca_pem()),
            }}],
            "users": [{"name": who.user(), "user": {
                "client-certificate-data": base64(&who.certificate_pem()),
                "client-key-data": base64(&who.key_pem()),
            }}],
            "contexts": [{"name": "minisvc", "context": {"cluster": "minisvc", "user": who.user()}}],
        });
        serde_saphyr::to_string(&value).map_err(|e| PkiError::Issue(e.to_string()))
    }

    pub(super) fn sign(&self, user: &str, params: CertificateParams) -> Result<Issued, PkiError> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority.issuer)?;
        Ok(Issued { user: user.to_owned(), certificate, key })
    }
}

/// CN, O and OU. [RFC 5280, 4.1.2.6]
pub(super) fn subject(
    user: &str,
    group: Option<&str>,
    identity: Option<&str>,
    validity: Validity,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    if let Some(identity) = identity {
        params.distinguished_name.push(DnType::OrganizationalUnitName, identity);
    }
    params.distinguished_name.push(DnType::CommonName, user);
    params.not_before = validity.not_before.into();
    params.not_after = validity.not_after.into();
    params
}

pub(super) fn leaf(
    user: &str,
    group: Option<&str>,
    identity: Option<&str>,
    usages: &[ExtendedKeyUsagePurpose],
    validity: Validity,
) -> CertificateParams {
    let mut params = subject(user, group, identity, validity);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages.to_vec();
    params
}

fn node_leaf(node: &NodeName, identity: &str, validity: Validity) -> Result<CertificateParams, PkiError> {
    let user = format!("{NODE_PREFIX}{node}");
    let usages = [ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let mut params = leaf(&user, Some(NODES), Some(identity), &usages, validity);
    params.subject_alt_names.push(dns_name(&node_tls_name(node.as_str()))?);
    Ok(params)
}

pub(super) fn dns_name(name: &str) -> Result<SanType, PkiError> {
    let text =
        name.try_into().map_err(|_| PkiError::Issue(format!("\"{name}\" is no name for a certificate")))?;
    Ok(SanType::DnsName(text))
}
