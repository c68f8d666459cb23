//! Why a request did not give what was asked for.

use std::error::Error;

use rustls::{AlertDescription, CertificateError, Error as TlsError, InvalidMessage};

use crate::status::{ApiError, Reason};

/// One clear line each.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server answered with a Status.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// No answer came, or it broke off.
    #[error("the server {server} does not answer: {cause}")]
    Unreachable {
        /// The server's URL.
        server: String,
        /// What the system said.
        cause: String,
    },
    /// The two sides do not trust each other, or the certificates cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
    /// The answer is not what the API promises.
    #[error("{0}")]
    Decode(String),
    /// The configuration is not usable.
    #[error("{0}")]
    Config(String),
}

impl ClientError {
    /// The Status, if the server sent one.
    pub fn api(&self) -> Option<&ApiError> {
        match self {
            ClientError::Api(e) => Some(e),
            _ => None,
        }
    }

    /// Whether the object was not there.
    pub fn is_not_found(&self) -> bool {
        self.api().is_some_and(ApiError::is_not_found)
    }

    /// Whether the history asked for is gone, so that a list is needed.
    pub fn is_expired(&self) -> bool {
        self.api().is_some_and(|e| e.reason == Reason::Expired || e.code == 410)
    }

    pub(super) fn transport(server: &str, e: &reqwest::Error) -> Self {
        let mut at: Option<&(dyn Error + 'static)> = e.source();
        while let Some(source) = at {
            if let Some(tls) = handshake(source) {
                return ClientError::Tls(format!("{server}: {}", meaning(tls)));
            }
            at = source.source();
        }
        let cause = if e.is_timeout() { "no answer in time".to_owned() } else { root(e) };
        ClientError::Unreachable { server: server.to_owned(), cause }
    }
}

/// The handshake's error, if this is one. It comes wrapped in io::Errors, whose `source` skips the error itself.
fn handshake<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TlsError> {
    if let Some(tls) = error.downcast_ref() {
        return Some(tls);
    }
    let inner: &'a (dyn Error + Send + Sync + 'static) = error.downcast_ref::<std::io::Error>()?.get_ref()?;
    handshake(inner)
}

/// What a failed handshake means to a user, and what would be right.
fn meaning(error: &TlsError) -> String {
    const OTHER_CLUSTER: &str =
        "is this the configuration of another cluster, or of an earlier life of this one?";
    match error {
        TlsError::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                format!("the server's certificate is of another CA than the one that is trusted here: {OTHER_CLUSTER}")
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "the server's certificate has expired, or this machine's clock is wrong".into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "the server's certificate is not good yet: is this machine's clock wrong?".into()
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the server's certificate does not hold this name or address: the server's --tls-san adds it".into()
            }
            other => format!("the server's certificate is not taken: {other}"),
        },
        TlsError::AlertReceived(alert) => match alert {
            AlertDescription::CertificateExpired => {
                "the server refuses this certificate: it has expired, or a clock is wrong (a node joins again with a token, an \
                 administrator takes the admin.kubeconfig of the server's data directory)"
                    .into()
            }
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                format!("the server refuses this certificate: it is of another CA: {OTHER_CLUSTER}")
            }
            AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => {
                "the server refuses this certificate".into()
            }
            other => format!("the server ended the handshake: {other:?}"),
        },
        TlsError::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "what answers there speaks no TLS: is this the server's port?".into()
        }
        TlsError::Other(other) => other.0.to_string(),
        other => other.to_string(),
    }
}

fn root(e: &dyn Error) -> String {
    let mut at = e;
    while let Some(source) = at.source() {
        at = source;
    }
    at.to_string()
}

pub(super) fn chain(e: &dyn Error) -> String {
    let mut text = e.to_string();
    let mut at = e.source();
    while let Some(source) = at {
        text.push_str(": ");
        text.push_str(&source.to_string());
        at = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshakes_error_is_found_however_often_it_is_wrapped() {
        let once = std::io::Error::other(TlsError::DecryptError);
        assert_eq!(handshake(&once), Some(&TlsError::DecryptError));
        assert_eq!(handshake(&std::io::Error::other(once)), Some(&TlsError::DecryptError));
        assert_eq!(handshake(&std::io::Error::other("else")), None);
    }

    #[test]
    fn a_failed_handshake_says_what_would_be_right() {
        for (error, says) in [
            (TlsError::InvalidCertificate(CertificateError::UnknownIssuer), "of another CA than"),
            (TlsError::InvalidCertificate(CertificateError::NotValidForName), "--tls-san"),
            (TlsError::InvalidCertificate(CertificateError::Expired), "has expired, or this machine's clock"),
            (TlsError::AlertReceived(AlertDescription::CertificateExpired), "joins again with a token"),
            (
                TlsError::AlertReceived(AlertDescription::UnknownCA),
                "is this the configuration of another cluster",
            ),
            (TlsError::InvalidMessage(InvalidMessage::InvalidContentType), "speaks no TLS"),
            (TlsError::NoCertificatesPresented, "peer sent no certificates"),
        ] {
            let text = meaning(&error);
            assert!(text.contains(says) && text.lines().count() == 1, "{text}");
        }
    }
}
