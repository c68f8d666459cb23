//! The one binary: server, agent, command line and demo workload.

mod args;
mod commands;
mod config;
mod echo;
mod local;
mod logging;
mod notify;
mod output;
mod settings;

use std::{env, path::Path, process::ExitCode};

use tokio_util::sync::CancellationToken;

/// Where the settings of `server` and `agent` are.
const SETTINGS_DIR: &str = "/etc/minisvc";
/// As clap has it for what was typed.
const USAGE_ERROR: u8 = 2;

fn main() -> ExitCode {
    let argv: Vec<_> = env::args_os().collect();
    let around = settings::Surroundings { env: &|name| env::var_os(name), dir: Path::new(SETTINGS_DIR) };
    let parsed = match settings::parse(&argv, &around) {
        Ok(parsed) => parsed,
        // clap prints help and usage errors itself.
        Err(settings::Fault::Usage(e)) => e.exit(),
        Err(settings::Fault::Settings(e)) => {
            output::error(&e);
            return ExitCode::from(USAGE_ERROR);
        }
    };
    parsed.warnings.iter().for_each(|warning| output::note(warning));
    match start(parsed.args) {
        Ok(code) => ExitCode::from(code),
        // `| head` has seen enough.
        Err(e) if output::is_reader_gone(&e) => ExitCode::SUCCESS,
        Err(e) => {
            output::error(&e);
            ExitCode::FAILURE
        }
    }
}

/// What runs on the runtime that `start` makes.
enum Later {
    Cluster(args::ClusterCommand),
    Echo(args::Echo),
    #[cfg(target_os = "linux")]
    Agent(commands::agent::AgentArgs),
    #[cfg(target_os = "linux")]
    Doctor(commands::doctor::DoctorArgs),
}

fn start(args: args::Args) -> anyhow::Result<u8> {
    let args::Args { global, command } = args;
    // These start processes and namespaces, which no thread may be in the way of.
    let command = match command {
        args::Command::Up(up) => return local::up(up, global.config).map(|()| 0),
        args::Command::Down(down) => return local::down(down).map(|()| 0),
        #[cfg(target_os = "linux")]
        args::Command::Shim(shim) => {
            return minisvc_agent::runtime::shim::run(&shim.dir).map(|()| 0).map_err(Into::into);
        }
        args::Command::Server(server) => return commands::server::run(server).map(|()| 0),
        args::Command::Cluster(command) => Later::Cluster(command),
        args::Command::Echo(echo) => Later::Echo(echo),
        #[cfg(target_os = "linux")]
        args::Command::Agent(agent) => Later::Agent(agent),
        #[cfg(target_os = "linux")]
        args::Command::Doctor(doctor) => Later::Doctor(doctor),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        match command {
            Later::Echo(echo) => {
                commands::cancel_on_signal(stop.clone())?;
                echo::run(echo, stop).await.map(|()| 0)
            }
            #[cfg(target_os = "linux")]
            Later::Agent(agent) => {
                logging::start();
                commands::cancel_on_signal(stop.clone())?;
                commands::agent::run(agent, stop).await.map(|()| 0)
            }
            #[cfg(target_os = "linux")]
            Later::Doctor(doctor) => commands::doctor::run(doctor).await,
            Later::Cluster(command) => commands::run(global, command).await,
        }
    })
}
