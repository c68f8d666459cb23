//! Deployments and ReplicaSets.

use std::sync::Arc;

use jiff::Timestamp;
use minisvc_proto::{
    ApiError, Object, ObjectKey,
    resource::{PODS, REPLICA_SETS},
};

use super::Reconciled;
use crate::{
    conditions::{self, Condition},
    controllers::{
        action::{Action, Plan},
        claim::claim,
        deployment,
        events::Severity,
        queue::Outcome,
        replicaset,
        world::World,
    },
    registry::{Part, rules},
};

/// The ReplicaSets and the status of a Deployment.
pub async fn deployment(world: &World, key: ObjectKey) -> Reconciled {
    let (deployment, owned, unowned, pods, taken) = {
        let sight = world.sight();
        let picture = &sight.picture;
        let Some(deployment) = picture.get(&key).cloned() else { return Ok(Outcome::Done) };
        let unowned = picture.unowned(&REPLICA_SETS, deployment.namespace().unwrap_or("default"));
        let owned = picture.owned(&deployment, &REPLICA_SETS);
        let pods: Vec<Arc<Object>> = if deployment::is_recreate(&deployment) {
            owned.iter().flat_map(|set| picture.owned(set, &PODS)).collect()
        } else {
            Vec::new()
        };
        let name = deployment::set_name(&deployment);
        let taken = picture.get(&ObjectKey { resource: &REPLICA_SETS, name, ..key.clone() }).is_some();
        (deployment, owned, unowned, pods, taken)
    };
    let (sets, claims) = claim(&deployment, owned, unowned);
    let plan = if claims.is_empty() {
        let seen = deployment::Seen { sets: &sets, pods: &pods, taken };
        deployment::reconcile(&deployment, &seen, Timestamp::now())
    } else {
        // Adopted sets come back as changes.
        Plan { actions: claims, again: None }
    };
    let told = deployment::told(&sets, &plan.actions);
    let made = plan.actions.iter().find_map(|a| match a {
        Action::Create(set) => Some(set.name().to_owned()),
        _ => None,
    });
    if let Err(error) = world.carry_out(plan.actions).await {
        if let Some(name) = made.filter(|_| is_refusal(&error)) {
            not_made(world, &key, &name, &error.to_string()).await?;
        }
        return Err(error);
    }
    for message in told {
        world.recorder.tell(&deployment, Severity::Normal, "ScalingReplicaSet", message);
    }
    Ok(plan.again.map_or(Outcome::Done, Outcome::Again))
}

/// No lost race: the next try will likely fare no better.
fn is_refusal(error: &ApiError) -> bool {
    !error.is_conflict() && !error.is_already_exists()
}

async fn not_made(world: &World, key: &ObjectKey, set: &str, why: &str) -> Result<(), ApiError> {
    let mut told = String::new();
    let write = |deployment: &mut Object| {
        let before = deployment.clone();
        told = deployment::not_made(deployment, set, why, Timestamp::now());
        Ok(before != *deployment)
    };
    let deployment = world.registry.modify(key, Part::Status, write).await?;
    world.recorder.tell(&deployment, Severity::Warning, "ReplicaSetCreateError", told);
    Ok(())
}

/// The pods and the status of a ReplicaSet.
pub async fn replica_set(world: &World, key: ObjectKey) -> Reconciled {
    let (set, owned, unowned, related) = {
        let sight = world.sight();
        let picture = &sight.picture;
        let Some(set) = picture.get(&key).cloned() else { return Ok(Outcome::Done) };
        let unowned = picture.unowned(&PODS, set.namespace().unwrap_or("default"));
        let owned = picture.owned(&set, &PODS);
        let owner = set.controller_uid().and_then(|uid| picture.get(picture.by_uid(uid)?));
        let related = match owner {
            // Only asked about where pods have to go.
            Some(owner) if replicaset::has_surplus(&set, owned.len()) => {
                picture.owned(owner, &REPLICA_SETS).iter().flat_map(|s| picture.owned(s, &PODS)).collect()
            }
            _ => owned.clone(),
        };
        (set, owned, unowned, related)
    };
    let (pods, claims) = claim(&set, owned, unowned);
    let mut plan = replicaset::reconcile(&set, &pods, &related, Timestamp::now(), rules::random_suffix);
    plan.actions.splice(0..0, claims);
    let creates = plan.actions.iter().any(|a| matches!(a, Action::Create(_)));
    let deletes = plan.actions.iter().any(|a| matches!(a, Action::Delete { .. }));
    let Err(error) = world.carry_out(plan.actions).await else {
        return Ok(plan.again.map_or(Outcome::Done, Outcome::Again));
    };
    if (creates || deletes) && is_refusal(&error) {
        let (reason, doing) =
            if creates { ("FailedCreate", "creating") } else { ("FailedDelete", "deleting") };
        let failure =
            Condition { kind: replicaset::FAILURE, status: "True", reason, message: error.to_string() };
        let write = |set: &mut Object| Ok(conditions::set(set, &failure, &conditions::now()));
        world.registry.modify(&key, Part::Status, write).await?;
        world.recorder.tell(&set, Severity::Warning, reason, format!("Error {doing}: {error}"));
    }
    Err(error)
}
