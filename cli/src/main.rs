//! The one binary: server, agent, command line and demo workload.

mod local;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "minisvc", version, about = "Kubernetes-style Services without Kubernetes")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a cluster on this machine
    Up(local::UpArgs),
    /// Stop a cluster that `up` started
    Down(local::DownArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Up(args) => local::up(args),
        Verb::Down(args) => local::down(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(1)
        }
    }
}
