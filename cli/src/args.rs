//! The command line.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

#[cfg(target_os = "linux")]
use crate::commands::agent::AgentArgs;
use crate::local::{DownArgs, UpArgs};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use ipnet::Ipv4Net;

/// Kubernetes-style Services for a handful of machines or one laptop, without Kubernetes.
#[derive(Parser)]
#[command(name = "minisvc", version, arg_required_else_help = true)]
pub struct Args {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, ClapArgs)]
pub struct Global {
    /// Kubeconfig file; else $MINISVC_CONFIG, else $XDG_CONFIG_HOME/minisvc/config
    #[arg(long, global = true)]
    pub config: Option<PathBuf>,
    /// Namespace
    #[arg(long, short, global = true)]
    pub namespace: Option<String>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Start a cluster on this machine
    Up(UpArgs),
    /// Stop a cluster that `up` started
    Down(DownArgs),
    /// The first process of a pod: started by the agent
    #[cfg(target_os = "linux")]
    #[command(hide = true)]
    Shim(Shim),
    /// Run the API server and the controllers
    Server(Server),
    #[command(flatten)]
    Cluster(ClusterCommand),
}

#[cfg(target_os = "linux")]
#[derive(Debug, ClapArgs)]
pub struct Shim {
    /// The pod's directory
    #[arg(long)]
    pub dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Run this machine as a node
    #[cfg(target_os = "linux")]
    Agent(AgentArgs),
    /// Run the demo workload: HTTP, raw TCP and UDP on one port
    Echo(Echo),
    /// Show objects
    Get(Get),
    /// Create objects
    Create(Create),
    /// Delete an object
    Delete(Delete),
    /// Set the number of replicas
    Scale(Scale),
    /// Show a pod's log
    Logs(Logs),
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Server {
    #[command(flatten)]
    pub run: RunServer,
    #[command(subcommand)]
    pub what: Option<ServerWhat>,
}

#[derive(Debug, ClapArgs)]
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
    /// Range of cluster IPs
    #[arg(long, env = "MINISVC_SERVICE_CIDR", default_value = "10.96.0.0/16")]
    pub service_cidr: Ipv4Net,
    /// Range of pod addresses, a /24 for each node
    #[arg(long, env = "MINISVC_POD_CIDR", default_value = "10.244.0.0/16")]
    pub pod_cidr: Ipv4Net,
    /// Range of node ports
    #[arg(long, env = "MINISVC_NODE_PORT_RANGE", default_value = "30000-32767", value_parser = parse_range)]
    pub node_port_range: (u16, u16),
}

#[derive(Debug, Subcommand)]
pub enum ServerWhat {
    /// Print a kubeconfig with new credentials, for an administrator or a node
    Credentials(Credentials),
}

#[derive(Debug, ClapArgs)]
#[command(group(clap::ArgGroup::new("who").required(true).args(["admin", "node"])))]
pub struct Credentials {
    /// Credentials that may do everything
    #[arg(long)]
    pub admin: bool,
    /// Credentials of the node with this name
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
    /// The server's data directory
    #[arg(long, env = "MINISVC_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// URL of the server, as the user of the credentials reaches it
    #[arg(long, value_name = "URL", default_value = "https://127.0.0.1:7443")]
    pub server: String,
}

#[derive(Debug, ClapArgs)]
pub struct Echo {
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Wide,
    Yaml,
    Json,
    Name,
}

#[derive(Debug, ClapArgs)]
pub struct Get {
    /// Kinds, separated by commas, or KIND/NAME
    pub kinds: String,
    pub name: Option<String>,
    #[arg(long, short)]
    pub output: Option<Format>,
    #[arg(long, short = 'l')]
    pub selector: Option<String>,
    #[arg(long)]
    pub field_selector: Option<String>,
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
}

#[derive(Debug, ClapArgs)]
#[command(arg_required_else_help = true, args_conflicts_with_subcommands = true)]
pub struct Create {
    /// YAML or JSON file with one object or more
    #[arg(long, short)]
    pub filename: Option<PathBuf>,
    #[command(subcommand)]
    pub what: Option<CreateWhat>,
}

