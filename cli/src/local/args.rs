//! What `up` and `down` are told.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Start a cluster on this machine.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// Return as soon as every node is Ready, and leave the cluster running
    #[arg(long)]
    pub detach: bool,
    /// Then show a service at work: four pods, asked from everywhere
    #[arg(long)]
    pub demo: bool,
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub nodes: u8,
    /// Name of the cluster; several can run side by side on ports of their own
    #[arg(long, default_value = "default", value_parser = cluster_name)]
    pub name: String,
    /// Where the cluster keeps its data [default: by XDG, as root /var/lib/minisvc/NAME]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Port of the API on 127.0.0.1 and [::1]
    #[arg(long, default_value_t = 7443, value_parser = clap::value_parser!(u16).range(1..))]
    pub api_port: u16,
    /// Keep pods from this machine's own services and from everything that it reaches
    #[arg(long)]
    pub no_host_access: bool,
    /// Pods and services have IPv6 beside IPv4; a cluster that has it keeps it
    #[arg(long)]
    pub ipv6: bool,
    /// Which process of the cluster this is; `up` sets it for the processes that it starts
    #[arg(long, hide = true)]
    pub stage: Option<Stage>,
    /// Run directory (between these processes: inside the room everybody looks like root)
    #[arg(long, hide = true)]
    pub run_dir: Option<PathBuf>,
    /// Log directory (between these processes)
    #[arg(long, hide = true)]
    pub log_dir: Option<PathBuf>,
    /// The room's first process, by its id on this machine (for the relay)
    #[arg(long, hide = true)]
    pub room_pid: Option<u32>,
}

/// The processes that `up` starts from its own binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Stage {
    /// Tries what the others need.
    Probe,
    /// Stays in the machine's network; everything else dies with it.
    Keeper,
    /// First process of the room.
    Room,
    /// Brings the API and the nodePorts to this machine.
    Relay,
}

/// Stop a cluster that `up` started.
#[derive(Args, Clone, Debug)]
pub struct DownArgs {
    /// Name of the cluster
    #[arg(long, default_value = "default", value_parser = cluster_name)]
    pub name: String,
    /// Where the cluster keeps its data, if `up` was told
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Forget the data too
    #[arg(long)]
    pub purge: bool,
}

fn cluster_name(s: &str) -> Result<String, String> {
    minisvc_proto::names::check_dns_label(s).map_err(|e| e.to_string())?;
    Ok(s.to_owned())
}
