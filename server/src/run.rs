//! The server as a whole: opens what it keeps, starts what it runs, serves, and ends.

mod ranges;
mod reached;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use minisvc_proto::{ApiError, join::ClusterInfo};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::ranges::Cidrs;
use self::ranges::{cluster_info, ranges};
use self::reached::Fixed;
pub use crate::tls::Limits;
use crate::{
    backup::{self, BackupError},
    cache::{self, Cache},
    controllers,
    http::{self, Edge, Joining},
    identity::Identities,
    pki::{Pki, PkiError, Serving, files, issue::ADMIN_LIFETIME},
    progress::Progress,
    registry::Registry,
    store::sled_engine::{self, SledStore},
    tls,
};

/// The zone of the cluster's names.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// What a server needs to know.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Holds the store and the CA.
    pub data_dir: PathBuf,
    /// Where the API is served.
    pub listen: SocketAddr,
    /// The address at which nodes and pods reach the API.
    pub advertise: IpAddr,
    /// More names and addresses for the server's certificate.
    pub tls_sans: Vec<String>,
    /// Cluster IPs.
    pub service_cidr: Cidrs,
    /// Pod addresses, a /24 of IPv4 and a /64 of IPv6 a node.
    pub pod_cidr: Cidrs,
    /// First and last node port.
    pub node_port_range: (u16, u16),
    /// UDP port of VXLAN between nodes.
    pub vxlan_port: u16,
    /// How long a node's certificate is good for.
    pub node_certificate_ttl: Duration,
    /// How long after a node was found silent its pods are replaced, of those that say nothing else.
    pub pod_eviction_timeout: Duration,
}

/// Why a server does not start, or ended. One clear line each.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A range that cannot be used.
    #[error("{flag}: {why}")]
    Config {
        /// Which flag.
        flag: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The data directory cannot be used at all.
    #[error("data directory {}: {cause}", path.display())]
    DataDir {
        /// Which directory.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] sled_engine::OpenError),
    /// The data directory is being changed as a whole.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The store holds what this server does not know.
    #[error("data directory {}: {cause}; it may be one of a newer minisvc", path.display())]
    Contents {
        /// Which directory.
        path: PathBuf,
        /// What was found.
        cause: cache::OpenError,
    },
    /// The certificates are not usable.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// What every cluster has cannot be made.
    #[error("the cluster's first objects: {0}")]
    Bootstrap(ApiError),
    /// A part of the server ended on its own.
    #[error("{0} ended, and the server with it")]
    Ended(String),
    /// The address cannot be listened on.
    #[error("--listen {address}: {cause}{}", hint(cause))]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// What the system said.
        cause: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "; another process listens there, so choose another port or stop that one"
        }
        io::ErrorKind::PermissionDenied => "; ports below 1024 need root",
        io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        _ => "",
    }
}

/// Where the CA lies below a data directory.
pub fn pki_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("pki")
}

/// Where the server writes how an administrator reaches it.
pub fn admin_kubeconfig(data_dir: &Path) -> PathBuf {
    data_dir.join("admin.kubeconfig")
}

/// A server that holds its data and its address, and serves nobody yet.
pub struct Server {
    registry: Registry,
    pki: Arc<Pki>,
    cluster: ClusterInfo,
    certificate_ttl: Duration,
    pod_eviction_timeout: Duration,
    serving: Arc<Serving>,
    fixed: Fixed,
    agents: Arc<rustls::ClientConfig>,
    listener: TcpListener,
    address: SocketAddr,
    /// What clients may cost.
    pub limits: Limits,
}

