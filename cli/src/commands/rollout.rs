//! `rollout`

mod history;
mod status;

use anyhow::bail;
use jiff::Timestamp;
use minisvc_proto::{
    Object, ObjectKey,
    client::{ListParams, PatchKind},
    path::Target,
    resource::{DEPLOYMENTS, REPLICA_SETS},
};
use serde_json::{Value, json};

use super::{DONE, Outcome, Session, complain, selection};
use crate::{
    args::{RolloutCommand as Command, Undo, Which},
    output,
};

/// Makes a template another one, and nothing else.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";

pub(super) async fn run(session: &Session, command: Command) -> Outcome {
    match command {
        Command::Status(args) => {
            let keys = deployments(session, &args.which)?;
            let [key] = &keys[..] else { bail!("rollout status is only supported on individual resources") };
            status::run(session, key, &args).await?;
            Ok(DONE)
        }
        Command::History(args) => {
            let mut code = DONE;
            for key in deployments(session, &args.which)? {
                match history::page(session, &key, args.revision).await {
                    Ok(page) => output::bytes(page.as_bytes())?,
                    Err(e) => code = complain(e),
                }
            }
            Ok(code)
        }
        Command::Undo(args) => each(session, &args.which, async |key| undo(session, key, &args).await).await,
        Command::Restart(which) => {
            each(session, &which, async |key| {
                change(session, key, |deployment| restarted(deployment, Timestamp::now())).await?;
                Ok("restarted".into())
            })
            .await
        }
        Command::Pause(which) => {
            each(session, &which, async |key| {
                change(session, key, |deployment| paused(deployment, true)).await?;
                Ok("paused".into())
            })
            .await
        }
        Command::Resume(which) => {
            each(session, &which, async |key| {
                change(session, key, |deployment| paused(deployment, false)).await?;
                Ok("resumed".into())
            })
            .await
        }
    }
}

/// Only they have rollouts.
fn deployments(session: &Session, which: &Which) -> anyhow::Result<Vec<ObjectKey>> {
    let mut keys = Vec::new();
    for item in selection::parse(&which.what)? {
        if item.resource != &DEPLOYMENTS {
            bail!("{} have no rollouts; deployments do", item.resource.plural);
        }
        let Some(name) = item.name else { bail!("which of the deployments? Give names") };
        keys.push(session.key(item.resource, &name));
    }
    Ok(keys)
}

/// Does it to each, and says what was done.
async fn each(
    session: &Session,
    which: &Which,
    work: impl AsyncFn(&ObjectKey) -> anyhow::Result<String>,
) -> Outcome {
    let mut code = DONE;
    for key in deployments(session, which)? {
        match work(&key).await {
            Ok(done) => output::line(&format!("{}/{} {done}", key.resource.qualified_singular(), key.name))?,
            Err(e) => code = complain(e),
        }
    }
    Ok(code)
}

/// Sends what `patch` makes of the deployment as it stands, as a merge patch.
async fn change(
    session: &Session,
    key: &ObjectKey,
    patch: impl Fn(&Object) -> anyhow::Result<Value>,
) -> anyhow::Result<()> {
    let target = Target::object(key);
    let patch = patch(&session.client.get(&target).await?)?;
    session.client.patch(&target, PatchKind::Merge, &patch).await?;
    Ok(())
}

fn is_paused(deployment: &Object) -> bool {
    deployment.pointer("/spec/paused") == Some(&Value::Bool(true))
}

fn restarted(deployment: &Object, now: Timestamp) -> anyhow::Result<Value> {
    if is_paused(deployment) {
        bail!("can't restart paused deployment (run rollout resume first)");
    }
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let last = deployment.pointer("/spec/template/metadata/annotations").and_then(|a| a.get(RESTARTED));
    if last.and_then(Value::as_str) == Some(&now) {
        bail!(
            "if restart has already been triggered within the past second, please wait before attempting to trigger another"
        );
    }
    Ok(json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED: now}}}}}))
}

fn paused(deployment: &Object, pause: bool) -> anyhow::Result<Value> {
    if is_paused(deployment) == pause {
        let how = if pause { "already" } else { "not" };
        bail!("deployments.apps \"{}\" is {how} paused", deployment.name());
    }
    Ok(json!({"spec": {"paused": pause}}))
}

async fn undo(session: &Session, key: &ObjectKey, args: &Undo) -> anyhow::Result<String> {
    let target = Target::object(key);
    let (deployment, sets) = with_sets(session, key).await?;
    let set = history::target(&deployment, &sets, args.to_revision)?;
    if is_paused(&deployment) {
        bail!(
            "you cannot rollback a paused deployment; resume it first with 'minisvc rollout resume deployment/{}' and try again",
            key.name
        );
    }
    let Some(patch) = history::back_to(&deployment, set) else {
        let revision = history::revision(set);
        return Ok(format!("skipped rollback (current template already matches revision {revision})"));
    };
    session.client.patch(&target, PatchKind::Json, &patch).await?;
    Ok("rolled back".into())
}

/// A deployment and its sets.
async fn with_sets(session: &Session, key: &ObjectKey) -> anyhow::Result<(Object, Vec<Object>)> {
    let deployment = session.client.get(&Target::object(key)).await?;
    let target = Target::collection(&REPLICA_SETS, key.namespace.as_deref());
    let (_, mut sets) = session.client.list(&target, &ListParams::default()).await?;
    sets.retain(|s| s.controller_uid() == Some(deployment.uid()));
    Ok((deployment, sets))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_twice_or_in_a_pause_is_refused() {
        let deployment = |paused: bool, restarted: &str| -> Object {
            let template = json!({"metadata": {"annotations": {RESTARTED: restarted}}});
            let spec = json!({"paused": paused, "template": template});
            serde_json::from_value(json!({"metadata": {"name": "web"}, "spec": spec})).unwrap()
        };
        let now = "2026-01-01T00:00:00.7Z".parse().unwrap();
        let refused = |r: anyhow::Result<Value>| r.unwrap_err().to_string();
        assert_eq!(
            restarted(&deployment(false, "2025-01-01T00:00:00Z"), now).unwrap(),
            json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED: "2026-01-01T00:00:00Z"}}}}})
        );
        assert!(refused(restarted(&deployment(false, "2026-01-01T00:00:00Z"), now)).contains("past second"));
        assert!(refused(restarted(&deployment(true, ""), now)).contains("can't restart paused"));
        assert_eq!(paused(&deployment(false, ""), true).unwrap(), json!({"spec": {"paused": true}}));
        assert_eq!(
            refused(paused(&deployment(true, ""), true)),
            "deployments.apps \"web\" is already paused"
        );
        assert_eq!(refused(paused(&deployment(false, ""), false)), "deployments.apps \"web\" is not paused");
    }
}
