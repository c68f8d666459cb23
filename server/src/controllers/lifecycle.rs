//! Watches over the nodes: who speaks, who is silent, and what that means for their pods.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use minisvc_proto::{ApiError, NodeName, Object, ObjectKey};
use tokio_util::sync::CancellationToken;

use super::{
    events::Severity,
    nodes::{self, Listening},
    pod,
    queue::Outcome,
    world::World,
};
use crate::{
    conditions::{self, Condition},
    registry::Part,
};

/// How often silence is looked for. What a node says is acted on at once.
const PERIOD: Duration = Duration::from_millis(500);

/// Since when silence counts.
pub struct Lifecycle {
    listening: Mutex<Listening>,
}

impl Lifecycle {
    /// Silence counts as `listening` says.
    pub fn new(listening: Listening) -> Self {
        Lifecycle { listening: Mutex::new(listening) }
    }

    fn judge(&self, world: &World, node: &NodeName, now: Instant) -> Option<Condition> {
        let listening = *self.listening.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let silent = listening.is_silent(world.progress.last_seen(node), now);
        nodes::ready(world.progress.report(node).as_ref(), silent)
    }

    /// Finds the nodes whose condition is not what it should be, at each tick and whenever a node says something new.
    pub async fn watch(&self, world: &World, shutdown: &CancellationToken) {
        let mut tick = tokio::time::interval(PERIOD);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut said = world.progress.subscribe_readiness();
        loop {
            let now = tokio::select! {
                () = shutdown.cancelled() => return,
                _ = tick.tick() => {
                    let now = Instant::now();
                    let mut listening =
                        self.listening.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    listening.tick(now, PERIOD);
                    now
                }
                // The sender lives in the world.
                _ = said.changed() => Instant::now(),
            };
            let sight = world.sight();
            for node in sight.picture.nodes() {
                let (Ok(name), Some(key)) = (node.name().parse(), node.key()) else { continue };
                let Some(condition) = self.judge(world, &name, now) else { continue };
                // A server that ended between the node's condition and its pods', or a pod's status that was under way when its
                // node fell silent, leaves a pod Ready that nobody speaks for.
                let unspoken = || sight.picture.pods_on(node.name()).any(|p| pod::is_ready(p));
                if !is_said(node, &condition) || (condition.status == "Unknown" && unspoken()) {
                    world.queues.nodes.add(key);
                }
            }
        }
    }

    /// Writes a node's condition, and takes the readiness of a silent node's pods away: nobody knows whether they serve. The node
    /// itself gives it back when it speaks again.
    pub async fn reconcile(&self, world: &World, key: ObjectKey) -> Result<Outcome, ApiError> {
        let Ok(name) = key.name.parse::<NodeName>() else { return Ok(Outcome::Done) };
        let Some(condition) = self.judge(world, &name, Instant::now()) else { return Ok(Outcome::Done) };
        let Some(node) = world.sight().picture.get(&key).cloned() else { return Ok(Outcome::Done) };
        if !is_said(&node, &condition) {
            let set = |n: &mut Object| Ok(conditions::set(n, &condition, &conditions::now()));
            match world.registry.modify(&key, Part::Status, set).await {
                Err(error) if error.is_not_found() => return Ok(Outcome::Done),
                other => drop(other?),
            }
            if conditions::status(&node, "Ready") != Some(condition.status) {
                let (severity, reason) = match condition.status {
                    "True" => (Severity::Normal, "NodeReady"),
                    _ => (Severity::Warning, "NodeNotReady"),
                };
                world.recorder.tell(&node, severity, reason, condition.message.as_str());
            }
        }
        if condition.status != "Unknown" {
            return Ok(Outcome::Done);
        }
        let pods: Vec<ObjectKey> = {
            let sight = world.sight();
            let ready = sight.picture.pods_on(&key.name).filter(|p| pod::is_ready(p));
            ready.filter_map(|p| p.key()).collect()
        };
        let lost = Condition {
            kind: "Ready",
            status: "False",
            reason: "NodeNotReady",
            message: format!("Node {} does not speak", key.name),
        };
        let now = conditions::now();
        let writes = pods.iter().map(|key| {
            world
                .registry
                .modify(key, Part::Status, |p| Ok(pod::is_ready(p) && conditions::set(p, &lost, &now)))
        });
        for one in futures::future::join_all(writes).await {
            match one {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
        }
        Ok(Outcome::Done)
    }
}

fn is_said(node: &Object, condition: &Condition) -> bool {
    let field = |name: &str| conditions::get(node, condition.kind)?.get(name)?.as_str();
    field("status") == Some(condition.status)
        && field("reason") == Some(condition.reason)
        && field("message") == Some(condition.message.as_str())
}
