//! The command line.

use std::path::PathBuf;

#[cfg(target_os = "linux")]
use crate::commands::agent::AgentArgs;
use crate::local::{DownArgs, UpArgs};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

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
        for bad in
            ["minisvc nope", "minisvc create service nodeport hello --tcp=0", "minisvc scale deployment x"]
        {
            assert_eq!(parse(bad).err().map(|e| e.exit_code()), Some(2), "{bad}");
        }
    }
}
