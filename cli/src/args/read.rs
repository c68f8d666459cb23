//! Verbs that show.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{
    Format,
    values::{Goal, duration, goal},
};

#[derive(Debug, Args)]
pub struct Get {
    /// KIND[,KIND...] [NAME...], "all", or KIND/NAME...
    #[arg(required = true, value_name = "WHAT")]
    pub what: Vec<String>,
    /// Format [default: a table]
    #[arg(long, short)]
    pub output: Option<Format>,
    /// Labels: app=hello, tier!=db, "app in (a,b)"
    #[arg(long, short = 'l')]
    pub selector: Option<String>,
    /// Fields: metadata.name=NAME, spec.nodeName=NODE
    #[arg(long)]
    pub field_selector: Option<String>,
    /// Of all namespaces
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    /// Then show every change
    #[arg(long, short)]
    pub watch: bool,
    /// No head line
    #[arg(long)]
    pub no_headers: bool,
    /// Labels in a last column
    #[arg(long)]
    pub show_labels: bool,
    /// Nothing and exit code 0 where there is no such object
    #[arg(long)]
    pub ignore_not_found: bool,
}

#[derive(Debug, Args)]
pub struct Describe {
    /// KIND[,KIND...] [NAME...] or KIND/NAME...
    #[arg(required = true, value_name = "WHAT")]
    pub what: Vec<String>,
    /// Labels
    #[arg(long, short = 'l')]
    pub selector: Option<String>,
    /// Of all namespaces
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// POD, pod/NAME or deployment/NAME
    #[arg(required_unless_present = "selector")]
    pub pod: Option<String>,
    /// Of the pods with these labels
    #[arg(long, short = 'l', conflicts_with_all = ["pod", "follow"])]
    pub selector: Option<String>,
    /// Container [default: the pod's only one]
    #[arg(long, short)]
    pub container: Option<String>,
    /// Go on with what comes
    #[arg(long, short)]
    pub follow: bool,
    /// Only the last lines; -1 for all [default: all; with -l 10]
    #[arg(long, allow_negative_numbers = true)]
    pub tail: Option<i64>,
    /// Of the container's last run
    #[arg(long, short)]
    pub previous: bool,
    /// With the time of each line
    #[arg(long)]
    pub timestamps: bool,
    /// Not older than this
    #[arg(long, value_parser = duration)]
    pub since: Option<Duration>,
}

#[derive(Debug, Args)]
pub struct Wait {
    /// KIND [NAME...] or KIND/NAME...
    #[arg(required = true, value_name = "WHAT")]
    pub what: Vec<String>,
    /// condition=NAME[=VALUE], create, delete, or jsonpath='{.field}'[=VALUE]
    #[arg(long = "for", required = true, value_name = "GOAL", value_parser = goal)]
    pub goal: Goal,
    /// Labels
    #[arg(long, short = 'l')]
    pub selector: Option<String>,
    /// Every object of the kind
    #[arg(long)]
    pub all: bool,
    /// How long to wait, for each object
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub struct KubeconfigArgs {
    /// Put it into another file, beside what is there
    #[arg(long, hide = true)]
    pub merge: bool,
}

#[derive(Debug, Args)]
pub struct Version {
    /// Of the client only
    #[arg(long)]
    pub client: bool,
    #[arg(long, short)]
    pub output: Option<VersionFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum VersionFormat {
    Yaml,
    Json,
}
