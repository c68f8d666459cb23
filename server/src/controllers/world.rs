//! The controllers' common picture, fed in the order of revisions, and what a change in it sets going.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minisvc_proto::{
    ApiError, Object, ObjectKey, Revision,
    resource::{DEPLOYMENTS, ENDPOINT_SLICES, ENDPOINTS, NAMESPACES, NODES, PODS, REPLICA_SETS, SERVICES},
    watch::EventType,
};
use tokio::sync::watch;

use super::{
    action::Action,
    deployment,
    events::Recorder,
    load_balancer::{self, claimants::Claimants},
    mirroring,
    picture::{Changed, Picture, service_of},
    pod,
    programmed::Tracker,
    queue::{Outcome, Queue},
    slices,
};
use crate::{
    cache::Item,
    conditions,
    progress::Progress,
    registry::{Registry, deletion},
    scheduler::Loads,
};

/// What the feeder keeps up to date.
#[derive(Default)]
pub struct Sight {
    /// All objects, with their indexes.
    pub picture: Picture,
    /// The pods of each node, those about to be bound included.
    pub loads: Loads,
    /// Pods that no node took.
    pub unplaced: std::collections::BTreeSet<ObjectKey>,
    /// Services that were there and are gone: their Endpoints go with them.
    pub ended_services: std::collections::BTreeSet<ObjectKey>,
    /// Who wants which ports of the nodes.
    pub balancers: Claimants,
    /// How far each service has come.
    pub tracker: Tracker,
}

/// A queue for each controller.
#[derive(Default)]
pub struct Queues {
    /// Services whose slices may be out of line.
    pub services: Queue<ObjectKey>,
    /// Services whose Endpoints, or the slices that mirror them, may be out of line.
    pub endpoints: Queue<ObjectKey>,
    /// Services of type LoadBalancer whose addresses may be out of line.
    pub load_balancers: Queue<ObjectKey>,
    /// Deployments.
    pub deployments: Queue<ObjectKey>,
    /// ReplicaSets.
    pub replica_sets: Queue<ObjectKey>,
    /// Pods without a node.
    pub unscheduled: Queue<ObjectKey>,
    /// Pods whose node may not be there.
    pub stranded: Queue<ObjectKey>,
    /// Objects whose owners may be gone, or that end and have dependents.
    pub garbage: Queue<ObjectKey>,
    /// Namespaces that end.
    pub namespaces: Queue<ObjectKey>,
    /// Nodes whose condition Ready may have changed.
    pub nodes: Queue<ObjectKey>,
    /// Services whose condition Programmed may have changed.
    pub programmed: Queue<ObjectKey>,
}

/// What every controller works with.
pub struct World {
    /// Where they write.
    pub registry: Registry,
    /// What the nodes say.
    pub progress: Arc<Progress>,
    /// Where they tell users what they did.
    pub recorder: Recorder,
    /// What they are to look at.
    pub queues: Queues,
    sight: Mutex<Sight>,
    applied: watch::Sender<Revision>,
}

/// Writes that a reconcile has under way at once: they share the store's syncs.
const WRITES_AT_ONCE: usize = 64;

impl World {
    /// A world that has seen nothing yet.
    pub fn new(registry: Registry, progress: Arc<Progress>, recorder: Recorder) -> Self {
        World {
            registry,
            progress,
            recorder,
            queues: Queues::default(),
            sight: Mutex::default(),
            applied: watch::Sender::new(Revision(0)),
        }
    }

