//! The CA on disk: made once, checked at each start.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, pem::PemObject};

use super::{
    PkiError, failed, files,
    issue::{self, LIFETIME, Validity},
};
use minisvc_proto::digest::sha256_hex;

/// What stands on disk.
pub(super) struct Authority {
    pub issuer: Issuer<'static, KeyPair>,
    pub pem: String,
    pub der: CertificateDer<'static>,
    /// SHA-256 of the SubjectPublicKeyInfo, in hex digits.
    pub hash: String,
}

impl Authority {
    /// The CA in `dir`, made if there is none yet.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        match Self::load(dir) {
            Err(PkiError::NoCa(_)) => {
                create(dir)?;
                Self::load(dir)
            }
            other => other,
        }
    }

    pub fn load(dir: &Path) -> Result<Self, PkiError> {
        let (certificate, key) = ca_files(dir);
        // The certificate is written last: without it nothing was ever issued.
        let Some(pem) = files::read(&certificate).map_err(failed(&certificate))? else {
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
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(&certificate, &e))?;
        let hash = check_pair(&der, &pair).map_err(|why| damaged(&certificate, &why))?;
        let issuer = Issuer::from_ca_cert_pem(&pem, pair).map_err(|e| damaged(&certificate, &e))?;
        Ok(Authority { issuer, pem, der, hash })
    }
}

pub(super) fn ca_files(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("ca.crt"), dir.join("ca.key"))
}

fn create(dir: &Path) -> Result<(), PkiError> {
    files::create_dir(dir).map_err(failed(dir))?;
    // A name of its own, so that a client with another cluster's CA hears of an unknown issuer, not of a bad signature.
    let name = format!("minisvc-ca-{:08x}", rand::random::<u32>());
    let mut params = issue::subject(&name, None, None, Validity::now(LIFETIME));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let pair = KeyPair::generate()?;
    let ca = params.self_signed(&pair)?;
    let (certificate, key) = ca_files(dir);
    files::write(&key, pair.serialize_pem().as_bytes()).map_err(failed(&key))?;
    files::write(&certificate, ca.pem().as_bytes()).map_err(failed(&certificate))
}

/// The hash of the certificate's key, if that is the one in the other file.
fn check_pair(der: &CertificateDer<'_>, pair: &KeyPair) -> Result<String, String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|e| e.to_string())?;
    if *certificate.public_key().subject_public_key.data != *pair.public_key_raw() {
        return Err("its key is not the one in ca.key beside it".into());
    }
    Ok(sha256_hex(certificate.public_key().raw))
}
