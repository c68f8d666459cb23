//! Events: what users are told about their objects by this node.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use minisvc_proto::{
    NodeName, Object,
    client::{Client, PatchKind},
    path::Target,
    resource::EVENTS,
};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events that wait to be sent; more are dropped, as they must never hold up what they tell of.
const WAITING: usize = 256;
/// Series that are remembered, so that a repetition raises a count instead of making another object.
const REMEMBERED: usize = 512;
const RETRY: Duration = Duration::from_secs(1);

/// Whether an event is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Things take their course.
    Normal,
    /// Somebody may have to do something.
    Warning,
}

/// One thing that happened to an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    name: String,
    uid: String,
    severity: Severity,
    reason: &'static str,
    message: String,
}

/// Takes events; never waits. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder(mpsc::Sender<Series>);

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

    /// Something happened to this object. `reason` is one CamelCase word, `message` is for people.
    pub fn event(
        &self,
        about: &Object,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let series = Series {
            api_version: about.api_version().to_owned(),
            kind: about.kind().to_owned(),
            namespace: about.namespace().map(str::to_owned),
            name: about.name().to_owned(),
            uid: about.uid().to_owned(),
            severity,
            reason,
            message: message.into(),
        };
        tracing::debug!(kind = series.kind, name = series.name, reason, message = series.message, "event");
        if self.0.try_send(series).is_err() {
            tracing::warn!(reason, object = about.name(), "an event was dropped: too many wait to be sent");
        }
    }
}

/// What was sent of a series.
struct Sent {
    object: String,
    count: u64,
}

async fn send_all(
    client: Client,
    node: NodeName,
    mut events: mpsc::Receiver<Series>,
    shutdown: CancellationToken,
) {
    let mut sent: BTreeMap<Series, Sent> = BTreeMap::new();
    let mut order: VecDeque<Series> = VecDeque::new();
    loop {
        let series = tokio::select! {
            () = shutdown.cancelled() => return,
            series = events.recv() => match series { Some(series) => series, None => return },
        };
        while let Err(error) = send(&client, &node, &series, &mut sent).await {
            if error.api().is_some() {
                // The server has judged: it will not judge otherwise next time.
                tracing::warn!(%error, reason = series.reason, "an event was refused");
                break;
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
        if sent.contains_key(&series) && !order.contains(&series) {
            order.push_back(series);
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
    series: &Series,
    sent: &mut BTreeMap<Series, Sent>,
) -> Result<(), minisvc_proto::client::ClientError> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    // Events of cluster-scoped objects live in `default`.
    let namespace = series.namespace.as_deref().unwrap_or("default");
    let collection = Target::collection(&EVENTS, Some(namespace));
    if let Some(known) = sent.get_mut(series) {
        let target = Target { name: Some(known.object.clone()), ..collection.clone() };
        let patch = json!({"count": known.count + 1, "lastTimestamp": now});
        match client.patch(&target, PatchKind::Merge, &patch).await {
            Ok(_) => {
                known.count += 1;
                return Ok(());
            }
            // It was forgotten meanwhile, as events are: a new one is made.
            Err(e) if e.is_not_found() => drop(sent.remove(series)),
            Err(e) => return Err(e),
        }
    }
    let suffix = uuid::Uuid::new_v4().simple().to_string();
    let name = format!("{}.{}", series.name, &suffix[..16]);
    let mut event = Object::new(&EVENTS, Some(namespace), &name);
    let severity = match series.severity {
        Severity::Normal => "Normal",
        Severity::Warning => "Warning",
    };
    for (field, value) in [
        (
            "involvedObject",
            json!({"apiVersion": series.api_version, "kind": series.kind, "namespace": series.namespace,
                "name": series.name, "uid": series.uid}),
        ),
        ("reason", json!(series.reason)),
        ("message", json!(series.message)),
        ("type", json!(severity)),
        ("count", json!(1)),
        ("firstTimestamp", json!(now)),
        ("lastTimestamp", json!(now)),
        ("source", json!({"component": "minisvc-agent", "host": node.as_str()})),
        ("reportingComponent", json!("minisvc-agent")),
        ("reportingInstance", json!(node.as_str())),
    ] {
        event.0.insert(field.into(), value);
    }
    client.create(&collection, &event, false).await?;
    sent.insert(series.clone(), Sent { object: name, count: 1 });
    Ok(())
}
