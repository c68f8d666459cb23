//! `node remove`

use anyhow::Context as _;
use minisvc_proto::{
    NodeName, ObjectKey,
    path::Target,
    resource::{NODE_CREDENTIALS, NODES},
};
use serde_json::json;

use super::{DONE, Outcome, Session};
use crate::{args::NodeRemove, output};

/// First who speaks for the node, then the node: the other way round its agent would register it again.
pub(super) async fn remove(session: &Session, args: NodeRemove) -> Outcome {
    let name: NodeName = args.node.parse().with_context(|| format!("node \"{}\"", args.node))?;
    let delete = async |resource| {
        let key = ObjectKey::cluster(resource, name.as_str());
        session.client.delete(&Target::object(&key), &json!({})).await
    };
    let revoked = match delete(&NODE_CREDENTIALS).await {
        Ok(_) => true,
        Err(e) if e.is_not_found() => false,
        Err(e) => return Err(e.into()),
    };
    match delete(&NODES).await {
        Ok(_) => {}
        // It joined, and never started.
        Err(e) if e.is_not_found() && revoked => {}
        Err(e) => return Err(e.into()),
    }
    output::line(&format!("node \"{name}\" removed"))?;
    Ok(DONE)
}
