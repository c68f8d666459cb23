//! What an agent is told at its start.

use std::{net::Ipv4Addr, path::PathBuf};

use ipnet::Ipv4Net;
use minisvc_proto::NodeName;

/// Everything that an agent needs to know; the command line fills it.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Kubeconfig with the node's own credentials.
    pub config: PathBuf,
    /// The node's name, as its certificate says.
    pub node_name: NodeName,
    /// The address by which other nodes and the server reach this one.
    pub node_ip: Ipv4Addr,
    /// What must survive a restart of the machine.
    pub data_dir: PathBuf,
    /// Sockets and state of running pods: gone with a restart of the machine.
    pub run_dir: PathBuf,
    /// Logs of pods.
    pub log_dir: PathBuf,
    /// The resolv.conf whose servers get the names outside the cluster.
    pub resolv_conf: PathBuf,
    /// The cluster's pod range.
    pub pod_cidr: Ipv4Net,
    /// The cluster's service range.
    pub service_cidr: Ipv4Net,
    /// First and last nodePort.
    pub node_port_range: (u16, u16),
    /// The cluster's DNS zone.
    pub cluster_domain: String,
}

impl AgentConfig {
    /// Where this node's pods ask for names: the tenth address of the service range.
    pub fn dns_ip(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.service_cidr.network()) + 10)
    }
}

/// Where the agent's own API listens, on the node's address.
pub const API_PORT: u16 = 10250;
