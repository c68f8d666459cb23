//! What the agent does with what it was told and what it kept. Pure.

use std::path::Path;

use jiff::Timestamp;
use minisvc_proto::{NodeName, join::JoinToken};

use super::{short, stored::Stored};

/// What the command line says.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// `--server`.
    pub server: Option<&'a str>,
    /// `--token` or `--token-file`.
    pub token: Option<&'a JoinToken>,
    /// `--node-name`.
    pub node: Option<&'a NodeName>,
    /// By this machine's clock.
    pub now: Timestamp,
}

/// How this machine is a node.
#[derive(Debug)]
pub enum Plan {
    /// With what is stored.
    Use {
        /// The credentials.
        stored: Box<Stored>,
        /// They name a new URL, and are to be kept again.
        moved: bool,
    },
    /// The server is asked for a certificate.
    Join {
        /// Its URL.
        server: String,
        /// As which node; without a name, as the host.
        node: Option<NodeName>,
    },
}

/// Why it cannot be a node.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Neither told nor kept.
    #[error(
        "this machine has not joined a cluster ({data_dir} holds no node.kubeconfig): give --server https://HOST:7443 and \
         --token-file FILE with a token that `minisvc token create` printed"
    )]
    Nothing {
        /// The data directory.
        data_dir: String,
    },
    /// A token without a server.
    #[error("--server: required to join, such as --server https://HOST:7443")]
    NoServer,
    /// A server without a token.
    #[error(
        "--token-file: required to join {server}, with a token that `minisvc token create` printed there ({data_dir} holds no \
         node.kubeconfig of an earlier start)"
    )]
    NoToken {
        /// The server's URL.
        server: String,
        /// The data directory.
        data_dir: String,
    },
    /// The node of another cluster.
    #[error(
        "{data_dir} belongs to node {node} of another cluster (CA {found}..., the token's is {wanted}...): give another --data-dir, \
         or remove its node.kubeconfig to leave that cluster"
    )]
    OtherCluster {
        /// The data directory.
        data_dir: String,
        /// Whose it is.
        node: NodeName,
        /// How the hash of its CA starts.
        found: String,
        /// How the one of the token starts.
        wanted: String,
    },
    /// Another node of the same cluster.
    #[error(
        "--node-name {asked}: {data_dir} belongs to node {node}; give another --data-dir, or --node-name {node}"
    )]
    OtherNode {
        /// The data directory.
        data_dir: String,
        /// Whose it is.
        node: NodeName,
        /// What was asked for.
        asked: NodeName,
    },
    /// The certificate is over.
    #[error(
        "the certificate of node {node} ended at {ended} while this machine was away: start the agent once more with \
         --token-file FILE and a token that `minisvc token create` printed"
    )]
    Ended {
        /// Whose.
        node: NodeName,
        /// When.
        ended: Timestamp,
    },
}

/// Decides.
pub fn plan(data_dir: &Path, asked: &Asked<'_>, stored: Option<&Stored>) -> Result<Plan, PlanError> {
    let data_dir = data_dir.display().to_string();
    let Some(stored) = stored else {
        return match (asked.server, asked.token) {
            (Some(server), Some(_)) => {
                Ok(Plan::Join { server: server.to_owned(), node: asked.node.cloned() })
            }
            (Some(server), None) => Err(PlanError::NoToken { server: server.to_owned(), data_dir }),
            (None, Some(_)) => Err(PlanError::NoServer),
            (None, None) => Err(PlanError::Nothing { data_dir }),
        };
    };
    let facts = &stored.facts;
    if let Some(token) = asked.token.filter(|t| t.ca_hash != facts.ca_hash) {
        return Err(PlanError::OtherCluster {
            data_dir,
            node: facts.node.clone(),
            found: short(&facts.ca_hash).to_owned(),
            wanted: short(&token.ca_hash).to_owned(),
        });
    }
    if let Some(name) = asked.node.filter(|n| **n != facts.node) {
        return Err(PlanError::OtherNode { data_dir, node: facts.node.clone(), asked: name.clone() });
    }
    let server = asked.server.unwrap_or(&facts.server);
    if facts.not_after <= asked.now {
        return match asked.token {
            Some(_) => Ok(Plan::Join { server: server.to_owned(), node: Some(facts.node.clone()) }),
            None => Err(PlanError::Ended { node: facts.node.clone(), ended: facts.not_after }),
        };
    }
    Ok(Plan::Use { stored: Box::new(stored.moved_to(server)), moved: server != facts.server })
}

#[cfg(test)]
mod tests;
