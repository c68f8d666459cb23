//! Watch events as they stand on the wire, one JSON object a line.

use serde::{Deserialize, Serialize};

use crate::object::Object;

/// What happened to an object since the watch's resourceVersion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EventType {
    /// New, or new to this watch's selection.
    Added,
    /// Changed.
    Modified,
    /// Gone, or gone from this watch's selection; the object is its last state.
    Deleted,
    /// Nothing happened up to `metadata.resourceVersion`.
    Bookmark,
    /// The watch ends; the object is a Status.
    Error,
}

/// One line of a watch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// What happened.
    #[serde(rename = "type")]
    pub kind: EventType,
    /// The object, a bare kind with a resourceVersion (bookmark) or a Status (error).
    pub object: Object,
}
