//! `agent`: runs this machine as a node.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use anyhow::bail;
use clap::Args;
use minisvc_agent::{
    AgentConfig,
    config::{ExternalSource, HostAddress},
    identity,
};
use minisvc_proto::{NodeName, join::JoinToken};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{args::values::duration, notify::Manager};

/// Run this machine as a node of a cluster. The first start joins it, with --server and a token that `minisvc token create`
/// printed; later ones need neither.
#[derive(Debug, Args)]
pub struct AgentArgs {
    /// URL of the server, https://HOST:7443 [default: the one that this machine joined]
    #[arg(long, env = "MINISVC_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// Token to join with; --token-file keeps it out of the list of processes
    #[arg(long, env = "MINISVC_TOKEN", hide_env_values = true, conflicts_with = "token_file")]
    pub token: Option<JoinToken>,
    /// File with the token to join with
    #[arg(long, env = "MINISVC_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Name of the node [default: the one that this machine joined as, else the host's name]
    #[arg(long, env = "MINISVC_NODE_NAME")]
    pub node_name: Option<NodeName>,
    /// Address by which server and nodes reach this node [default: the one from which the server is reached]; in a dual-stack
    /// cluster two, IPV4,IPV6 [default: one that the same link has]
    #[arg(long, env = "MINISVC_NODE_IP", value_name = "IP[,IPV6]")]
    pub node_ip: Option<NodeIps>,
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
    /// What host.minisvc.internal stands for: an address, "node" (the node's own) or "none"
    #[arg(long, env = "MINISVC_HOST_ADDRESS", value_name = "ADDRESS", default_value = "node")]
    pub host_address: HostAddress,
    /// Which address of clients outside do pods on other nodes see: auto (the client's, where its answers are known to come back),
    /// keep (the client's) or masquerade (this node's)
    #[arg(long, env = "MINISVC_EXTERNAL_SOURCE", value_name = "WAY", default_value = "auto")]
    pub external_source: ExternalSource,
    /// How long a pod that ends waits, before its containers are told, until every node has taken it out of its services
    #[arg(long, env = "MINISVC_WITHDRAW_TIMEOUT", default_value = "5s", value_parser = duration)]
    pub withdraw_timeout: Duration,
    /// Insert accept rules for the cluster's traffic into chains of others that drop it
    #[arg(long, env = "MINISVC_MANAGE_HOST_FIREWALL")]
    pub manage_host_firewall: bool,
}

/// The addresses of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeIps {
    first: Ipv4Addr,
    second: Option<Ipv6Addr>,
}

impl FromStr for NodeIps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is no IPv4 address, with one of IPv6 after a comma or without; 192.0.2.10 or 192.0.2.10,2001:db8::10 would be right"
            )
        };
        let (first, second) =
            text.split_once(',').map_or((text, None), |(first, second)| (first, Some(second)));
        Ok(NodeIps {
            first: first.trim().parse().map_err(|_| wrong())?,
            second: second.map(|second| second.trim().parse().map_err(|_| wrong())).transpose()?,
        })
    }
}

/// Runs until cancelled.
pub async fn run(args: AgentArgs, stop: CancellationToken) -> anyhow::Result<()> {
    let token = match (args.token, args.token_file) {
        (Some(token), _) => Some(token),
        (None, Some(file)) => Some(identity::token_of_file(&file)?),
        (None, None) => None,
    };
    if let Some(server) = args.server.as_deref().filter(|s| !s.starts_with("https://")) {
        bail!("--server: \"{server}\" is no https:// URL; https://HOST:7443 would be right");
    }
    let config = AgentConfig {
        server: args.server.map(|url| url.trim_end_matches('/').to_owned()),
        token,
        node_name: args.node_name,
        node_ip: args.node_ip.map(|ips| ips.first),
        node_ip6: args.node_ip.and_then(|ips| ips.second),
        data_dir: args.data_dir,
        run_dir: args.run_dir,
        log_dir: args.log_dir,
        resolv_conf: args.resolv_conf,
        host_address: args.host_address,
        external_source: args.external_source,
        withdraw_timeout: args.withdraw_timeout,
        manage_host_firewall: args.manage_host_firewall,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_one_address_or_one_of_each_family() {
        let first = Ipv4Addr::new(192, 0, 2, 10);
        assert_eq!("192.0.2.10".parse(), Ok(NodeIps { first, second: None }));
        let second = Some("2001:db8::10".parse().unwrap());
        assert_eq!("192.0.2.10,2001:db8::10".parse(), Ok(NodeIps { first, second }));
        for bad in
            ["", "2001:db8::10", "192.0.2.10,", "192.0.2.10,192.0.2.11", "2001:db8::10,192.0.2.10", "a"]
        {
            let said = bad.parse::<NodeIps>().unwrap_err();
            assert!(said.contains("would be right"), "{bad}: {said}");
        }
    }
}
