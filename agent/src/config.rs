//! What an agent is told at its start.

use std::{net::Ipv4Addr, path::PathBuf};

use minisvc_proto::{NodeName, join::JoinToken};

/// Everything that an agent needs to know; the command line fills it. What all nodes must agree on comes from the server.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// URL of the server; `None`: the one that this machine joined.
    pub server: Option<String>,
    /// To join with; not needed by a machine that has joined.
    pub token: Option<JoinToken>,
    /// The node's name; `None`: the one that this machine joined as, else the host's.
    pub node_name: Option<NodeName>,
    /// The address by which other nodes and the server reach this one; `None`: the one from which the server is reached.
    pub node_ip: Option<Ipv4Addr>,
    /// What must survive a restart of the machine.
    pub data_dir: PathBuf,
    /// Sockets and state of running pods: gone with a restart of the machine.
    pub run_dir: PathBuf,
    /// Logs of pods.
    pub log_dir: PathBuf,
    /// The resolv.conf whose servers get the names outside the cluster.
    pub resolv_conf: PathBuf,
    /// Whether the agent lets the cluster's traffic through firewalls of others itself.
    pub manage_host_firewall: bool,
}

/// Where the agent's own API listens, on the node's address.
pub const API_PORT: u16 = 10250;
