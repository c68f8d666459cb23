//! Verbs that make objects.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Subcommand, ValueEnum};

use super::{
    ObjectFormat,
    service::{CreateService, Traffic},
    values::{ClusterIp, TargetPort, cluster_ip, duration, pair, port, target_port},
};

/// What happens to the object that was built.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Produce {
    /// client: only print it; server: have the server check it, and keep nothing
    #[arg(
        long,
        value_name = "WHERE",
        default_value = "none",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub dry_run: DryRun,
    /// Print the object
    #[arg(long, short)]
    pub output: Option<ObjectFormat>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DryRun {
    #[default]
    None,
    Client,
    Server,
}

/// Whether, and how long, to wait for a service.
#[derive(Clone, Copy, Debug, Args)]
pub struct ServiceWait {
    /// Wait until every ready node has programmed the service with all its pods
    #[arg(long, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub wait: bool,
    /// How long to wait: 30s, 2m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
#[command(arg_required_else_help = true, args_conflicts_with_subcommands = true)]
pub struct Create {
    /// YAML or JSON file with one object or more, "-" for standard input
    #[arg(long, short, value_name = "FILE")]
    pub filename: Vec<PathBuf>,
    #[command(flatten)]
    pub produce: Produce,
    #[command(subcommand)]
    pub what: Option<CreateWhat>,
}

#[derive(Debug, Subcommand)]
pub enum CreateWhat {
    /// Create a deployment of pods that run CMD
    #[command(visible_alias = "deploy")]
    Deployment(CreateDeployment),
    /// Create a service
    #[command(visible_alias = "svc")]
    Service {
        #[command(subcommand)]
        kind: Box<CreateService>,
    },
    /// Create a namespace
    #[command(visible_alias = "ns")]
    Namespace(CreateNamespace),
}

#[derive(Debug, Args)]
pub struct CreateDeployment {
    /// Name of the deployment
    pub name: String,
    /// How many pods
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=i64::from(i32::MAX)))]
    pub replicas: u32,
    /// Port that the pods listen on
    #[arg(long, value_parser = port)]
    pub port: Option<u16>,
    /// Pods run on the machine's own file system: empty or "host"
    #[arg(long)]
    pub image: Option<String>,
    #[command(flatten)]
    pub produce: Produce,
    /// What the pods run
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct CreateNamespace {
    /// Name of the namespace
    pub name: String,
    #[command(flatten)]
    pub produce: Produce,
}

#[derive(Debug, Args)]
pub struct Run {
    /// Name of the pod
    pub name: String,
    /// Variable of the environment, can be given several times
    #[arg(long, short = 'e', value_name = "NAME=VALUE", value_parser = pair)]
    pub env: Vec<(String, String)>,
    /// Labels [default: run=NAME]
    #[arg(long, short = 'l', value_name = "NAME=VALUE", value_delimiter = ',', value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// Port that the pod listens on
    #[arg(long, value_parser = port)]
    pub port: Option<u16>,
    /// Pods run on the machine's own file system: empty or "host"
    #[arg(long)]
    pub image: Option<String>,
    /// When the pod runs CMD again
    #[arg(long, default_value = "Always", value_parser = ["Always", "OnFailure", "Never"])]
    pub restart: String,
    #[command(flatten)]
    pub produce: Produce,
    /// What the pod runs
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Expose {
    /// KIND or KIND/NAME
    pub kind: String,
    /// Name, after KIND
    #[arg(value_name = "NAME")]
    pub target: Option<String>,
    /// Name of the service [default: that of the object]
    #[arg(long)]
    pub name: Option<String>,
    /// Type of the service
    #[arg(long = "type", default_value = "ClusterIP", value_parser = ["ClusterIP", "NodePort", "LoadBalancer"])]
    pub kind_of_service: String,
    /// Port of the service [default: the ports of the object's containers]
    #[arg(long, value_parser = port)]
    pub port: Option<u16>,
    /// Port of the pods, a number or a name [default: the same as --port]
    #[arg(long, value_parser = target_port)]
    pub target_port: Option<TargetPort>,
    /// TCP, UDP or SCTP [default: that of the container's port, else TCP]
    #[arg(long, value_parser = ["TCP", "UDP", "SCTP"], ignore_case = true)]
    pub protocol: Option<String>,
    /// Selector of the service [default: that of the object]
    #[arg(long, value_name = "NAME=VALUE", value_delimiter = ',', value_parser = pair)]
    pub selector: Vec<(String, String)>,
    /// Labels of the service [default: those of the object]
    #[arg(long, short = 'l', value_name = "NAME=VALUE", value_delimiter = ',', value_parser = pair)]
    pub labels: Vec<(String, String)>,
    /// Address of the service, or None [default: a free one]
    #[arg(long, value_name = "IP", value_parser = cluster_ip)]
    pub cluster_ip: Option<ClusterIp>,
    #[command(flatten)]
    pub traffic: Traffic,
    #[command(flatten)]
    pub wait: ServiceWait,
    #[command(flatten)]
    pub produce: Produce,
}