impl Server {
    /// Opens data and CA, and binds the address.
    pub async fn open(config: ServerConfig) -> Result<Self, ServerError> {
        let ranges = ranges(&config)?;
        files::create_dir(&config.data_dir)
            .and_then(|()| check_writable(&config.data_dir))
            .map_err(|cause| ServerError::DataDir { path: config.data_dir.clone(), cause })?;
        backup::check_finished(&config.data_dir)?;
        let store_dir = config.data_dir.join("store");
        let store = SledStore::open(&store_dir)?;
        let cache =
            Cache::open(Arc::new(store)).map_err(|cause| ServerError::Contents { path: store_dir, cause })?;
        let pki = Arc::new(Pki::open(&pki_dir(&config.data_dir))?);
        let fixed = Fixed::new(&config, &ranges)?;
        let serving = pki.serving(fixed.and_now())?;
        let agents = Arc::new(pki.client_config_for_agents()?);
        let registry = Registry::new(cache, ranges);
        self::ranges::check_in_use(&registry)?;
        // Late: whoever can connect is served.
        let failed = |cause| ServerError::Listen { address: config.listen, cause };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let advertise = SocketAddr::new(config.advertise, address.port());
        controllers::bootstrap(&registry, advertise).await.map_err(ServerError::Bootstrap)?;
        self::ranges::complete_nodes(&registry).await.map_err(ServerError::Bootstrap)?;
        let url = format!("https://{advertise}");
        let kubeconfig = admin_kubeconfig(&config.data_dir);
        let text = pki.kubeconfig(&pki.issue_admin_for(ADMIN_LIFETIME)?, &url)?;
        files::write(&kubeconfig, text.as_bytes())
            .map_err(|cause| PkiError::File { path: kubeconfig.clone(), cause })?;
        tracing::info!("the API is at https://{address}, its data in {}", config.data_dir.display());
        tracing::info!(
            "to add a machine: `minisvc token create --config {}` here, then there `minisvc agent --server {url} --token TOKEN`",
            kubeconfig.display()
        );
        Ok(Server {
            registry,
            pki,
            cluster: cluster_info(&config),
            certificate_ttl: config.node_certificate_ttl,
            pod_eviction_timeout: config.pod_eviction_timeout,
            serving,
            fixed,
            agents,
            listener,
            address,
            limits: Limits::default(),
        })
    }

    /// Where the API is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`, and lets the answers under way finish. An error if a part of the server ends before.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), ServerError> {
        let progress = Arc::new(Progress::default());
        // The end of a part ends the others with it.
        let shutdown = shutdown.child_token();
        let mut parts = controllers::start(
            self.registry.clone(),
            progress.clone(),
            self.pod_eviction_timeout,
            shutdown.clone(),
        );
        let store_ended = self.registry.store_ended();
        let identities = Arc::new(Identities::new(self.registry.clone()));
        {
            let (identities, shutdown) = (identities.clone(), shutdown.clone());
            parts.spawn(async move {
                identities.follow(shutdown).await;
                "watch of identities"
            });
        }
        let tls = self.pki.server_config(self.serving.clone())?;
        let following = reached::follow(self.fixed, self.pki.clone(), self.serving, shutdown.clone());
        parts.spawn(async move {
            following.await;
            "watch of this machine's addresses"
        });
        let edge = Edge {
            registry: self.registry,
            progress,
            agents: self.agents,
            joining: Joining::new(self.pki, self.cluster, self.certificate_ttl),
            shutdown: shutdown.clone(),
        };
        let router = http::router(Arc::new(edge));
        let serving =
            tls::serve(self.listener, Arc::new(tls), router, identities, self.limits, shutdown.clone());
        let mut serving = pin!(serving);
        let broken = tokio::select! {
            () = serving.as_mut() => None,
            // After an error of the disk only a new start knows what is on it.
            () = store_ended.cancelled() => {
                shutdown.cancel();
                serving.await;
                Some(ServerError::Ended("the store".into()))
            }
            Some(ended) = parts.join_next() => {
                let early = !shutdown.is_cancelled();
                shutdown.cancel();
                serving.await;
                early.then(|| ServerError::Ended(ended.map_or_else(|e| e.to_string(), str::to_owned)))
            }
        };
        parts.shutdown().await;
        tracing::info!("the server has ended");
        broken.map_or(Ok(()), Err)
    }
}

/// Opening a store in a directory that takes no files fails late and unclearly.
fn check_writable(dir: &Path) -> io::Result<()> {
    let probe = dir.join(".writable");
    fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe))
}
