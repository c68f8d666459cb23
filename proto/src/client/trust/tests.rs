use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{CertificateError, crypto::ring};

use super::*;

const HOUR: Duration = Duration::from_hours(1);

/// A CA, and what a server of it shows: its certificate for `minisvc.test`, then the CA.
fn cluster() -> (String, Vec<CertificateDer<'static>>) {
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::from_ca_cert_der(ca.der(), ca_key).unwrap();
    let mut params = CertificateParams::new(["minisvc.test".to_owned()]).unwrap();
    let now = SystemTime::now();
    params.not_before = (now - crate::join::BACKDATED).into();
    params.not_after = (now + 2 * HOUR).into();
    let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
    (key_hash(ca.der()).unwrap(), vec![leaf.der().clone(), ca.der().clone()])
}

fn verify(
    ca_hash: &str,
    chain: &[CertificateDer<'_>],
    name: &str,
    now: SystemTime,
) -> Result<(), rustls::Error> {
    let now = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let (leaf, rest) = chain.split_first().unwrap();
    Pinned::new(ca_hash, Arc::new(ring::default_provider()))
        .verify_server_cert(leaf, rest, &ServerName::try_from(name).unwrap(), &[], now)
        .map(drop)
}

#[test]
fn a_server_of_the_tokens_cluster_is_trusted_by_a_clock_that_is_an_hour_off() {
    let (hash, chain) = cluster();
    let now = SystemTime::now();
    for clock in [now - HOUR, now, now + HOUR] {
        verify(&hash, &chain, "minisvc.test", clock).unwrap();
    }
    let late = verify(&hash, &chain, "minisvc.test", now + 3 * HOUR).unwrap_err();
    assert!(
        matches!(late, rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { .. })),
        "{late}"
    );
}

#[test]
fn nobody_else_is_trusted() {
    let now = SystemTime::now();
    let (hash, chain) = cluster();
    let (other_hash, other) = cluster();
    let name = verify(&hash, &chain, "elsewhere.test", now).unwrap_err();
    assert!(
        matches!(name, rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { .. })),
        "{name}"
    );
    // Another cluster, no CA at all, and a liar who shows the right CA behind a certificate that it did not give.
    let said = verify(&hash, &other, "minisvc.test", now).unwrap_err().to_string();
    assert!(said.contains(&other_hash[..SHOWN]) && said.contains(&hash[..SHOWN]), "{said}");
    assert!(!said.contains(&hash), "{said}");
    let alone = verify(&hash, &chain[..1], "minisvc.test", now).unwrap_err().to_string();
    assert!(alone.contains("not of the token's cluster"), "{alone}");
    let liar = [other[0].clone(), chain[1].clone()];
    let error = verify(&hash, &liar, "minisvc.test", now).unwrap_err();
    assert!(matches!(error, rustls::Error::InvalidCertificate(_)), "{error}");
    assert_eq!(key_hash(b"rubbish"), None);
}
