//! Verbs that mark objects: nodes as closed or tainted, anything with labels.

use clap::Args;

#[derive(Debug, Args)]
pub struct Cordon {
    /// Names of the nodes
    #[arg(required = true, value_name = "NODE")]
    pub nodes: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Taint {
    /// [nodes] NODE... KEY[=VALUE]:EFFECT... KEY[:EFFECT]-...
    #[arg(required = true, value_name = "WHAT")]
    pub what: Vec<String>,
    /// Replace taints of the same key and effect
    #[arg(long)]
    pub overwrite: bool,
}

#[derive(Debug, Args)]
pub struct Label {
    /// KIND NAME... or KIND/NAME..., then KEY=VALUE... KEY-...
    #[arg(required = true, value_name = "WHAT")]
    pub what: Vec<String>,
    /// Replace values that are there
    #[arg(long)]
    pub overwrite: bool,
    /// Show the labels
    #[arg(long)]
    pub list: bool,
    /// Labels of the objects that are meant
    #[arg(long, short = 'l')]
    pub selector: Option<String>,
    /// Every object of the kind in the namespace
    #[arg(long, conflicts_with = "selector")]
    pub all: bool,
}
