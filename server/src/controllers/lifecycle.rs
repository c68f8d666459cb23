//! Watches over the nodes: who speaks, who is silent, and what that means for their pods.

mod evict;

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use minisvc_proto::{ApiError, NodeName, Object, ObjectKey};
use nix::time::{ClockId, clock_gettime};
use tokio_util::sync::CancellationToken;

use super::{
    events::Severity,
    nodes::{self, Listening, Outage},
    pod,
    queue::Outcome,
    taints::{self, Standing},
    world::{Sight, World},
};
use crate::{
    conditions::{self, Condition, MOST_SILENT},
    registry::Part,
};

/// Since when silence counts, and since when taints drive pods away.
pub struct Lifecycle {
    heard: Mutex<Heard>,
    eviction_timeout: Duration,
}

struct Heard {
    listening: Listening,
    standing: Standing,
    /// When each node was seen first: a new one has time to speak.
    seen: HashMap<String, Instant>,
}

impl Heard {
    fn see(&mut self, sight: &Sight, node: &Object, now: Instant) {
        self.seen.entry(node.name().to_owned()).or_insert(now);
        self.standing.see(node, sight.picture.pods_on(node.name()), now);
    }

    fn keep(&mut self, exists: impl Fn(&str) -> bool) {
        self.seen.retain(|node, _| exists(node));
        self.standing.keep(exists);
    }

    /// From when the silence of a node counts, as far as it is the node's.
    fn last(&self, world: &World, node: &Object) -> Option<Instant> {
        let name = node.name().parse().ok()?;
        world.progress.last_seen(&name).or_else(|| self.seen.get(node.name()).copied())
    }
}

/// What is to be said of a node now.
struct Verdict {
    condition: Condition,
    outage: Outage,
}

impl Verdict {
    fn is_silent(&self) -> bool {
        self.condition.status == "Unknown"
    }

    fn taints(&self, node: &Object) -> Option<Vec<serde_json::Value>> {
        let evicts = !self.is_silent() || !self.outage.is_of_most();
        taints::wanted(node, &self.condition, evicts, &conditions::now())
    }
}

impl Lifecycle {
    /// Silence counts as `listening` says. Pods that say nothing about it leave a silent node after `eviction_timeout`.
    pub fn new(listening: Listening, eviction_timeout: Duration) -> Self {
        let heard = Heard { listening, standing: Standing::default(), seen: HashMap::new() };
        Lifecycle { heard: Mutex::new(heard), eviction_timeout }
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        // A panic elsewhere leaves times that only wait for longer.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn outage(&self, world: &World, sight: &Sight, now: Instant) -> Outage {
        let heard = self.heard();
        heard.listening.outage(sight.picture.nodes().map(|n| heard.last(world, n)), now)
    }

    fn judge(&self, world: &World, node: &Object, outage: Outage, now: Instant) -> Option<Verdict> {
        let name: NodeName = node.name().parse().ok()?;
        let (listening, silent) = {
            let heard = self.heard();
            (heard.listening, heard.listening.is_silent(heard.last(world, node), now))
        };
        // One that was silent before the server stood still is not heard again because the server does not know better.
        if !silent
            && conditions::status(node, "Ready") == Some("Unknown")
            && !listening.has_heard(world.progress.last_seen(&name))
        {
            return None;
        }
        let condition = nodes::ready(world.progress.report(&name).as_ref(), silent, outage)?;
        Some(Verdict { condition, outage })
    }

    /// Finds the nodes about which there is something to do, at each tick and whenever a node says something new.
    pub async fn watch(&self, world: &World, shutdown: &CancellationToken) {
        let mut tick = tokio::time::interval(nodes::PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut said = world.progress.subscribe_readiness();
        loop {
            let now = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {
                    let now = Instant::now();
                    self.heard().listening.tick(now, slept());
                    now
                }
                // The sender lives in the world.
                _ = said.changed() => Instant::now(),
            };
            let sight = world.sight();
            {
                let mut heard = self.heard();
                heard.keep(|name| sight.picture.node(name).is_some());
                sight.picture.nodes().for_each(|node| heard.see(&sight, node, now));
            }
            let outage = self.outage(world, &sight, now);
            for node in sight.picture.nodes() {
                let Some(key) = node.key() else { continue };
                let verdict = self.judge(world, node, outage, now);
                let open = verdict.is_some_and(|v| {
                    // A server that ended between the node's condition and its pods', or a pod's status that was under way when its
                    // node fell silent, leaves a pod Ready that nobody speaks for.
                    let unspoken = || {
                        v.is_silent() && !self.unspoken(world, &sight, node.name(), outage, now).is_empty()
                    };
                    !is_said(node, &v.condition) || v.taints(node).is_some() || unspoken()
                });
                if open || !self.leaving(&sight, node, now).0.is_empty() {
                    world.queues.nodes.add(key);
                }
            }
        }
    }