    /// The picture as it stands. Not to be held across a wait.
    pub fn sight(&self) -> MutexGuard<'_, Sight> {
        self.sight.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the registry for ever: a watch that was too slow starts over from a fresh list.
    pub async fn follow(&self) {
        loop {
            let (revision, all) = self.registry.snapshot();
            {
                let mut sight = self.sight();
                for changed in sight.picture.replace(revision, all) {
                    self.route(&mut sight, &changed);
                }
            }
            self.applied.send_replace(revision);
            let Ok(mut watch) = self.registry.follow(revision) else { continue };
            while let Ok(item) = watch.next().await {
                match item {
                    Item::Event(event) => {
                        let gone = event.kind == EventType::Deleted;
                        let new = (!gone).then(|| event.entry.object.clone());
                        let mut sight = self.sight();
                        if let Some(changed) = sight.picture.apply(event.key.clone(), event.revision, new) {
                            self.route(&mut sight, &changed);
                        }
                    }
                    Item::Bookmark(revision) => drop(self.applied.send_replace(revision)),
                }
            }
            tracing::warn!("the controllers fell behind the history that is kept; they list again");
        }
    }

    /// Carries out the writes of a reconcile, and returns when the picture has them: the next reconcile must not ask for them
    /// again. The first failure is answered after the writes that were under way.
    pub async fn carry_out(&self, actions: Vec<Action>) -> Result<Outcome, ApiError> {
        if actions.is_empty() {
            return Ok(Outcome::Done);
        }
        let mut result = Ok(Outcome::Done);
        let mut actions = actions.into_iter().peekable();
        while actions.peek().is_some() && result.is_ok() {
            let some = actions.by_ref().take(WRITES_AT_ONCE).map(|a| a.carry_out(&self.registry));
            for one in futures::future::join_all(some).await {
                result = result.and_then(|r| one.map(|()| r));
            }
        }
        self.caught_up().await;
        result
    }

    /// Returns when the picture has everything that was written before this call.
    pub async fn caught_up(&self) {
        let revision = self.registry.revision();
        // The sender lives as long as the world: this cannot fail.
        let _ = self.applied.subscribe().wait_for(|applied| *applied >= revision).await;
    }

    /// Puts into the queues what a change concerns.
    fn route(&self, sight: &mut Sight, changed: &Changed) {
        let key = &changed.key;
        if key.resource == &PODS {
            self.route_pod(sight, changed);
        } else if key.resource == &SERVICES {
            sight.tracker.service_changed(changed);
            if changed.old.is_none() {
                let slices = sight.picture.slices_of(key);
                let last = slices.iter().filter_map(|s| s.revision()).max();
                sight.tracker.slices_changed(key, last.unwrap_or_default());
            }
            if changed.new.is_some() {
                sight.ended_services.remove(key);
            } else {
                sight.ended_services.insert(key.clone());
            }
            self.queues.services.add(key.clone());
            self.queues.endpoints.add(key.clone());
            self.queues.programmed.add(key.clone());
            for balancer in sight.balancers.set(key, changed.new.as_deref()) {
                self.queues.load_balancers.add(balancer);
            }
            // What somebody wrote into the status, or left there.
            let has_status = |s: &Object| {
                load_balancer::is_managed(s) || conditions::get(s, load_balancer::CONDITION).is_some()
            };
            if changed.new.as_deref().is_some_and(has_status) {
                self.queues.load_balancers.add(key.clone());
            }
        } else if key.resource == &ENDPOINTS {
            self.queues.endpoints.add(ObjectKey { resource: &SERVICES, ..key.clone() });
        } else if key.resource == &ENDPOINT_SLICES {
            let mirrored = states(changed).any(|s| slices::is_made_by(s, mirroring::MANAGER));
            for service in states(changed).filter_map(service_of) {
                let local = |s: &Arc<Object>| load_balancer::is_managed(s) && load_balancer::is_local(s);
                if sight.picture.get(&service).is_some_and(local) {
                    self.queues.load_balancers.add(service.clone());
                }
                if mirrored {
                    self.queues.endpoints.add(service.clone());
                }
                sight.tracker.slices_changed(&service, changed.revision);
                self.queues.programmed.add(service.clone());
                self.queues.services.add(service);
            }
        } else if key.resource == &REPLICA_SETS {
            self.queues.replica_sets.add(key.clone());
            Self::route_to_owner(sight, changed, &self.queues.deployments);
        } else if key.resource == &DEPLOYMENTS {
            self.queues.deployments.add(key.clone());
        } else if key.resource == &NODES {
            self.route_node(sight, changed);
        } else if key.resource == &NAMESPACES {
            self.queues.namespaces.add(key.clone());
        }
        self.route_garbage(sight, changed);
        // A namespace that ends waits for its contents.
        if let (None, Some(namespace)) = (&changed.new, &key.namespace) {
            let namespace = ObjectKey::cluster(&NAMESPACES, namespace);
            if sight.picture.get(&namespace).is_some_and(|n| n.deletion_timestamp().is_some()) {
                self.queues.namespaces.add(namespace);
            }
        }
    }

