//! Watches: the changes of a collection as JSON, one line each, until somebody ends it.

use std::{collections::VecDeque, pin::Pin, sync::Arc, time::Duration};

use axum::response::Response;
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use minisvc_proto::{ApiError, Object, Resource, Revision, path::Target, table::Table, watch::EventType};
use serde_json::json;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    accept::Form,
    answer,
    query::{Query, Selection},
};
use crate::{
    cache::{Event, Item, Watch, wire_line},
    registry::{Registry, columns::table},
};

/// At most one bookmark in this time.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(1);
/// How long a watch lives that names no time. Somewhat random, so that not all watches start over together.
const LIFETIME_SECONDS: std::ops::Range<u64> = 1800..3600;
/// The longest life that can be asked for: more does not fit a clock.
const LONGEST_SECONDS: u64 = 7 * 24 * 3600;
/// Marks the end of the initial events, as Kubernetes does.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Answers a watch, or 410 if its start is too long ago.
pub fn answer(
    registry: &Registry,
    shutdown: CancellationToken,
    target: &Target,
    query: &Query,
    form: Form,
) -> Result<Response, ApiError> {
    let resource = target.resource;
    let mut selection = Selection::parse(query, resource)?;
    if let Some(name) = &target.name {
        selection = selection.named(name);
    }
    let send_initial = query.flag("sendInitialEvents")?;
    let since: Option<Revision> = query.number("resourceVersion")?.filter(|r| *r > Revision(0));
    let seconds = query.number("timeoutSeconds")?.filter(|s| *s > 0);
    let seconds = seconds.unwrap_or_else(|| rand::random_range(LIFETIME_SECONDS)).min(LONGEST_SECONDS);
    let mut initial = VecDeque::new();
    let since = match since {
        Some(since) if !send_initial => since,
        // Everything there is comes first, as additions.
        _ => {
            let (revision, objects) = registry.list(resource, target.namespace.as_deref());
            initial.extend(objects.into_iter().filter(|o| selection.matches(o)));
            revision
        }
    };
    let feed = Feed {
        watch: registry.watch(resource, since)?,
        resource,
        namespace: target.namespace.clone(),
        selection,
        initial,
        initial_end: send_initial.then_some(since),
        told: since,
        bookmark: None,
        bookmarks: query.flag("allowWatchBookmarks")?,
        next_bookmark: Instant::now(),
        end: Box::pin(sleep_until(Instant::now() + Duration::from_secs(seconds))),
        shutdown,
        form,
        columns_sent: false,
        ended: false,
    };
    let lines = futures::stream::unfold(feed, |mut feed| async move { Some((feed.next().await?, feed)) });
    Ok(answer::stream(lines.map(Ok::<_, std::convert::Infallible>).fuse()))
}

/// One watch's place and what it wants.
struct Feed {
    watch: Watch,
    resource: &'static Resource,
    namespace: Option<String>,
    selection: Selection,
    initial: VecDeque<Arc<Object>>,
    /// After the initial events, their end is told with this revision.
    initial_end: Option<Revision>,
    /// The client knows everything up to here.
    told: Revision,
    /// A bookmark that waits for its time.
    bookmark: Option<Revision>,
    bookmarks: bool,
    next_bookmark: Instant,
    end: Pin<Box<Sleep>>,
    shutdown: CancellationToken,
    form: Form,
    /// Of a watch of tables, the first alone says what the columns are.
    columns_sent: bool,
    ended: bool,
}

/// What one turn of the loop brought.
enum Turn {
    Item(Result<Item, crate::cache::Expired>),
    BookmarkDue,
    End,
}

impl Feed {
    /// The next line; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        if let Some(object) = self.initial.pop_front() {
            return Some(self.line(EventType::Added, &object));
        }
        if let Some(revision) = self.initial_end.take() {
            return Some(self.bookmark_line(revision, true));
        }
        loop {
            let turn = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => Turn::End,
                () = self.end.as_mut() => Turn::End,
                item = self.watch.next() => Turn::Item(item),
                () = sleep_until(self.next_bookmark), if self.bookmark.is_some() => Turn::BookmarkDue,
            };
            match turn {
                Turn::Item(Ok(Item::Event(event))) => {
                    if let Some(line) = self.event(&event) {
                        return Some(line);
                    }
                }
                Turn::Item(Ok(Item::Bookmark(revision))) => {
                    if self.bookmarks && revision > self.told {
                        self.bookmark = Some(revision);
                    }
                }
                Turn::Item(Err(expired)) => {
                    self.ended = true;
                    return Some(wire_line(EventType::Error, &ApiError::expired(expired.to_string())));
                }
                Turn::BookmarkDue => {
                    if let Some(revision) = self.bookmark.take() {
                        return Some(self.bookmark_line(revision, false));
                    }
                }
                Turn::End => {
                    self.ended = true;
                    // So that the next watch starts where this one ended.
                    let last = self.bookmark.take()?;
                    return Some(self.bookmark_line(last, false));
                }
            }
        }
    }

    fn event(&mut self, event: &Event) -> Option<Bytes> {
        if self.namespace.is_some() && self.namespace != event.key.namespace {
            return None;
        }
        let now = event.kind != EventType::Deleted && self.selection.matches(&event.entry.object);
        let before = event.previous.as_ref().is_some_and(|p| self.selection.matches(&p.object));
        let kind = match (before, now) {
            (false, false) => return None,
            (false, true) => EventType::Added,
            (true, true) => EventType::Modified,
            (true, false) => EventType::Deleted,
        };
        self.told = event.revision;
        self.bookmark = None;
        if kind == event.kind {
            return Some(match self.form {
                Form::Objects => event.line(),
                Form::Table(_) => self.line(kind, &event.entry.object),
            });
        }
        // Gone from the selection: the last state that was in it, as of now.
        let mut object = (*event.entry.object).clone();
        if let (EventType::Deleted, Some(previous)) = (kind, &event.previous) {
            object = (*previous.object).clone();
            object.set_revision(event.revision);
        }
        Some(self.line(kind, &object))
    }

    fn line(&mut self, kind: EventType, object: &Object) -> Bytes {
        match self.form {
            Form::Objects => wire_line(kind, object),
            Form::Table(include) => {
                let with_columns = !std::mem::replace(&mut self.columns_sent, true);
                let mut rows = table(self.resource, [object], include, with_columns, Timestamp::now());
                let revision = object.str_at("/metadata/resourceVersion").unwrap_or("");
                rows.metadata = json!({"resourceVersion": revision});
                wire_line(kind, &rows)
            }
        }
    }

    fn bookmark_line(&mut self, revision: Revision, initial_end: bool) -> Bytes {
        self.told = self.told.max(revision);
        self.next_bookmark = Instant::now() + BOOKMARK_PERIOD;
        let mut metadata = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object = json!({
            "kind": self.resource.kind,
            "apiVersion": self.resource.api_version(),
            "metadata": metadata,
        });
        match self.form {
            Form::Objects => wire_line(EventType::Bookmark, &object),
            Form::Table(_) => {
                let mut rows = Table::new(Vec::new());
                rows.metadata = object["metadata"].clone();
                wire_line(EventType::Bookmark, &rows)
            }
        }
    }
}

#[cfg(test)]
mod tests;
