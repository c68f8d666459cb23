//! Waiting by watch, never by asking again and again.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use minisvc_proto::{
    Object, ObjectKey,
    client::{Informer, InformerEvent, ListParams},
    path::Target,
    watch::EventType,
};

use super::Session;

/// Follows one object until `done` says something about its state (`None`: it is not there), or the time is over (`None`).
/// A server that goes away meanwhile is waited for.
pub async fn until<T>(
    session: &Session,
    key: &ObjectKey,
    timeout: Option<Duration>,
    mut done: impl FnMut(Option<&Object>) -> Option<T>,
) -> anyhow::Result<Option<T>> {
    let target = Target::collection(key.resource, key.namespace.as_deref());
    let params = ListParams::fields(format!("metadata.name={}", key.name));
    // Asked once directly: a refusal is an answer, and the informer would go on for ever.
    session.client.list(&target, &params).await?;
    let follow = async {
        let mut events = Informer::spawn(session.client.clone(), target, params);
        while let Some(event) = events.recv().await {
            let result = match state(event, &key.name) {
                State::There(object) => done(Some(&object)),
                State::Gone => done(None),
                State::Unchanged => None,
            };
            if let Some(result) = result {
                return Ok(result);
            }
        }
        bail!("the watch of {key} ended")
    };
    match timeout {
        None => follow.await.map(Some),
        Some(limit) => tokio::time::timeout(limit, follow).await.ok().transpose(),
    }
}

/// What an event says about an object.
enum State {
    There(Arc<Object>),
    Gone,
    Unchanged,
}

fn state(event: InformerEvent, name: &str) -> State {
    match event {
        InformerEvent::Reset(_, objects) => {
            objects.into_iter().find(|o| o.name() == name).map_or(State::Gone, State::There)
        }
        InformerEvent::Changed(event) if event.object.name() == name => match event.kind {
            EventType::Added | EventType::Modified => State::There(Arc::new(event.object)),
            EventType::Deleted => State::Gone,
            EventType::Bookmark | EventType::Error => State::Unchanged,
        },
        InformerEvent::Changed(_) => State::Unchanged,
    }
}
