//! Requests for certificates: what of a PKCS #10 request is taken is its key alone, after it has shown that it has the private half.

use rcgen::{
    CertificateSigningRequestParams, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519,
    PublicKeyData,
};
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use minisvc_proto::digest::sha256_hex;

/// Largest request, in bytes of PEM: one for a key of a kind that is taken has some 500.
pub const MAX_REQUEST: usize = 8 << 10;

/// Why a request is not granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is no request at all.
    #[error("csr: {0}")]
    Malformed(String),
    /// It is one, and cannot be granted.
    #[error("csr: {0}")]
    Refused(String),
}

/// A key that asks for a certificate.
#[derive(Debug)]
pub struct Request {
    pub(super) csr: CertificateSigningRequestParams,
}

impl Request {
    /// Reads a request in PEM and verifies its signature.
    pub fn from_pem(pem: &str) -> Result<Self, RequestError> {
        let malformed = |why: String| RequestError::Malformed(why);
        let refused = |why: &str| RequestError::Refused(why.to_owned());
        if pem.len() > MAX_REQUEST {
            let size = pem.len();
            return Err(malformed(format!("has {size} bytes, a request has at most {MAX_REQUEST}")));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
            malformed(
                "is no PKCS #10 request in PEM, which starts with -----BEGIN CERTIFICATE REQUEST-----".into(),
            )
        })?;
        let (rest, parsed) = X509CertificationRequest::from_der(&der)
            .map_err(|_| malformed("its PEM holds no PKCS #10 request".into()))?;
        if !rest.is_empty() {
            return Err(malformed("there is something after the PKCS #10 request".into()));
        }
        // Before the signature: a key of a kind that is not taken may have one that cannot be verified here.
        let algorithm = parsed.certification_request_info.subject_pki.algorithm.algorithm.to_id_string();
        if !matches!(algorithm.as_str(), EC_PUBLIC_KEY | ED25519) {
            return Err(refused(
                "its key is of a kind that is not taken (RSA, perhaps): ECDSA on P-256 or P-384, or Ed25519 would be right",
            ));
        }
        let csr = CertificateSigningRequestParams::from_der(&der).map_err(|e| match e {
            rcgen::Error::InvalidCertificationRequestSignature => {
                refused("its signature is wrong: whoever asks must have the private key")
            }
            other => refused(&format!("cannot be granted: {other}")),
        })?;
        let algorithm = csr.public_key.algorithm();
        let known = [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_ED25519];
        if !known.contains(&algorithm) {
            return Err(refused(&format!("its key is of a kind that is not taken ({algorithm:?})")));
        }
        // The name of the curve comes from the signature's algorithm: a P-384 key that signs with SHA-256 would be certified wrongly.
        if csr.public_key.subject_public_key_info() != parsed.certification_request_info.subject_pki.raw {
            return Err(refused(
                "its key is of a kind that is not taken: P-256 with SHA-256 or P-384 with SHA-384 would be right",
            ));
        }
        Ok(Request { csr })
    }

    /// SHA-256 of the key (SubjectPublicKeyInfo), in hex digits.
    pub fn key_hash(&self) -> String {
        sha256_hex(&self.csr.public_key.subject_public_key_info())
    }
}

/// id-ecPublicKey, RFC 5480.
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
/// id-Ed25519, RFC 8410.
const ED25519: &str = "1.3.101.112";

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn pem(der: &[u8]) -> String {
        format!(
            "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
            STANDARD.encode(der)
        )
    }

    #[test]
    fn a_request_must_show_that_it_has_the_key() {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let request = Request::from_pem(&csr.pem().unwrap()).unwrap();
        assert_eq!(request.key_hash(), sha256_hex(&key.subject_public_key_info()));

        let good = csr.der().to_vec();
        let mut forged = good.clone();
        *forged.last_mut().unwrap() ^= 1;
        let mut longer = good.clone();
        longer.push(0);
        for (text, says) in [
            (String::new(), "is no PKCS #10 request in PEM"),
            ("x".repeat(MAX_REQUEST + 1), "at most 8192"),
            (pem(&good[..good.len() / 2]), "holds no PKCS #10 request"),
            (pem(b"\x30\x03\x02\x01\x00"), "holds no PKCS #10 request"),
            (pem(&longer), "something after"),
            (pem(&forged), "its signature is wrong"),
            (csr.pem().unwrap().replace("REQUEST", "X"), "is no PKCS #10 request in PEM"),
        ] {
            let error = Request::from_pem(&text).unwrap_err().to_string();
            assert!(error.starts_with("csr: ") && error.contains(says), "{says}: {error}");
        }
    }

    /// `openssl req -new -newkey rsa:1024 -nodes -subj /CN=x -keyout /dev/null`
    const RSA_1024: &str = include_str!("request/rsa-1024.csr");

    #[test]
    fn keys_of_other_kinds_are_refused_by_name() {
        let error = Request::from_pem(RSA_1024).unwrap_err();
        assert!(matches!(&error, RequestError::Refused(why) if why.contains("P-256")), "{error}");
    }
}
