//! What each controller does with a key: look, decide (pure, elsewhere), write.

mod network;
mod workloads;

use std::time::{Duration, Instant};

use jiff::Timestamp;
use minisvc_proto::{ApiError, Object, ObjectKey, Reason, resource::RESOURCES};
use serde_json::{Value, json};

use super::{
    action::Action,
    claim::remove_owner,
    events::Severity,
    pod,
    programmed::{self, Standing},
    queue::Outcome,
    world::World,
};
use crate::{
    conditions::{self, Condition},
    registry::{
        DeleteOptions, Part, Propagation,
        deletion::{self, FOREGROUND, ORPHAN},
    },
    scheduler,
};

pub use network::{endpoints, load_balancer, service};
pub use workloads::{deployment, replica_set};

type Reconciled = Result<Outcome, ApiError>;

/// How long a pod may be bound to a node that was never there: the node may be about to register. [pkg/controller/podgc]
const QUARANTINE: Duration = Duration::from_secs(40);

// Each takes what it needs out of the picture and decides without its lock: a large set must not hold up the others.

/// The node of a pod that has none.
pub async fn unscheduled(world: &World, key: ObjectKey) -> Reconciled {
    let (pod, picked) = {
        let mut sight = world.sight();
        let sight = &mut *sight;
        let Some(pod) = sight.picture.get(&key).cloned() else { return Ok(Outcome::Done) };
        let idle = pod::node(&pod).is_none() && !pod::is_terminating(&pod) && !pod::is_ended(&pod);
        // A pod may ask for another scheduler, which binds it through the API.
        let ours = matches!(pod.str_at("/spec/schedulerName"), None | Some("" | "default-scheduler"));
        if !idle || !ours || sight.loads.knows(&key) {
            return Ok(Outcome::Done);
        }
        let picked = scheduler::pick(&pod, sight.picture.nodes(), &sight.loads);
        match &picked {
            Ok(node) => {
                // Counted before it is written, so that the next pod goes elsewhere.
                sight.loads.set(&key, Some((node.as_str(), &pod)));
                sight.unplaced.remove(&key);
            }
            Err(_) => drop(sight.unplaced.insert(key.clone())),
        }
        (pod, picked)
    };
    let node = match picked {
        Ok(node) => node,
        Err(why) => return unschedulable(world, &key, &pod, &why.to_string()).await,
    };
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": pod.name(), "namespace": pod.namespace(), "uid": pod.uid()},
        "target": {"kind": "Node", "name": node.as_str()},
    });
    let binding = serde_json::from_value::<Object>(binding).map_err(ApiError::internal)?;
    let result = world.registry.bind(&key, &binding).await;
    if result.is_err() {
        world.caught_up().await;
        let mut sight = world.sight();
        // Another scheduler, or the user, may have been quicker: then the pod counts where it is.
        let placed = sight.picture.get(&key).is_some_and(|p| pod::node(p).is_some());
        if !placed && sight.loads.set(&key, None) {
            world.try_unplaced(&mut sight);
        }
    }
    match result {
        Err(error) if error.is_not_found() => Ok(Outcome::Done),
        other => other.map(|_| Outcome::Done),
    }
}

async fn unschedulable(world: &World, key: &ObjectKey, pod: &Object, why: &str) -> Reconciled {
    let condition =
        Condition { kind: "PodScheduled", status: "False", reason: "Unschedulable", message: why.to_owned() };
    let mut news = false;
    let written = world
        .registry
        .modify(key, Part::Status, |p| {
            news = pod::node(p).is_none() && conditions::set(p, &condition, &conditions::now());
            Ok(news)
        })
        .await;
    if news && written.is_ok() {
        world.recorder.tell(pod, Severity::Warning, "FailedScheduling", why);
    }
    match written {
        Err(error) if error.is_not_found() => Ok(Outcome::Done),
        other => other.map(|_| Outcome::Done),
    }
}

/// A pod whose node may not be there: nobody would ever end it.
pub async fn stranded(world: &World, key: ObjectKey) -> Reconciled {
    let uid = {
        let sight = world.sight();
        let Some(pod) = sight.picture.get(&key) else { return Ok(Outcome::Done) };
        let Some(node) = pod::node(pod).filter(|n| sight.picture.node(n).is_none()) else {
            return Ok(Outcome::Done);
        };
        if !pod::is_terminating(pod) && !sight.picture.is_gone_node(node) {
            let made = pod.str_at("/metadata/creationTimestamp").and_then(|t| t.parse::<Timestamp>().ok());
            let age = made.and_then(|t| Duration::try_from(Timestamp::now().duration_since(t)).ok());
            let left = QUARANTINE.saturating_sub(age.unwrap_or_default());
            if !left.is_zero() {
                return Ok(Outcome::Again(left));
            }
        }
        pod.uid().to_owned()
    };
    let options = DeleteOptions { uid: Some(uid), grace_seconds: Some(0), ..DeleteOptions::default() };
    gone(world.registry.delete(&key, options).await)
}

