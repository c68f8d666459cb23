//! Rollouts of deployments.

use std::time::Duration;

use clap::{ArgAction, Args, Subcommand};

use super::values::duration;

#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct RolloutArgs {
    #[command(subcommand)]
    pub command: RolloutCommand,
}

#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    /// Show how far a rollout is, until it is done
    Status(Status),
    /// Show the revisions that there were, or one of them
    History(History),
    /// Go back to an earlier revision
    Undo(Undo),
    /// Replace all pods, as a rollout does
    Restart(Which),
    /// Stop rolling out changes
    Pause(Which),
    /// Go on with what was paused
    Resume(Which),
}

/// Deployments.
#[derive(Debug, Args)]
pub struct Which {
    /// KIND NAME... or KIND/NAME...
    #[arg(required = true, value_name = "WHAT")]
    pub what: Vec<String>,
}

#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub which: Which,
    /// Wait until it is done
    #[arg(long, short, default_value_t = true, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", hide_possible_values = true)]
    pub watch: bool,
    /// How long to wait; 0: until it is done
    #[arg(long, default_value = "0", value_parser = duration)]
    pub timeout: Duration,
    /// Only as long as this is the newest revision; 0: whichever is
    #[arg(long, default_value_t = 0)]
    pub revision: u64,
}

#[derive(Debug, Args)]
pub struct History {
    #[command(flatten)]
    pub which: Which,
    /// The pod template of this revision
    #[arg(long, default_value_t = 0)]
    pub revision: u64,
}

#[derive(Debug, Args)]
pub struct Undo {
    #[command(flatten)]
    pub which: Which,
    /// The revision; 0: the one before the newest
    #[arg(long, default_value_t = 0)]
    pub to_revision: u64,
}
