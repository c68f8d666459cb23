//! `agent`: runs this machine as a node.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs, UdpSocket},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use ipnet::Ipv4Net;
use minisvc_agent::AgentConfig;
use minisvc_proto::{NodeName, client::Kubeconfig};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{args::values::port_range, notify::Manager};

/// Run this machine as a node of a cluster. Its credentials are the kubeconfig given by --config, as
/// `minisvc server credentials --node NAME` prints it.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Name of the node, as in its certificate [default: the host's name]
    #[arg(long, env = "MINISVC_NODE_NAME")]
    pub node_name: Option<String>,
    /// Address by which server and nodes reach this node [default: the one from which the server is reached]
    #[arg(long, env = "MINISVC_NODE_IP")]
    pub node_ip: Option<Ipv4Addr>,
    /// What must survive a restart of the machine
    #[arg(long, env = "MINISVC_DATA_DIR", default_value = "/var/lib/minisvc/agent")]
    pub data_dir: PathBuf,
    /// Sockets and state of running pods
    #[arg(long, env = "MINISVC_RUN_DIR", default_value = "/run/minisvc/agent")]
    pub run_dir: PathBuf,
    /// Logs of pods
    #[arg(long, env = "MINISVC_LOG_DIR", default_value = "/var/log/minisvc/pods")]
    pub log_dir: PathBuf,
    /// The resolvers for names outside the cluster
    #[arg(long, env = "MINISVC_RESOLV_CONF", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,
    /// All pods of the cluster are from here, as the server was told
    #[arg(long, env = "MINISVC_POD_CIDR", default_value = "10.244.0.0/16")]
    pub pod_cidr: Ipv4Net,
    /// All ClusterIPs are from here, as the server was told
    #[arg(long, env = "MINISVC_SERVICE_CIDR", default_value = "10.96.0.0/16")]
    pub service_cidr: Ipv4Net,
    /// First and last nodePort, as the server was told
    #[arg(long, env = "MINISVC_NODE_PORT_RANGE", default_value = "30000-32767", value_parser = port_range)]
    pub node_port_range: (u16, u16),
    /// The cluster's DNS zone
    #[arg(long, env = "MINISVC_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
}

/// Runs until cancelled.
pub async fn run(config: &Path, args: AgentArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let kubeconfig = Kubeconfig::load(config)?;
    let name = match args.node_name {
        Some(name) => name,
        None => nix::unistd::gethostname()
            .context("the host's name cannot be read: give --node-name")?
            .to_string_lossy()
            .to_ascii_lowercase(),
    };
    let node_name: NodeName =
        name.parse().with_context(|| format!("\"{name}\" is no name for a node: give --node-name"))?;
    let node_ip = match args.node_ip {
        Some(ip) => ip,
        None => towards(kubeconfig.server()?)?,
    };
    let config = AgentConfig {
        config: config.to_owned(),
        node_name,
        node_ip,
        data_dir: args.data_dir,
        run_dir: args.run_dir,
        log_dir: args.log_dir,
        resolv_conf: args.resolv_conf,
        pod_cidr: args.pod_cidr.trunc(),
        service_cidr: args.service_cidr.trunc(),
        node_port_range: args.node_port_range,
        cluster_domain: args.cluster_domain,
    };
    let manager = Manager::of_this_process();
    manager.status("registering with the server");
    let (progress, node) = oneshot::channel();
    let work = minisvc_agent::run(config, progress, stop.clone());
    tokio::select! {
        ended = manager.while_running(&stop, work) => Ok(ended?),
        never = manager.follow_node(node) => match never {},
    }
}

/// The address of this machine from which it speaks to the server. Sends nothing.
fn towards(server: &str) -> anyhow::Result<Ipv4Addr> {
    let authority = server.trim_start_matches("https://").split('/').next().unwrap_or_default();
    let with_port = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:443") };
    let find = || -> std::io::Result<Option<Ipv4Addr>> {
        for to in with_port.to_socket_addrs()?.filter(SocketAddr::is_ipv4) {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.connect(to)?;
            if let IpAddr::V4(ip) = socket.local_addr()?.ip() {
                return Ok(Some(ip));
            }
        }
        Ok(None)
    };
    match find().with_context(|| format!("no way to the server {server}: give --node-ip"))? {
        Some(ip) if !ip.is_loopback() => Ok(ip),
        _ => bail!("the address of this node cannot be told from the way to {server}: give --node-ip"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_this_machine_says_nothing_about_the_nodes_address() {
        let error = towards("https://127.0.0.1:7443").unwrap_err().to_string();
        assert!(error.contains("--node-ip"), "{error}");
    }
}
