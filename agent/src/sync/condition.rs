//! Conditions of the own Node that one loop owns each.

use std::time::Duration;

use minisvc_proto::{
    NodeName, ObjectKey,
    client::{Client, ClientError, PatchKind},
    path::Target,
    resource::NODES,
};
use serde_json::{Map, Value, json};

const RETRY: Duration = Duration::from_secs(1);

/// Writes a condition, unless it is there already; other conditions have other owners.
pub(super) async fn tell(client: &Client, node: &NodeName, wanted: &Value) {
    tell_with(client, node, wanted, &[]).await;
}

/// The same, with fields of the status that say more, in one write.
pub(super) async fn tell_with(client: &Client, node: &NodeName, wanted: &Value, fields: &[(&str, &Value)]) {
    loop {
        match put(client, node, wanted, fields).await {
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

async fn put(
    client: &Client,
    node: &NodeName,
    wanted: &Value,
    fields: &[(&str, &Value)],
) -> Result<(), ClientError> {
    let target = Target::object(&ObjectKey::cluster(&NODES, node.as_str()));
    let found = client.get(&target).await?;
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let status = found.0.get("status").unwrap_or(&Value::Null);
    let Some(change) = change(status, wanted, fields, now) else { return Ok(()) };
    // Whoever wrote a condition meanwhile is not to lose it: then this is a conflict.
    let version = found.pointer("/metadata/resourceVersion").cloned().unwrap_or_default();
    let patch = json!({"metadata": {"resourceVersion": version}, "status": change});
    client.patch(&target.with_subresource("status"), PatchKind::Merge, &patch).await.map(drop)
}

/// The merge patch of a status that has neither the condition nor the fields as they should be. Pure.
fn change(status: &Value, wanted: &Value, fields: &[(&str, &Value)], now: String) -> Option<Value> {
    let mut change = Map::new();
    let mut conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    let at = conditions.iter().position(|c| c["type"] == wanted["type"]);
    let mut new = wanted.clone();
    new["lastTransitionTime"] = now.into();
    if let Some(old) = at.map(|at| &conditions[at]).filter(|old| old["status"] == new["status"]) {
        new["lastTransitionTime"] = old["lastTransitionTime"].clone();
    }
    if at.is_none_or(|at| conditions[at] != new) {
        match at {
            Some(at) => conditions[at] = new,
            None => conditions.push(new),
        }
        change.insert("conditions".into(), conditions.into());
    }
    for (name, wanted) in fields {
        let found = &status[name];
        if found != *wanted {
            let mut new = (*wanted).clone();
            // A merge patch keeps what it does not name.
            for gone in
                found.as_object().into_iter().flat_map(Map::keys).filter(|key| wanted.get(key).is_none())
            {
                new[gone] = Value::Null;
            }
            change.insert((*name).into(), new);
        }
    }
    (!change.is_empty()).then(|| change.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_there_is_written_and_what_is_no_more_is_taken_away() {
        let condition =
            |status: &str, at: &str| json!({"type": "B", "status": status, "lastTransitionTime": at});
        let other = json!({"type": "A", "status": "True"});
        let wanted = json!({"type": "B", "status": "True"});
        let nodes = json!({"kept": ["a"]});
        let status = |b: &Value, nodes: &Value| json!({"conditions": [other, b], "nodes": nodes});
        let change = |status: &Value| change(status, &wanted, &[("nodes", &nodes)], "now".into());
        assert_eq!(change(&status(&condition("True", "then"), &nodes)), None);
        assert_eq!(
            change(&status(&condition("False", "then"), &nodes)),
            Some(json!({"conditions": [other, condition("True", "now")]}))
        );
        let counted = json!({"kept": [], "counts": {"kept": 100}});
        assert_eq!(
            change(&status(&condition("True", "then"), &counted)),
            Some(json!({"nodes": {"kept": ["a"], "counts": null}}))
        );
        assert_eq!(
            change(&Value::Null),
            Some(json!({"conditions": [condition("True", "now")], "nodes": {"kept": ["a"]}}))
        );
    }
}