#[derive(Debug, Subcommand)]
pub enum CreateWhat {
    /// Create a deployment of pods that run CMD
    Deployment(CreateDeployment),
    /// Create a service that selects pods by app=NAME
    Service {
        #[command(subcommand)]
        kind: CreateService,
    },
}

#[derive(Debug, ClapArgs)]
pub struct CreateDeployment {
    pub name: String,
    #[arg(long, short, default_value_t = 1)]
    pub replicas: u32,
    #[arg(long)]
    pub port: Option<u16>,
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum CreateService {
    /// A service within the cluster
    Clusterip(ServiceFlags),
    /// A service on every node's address too
    Nodeport(ServiceFlags),
}

#[derive(Debug, ClapArgs)]
pub struct ServiceFlags {
    pub name: String,
    /// PORT or PORT:TARGET
    #[arg(long, required = true, value_delimiter = ',', value_parser = parse_ports)]
    pub tcp: Vec<(u16, u16)>,
    #[arg(long)]
    pub node_port: Option<u16>,
    /// Wait until every ready node has programmed it
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub wait: bool,
    /// Seconds to wait
    #[arg(long, default_value = "30s", value_parser = parse_seconds)]
    pub timeout: u64,
}

#[derive(Debug, ClapArgs)]
pub struct Delete {
    /// KIND or KIND/NAME
    pub kind: String,
    pub name: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub struct Scale {
    /// KIND or KIND/NAME
    pub kind: String,
    pub name: Option<String>,
    #[arg(long)]
    pub replicas: u32,
}

#[derive(Debug, ClapArgs)]
pub struct Logs {
    pub pod: String,
    #[arg(long, short)]
    pub follow: bool,
    #[arg(long)]
    pub tail: Option<u64>,
}

fn parse_ports(s: &str) -> Result<(u16, u16), String> {
    let (port, target) = s.split_once(':').unwrap_or((s, s));
    let number = |p: &str| match p.parse::<u16>() {
        Ok(n) if n > 0 => Ok(n),
        _ => Err(format!("\"{p}\" is no port, 1-65535 would be right")),
    };
    Ok((number(port)?, number(target)?))
}

fn parse_range(s: &str) -> Result<(u16, u16), String> {
    let range = s.split_once('-').and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    range
        .filter(|(first, last)| 0 < *first && first <= last)
        .ok_or_else(|| format!("\"{s}\" is no range of ports, 30000-32767 would be right"))
}

fn parse_seconds(s: &str) -> Result<u64, String> {
    let (number, factor) = match s.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (s.strip_suffix('s').unwrap_or(s), 1),
    };
    let n: u64 = number.parse().map_err(|_| format!("\"{s}\" is no duration, 30s or 2m would be right"))?;
    n.checked_mul(factor).ok_or_else(|| format!("\"{s}\" is too long"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_usage_errors_are_2() {
        Args::command().debug_assert();
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        assert!(parse("minisvc create deployment hello --replicas 4 -- minisvc echo --port 8080").is_ok());
        assert!(parse("minisvc create service nodeport hello --tcp=80:8080 --wait=false").is_ok());
        assert!(parse("minisvc get nodes,pods -o wide -A").is_ok());
        assert!(parse("minisvc server --listen 127.0.0.1:0 --tls-san a --tls-san ::1").is_ok());
        assert!(
            parse("minisvc server credentials --node node-1 --data-dir /d --server https://s:7443").is_ok()
        );
        for bad in [
            "minisvc nope",
            "minisvc create service nodeport hello --tcp=0",
            "minisvc scale deployment x",
            "minisvc server --node-port-range 9-8",
            "minisvc server --pod-cidr 10.0.0.0",
            "minisvc server credentials",
            "minisvc server credentials --admin --node n",
        ] {
            assert_eq!(parse(bad).err().map(|e| e.exit_code()), Some(2), "{bad}");
        }
    }
}
