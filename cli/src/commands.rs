//! The verbs that speak to the server.

#[cfg(target_os = "linux")]
pub mod agent;
pub mod build;
mod cordon;
mod create;
mod delete;
mod describe;
#[cfg(target_os = "linux")]
pub mod doctor;
mod doors;
mod editing;
pub mod exec;
mod expose;
mod get;
mod label;
mod logs;
mod manifests;
mod node;
mod pods;
pub mod programmed;
mod rollout;
mod scale;
mod selection;
pub mod server;
mod taint;
mod terminal;
mod token;
mod version;
mod wait;
mod watching;

use anyhow::Context as _;
use minisvc_proto::{ObjectKey, Resource, client::Client, path::Target};
use tokio_util::sync::CancellationToken;

use crate::{
    args::{ClusterCommand as Command, Global, NodeCommand},
    config, output,
};

/// How a command ended: its exit code, where that is no fault of ours.
pub type Outcome = anyhow::Result<u8>;

/// Everything went well.
const DONE: u8 = 0;
/// Some of it failed, and that was said.
const FAILED: u8 = 1;

/// The server and the namespace that a command speaks of.
pub struct Session {
    client: Client,
    /// Where objects are that do not say it.
    namespace: String,
    /// `-n` was given: objects of other namespaces are refused.
    enforced: bool,
}

/// SIGTERM and SIGINT cancel the token.
pub fn cancel_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        stop.cancel();
    });
    Ok(())
}

/// Runs one verb.
pub async fn run(global: Global, command: Command) -> Outcome {
    match command {
        Command::Create(args) => create::run(&global, *args).await,
        Command::Run(args) => create::run_pod(&global, args).await,
        Command::Expose(args) => expose::run(&Session::open(&global)?, *args).await,
        Command::Get(args) => get::run(&Session::open(&global)?, args).await,
        Command::Describe(args) => describe::run(&Session::open(&global)?, args).await,
        Command::Delete(args) => delete::run(&Session::open(&global)?, args).await,
        Command::Scale(args) => scale::run(&Session::open(&global)?, args).await,
        Command::Rollout(args) => rollout::run(&Session::open(&global)?, args.command).await,
        Command::Cordon(args) => cordon::run(&Session::open(&global)?, args, true).await,
        Command::Uncordon(args) => cordon::run(&Session::open(&global)?, args, false).await,
        Command::Taint(args) => taint::run(&Session::open(&global)?, args).await,
        Command::Label(args) => label::run(&Session::open(&global)?, args).await,
        Command::Logs(args) => logs::run(&Session::open(&global)?, args).await,
        Command::Exec(args) => exec::in_pod(&Session::open(&global)?, args).await,
        Command::Node(args) => match args.command {
            NodeCommand::Exec(args) => exec::on_node(&Session::open(&global)?, args).await,
            NodeCommand::Remove(args) => node::remove(&Session::open(&global)?, args).await,
        },
        Command::Token(args) => token::run(&Session::open(&global)?, args.command).await,
        Command::Wait(args) => wait::run(&Session::open(&global)?, args).await,
        Command::Kubeconfig(args) => version::kubeconfig(&global, args),
        Command::Version(args) => version::run(&global, args).await,
    }
}

impl Session {
    /// By the flags and the configuration that they lead to.
    fn open(global: &Global) -> anyhow::Result<Session> {
        let (path, config) = config::load(global.config.as_deref())?;
        let in_file = || path.display().to_string();
        let asked = global.namespace.as_deref();
        let default = config.context().with_context(in_file)?.namespace.as_deref().unwrap_or("default");
        let namespace = asked.unwrap_or(default);
        // It becomes part of a path.
        if let Err(rule) = minisvc_proto::names::check_dns_label(namespace) {
            let fault = anyhow::anyhow!("namespace: \"{namespace}\": {rule}");
            return Err(match asked {
                Some(_) => anyhow::anyhow!("--{fault}"),
                None => fault.context(in_file()),
            });
        }
        Ok(Session {
            client: Client::from_kubeconfig(&config).with_context(in_file)?,
            namespace: namespace.to_owned(),
            enforced: asked.is_some(),
        })
    }

    fn key(&self, resource: &'static Resource, name: &str) -> ObjectKey {
        let namespace = resource.is_namespaced().then(|| self.namespace.clone());
        ObjectKey { resource, namespace, name: name.to_owned() }
    }

    /// The collection of the session's namespace, or of all.
    fn collection(&self, resource: &'static Resource, all_namespaces: bool) -> Target {
        Target::collection(resource, (!all_namespaces).then_some(self.namespace.as_str()))
    }
}

/// Says what went wrong, where the rest goes on.
fn complain(e: impl Into<anyhow::Error>) -> u8 {
    output::error(&e.into());
    FAILED
}
