//! Verbs that change or enter what is there.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Subcommand, ValueEnum};

use super::values::duration;

#[derive(Debug, Args)]
pub struct Delete {
    /// KIND[,KIND...] [NAME...] or KIND/NAME...
    #[arg(required_unless_present = "filename", value_name = "WHAT")]
    pub what: Vec<String>,
    /// The objects of a file, "-" for standard input
    #[arg(long, short, value_name = "FILE", conflicts_with = "what")]
    pub filename: Vec<PathBuf>,
    /// Labels
    #[arg(long, short = 'l')]
    pub selector: Option<String>,
    /// Every object of the kind in the namespace
    #[arg(long, conflicts_with = "selector")]
    pub all: bool,
    /// Seconds between SIGTERM and SIGKILL; -1: what the object says
    #[arg(long, default_value_t = -1, allow_negative_numbers = true, conflicts_with = "now")]
    pub grace_period: i64,
    /// With --grace-period=0: do not wait for the node's word that the pod has ended
    #[arg(long)]
    pub force: bool,
    /// One second between SIGTERM and SIGKILL
    #[arg(long)]
    pub now: bool,
    /// Wait until the objects are gone
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub wait: bool,
    /// How long to wait [default: until it is done]
    #[arg(long, value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Exit code 0 where there is no such object
    #[arg(long)]
    pub ignore_not_found: bool,
    /// What happens to what the objects own
    #[arg(long, default_value = "background")]
    pub cascade: Cascade,
    /// Print names only: -o name
    #[arg(long, short, value_parser = ["name"])]
    pub output: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Cascade {
    /// Deleted afterwards
    Background,
    /// Deleted first
    Foreground,
    /// Kept
    Orphan,
}

#[derive(Debug, Args)]
pub struct Scale {
    /// KIND NAME... or KIND/NAME...
    #[arg(required = true, value_name = "WHAT")]
    pub what: Vec<String>,
    /// How many pods there should be
    #[arg(long, value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)))]
    pub replicas: u32,
    /// Only where there are so many now
    #[arg(long)]
    pub current_replicas: Option<u32>,
}

#[derive(Debug, Args)]
pub struct Exec {
    /// POD, pod/NAME or deployment/NAME
    pub pod: String,
    /// Container [default: the pod's only one]
    #[arg(long, short)]
    pub container: Option<String>,
    #[command(flatten)]
    pub streams: Streams,
    /// What runs
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Clone, Copy, Debug, Args)]
pub struct Streams {
    /// Pass standard input
    #[arg(long, short = 'i')]
    pub stdin: bool,
    /// Run it in a terminal
    #[arg(long, short = 't')]
    pub tty: bool,
}

#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct NodeArgs {
    #[command(subcommand)]
    pub command: NodeCommand,
}

#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Run CMD on a node, in its network
    Exec(NodeExec),
    /// Remove a node from the cluster and make its certificate useless
    Remove(NodeRemove),
}

#[derive(Debug, Args)]
pub struct NodeRemove {
    /// Name of the node
    pub node: String,
}

#[derive(Debug, Args)]
pub struct NodeExec {
    /// Name of the node
    pub node: String,
    #[command(flatten)]
    pub streams: Streams,
    /// What runs
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}
