//! `token`: what lets machines join.

use std::time::Duration;

use clap::{Args, Subcommand};

use super::values::ttl;

#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct TokenArgs {
    #[command(subcommand)]
    pub command: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token with which machines join as nodes, and print it
    Create(TokenCreate),
    /// Show the tokens, without their secrets
    List(TokenList),
    /// Make tokens useless; nodes that joined with them stay
    Revoke(TokenRevoke),
}

#[derive(Debug, Args)]
pub struct TokenCreate {
    /// How long it is good for: 30m, 24h; 0 for ever
    #[arg(long, default_value = "24h", value_parser = ttl)]
    pub ttl: Duration,
    /// How many machines may join with it [default: any number]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub uses: Option<u32>,
    /// What it is for, shown by `token list`
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
}

#[derive(Debug, Args)]
pub struct TokenList {
    /// No head line
    #[arg(long)]
    pub no_headers: bool,
}

#[derive(Debug, Args)]
pub struct TokenRevoke {
    /// The tokens' ids, as `token list` shows them, or whole tokens
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
}
