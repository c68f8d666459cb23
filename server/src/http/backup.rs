//! Every object, as a backup holds it: one picture of one revision, line by line. The CA is not in it; that stays on the server's disk.

use std::io;

use axum::response::Response;
use bytes::Bytes;
use futures::stream;
use serde_json::json;

use super::{Edge, answer};
use crate::{backup::Entry, cache::object_key};

/// A line with `revision` and `objects`, then as many lines of objects.
pub fn answer(edge: &Edge) -> Response {
    let (revision, objects) = edge.registry.snapshot();
    let first = Bytes::from(format!("{}\n", json!({"revision": revision, "objects": objects.len()})));
    let entries = objects.into_iter().map(move |(key, object)| {
        let mut stored = (*object).clone();
        stored.metadata_mut().remove("resourceVersion");
        let stored = serde_json::to_vec(&stored)?;
        let mut line = Entry::line(&object_key(&key), object.revision().unwrap_or(revision), &stored)?;
        line.push(b'\n');
        Ok::<_, io::Error>(Bytes::from(line))
    });
    answer::stream(stream::iter(std::iter::once(Ok(first)).chain(entries)))
}
