//! How a machine becomes a node: the token that an administrator hands over, what the agent sends, and what it gets.
//!
//! `POST /apis/minisvc.io/v1/nodes/NAME/certificate` with a [`CertificateRequest`] is answered by a [`CertificateAnswer`]. Who asks
//! shows a join token (`Authorization: Bearer ID.SECRET`, see [`JoinToken::bearer`]) or the certificate that the node has now.
//! `GET /apis/minisvc.io/v1/cluster` answers [`ClusterInfo`] to nodes and administrators.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
    time::Duration,
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// What every token's text starts with, so that people and secret scanners know one when they see it.
pub const TOKEN_PREFIX: &str = "minisvc1";
/// The port of VXLAN between nodes that share no L2. Neither Linux' own 8472, which flannel and Cilium use, nor IANA's 4789, which
/// Docker Swarm uses: all may run on one machine.
pub const VXLAN_PORT: u16 = 8473;

/// By how much certificates are back-dated, for clocks that do not agree.
pub const BACKDATED: Duration = Duration::from_hours(24);

const ID_DIGITS: usize = 10;
const SECRET_DIGITS: usize = 64;
const HASH_DIGITS: usize = 64;

/// A join token, as `minisvc token create` prints it: `minisvc1.ID.SECRET.CAHASH`, in lower-case hex digits.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// The name of the token's object.
    pub id: String,
    /// 256 random bits. The server keeps their hash alone.
    pub secret: String,
    /// SHA-256 of the CA's public key (the certificate's SubjectPublicKeyInfo in DER): who has the token knows the right server.
    pub ca_hash: String,
}

impl JoinToken {
    /// What goes into the `Authorization` header after `Bearer`.
    pub fn bearer(&self) -> String {
        format!("{}.{}", self.id, self.secret)
    }

    /// Id and secret of a header made by [`JoinToken::bearer`]; `None` for any other text.
    pub fn parse_bearer(text: &str) -> Option<(&str, &str)> {
        let (id, secret) = text.split_once('.')?;
        (is_hex(id, ID_DIGITS) && is_hex(secret, SECRET_DIGITS)).then_some((id, secret))
    }
}

/// The token as text; whoever prints it gives it away.
impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TOKEN_PREFIX}.{}.{}.{}", self.id, self.secret, self.ca_hash)
    }
}

/// Without the secret: this may end up in a log.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

/// Why a text is no join token. Never repeats the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is something else.
    #[error(
        "this is no join token: one starts with {TOKEN_PREFIX}. and is printed by `minisvc token create`"
    )]
    Prefix,
    /// A part is missing, or one too many is there.
    #[error("the join token has {0} parts where it should have 4: was it copied as a whole?")]
    Parts(usize),
    /// A part is not what it should be.
    #[error("the join token's {0} is damaged: was it copied as a whole?")]
    Part(&'static str),
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        let parts: Vec<&str> = text.split('.').collect();
        match parts.as_slice() {
            [TOKEN_PREFIX, id, secret, ca_hash] => {
                for (what, part, digits) in [
                    ("id", id, ID_DIGITS),
                    ("secret", secret, SECRET_DIGITS),
                    ("CA hash", ca_hash, HASH_DIGITS),
                ] {
                    if !is_hex(part, digits) {
                        return Err(TokenError::Part(what));
                    }
                }
                let [id, secret, ca_hash] = [id, secret, ca_hash].map(|part| (*part).to_owned());
                Ok(JoinToken { id, secret, ca_hash })
            }
            [TOKEN_PREFIX, ..] => Err(TokenError::Parts(parts.len())),
            _ => Err(TokenError::Prefix),
        }
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|c| c.is_ascii_digit() || (b'a'..=b'f').contains(&c))
}

/// A request for a node's certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateRequest {
    /// A PKCS #10 request in PEM. Its key is certified; the names in the certificate are of the server's choice.
    pub csr: String,
}

/// A node's certificate and what a node must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateAnswer {
    /// The certificate in PEM.
    pub certificate: String,
    /// The CA's certificate in PEM.
    pub ca: String,
    /// The cluster.
    pub cluster: ClusterInfo,
}

/// What all nodes of a cluster must agree on. The server is told at its start; agents learn it from there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterInfo {
    /// All pods are from here.
    pub pod_cidr: Ipv4Net,
    /// All ClusterIPs are from here; the tenth address is the DNS.
    pub service_cidr: Ipv4Net,
    /// In a dual-stack cluster, pods have a second address from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_cidr6: Option<Ipv6Net>,
    /// In a dual-stack cluster, Services that ask for it have a ClusterIP from here; the tenth address is the DNS, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_cidr6: Option<Ipv6Net>,
    /// First and last nodePort.
    pub node_port_range: (u16, u16),
    /// UDP port of VXLAN between nodes.
    pub vxlan_port: u16,
    /// The DNS zone.
    pub cluster_domain: String,
}

impl ClusterInfo {
    /// Where pods ask for names: the tenth address of the service range.
    pub fn dns_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_cidr.network()) + 10)
    }

    /// The DNS address of the second family: the tenth of its service range.
    pub fn dns_ip6(&self) -> Option<Ipv6Addr> {
        self.service_cidr6.map(|range| Ipv6Addr::from(u128::from(range.network()) + 10))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken { id: "0123456789".into(), secret: "ab".repeat(32), ca_hash: "cd".repeat(32) }
    }

    #[test]
    fn a_token_is_read_back_and_keeps_its_secret_out_of_logs() {
        let token = token();
        assert_eq!(format!(" {token}\n").parse(), Ok(token.clone()));
        assert!(!format!("{token:?}").contains(&token.secret));
        let bearer = token.bearer();
        assert_eq!(JoinToken::parse_bearer(&bearer), Some((token.id.as_str(), token.secret.as_str())));
    }

    #[test]
    fn what_is_wrong_with_a_token_is_said_without_repeating_it() {
        let text = token().to_string();
        for (bad, error) in [
            (String::new(), TokenError::Prefix),
            ("K10abc::server:x".into(), TokenError::Prefix),
            (text[..30].to_owned(), TokenError::Parts(3)),
            (text[..text.len() - 1].to_owned(), TokenError::Part("CA hash")),
            (text.replacen("ab", "AB", 1), TokenError::Part("secret")),
            (text.replacen("0123456789", "/etc/passw", 1), TokenError::Part("id")),
        ] {
            let found = bad.parse::<JoinToken>().unwrap_err();
            assert_eq!(found, error, "{bad}");
            assert!(bad.is_empty() || !found.to_string().contains(&bad));
        }
        for bad in ["", "0123456789", "0123456789.ab", &format!("{}.x", token().bearer())] {
            assert_eq!(JoinToken::parse_bearer(bad), None, "{bad}");
        }
    }
}
