//! Why a request did not give what was asked for.

use std::error::Error;

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
            // hyper wraps the handshake's error in an io::Error, whose `source` skips the error itself.
            let inner = source
                .downcast_ref::<std::io::Error>()
                .and_then(std::io::Error::get_ref)
                .and_then(|s| s.downcast_ref::<rustls::Error>());
            if let Some(tls) = source.downcast_ref::<rustls::Error>().or(inner) {
                return ClientError::Tls(format!("{server}: {tls}"));
            }
            at = source.source();
        }
        let cause = if e.is_timeout() { "no answer in time".to_owned() } else { root(e) };
        ClientError::Unreachable { server: server.to_owned(), cause }
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
