//! The one binary: server, agent, command line and demo workload.

mod args;
mod commands;
mod config;
mod echo;
mod local;
mod logging;
mod output;

use std::process::ExitCode;

use clap::Parser;
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    // clap prints usage errors itself and ends with 2.
    let args = args::Args::parse();
    match start(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            output::error(&e);
            ExitCode::FAILURE
        }
    }
}

fn start(args: args::Args) -> anyhow::Result<()> {
    let args::Args { global, command } = args;
    // These start processes and namespaces, which no thread may be in the way of.
    let command = match command {
        args::Command::Up(up) => return local::up(up),
        args::Command::Down(down) => return local::down(down),
        #[cfg(target_os = "linux")]
        args::Command::Shim(shim) => return Ok(minisvc_agent::runtime::shim::run(&shim.dir)?),
        args::Command::Server(server) => return commands::server::run(server),
        args::Command::Cluster(command) => command,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        match command {
            args::ClusterCommand::Echo(echo) => {
                commands::cancel_on_signal(stop.clone())?;
                echo::run(echo.port, stop).await
            }
            #[cfg(target_os = "linux")]
            args::ClusterCommand::Agent(agent) => {
                commands::log_to_stderr();
                commands::cancel_on_signal(stop.clone())?;
                commands::agent::run(&config::path(global.config.as_deref())?, agent, stop).await
            }
            other => commands::run(global, other).await,
        }
    })
}
