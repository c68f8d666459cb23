//! Events: what users are told about their objects by this node.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

pub use minisvc_proto::event::Severity;
use minisvc_proto::{
    NodeName, Object,
    client::{Client, PatchKind},
    event::{Note, Source},
    path::Target,
    resource::EVENTS,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events that wait to be sent; more are dropped, as they must never hold up what they tell of.
const WAITING: usize = 256;
/// Notes that are remembered, so that a repetition raises a count instead of making another object.
const REMEMBERED: usize = 512;
const RETRY: Duration = Duration::from_secs(1);

/// Takes events; never waits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder(mpsc::Sender<Note>);

impl Recorder {
    /// A recorder, and the task that sends what it takes.
    pub fn new(
        client: Client,
        node: NodeName,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Recorder(sender), send_all(client, node, receiver, shutdown))
    }

    /// Something happened to this object; see [`Note::new`].
    pub fn event(
        &self,
        about: &Object,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let note = Note::new(about, severity, reason, message);
        tracing::debug!(?note, "event");
        if self.0.try_send(note).is_err() {
            tracing::warn!(reason, object = about.name(), "an event was dropped: too many wait to be sent");
        }
    }
}

/// The Event that was sent for a note.
struct Sent {
    object: String,
    count: u64,
}

async fn send_all(
    client: Client,
    node: NodeName,
    mut events: mpsc::Receiver<Note>,
    shutdown: CancellationToken,
) {
    let mut sent: BTreeMap<Note, Sent> = BTreeMap::new();
    let mut order: VecDeque<Note> = VecDeque::new();
    loop {
        let note = tokio::select! {
            () = shutdown.cancelled() => return,
            note = events.recv() => match note { Some(note) => note, None => return },
        };
        while let Err(error) = send(&client, &node, &note, &mut sent).await {
            if error.api().is_some() {
                // The server has judged: it will not judge otherwise next time.
                tracing::warn!(%error, reason = note.reason(), "an event was refused");
                break;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        if sent.contains_key(&note) && !order.contains(&note) {
            order.push_back(note);
        }
        while order.len() > REMEMBERED
            && let Some(oldest) = order.pop_front()
        {
            sent.remove(&oldest);
        }
    }
}

async fn send(
    client: &Client,
    node: &NodeName,
    note: &Note,
    sent: &mut BTreeMap<Note, Sent>,
) -> Result<(), minisvc_proto::client::ClientError> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let collection = Target::collection(&EVENTS, Some(note.namespace()));
    if let Some(known) = sent.get_mut(note) {
        let target = Target { name: Some(known.object.clone()), ..collection.clone() };
        let patch = json!({"count": known.count + 1, "lastTimestamp": now});
        match client.patch(&target, PatchKind::Merge, &patch).await {
            Ok(_) => {
                known.count += 1;
                return Ok(());
            }
            // It was forgotten meanwhile, as events are: a new one is made.
            Err(e) if e.is_not_found() => drop(sent.remove(note)),
            Err(e) => return Err(e),
        }
    }
    let suffix = uuid::Uuid::new_v4().simple().to_string();
    let source = Source { component: "minisvc-agent", host: Some(node.as_str()) };
    let event = note.to_event(&suffix[..16], source, 1, &now);
    client.create(&collection, &event, false).await?;
    sent.insert(note.clone(), Sent { object: event.name().to_owned(), count: 1 });
    Ok(())
}