    fn route_pod(&self, sight: &mut Sight, changed: &Changed) {
        let key = &changed.key;
        for state in states(changed) {
            for service in sight.picture.services_of(key, &state.labels()) {
                self.queues.services.add(service.clone());
                self.queues.endpoints.add(service);
            }
        }
        Self::route_to_owner(sight, changed, &self.queues.replica_sets);
        // A Deployment that starts nothing beside old pods waits for the end of these.
        if changed.new.as_deref().is_none_or(pod::is_ended) {
            let owner = |o: &Object| {
                let key = sight.picture.by_uid(o.controller_uid()?)?;
                sight.picture.get(key)
            };
            let set = states(changed).find_map(owner);
            let deployment = set.and_then(|s| owner(s)).filter(|d| deployment::is_recreate(d));
            if let Some(key) = deployment.and_then(|d| d.key()) {
                self.queues.deployments.add(key);
            }
        }
        let Some(p) = &changed.new else {
            sight.unplaced.remove(key);
            if sight.loads.set(key, None) {
                self.try_unplaced(sight);
            }
            return;
        };
        let freed = match pod::node(p) {
            _ if pod::is_ended(p) => sight.loads.set(key, None),
            Some(node) => sight.loads.set(key, Some((node, p))),
            None if pod::is_terminating(p) => sight.loads.set(key, None),
            // One that is about to be bound keeps its place.
            None => {
                self.queues.unscheduled.add(key.clone());
                false
            }
        };
        if freed {
            self.try_unplaced(sight);
        }
        if let Some(node) = pod::node(p)
            && sight.picture.node(node).is_none()
        {
            self.queues.stranded.add(key.clone());
        }
    }

    /// Tries the pods that no node took again: those of the highest priority first, and then the oldest.
    pub fn try_unplaced(&self, sight: &mut Sight) {
        let unplaced = std::mem::take(&mut sight.unplaced);
        let mut pods: Vec<_> = unplaced.into_iter().map(|key| (rank(sight.picture.get(&key)), key)).collect();
        pods.sort();
        for (_, pod) in pods {
            self.queues.unscheduled.add(pod);
        }
    }

    /// The controller of an object; for one without, every set of its namespace that could adopt it.
    fn route_to_owner(sight: &Sight, changed: &Changed, queue: &Queue<ObjectKey>) {
        for state in states(changed) {
            match state.controller_uid() {
                Some(uid) => {
                    if let Some(owner) = sight.picture.by_uid(uid) {
                        queue.add(owner.clone());
                    }
                }
                None => {
                    for set in sight.picture.adopters(state) {
                        queue.add(set);
                    }
                }
            }
        }
    }

    fn route_node(&self, sight: &mut Sight, changed: &Changed) {
        let name = &changed.key.name;
        self.queues.nodes.add(changed.key.clone());
        self.try_unplaced(sight);
        self.refresh_floor(sight);
        let (before, after) = (changed.old.as_deref(), changed.new.as_deref());
        if before.map(load_balancer::facts) != after.map(load_balancer::facts) {
            for balancer in sight.balancers.all() {
                self.queues.load_balancers.add(balancer.clone());
            }
        }
        if changed.new.is_none() {
            if let Ok(node) = name.parse() {
                self.progress.forget(&node);
            }
            for pod in sight.picture.pods_on(name).filter_map(|p| p.key()) {
                self.queues.stranded.add(pod);
            }
        }
        let zone = |o: &Option<std::sync::Arc<Object>>| {
            o.as_ref().and_then(|o| o.label("topology.kubernetes.io/zone").map(str::to_owned))
        };
        if zone(&changed.old) != zone(&changed.new) {
            for p in sight.picture.pods_on(name) {
                let Some(key) = p.key() else { continue };
                for service in sight.picture.services_of(&key, &p.labels()) {
                    self.queues.services.add(service);
                }
            }
        }
    }

