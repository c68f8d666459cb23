//! Names at the door: what comes from outside becomes one of these types or an error, once.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::resource::Resource;

/// A point in the history of the store. Every transaction gets the next one; it is `metadata.resourceVersion` on the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Revision {
    type Err = std::num::ParseIntError;
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        s.parse().map(Revision)
    }
}

/// The name of a node, a DNS subdomain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

impl NodeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeName {
    type Error = InvalidName;
    fn try_from(s: String) -> Result<Self, InvalidName> {
        check_dns_subdomain(&s)?;
        Ok(NodeName(s))
    }
}

impl FromStr for NodeName {
    type Err = InvalidName;
    fn from_str(s: &str) -> Result<Self, InvalidName> {
        NodeName::try_from(s.to_owned())
    }
}

impl From<NodeName> for String {
    fn from(n: NodeName) -> String {
        n.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which object: its kind, its namespace (none for cluster-scoped kinds) and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// The kind, as an entry of the resource table.
    pub resource: &'static Resource,
    /// `None` for cluster-scoped kinds only.
    pub namespace: Option<String>,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// The key of a namespaced object.
    pub fn namespaced(resource: &'static Resource, namespace: &str, name: &str) -> Self {
        ObjectKey { resource, namespace: Some(namespace.to_owned()), name: name.to_owned() }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(resource: &'static Resource, name: &str) -> Self {
        ObjectKey { resource, namespace: None, name: name.to_owned() }
    }
}

impl fmt::Display for ObjectKey {
    /// `services/default/web`, `nodes/node-1`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(ns) => write!(f, "{}/{ns}/{}", self.resource.plural, self.name),
            None => write!(f, "{}/{}", self.resource.plural, self.name),
        }
    }
}

/// A name that breaks the rules, with the rule as the message clients know from Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidName(pub &'static str);

const LABEL_RULE: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
     and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_LENGTH: &str = "must be no more than 63 characters";
const SUBDOMAIN_RULE: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', \
     and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
     '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const SUBDOMAIN_LENGTH: &str = "must be no more than 253 characters";

fn is_label(s: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    edge(s.chars().next())
        && edge(s.chars().next_back())
        && s.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// RFC 1123 label: namespaces, port names, parts of host names.
pub fn check_dns_label(s: &str) -> Result<(), InvalidName> {
    if s.len() > 63 {
        return Err(InvalidName(LABEL_LENGTH));
    }
    if is_label(s) { Ok(()) } else { Err(InvalidName(LABEL_RULE)) }
}

/// RFC 1123 subdomain: most other objects' names.
pub fn check_dns_subdomain(s: &str) -> Result<(), InvalidName> {
    if s.len() > 253 {
        return Err(InvalidName(SUBDOMAIN_LENGTH));
    }
    if s.split('.').all(is_label) { Ok(()) } else { Err(InvalidName(SUBDOMAIN_RULE)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_subdomains_follow_the_rfc() {
        for good in ["a", "web-1", "123-abc"] {
            assert_eq!(check_dns_label(good), Ok(()), "{good}");
        }
        for bad in ["", "Web", "-a", "a-", "a.b", "a_b", &"x".repeat(64)] {
            assert!(check_dns_label(bad).is_err(), "{bad}");
        }
        assert_eq!(check_dns_subdomain("node-1.example.com"), Ok(()));
        assert!(check_dns_subdomain("a..b").is_err());
    }
}
