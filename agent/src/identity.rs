//! Who this node is: joins with a token, keeps what the server certified, and renews it before it ends.
//!
//! A machine makes its own key; it never leaves the machine. The server is known by the hash of its CA in the token, and is told
//! the token's secret only then. What was given is kept in [`Stored`]; from then on the token is not needed any more.

mod address;
mod join;
mod key;
mod plan;
pub mod renewal;
mod stored;

use std::{io, net::Ipv4Addr, path::PathBuf, sync::Arc};

use minisvc_proto::{
    NodeName,
    client::{Client, ClientError, Identity, Kubeconfig},
    join::JoinToken,
    names::InvalidName,
};
use tokio_util::sync::CancellationToken;

use self::plan::{Asked, Plan};
pub use self::{address::towards, join::join, plan::PlanError, stored::Stored};
use crate::AgentConfig;

/// Why this machine is no node. One clear line each.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// What was asked for cannot be.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The server refused, or is not the one that the token speaks of.
    #[error("this machine cannot join as node {node}: {cause}")]
    Refused {
        /// As which node.
        node: NodeName,
        /// Why.
        cause: ClientError,
    },
    /// The host's name serves as the node's where no other is given.
    #[error("the host's name {0:?} is no name for a node ({1}): give --node-name")]
    HostName(String, InvalidName),
    /// A file of ours.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// No key could be made.
    #[error("cannot make a key: {0}")]
    Key(String),
    /// There are credentials, and they cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The address of this node is not known.
    #[error("{0}: give --node-ip")]
    Address(String),
}

impl IdentityError {
    fn file(path: &std::path::Path, cause: &io::Error) -> Self {
        IdentityError::File { path: path.to_path_buf(), why: cause.to_string() }
    }
}

/// This machine as a node of a cluster. Clones share the identity.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The node's name, as its certificate says.
    pub name: NodeName,
    /// The address by which other nodes and the server reach this one.
    pub ip: Ipv4Addr,
    /// The server and its CA.
    pub kubeconfig: Kubeconfig,
    /// The certificate, renewed in place.
    pub identity: Arc<Identity>,
    /// Speaks to the server as this node.
    pub client: Client,
    data_dir: PathBuf,
}

/// What the agent was told or kept makes it a member, or the server does; `None` when cancelled meanwhile.
pub async fn establish(
    config: &AgentConfig,
    shutdown: &CancellationToken,
) -> Result<Option<Membership>, IdentityError> {
    let stored = Stored::load(&config.data_dir)?;
    let asked = Asked {
        server: config.server.as_deref(),
        token: config.token.as_ref(),
        node: config.node_name.as_ref(),
        now: jiff::Timestamp::now(),
    };
    match plan::plan(&config.data_dir, &asked, stored.as_ref())? {
        Plan::Use { stored, moved } => {
            if moved {
                stored.save(&config.data_dir)?;
            }
            Membership::of(config, &stored).map(Some)
        }
        Plan::Join { server, node } => join_anew(config, &server, node, shutdown).await,
    }
}

/// Joins whatever is stored: the server has said that it is worth nothing any more. `None` without a token, and when cancelled.
pub async fn rejoin(
    config: &AgentConfig,
    member: &Membership,
    shutdown: &CancellationToken,
) -> Result<Option<Membership>, IdentityError> {
    let server = member.client.server().to_owned();
    join_anew(config, &server, Some(member.name.clone()), shutdown).await
}

async fn join_anew(
    config: &AgentConfig,
    server: &str,
    node: Option<NodeName>,
    shutdown: &CancellationToken,
) -> Result<Option<Membership>, IdentityError> {
    let Some(token) = &config.token else { return Ok(None) };
    let node = node.map_or_else(host_name, Ok)?;
    // Before the server counts a use of the token.
    node_ip(config, server)?;
    let Some(stored) = join(server, token, &node, shutdown).await? else { return Ok(None) };
    stored.save(&config.data_dir)?;
    tracing::info!(%node, server, "joined; the token is not needed any more");
    Membership::of(config, &stored).map(Some)
}

impl Membership {
    fn of(config: &AgentConfig, stored: &Stored) -> Result<Self, IdentityError> {
        let credentials = stored.kubeconfig.credentials()?;
        let identity = Arc::new(Identity::new(&credentials.certificate, &credentials.key)?);
        let client = Client::with_identity(&stored.kubeconfig, &identity)?;
        Ok(Membership {
            name: stored.facts.node.clone(),
            ip: node_ip(config, client.server())?,
            kubeconfig: stored.kubeconfig.clone(),
            identity,
            client,
            data_dir: config.data_dir.clone(),
        })
    }
}

fn node_ip(config: &AgentConfig, server: &str) -> Result<Ipv4Addr, IdentityError> {
    match config.node_ip {
        Some(ip) => address::of_this_machine(ip),
        None => address::towards(server),
    }
    .map_err(IdentityError::Address)
}

fn host_name() -> Result<NodeName, IdentityError> {
    let name = nix::unistd::gethostname().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    name.parse().map_err(|e| IdentityError::HostName(name, e))
}

/// The part of a token that may be shown.
fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

/// The token of a file: its first line that is neither empty nor a comment.
pub fn token_of_file(path: &std::path::Path) -> Result<JoinToken, IdentityError> {
    let text = std::fs::read_to_string(path).map_err(|e| IdentityError::file(path, &e))?;
    let line = text.lines().map(str::trim).find(|l| !l.is_empty() && !l.starts_with('#')).unwrap_or("");
    line.parse().map_err(|e: minisvc_proto::join::TokenError| IdentityError::File {
        path: path.to_path_buf(),
        why: e.to_string(),
    })
}
