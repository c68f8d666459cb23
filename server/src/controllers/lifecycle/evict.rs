//! Pods leave nodes whose taints drive them away.

use std::{sync::Arc, time::Instant};

use minisvc_proto::{ApiError, Object, report::NODE_SILENCE_LIMIT};
use serde_json::json;

use super::{
    super::{
        events::Severity,
        pod,
        queue::Outcome,
        taints::UNREACHABLE,
        world::{Sight, World},
    },
    Lifecycle, found,
};
use crate::{
    conditions::{self, Condition},
    registry::{DeleteOptions, Part},
};

/// A pod that has to leave, and the key of the taint.
pub(super) type Leaving = (Arc<Object>, String);

impl Lifecycle {
    /// The pods that leave the node now, and when the next one does.
    pub(super) fn leaving(
        &self,
        sight: &Sight,
        node: &Object,
        now: Instant,
    ) -> (Vec<Leaving>, Option<Instant>) {
        let heard = self.heard();
        let heard_from = heard.listening.since() + NODE_SILENCE_LIMIT;
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        for p in sight.picture.pods_on(node.name()) {
            match heard.standing.end(node, p, self.eviction_timeout, heard_from) {
                Some((at, taint)) if at <= now => due.push((p.clone(), taint)),
                Some((at, _)) => next = Some(next.map_or(at, |n| n.min(at))),
                None => {}
            }
        }
        (due, next)
    }

    pub(super) async fn evict(
        &self,
        world: &World,
        node: &Object,
        now: Instant,
    ) -> Result<Outcome, ApiError> {
        let (due, next) = {
            let sight = world.sight();
            self.heard().see(&sight, node, now);
            self.leaving(&sight, node, now)
        };
        let all = due.iter().map(|(p, taint)| evict(world, node.name(), p, taint));
        for one in futures::future::join_all(all).await {
            found(one)?;
        }
        Ok(next.map_or(Outcome::Done, |at| Outcome::Again(at.saturating_duration_since(now))))
    }
}

/// Asks for the pod's end, and says why. Its object stays until its node has ended it, or is deleted.
async fn evict(world: &World, node: &str, p: &Object, taint: &str) -> Result<(), ApiError> {
    let Some(key) = p.key() else { return Ok(()) };
    let silent = taint == UNREACHABLE;
    if silent {
        // Not into the status: that is the node's, which writes over it when it is back.
        let mark = |p: &mut Object| {
            let annotations = p.metadata_mut().entry("annotations").or_insert_with(|| json!({}));
            let Some(map) = annotations.as_object_mut() else { return Ok(false) };
            Ok(map.insert(pod::GIVEN_UP.into(), format!("node {node} did not speak").into()).is_none())
        };
        world.registry.modify(&key, Part::Main, mark).await?;
    }
    let condition = Condition {
        kind: "DisruptionTarget",
        status: "True",
        reason: "DeletionByTaintManager",
        message: format!(
            "Node {node} has the taint {taint}:NoExecute, which the pod does not tolerate any longer"
        ),
    };
    let say = |p: &mut Object| Ok(conditions::set(p, &condition, &conditions::now()));
    world.registry.modify(&key, Part::Status, say).await?;
    let options = DeleteOptions { uid: Some(p.uid().to_owned()), ..DeleteOptions::default() };
    match world.registry.delete(&key, options).await {
        Err(error) if error.is_conflict() => return Ok(()),
        other => drop(other?),
    }
    let mut message = condition.message;
    if silent {
        message.push_str(
            "; what runs there ends when the node is back, the object also when the node is deleted",
        );
    }
    if p.controller_uid().is_none() {
        message.push_str("; nothing replaces the pod, because it has no controller");
    }
    world.recorder.tell(p, Severity::Warning, "TaintManagerEviction", message);
    Ok(())
}