    /// Writes a node's condition and taints, takes the readiness of a silent node's pods away, and evicts those whose patience is
    /// over.
    pub async fn reconcile(&self, world: &World, key: ObjectKey) -> Result<Outcome, ApiError> {
        let now = Instant::now();
        let (node, verdict) = {
            let sight = world.sight();
            let Some(node) = sight.picture.get(&key).cloned() else { return Ok(Outcome::Done) };
            self.heard().see(&sight, &node, now);
            let outage = self.outage(world, &sight, now);
            let verdict = self.judge(world, &node, outage, now);
            (node, verdict)
        };
        if let Some(verdict) = &verdict {
            self.say(world, &key, &node, verdict, now).await?;
        }
        // Taints that were there before, and those that came now.
        let Ok(node) = world.registry.get(&key) else { return Ok(Outcome::Done) };
        self.evict(world, &node, now).await
    }

    /// The Ready pods of a silent node: nobody knows whether they serve. While most nodes are silent, the last that a service has
    /// stay: a fault of the server must not become one of the services.
    fn unspoken(
        &self,
        world: &World,
        sight: &Sight,
        node: &str,
        outage: Outage,
        now: Instant,
    ) -> Vec<ObjectKey> {
        let heard = self.heard();
        let speaks = |node: &Object| !heard.listening.is_quiet(heard.last(world, node), now);
        let ready = sight.picture.pods_on(node).filter(|p| pod::is_ready(p));
        ready
            .filter(|p| !(outage.is_of_most() && is_last(sight, p, speaks)))
            .filter_map(|p| p.key())
            .collect()
    }

    async fn say(
        &self,
        world: &World,
        key: &ObjectKey,
        node: &Object,
        verdict: &Verdict,
        now: Instant,
    ) -> Result<(), ApiError> {
        let condition = &verdict.condition;
        if !is_said(node, condition) {
            let set = |n: &mut Object| Ok(conditions::set(n, condition, &conditions::now()));
            found(world.registry.modify(key, Part::Status, set).await)?;
            tell(world, node, condition);
        }
        if verdict.is_silent() {
            let pods = self.unspoken(world, &world.sight(), &key.name, verdict.outage, now);
            take_readiness(world, &key.name, &pods).await?;
        }
        if verdict.taints(node).is_some() {
            let set = |n: &mut Object| {
                let Some(taints) = verdict.taints(n) else { return Ok(false) };
                n.spec_mut().insert("taints".into(), taints.into());
                Ok(true)
            };
            found(world.registry.modify(key, Part::Main, set).await)?;
        }
        Ok(())
    }
}

/// How long this machine has slept since its start, by the difference of its two clocks.
fn slept() -> Duration {
    let read = |clock| clock_gettime(clock).map_or(Duration::ZERO, Duration::from);
    read(ClockId::CLOCK_BOOTTIME).saturating_sub(read(ClockId::CLOCK_MONOTONIC))
}

/// What is gone needs nothing more.
fn found<T>(result: Result<T, ApiError>) -> Result<(), ApiError> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => other.map(drop),
    }
}

fn tell(world: &World, node: &Object, condition: &Condition) {
    let before = conditions::get(node, "Ready");
    let field = |name: &str| before.and_then(|c| c.get(name)?.as_str());
    if field("status") != Some(condition.status) {
        let (severity, reason) = match condition.status {
            "True" => (Severity::Normal, "NodeReady"),
            _ => (Severity::Warning, "NodeNotReady"),
        };
        world.recorder.tell(node, severity, reason, condition.message.as_str());
    }
    match (field("reason") == Some(MOST_SILENT), condition.reason == MOST_SILENT) {
        (false, true) => {
            world.recorder.tell(node, Severity::Warning, "EvictionSuspended", condition.message.as_str());
        }
        (true, false) if condition.status == "Unknown" => {
            let message = "Most nodes speak again: pods of those that do not are replaced";
            world.recorder.tell(node, Severity::Normal, "EvictionResumed", message);
        }
        _ => {}
    }
}

/// Whether a service that selects the pod has no Ready pod on any node that speaks.
fn is_last(sight: &Sight, p: &Object, speaks: impl Fn(&Object) -> bool) -> bool {
    let serves = |p: &Object| {
        let node = pod::node(p).and_then(|n| sight.picture.node(n));
        pod::is_ready(p) && !pod::is_terminating(p) && node.is_some_and(|n| speaks(n))
    };
    let Some(key) = p.key() else { return false };
    let services = sight.picture.services_of(&key, &p.labels());
    let mut services = services.iter().filter_map(|s| sight.picture.get(s));
    services.any(|s| !sight.picture.pods_of(s).iter().any(|p| serves(p)))
}

/// Takes the readiness of a silent node's pods away. The node itself gives it back when it speaks again.
async fn take_readiness(world: &World, node: &str, pods: &[ObjectKey]) -> Result<(), ApiError> {
    let lost = Condition {
        kind: "Ready",
        status: "False",
        reason: "NodeNotReady",
        message: format!("Node {node} does not speak"),
    };
    let now = conditions::now();
    let writes = pods.iter().map(|key| {
        world.registry.modify(key, Part::Status, |p| Ok(pod::is_ready(p) && conditions::set(p, &lost, &now)))
    });
    for one in futures::future::join_all(writes).await {
        found(one)?;
    }
    Ok(())
}

fn is_said(node: &Object, condition: &Condition) -> bool {
    let field = |name: &str| conditions::get(node, condition.kind)?.get(name)?.as_str();
    field("status") == Some(condition.status)
        && field("reason") == Some(condition.reason)
        && field("message") == Some(condition.message.as_str())
}
