//! `rollout status`: how far a rollout is, and whether it can still come to an end. [kubectl's DeploymentStatusViewer]

use std::time::Duration;

use anyhow::{anyhow, bail};
use minisvc_proto::{Object, ObjectKey, path::Target};
use serde_json::Value;

use super::{history::revision, is_paused};
use crate::{
    args::Status,
    commands::{Session, watching},
    output,
};

/// How a rollout stands.
#[derive(Debug, PartialEq, Eq)]
struct Standing {
    /// In kubectl's words.
    text: String,
    done: bool,
}

pub async fn run(session: &Session, key: &ObjectKey, args: &Status) -> anyhow::Result<()> {
    let name = &key.name;
    let first = session.client.get(&Target::object(key)).await?;
    if !args.watch {
        return Ok(output::line(&standing(&first, args.revision)?.text)?);
    }
    if is_paused(&first) {
        output::note(&format!(
            "note: deployment \"{name}\" is paused: `minisvc rollout resume deployment/{name}` lets it go on"
        ));
    }
    let mut progress = output::Progress::new();
    let limit = Some(args.timeout).filter(|t| *t > Duration::ZERO);
    let ended = watching::until(session, key, limit, |object| {
        let Some(object) = object else {
            return Some(Err(anyhow!("deployment \"{name}\" was deleted meanwhile")));
        };
        let standing = match standing(object, args.revision) {
            Ok(standing) => standing,
            Err(e) => return Some(Err(e)),
        };
        if standing.done {
            return Some(Ok(standing.text));
        }
        let text = if progress.is_live() { bar(object) } else { standing.text };
        progress.show(&text).err().map(|e| Err(e.into()))
    });
    match ended.await? {
        Some(text) => Ok(progress.end(&text?)?),
        None => bail!("timed out waiting for the condition"),
    }
}

fn number(deployment: &Object, pointer: &str) -> i64 {
    deployment.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

/// An error is the end of a rollout that cannot be waited for.
fn standing(deployment: &Object, wanted_revision: u64) -> anyhow::Result<Standing> {
    let name = deployment.name();
    let newest = revision(deployment);
    if wanted_revision > 0 && wanted_revision != newest {
        bail!("desired revision ({wanted_revision}) is different from the running revision ({newest})");
    }
    let waiting = |text: String| Ok(Standing { text, done: false });
    if deployment.generation() > number(deployment, "/status/observedGeneration") {
        return waiting("Waiting for deployment spec update to be observed...".into());
    }
    let conditions = deployment.pointer("/status/conditions").and_then(Value::as_array);
    let late = |c: &Value| c["type"] == "Progressing" && c["reason"] == "ProgressDeadlineExceeded";
    if conditions.into_iter().flatten().any(late) {
        bail!("deployment \"{name}\" exceeded its progress deadline");
    }
    let wanted = deployment.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
    let [total, updated, available] = ["replicas", "updatedReplicas", "availableReplicas"]
        .map(|f| number(deployment, &format!("/status/{f}")));
    let begin = format!("Waiting for deployment \"{name}\" rollout to finish:");
    if updated < wanted {
        return waiting(format!("{begin} {updated} out of {wanted} new replicas have been updated..."));
    }
    if total > updated {
        return waiting(format!("{begin} {} old replicas are pending termination...", total - updated));
    }
    if available < updated {
        return waiting(format!("{begin} {available} of {updated} updated replicas are available..."));
    }
    Ok(Standing { text: format!("deployment \"{name}\" successfully rolled out"), done: true })
}

/// `web [######....] 6/10 updated, 8 available, 5 old`
fn bar(deployment: &Object) -> String {
    const CELLS: i64 = 20;
    let wanted = deployment.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
    let [total, updated, available] = ["replicas", "updatedReplicas", "availableReplicas"]
        .map(|f| number(deployment, &format!("/status/{f}")));
    let old = (total - updated).max(0);
    // A third of the way is that new pods are there, one that these are available for sure, one that old ones are gone.
    let gone = updated.min(wanted) + (available - old).clamp(0, wanted) + (wanted - old).max(0);
    let full = if wanted == 0 { 0 } else { CELLS * gone / (3 * wanted) };
    let full = usize::try_from(full).unwrap_or(0);
    let empty = usize::try_from(CELLS).unwrap_or(0) - full;
    let name = deployment.name();
    format!(
        "{name} [{}{}] {updated}/{wanted} updated, {available} available, {old} old",
        "#".repeat(full),
        ".".repeat(empty)
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn web(observed: i64, [total, updated, available]: [i64; 3], reason: &str) -> Object {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "generation": 2, "annotations": {"deployment.kubernetes.io/revision": "3"}},
            "spec": {"replicas": 4},
            "status": {"observedGeneration": observed, "replicas": total, "updatedReplicas": updated,
                "availableReplicas": available, "conditions": [{"type": "Progressing", "reason": reason}]},
        }))
        .unwrap()
    }

    #[test]
    fn a_rollout_stands_as_kubectl_says_it() {
        let waits = "Waiting for deployment \"web\" rollout to finish: ";
        for (deployment, text, done) in [
            (web(1, [4, 4, 4], ""), "Waiting for deployment spec update to be observed...".into(), false),
            (web(2, [5, 2, 4], ""), format!("{waits}2 out of 4 new replicas have been updated..."), false),
            (web(2, [5, 4, 4], ""), format!("{waits}1 old replicas are pending termination..."), false),
            (web(2, [4, 4, 3], ""), format!("{waits}3 of 4 updated replicas are available..."), false),
            (web(2, [4, 4, 4], ""), "deployment \"web\" successfully rolled out".into(), true),
        ] {
            assert_eq!(standing(&deployment, 3).unwrap(), Standing { text, done });
        }
        let late = standing(&web(2, [5, 2, 4], "ProgressDeadlineExceeded"), 0).unwrap_err();
        assert_eq!(late.to_string(), "deployment \"web\" exceeded its progress deadline");
        assert!(
            standing(&web(1, [5, 2, 4], "ProgressDeadlineExceeded"), 0).is_ok(),
            "that was the last rollout"
        );
        let other = standing(&web(2, [4, 4, 4], ""), 2).unwrap_err();
        assert_eq!(other.to_string(), "desired revision (2) is different from the running revision (3)");
    }

    #[test]
    fn the_bar_grows_with_new_pods_that_get_available_and_with_the_end_of_old_ones() {
        assert_eq!(bar(&web(2, [5, 2, 4], "")), "web [######..............] 2/4 updated, 4 available, 3 old");
        let full = |counts| bar(&web(2, counts, "")).matches('#').count();
        let way = [[4, 0, 4], [5, 1, 4], [5, 2, 4], [4, 3, 4], [5, 4, 4], [4, 4, 4]].map(full);
        assert!(way.is_sorted() && way[0] == 0 && way[5] == 20, "{way:?}");
        assert!(full([4, 4, 0]) < 20, "none of them serves");
    }
}