/// What is gone already needs no deletion.
fn gone<T>(result: Result<T, ApiError>) -> Reconciled {
    match result {
        Err(error) if error.is_not_found() || error.reason == Reason::Conflict => Ok(Outcome::Done),
        other => other.map(|_| Outcome::Done),
    }
}

/// An object whose owners are gone, or one that ends and has dependents.
pub async fn garbage(world: &World, key: ObjectKey) -> Reconciled {
    let (object, dependents, abandoned) = {
        let sight = world.sight();
        let Some(object) = sight.picture.get(&key).cloned() else { return Ok(Outcome::Done) };
        let dependents: Vec<ObjectKey> = sight.picture.dependents(object.uid()).cloned().collect();
        let abandoned = sight.picture.is_abandoned(&object);
        (object, dependents, abandoned)
    };
    let finalizers = deletion::finalizers(&object);
    if object.deletion_timestamp().is_none() {
        if !abandoned {
            return Ok(Outcome::Done);
        }
        let options = DeleteOptions { uid: Some(object.uid().to_owned()), ..DeleteOptions::default() };
        return gone(world.registry.delete(&key, options).await);
    }
    let finalizer = if finalizers.contains(&ORPHAN) {
        let uid = object.uid();
        let freed =
            dependents.iter().map(|key| world.registry.modify(key, Part::Main, |o| Ok(remove_owner(o, uid))));
        for one in futures::future::join_all(freed).await {
            gone(one)?;
        }
        ORPHAN
    } else if finalizers.contains(&FOREGROUND) {
        if !dependents.is_empty() {
            let options = DeleteOptions { propagation: Propagation::Foreground, ..DeleteOptions::default() };
            let deleted = dependents.iter().map(|key| world.registry.delete(key, options.clone()));
            for one in futures::future::join_all(deleted).await {
                gone(one)?;
            }
            // The end of the last of them brings this key back.
            return Ok(Outcome::Done);
        }
        FOREGROUND
    } else {
        return Ok(Outcome::Done);
    };
    // Whoever became a dependent meanwhile is seen now, or comes later and is garbage then.
    gone(world.registry.modify(&key, Part::Main, |o| Ok(deletion::remove_finalizer(o, finalizer))).await)
}

/// The contents of a namespace that ends, and then the namespace.
pub async fn namespace(world: &World, key: ObjectKey) -> Reconciled {
    let ends = |o: &Object| o.deletion_timestamp().is_some();
    if !world.registry.get(&key).is_ok_and(|n| ends(&n)) {
        return Ok(Outcome::Done);
    }
    let contents = || {
        let kinds = RESOURCES.iter().filter(|r| r.is_namespaced());
        kinds.flat_map(|r| world.registry.list(r, Some(&key.name)).1).collect::<Vec<_>>()
    };
    let deletions = contents().into_iter().filter_map(|o| Action::delete(&o)).collect();
    world.carry_out(deletions).await?;
    if contents().is_empty() {
        return gone(world.registry.finish_namespace(&key.name).await);
    }
    // The end of each of them brings this key back.
    Ok(Outcome::Done)
}

/// The condition `Programmed` of a service.
pub async fn programmed(world: &World, key: ObjectKey) -> Reconciled {
    let condition = {
        let mut sight = world.sight();
        let sight = &mut *sight;
        let (Some(service), Some(standing)) =
            (sight.picture.get(&key), sight.tracker.standing(&key, Instant::now()))
        else {
            return Ok(Outcome::Done);
        };
        let condition = match standing {
            Standing::Complete => programmed::complete(),
            Standing::Incomplete { left, .. } if !left.is_zero() => return Ok(Outcome::Again(left)),
            Standing::Incomplete { needs, .. } => {
                let ready: Vec<_> =
                    sight.picture.nodes().filter(|n| conditions::is_true(n, "Ready")).collect();
                let has = |n: &Object| {
                    let has = n.name().parse().ok().and_then(|n| world.progress.programmed(&n));
                    has.is_some_and(|(s, e)| s >= needs.0 && e >= needs.1)
                };
                let late: Vec<String> =
                    ready.iter().filter(|n| !has(n)).map(|n| n.name().to_owned()).collect();
                programmed::incomplete(&late, ready.len())
            }
        };
        if programmed::is_said(service, &condition) {
            return Ok(Outcome::Done);
        }
        condition
    };
    let write = |service: &mut Object| {
        conditions::set(service, &condition, &conditions::now());
        let generation = service.generation();
        let list = service.status_mut().get_mut("conditions").and_then(Value::as_array_mut);
        for c in list.into_iter().flatten().filter(|c| c["type"] == condition.kind) {
            c["observedGeneration"] = generation.into();
        }
        Ok(true)
    };
    gone(world.registry.modify(&key, Part::Status, write).await)
}