    fn route_garbage(&self, sight: &Sight, changed: &Changed) {
        match (&changed.old, &changed.new) {
            (Some(old), None) => {
                for dependent in sight.picture.dependents(old.uid()) {
                    self.queues.garbage.add(dependent.clone());
                }
                // An owner that waits for its dependents.
                for owner in old.owner_uids().filter_map(|uid| sight.picture.by_uid(uid)) {
                    if sight.picture.get(owner).is_some_and(|o| o.deletion_timestamp().is_some()) {
                        self.queues.garbage.add(owner.clone());
                    }
                }
            }
            (_, Some(new)) => {
                let waits = new.deletion_timestamp().is_some() && !deletion::finalizers(new).is_empty();
                if waits || sight.picture.is_abandoned(new) {
                    self.queues.garbage.add(changed.key.clone());
                }
            }
            (None, None) => {}
        }
    }

    /// Takes what every ready node has programmed; what became complete by it is looked at.
    pub fn refresh_floor(&self, sight: &mut Sight) {
        let ready = sight.picture.nodes().filter(|n| conditions::is_true(n, "Ready"));
        let programmed = |n: &Arc<Object>| {
            n.name().parse().ok().and_then(|n| self.progress.programmed(&n)).unwrap_or_default()
        };
        let floor = ready.map(programmed).reduce(|a, b| (a.0.min(b.0), a.1.min(b.1)));
        for service in sight.tracker.set_floor(floor) {
            self.queues.programmed.add(service);
        }
    }
}

/// Where an unplaced pod stands among the others.
fn rank(pod: Option<&Arc<Object>>) -> (std::cmp::Reverse<i64>, String) {
    let priority = pod.and_then(|p| p.pointer("/spec/priority")?.as_i64()).unwrap_or(0);
    let made = pod.and_then(|p| p.str_at("/metadata/creationTimestamp")).unwrap_or_default();
    (std::cmp::Reverse(priority), made.to_owned())
}

fn states(changed: &Changed) -> impl Iterator<Item = &Object> {
    // The old state may stand in other indexes than the new one.
    changed.old.iter().chain(&changed.new).map(|o| &**o)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        controllers::{bootstrap, events},
        registry::testing,
    };

    #[tokio::test]
    async fn a_reconcile_is_over_when_the_picture_has_what_it_wrote() {
        let registry = testing::registry();
        bootstrap(&registry, "10.0.0.1:7443".parse().unwrap()).await.unwrap();
        let (recorder, _scribe) = events::recorder();
        let world = World::new(registry.clone(), Arc::default(), recorder);
        let key = ObjectKey::namespaced(&PODS, "default", "a");
        let mut pod = Object::new(&PODS, Some("default"), "a");
        pod.0.insert("spec".into(), json!({"containers": [{"name": "c", "command": ["true"]}]}));
        let carried = world.carry_out(vec![Action::Create(pod)]);
        tokio::pin!(carried);
        let mut after = 0;
        while after < 20 {
            assert!(futures::poll!(&mut carried).is_pending(), "nobody has put it into the picture yet");
            tokio::task::yield_now().await;
            after += usize::from(registry.get(&key).is_ok());
        }
        tokio::select! {
            () = world.follow() => unreachable!("it follows for ever"),
            result = carried => assert_eq!(result.unwrap(), Outcome::Done),
        }
        assert!(world.sight().picture.get(&key).is_some());
    }
}
