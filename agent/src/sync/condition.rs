//! Conditions of the own Node that one loop owns each.

use std::time::Duration;

use minisvc_proto::{
    NodeName, ObjectKey,
    client::{Client, ClientError, PatchKind},
    path::Target,
    resource::NODES,
};
use serde_json::{Value, json};

const RETRY: Duration = Duration::from_secs(1);

/// Writes a condition, unless it is there already; other conditions have other owners.
pub(super) async fn tell(client: &Client, node: &NodeName, wanted: &Value) {
    loop {
        match put(client, node, wanted).await {
            Ok(()) => return,
            // The node was removed; once it has registered again, the next look tells.
            Err(error) if error.is_not_found() => return,
            Err(error) => {
                tracing::debug!(%error, "the condition {} is not written; trying again", wanted["type"]);
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn put(client: &Client, node: &NodeName, wanted: &Value) -> Result<(), ClientError> {
    let target = Target::object(&ObjectKey::cluster(&NODES, node.as_str()));
    let found = client.get(&target).await?;
    let mut conditions =
        found.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let at = conditions.iter().position(|c| c["type"] == wanted["type"]);
    let mut new = wanted.clone();
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    new["lastTransitionTime"] = Value::String(now);
    match at.map(|at| &mut conditions[at]) {
        Some(old) => {
            if old["status"] == new["status"] {
                new["lastTransitionTime"] = old["lastTransitionTime"].clone();
            }
            if *old == new {
                return Ok(());
            }
            *old = new;
        }
        None => conditions.push(new),
    }
    // Whoever wrote a condition meanwhile is not to lose it: then this is a conflict.
    let version = found.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    let patch = json!({"metadata": {"resourceVersion": version}, "status": {"conditions": conditions}});
    client.patch(&target.with_subresource("status"), PatchKind::Merge, &patch).await.map(drop)
}
