//! `version` and `kubeconfig`.

use std::fs;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{DONE, Outcome, Session};
use crate::{
    args::{Global, KubeconfigArgs, Version, VersionFormat},
    config, output,
};

pub(super) async fn run(global: &Global, args: Version) -> Outcome {
    let client = format!("v{}", env!("CARGO_PKG_VERSION"));
    let mut value = json!({"clientVersion": {"gitVersion": client}});
    // What is known is printed also where the server cannot be asked.
    let server = if args.client { None } else { Some(ask(global).await) };
    if let Some(Ok(server)) = &server {
        value["serverVersion"] = server.clone();
    }
    match args.output {
        Some(VersionFormat::Json) => output::line(&output::to_json(&value))?,
        Some(VersionFormat::Yaml) => output::bytes(output::to_yaml(&value).as_bytes())?,
        None => {
            output::line(&format!("Client Version: {client}"))?;
            if let Some(Ok(server)) = &server {
                let version = server["gitVersion"].as_str().unwrap_or("unknown");
                output::line(&format!("Server Version: {version}"))?;
            }
        }
    }
    server.transpose()?;
    Ok(DONE)
}

async fn ask(global: &Global) -> anyhow::Result<Value> {
    Ok(Session::open(global)?.client.raw(reqwest::Method::GET, "/version", None).await?)
}

pub(super) fn kubeconfig(global: &Global, args: KubeconfigArgs) -> Outcome {
    if args.merge {
        bail!("--merge: not there yet; print it, and give it with --config or $MINISVC_CONFIG");
    }
    // Read as a configuration first: what cannot be used is not passed on.
    let (path, _) = config::load(global.config.as_deref())?;
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    output::bytes(&bytes)?;
    Ok(DONE)
}
