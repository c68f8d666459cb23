//! `server`: what runs, and what credentials are given.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Subcommand};
use minisvc_server::run::Cidrs;

use super::storage::{Backup, Restore, Salvage};
use super::values::{duration, port, port_range};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Server {
    #[command(flatten)]
    pub run: RunServer,
    #[command(subcommand)]
    pub what: Option<ServerWhat>,
}

#[derive(Debug, Args)]
pub struct RunServer {
    /// Holds the store and the CA; else /var/lib/minisvc/server for root, $XDG_DATA_HOME/minisvc/server for users
    #[arg(long, env = "MINISVC_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address and port of the API
    #[arg(long, env = "MINISVC_LISTEN", default_value = "0.0.0.0:7443")]
    pub listen: SocketAddr,
    /// Address at which nodes and pods reach the API; else the one that --listen names, else this machine's
    #[arg(long, env = "MINISVC_ADVERTISE")]
    pub advertise: Option<IpAddr>,
    /// One more name or address for the server's certificate
    #[arg(long, env = "MINISVC_TLS_SAN", value_delimiter = ',')]
    pub tls_san: Vec<String>,
    /// Range of cluster IPs; for a dual-stack cluster two, of IPv4 and IPv6: 10.96.0.0/16,fd69:6d69:6e69:ffff::/112
    #[arg(long, env = "MINISVC_SERVICE_CIDR", default_value = "10.96.0.0/16")]
    pub service_cidr: Cidrs,
    /// Range of pod addresses, a /24 for each node; for a dual-stack cluster two, of which each node has a /24 and a /64:
    /// 10.244.0.0/16,fd69:6d69:6e6a::/48
    #[arg(long, env = "MINISVC_POD_CIDR", default_value = "10.244.0.0/16")]
    pub pod_cidr: Cidrs,
    /// Range of node ports
    #[arg(long, env = "MINISVC_NODE_PORT_RANGE", default_value = "30000-32767", value_parser = port_range)]
    pub node_port_range: (u16, u16),
    /// UDP port of VXLAN between nodes that share no network
    #[arg(long, env = "MINISVC_VXLAN_PORT", default_value_t = minisvc_proto::join::VXLAN_PORT, value_parser = port)]
    pub vxlan_port: u16,
    /// How long a node's certificate is good for; its agent renews it when a third of that is left
    #[arg(long, env = "MINISVC_NODE_CERTIFICATE_TTL", default_value = "720h", value_parser = certificate_ttl)]
    pub node_certificate_ttl: Duration,
    /// How long after a node is found silent (4 s) its pods are replaced elsewhere; a pod's tolerationSeconds go before
    #[arg(long, env = "MINISVC_POD_EVICTION_TIMEOUT", default_value = "6s", value_parser = duration)]
    pub pod_eviction_timeout: Duration,
}

/// A certificate that is good for no time is none.
fn certificate_ttl(s: &str) -> Result<Duration, String> {
    let longest = Duration::from_hours(10 * 365 * 24);
    let time = duration(s)?;
    if time < Duration::from_secs(1) || time > longest {
        return Err(format!("\"{s}\" is not between 1s and ten years, 720h would be right"));
    }
    Ok(time)
}

#[derive(Debug, Subcommand)]
pub enum ServerWhat {
    /// Print a kubeconfig with new credentials of an administrator; a node gets its own with a token
    Credentials(Credentials),
    /// Write the cluster's objects and its CA to a file, whether the server runs or not
    Backup(Backup),
    /// Make a data directory from a backup
    Restore(Restore),
    /// Bring out what is sound in a damaged store
    Salvage(Salvage),
}

#[derive(Debug, Args)]
pub struct Credentials {
    /// Credentials that may do everything
    #[arg(long, required = true)]
    pub admin: bool,
    /// The server's data directory
    #[arg(long, env = "MINISVC_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// URL of the server, as the user of the credentials reaches it
    #[arg(long, value_name = "URL", default_value = "https://127.0.0.1:7443")]
    pub server: String,
}
