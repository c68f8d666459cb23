//! The verbs that speak to the server.

#[cfg(target_os = "linux")]
pub mod agent;
mod create;
mod get;
pub mod server;

use anyhow::{Context as _, bail};
use futures::StreamExt;
use minisvc_proto::{
    ObjectKey, Resource,
    client::{Client, Kubeconfig, PatchKind, query},
    path::Target,
    resource::{PODS, by_user_name},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    args::{ClusterCommand as Command, Global},
    config, output,
};

/// The server and the namespace that a command speaks of.
pub struct Session {
    client: Client,
    namespace: String,
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

/// What a server or an agent does is told on stderr, as much as $RUST_LOG says.
pub fn log_to_stderr() {
    use tracing_subscriber::{EnvFilter, filter::LevelFilter};
    let filter = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// Runs one verb.
pub async fn run(global: Global, command: Command) -> anyhow::Result<()> {
    let config = Kubeconfig::load(&config::path(global.config.as_deref())?)?;
    let namespace = match global.namespace {
        Some(namespace) => namespace,
        None => config.context()?.namespace.clone().unwrap_or_else(|| "default".into()),
    };
    let session = Session { client: Client::from_kubeconfig(&config)?, namespace };
    match command {
        // Needs no server, and is started before there is one.
        Command::Echo(_) => Ok(()),
        #[cfg(target_os = "linux")]
        Command::Agent(_) => Ok(()),
        Command::Get(args) => get::run(&session, args).await,
        Command::Create(args) => create::run(&session, args).await,
        Command::Delete(args) => {
            let key = session.key(&args.kind, args.name.as_deref())?;
            session.client.delete(&Target::object(&key), &json!({})).await?;
            Ok(output::line(&format!("{} \"{}\" deleted", session::kind(key.resource), key.name))?)
        }
        Command::Scale(args) => {
            let key = session.key(&args.kind, args.name.as_deref())?;
            if !key.resource.subresources.contains(&"scale") {
                bail!("{} cannot be scaled; deployments and replicasets can", key.resource.plural);
            }
            let patch = json!({"spec": {"replicas": args.replicas}});
            session.client.patch(&Target::object(&key), PatchKind::Merge, &patch).await?;
            Ok(output::line(&format!("{}/{} scaled", session::kind(key.resource), key.name))?)
        }
        Command::Logs(args) => {
            let pod = args.pod.strip_prefix("pod/").unwrap_or(&args.pod);
            let tail = args.tail.map(|t| t.to_string());
            let follow = args.follow.then_some(("follow", "true"));
            let parameters = tail.as_deref().map(|t| ("tailLines", t)).into_iter().chain(follow);
            let key = ObjectKey::namespaced(&PODS, &session.namespace, pod);
            let target = Target::object(&key).with_subresource("log");
            let mut log = session.client.stream(&format!("{target}{}", query(parameters))).await?;
            while let Some(bytes) = log.next().await {
                output::bytes(&bytes?)?;
            }
            Ok(())
        }
    }
}

impl Session {
    /// The object that `KIND NAME` or `KIND/NAME` means.
    fn key(&self, kind: &str, name: Option<&str>) -> anyhow::Result<ObjectKey> {
        let (kind, name) = match (kind.split_once('/'), name) {
            (Some((kind, name)), None) => (kind, name),
            (None, Some(name)) => (kind, name),
            _ => bail!("{kind}: an object is meant by KIND NAME or KIND/NAME"),
        };
        let resource = resource(kind)?;
        let namespace = resource.is_namespaced().then(|| self.namespace.clone());
        Ok(ObjectKey { resource, namespace, name: name.to_owned() })
    }
}

fn resource(word: &str) -> anyhow::Result<&'static Resource> {
    by_user_name(word).with_context(|| format!("the server doesn't have a resource type \"{word}\""))
}

/// Names as kubectl prints them.
mod session {
    use minisvc_proto::Resource;

    /// `service`, `deployment.apps`.
    pub fn kind(resource: &Resource) -> String {
        if resource.group.is_empty() {
            resource.singular.to_owned()
        } else {
            format!("{}.{}", resource.singular, resource.group)
        }
    }
}
