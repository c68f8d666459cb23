//! `scale`

use anyhow::bail;
use minisvc_proto::{Object, ObjectKey, client::ClientError, path::Target};
use serde_json::Value;

use super::{DONE, Outcome, Session, complain, selection};
use crate::{args::Scale, output};

/// So often a write that lost a race is tried again on a fresh read.
const ATTEMPTS: usize = 10;

pub(super) async fn run(session: &Session, args: Scale) -> Outcome {
    let items = selection::parse(&args.what)?;
    let mut keys = Vec::new();
    for item in items {
        let Some(name) = item.name else { bail!("which of the {}? Give names", item.resource.plural) };
        if !item.resource.subresources.contains(&"scale") {
            bail!("{} cannot be scaled; deployments and replicasets can", item.resource.plural);
        }
        keys.push(session.key(item.resource, &name));
    }
    let mut code = DONE;
    for key in keys {
        match scale(session, &key, &args).await {
            Ok(()) => output::line(&format!("{}/{} scaled", key.resource.qualified_singular(), key.name))?,
            Err(e) => code = complain(e),
        }
    }
    Ok(code)
}

async fn scale(session: &Session, key: &ObjectKey, args: &Scale) -> anyhow::Result<()> {
    let target = Target::object(key).with_subresource("scale");
    let mut attempt = 1;
    loop {
        let mut scale: Object = session.client.get(&target).await?;
        if let Some(expected) = args.current_replicas {
            let now = scale.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(0);
            if now != u64::from(expected) {
                bail!("Expected replicas to be {expected}, was {now}");
            }
        }
        scale.spec_mut().insert("replicas".into(), args.replicas.into());
        match session.client.update(&target, &scale).await {
            Err(ClientError::Api(e)) if e.is_conflict() && attempt < ATTEMPTS => attempt += 1,
            other => return other.map(|_| ()).map_err(Into::into),
        }
    }
}
