//! Events: what the controllers tell users. Telling costs the controllers nothing: a full queue drops, and the same said again
//! raises a count. Events expire an hour after they were last said.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
pub use minisvc_proto::event::Severity;
use minisvc_proto::{
    ApiError, Object, ObjectKey,
    event::{Note, Source},
    path::Target,
    resource::EVENTS,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    conditions,
    registry::{DeleteOptions, Part, Registry, WriteOptions},
};

/// How long an event is kept after it was last said. [cmd/kube-apiserver, --event-ttl]
pub const LIFETIME: Duration = Duration::from_hours(1);
/// How often expired events are looked for.
const SWEEP_PERIOD: Duration = Duration::from_mins(1);
/// Events removed at once: they share the store's syncs.
const SWEEP_BATCH: usize = 64;
/// What waits to be written; more is dropped.
const QUEUE: usize = 1024;
/// How many different events are remembered, to count repetitions instead of writing them anew.
const REMEMBERED: usize = 4096;

/// Takes what is to be told. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    notes: mpsc::Sender<Note>,
}

/// Writes what was told.
pub struct Scribe {
    notes: mpsc::Receiver<Note>,
    remembered: HashMap<Note, ObjectKey>,
}

/// A recorder, and the scribe that writes for it.
pub fn recorder() -> (Recorder, Scribe) {
    let (sender, notes) = mpsc::channel(QUEUE);
    (Recorder { notes: sender }, Scribe { notes, remembered: HashMap::new() })
}

impl Recorder {
    /// Tells something about an object. Never waits.
    pub fn tell(&self, about: &Object, severity: Severity, reason: &'static str, message: impl Into<String>) {
        let note = Note::new(about, severity, reason, message);
        if let Err(error) = self.notes.try_send(note) {
            tracing::debug!(%error, "an event was dropped");
        }
    }
}

impl Scribe {
    /// Writes until shutdown.
    pub async fn run(mut self, registry: &Registry, shutdown: &CancellationToken) {
        let mut sweep = tokio::time::interval(SWEEP_PERIOD);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = sweep.tick() => sweep_expired(registry, Timestamp::now()).await,
                _ = self.notes.recv_many(&mut batch, QUEUE) => {
                    // What was said often while the last was written is written once.
                    let mut counts: HashMap<Note, i64> = HashMap::new();
                    for note in batch.drain(..) {
                        *counts.entry(note).or_default() += 1;
                    }
                    for (note, count) in counts {
                        if let Err(error) = self.write(registry, note, count).await {
                            tracing::debug!(%error, "an event could not be written");
                        }
                    }
                }
            }
        }
    }

    async fn write(&mut self, registry: &Registry, note: Note, count: i64) -> Result<(), ApiError> {
        let now = conditions::now();
        if let Some(key) = self.remembered.get(&note) {
            let again = |event: &mut Object| {
                let before = event.pointer("/count").and_then(serde_json::Value::as_i64).unwrap_or(1);
                event.0.insert("count".into(), (before + count).into());
                event.0.insert("lastTimestamp".into(), now.as_str().into());
                Ok(true)
            };
            match registry.modify(key, Part::Main, again).await {
                Err(error) if error.is_not_found() => {}
                other => return other.map(drop),
            }
        }
        let source = Source { component: "minisvc-server", host: None };
        let event = note.to_event(&format!("{:016x}", rand::random::<u64>()), source, count, &now);
        let target = Target::collection(&EVENTS, Some(note.namespace()));
        let made = registry.create(&target, event, WriteOptions::default()).await?;
        if self.remembered.len() >= REMEMBERED {
            self.remembered.clear();
        }
        self.remembered.extend(made.key().map(|key| (note, key)));
        Ok(())
    }
}

/// Whether the event was last said too long ago.
fn is_expired(event: &Object, now: Timestamp) -> bool {
    let times = ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
    let last = times.iter().filter_map(|t| event.str_at(t)?.parse::<Timestamp>().ok()).max();
    last.is_none_or(|t| Duration::try_from(now.duration_since(t)).is_ok_and(|age| age > LIFETIME))
}

async fn sweep_expired(registry: &Registry, now: Timestamp) {
    let (_, all) = registry.list(&EVENTS, None);
    let expired: Vec<ObjectKey> = all.iter().filter(|e| is_expired(e, now)).filter_map(|e| e.key()).collect();
    for batch in expired.chunks(SWEEP_BATCH) {
        let deletions = batch.iter().map(|key| registry.delete(key, DeleteOptions::default()));
        for error in futures::future::join_all(deletions).await.into_iter().filter_map(Result::err) {
            tracing::debug!(%error, "an expired event could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::PODS;

    use super::*;
    use crate::{controllers::bootstrap, registry::testing};

    #[tokio::test]
    async fn the_same_said_again_is_counted_and_old_events_go() {
        let registry = testing::registry();
        bootstrap(&registry, "10.0.0.1:7443".parse().unwrap()).await.unwrap();
        let (recorder, mut scribe) = recorder();
        let pod = Object::new(&PODS, Some("default"), "web");
        for message in ["a", "b", "a"] {
            recorder.tell(&pod, Severity::Warning, "FailedScheduling", message);
            let note = scribe.notes.try_recv().unwrap();
            scribe.write(&registry, note, 2).await.unwrap();
        }
        let (_, events) = registry.list(&EVENTS, Some("default"));
        let mut said: Vec<_> = events
            .iter()
            .map(|e| (e.str_at("/message").unwrap(), e.pointer("/count").unwrap().as_i64().unwrap()))
            .collect();
        said.sort_unstable();
        assert_eq!(said, [("a", 4), ("b", 2)]);

        sweep_expired(&registry, Timestamp::now()).await;
        assert_eq!(registry.list(&EVENTS, None).1.len(), 2);
        sweep_expired(&registry, Timestamp::now() + LIFETIME + Duration::from_secs(5)).await;
        assert_eq!(registry.list(&EVENTS, None).1.len(), 0);
    }
}
