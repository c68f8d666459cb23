//! The watch cache: every read and every watch is served from here, in the order of the store's revisions.
//!
//! One task applies what the store has committed. Readers take a lock for the time of a look-up; a list is a range of the
//! ordered map of its own kind, so its cost is that of its answer. Watches read a ring of the last events: one that falls
//! behind the ring is told so and starts over, without holding up anybody else.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use bytes::Bytes;
use minisvc_proto::{Object, ObjectKey, Resource, Revision, resource::RESOURCES, watch::EventType};
use serde::Serialize;
use tokio::sync::watch as latest;
use tokio_util::sync::CancellationToken;

use crate::store::{Change, CommitError, Committed, Key, Store, Txn, Versioned};

/// Events kept for watches that start in the past or are slow.
pub(crate) const RING: usize = 8192;
/// Bytes of JSON of the objects in these events, together: fewer events are kept where objects are large. In memory an object
/// takes several times as much.
const RING_BYTES: usize = 32 << 20;
/// Most transactions taken in at once: bounds the time under the lock.
const MOST_AT_ONCE: usize = 256;
const RESERVED: &str = "/reserved/";

/// An object as of a revision, with `metadata.resourceVersion` set.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The revision that wrote it.
    pub revision: Revision,
    /// The object.
    pub object: Arc<Object>,
}

/// What happened to one object.
#[derive(Debug)]
pub struct Event {
    /// When.
    pub revision: Revision,
    /// Added, Modified or Deleted.
    pub kind: EventType,
    /// Which object.
    pub key: ObjectKey,
    /// The new state; of a deleted object the last one, with the revision of its deletion.
    pub entry: Entry,
    /// The state before.
    pub previous: Option<Entry>,
    line: OnceLock<Bytes>,
    /// Bytes of the new state as JSON.
    size: usize,
}

impl Event {
    /// The event as a line of a watch: made once, however many watch.
    pub fn line(&self) -> Bytes {
        let make = || wire_line(self.kind, &*self.entry.object);
        self.line.get_or_init(make).clone()
    }
}

/// An event as it stands on the wire: one line of JSON.
pub fn wire_line(kind: EventType, object: &impl Serialize) -> Bytes {
    #[derive(Serialize)]
    struct Line<'a, T> {
        #[serde(rename = "type")]
        kind: EventType,
        object: &'a T,
    }
    // JSON values can always be written.
    let mut line = serde_json::to_vec(&Line { kind, object }).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// The next thing a watch has to say.
#[derive(Clone, Debug)]
pub enum Item {
    /// Something happened.
    Event(Arc<Event>),
    /// Nothing more happened to this kind up to here.
    Bookmark(Revision),
}

/// A watch asked for history that is no longer kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: the oldest kept is {oldest}")]
pub struct Expired {
    /// The oldest revision that a watch may start after.
    pub oldest: Revision,
}

/// The store holds something that is no object.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The engine could not be read.
    #[error(transparent)]
    Store(#[from] CommitError),
    /// A value is not what its key says.
    #[error("the store holds {key}, which is no object of a known kind")]
    Foreign {
        /// Which key.
        key: Key,
    },
}

/// See the module.
pub struct Cache {
    store: Arc<dyn Store>,
    state: Mutex<State>,
    revision: latest::Sender<Revision>,
    ended: CancellationToken,
}

#[derive(Default)]
struct State {
    revision: Revision,
    /// By kind, then namespace ("" for none) and name.
    objects: BTreeMap<&'static Resource, BTreeMap<(String, String), Entry>>,
    reservations: BTreeMap<Key, String>,
    ring: VecDeque<Arc<Event>>,
    ring_bytes: usize,
    /// Every event after this revision is in the ring.
    ring_after: Revision,
}

/// The store's key of an object: `/objects/GROUP/PLURAL/NAMESPACE/NAME`, with `core` and `-` for what is empty.
pub fn object_key(key: &ObjectKey) -> Key {
    let group = if key.resource.group.is_empty() { "core" } else { key.resource.group };
    let namespace = key.namespace.as_deref().unwrap_or("-");
    format!("/objects/{group}/{}/{namespace}/{}", key.resource.plural, key.name).into()
}

/// The object that a key of the store is for; `None` if there is no such kind.
pub fn parse_key(key: &str) -> Option<ObjectKey> {
    let mut parts = key.strip_prefix("/objects/")?.split('/');
    let (group, plural, namespace, name) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let group = if group == "core" { "" } else { group };
    let resource = RESOURCES.iter().copied().find(|r| r.group == group && r.plural == plural)?;
    let namespace = (namespace != "-").then(|| namespace.to_owned());
    Some(ObjectKey { resource, namespace, name: name.to_owned() })
}

fn decode(value: &[u8], revision: Revision) -> Option<Entry> {
    let mut object: Object = serde_json::from_slice(value).ok()?;
    object.set_revision(revision);
    Some(Entry { revision, object: Arc::new(object) })
}

impl Cache {
    /// Reads everything from the store and follows it from then on. Needs a tokio runtime.
    pub fn open(store: Arc<dyn Store>) -> Result<Arc<Cache>, OpenError> {
        let mut committed = store.subscribe();
        let (revision, values) = store.load()?;
        let mut state = State { revision, ring_after: revision, ..State::default() };
        for (key, Versioned { revision, value }) in values {
            if key.starts_with(RESERVED) {
                state.reservations.insert(key, String::from_utf8_lossy(&value).into_owned());
                continue;
            }
            let (Some(id), Some(entry)) = (parse_key(&key), decode(&value, revision)) else {
                return Err(OpenError::Foreign { key });
            };
            state.objects.entry(id.resource).or_default().insert(place(&id), entry);
        }
        let ended = CancellationToken::new();
        let cache = Arc::new(Cache {
            store,
            state: Mutex::new(state),
            revision: latest::Sender::new(revision),
            ended: ended.clone(),
        });
        let follower = Arc::downgrade(&cache);
        tokio::spawn(async move {
            let mut some = Vec::new();
            // What a group commit brings is taken in at once: readers are woken once for it.
            while committed.recv_many(&mut some, MOST_AT_ONCE).await > 0 {
                let Some(cache) = follower.upgrade() else { return };
                cache.apply(some.drain(..));
            }
            ended.cancel();
        });
        Ok(cache)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, committed: impl Iterator<Item = Committed>) {
        let mut state = self.lock();
        for Committed { revision, changes } in committed {
            for change in changes {
                state.apply(revision, change);
            }
            state.revision = revision;
        }
        let revision = state.revision;
        drop(state);
        self.revision.send_replace(revision);
    }

    /// Cancelled when the store takes no more writes.
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Changes with every revision that reads see.
    pub fn revisions(&self) -> latest::Receiver<Revision> {
        self.revision.subscribe()
    }

    /// The revision that reads see.
    pub fn revision(&self) -> Revision {
        self.lock().revision
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<Entry> {
        self.lock().objects.get(key.resource)?.get(&place(key)).cloned()
    }

    /// All objects of a kind, or those of a namespace, in the order of their names, with the revision of this picture.
    pub fn list(&self, resource: &'static Resource, namespace: Option<&str>) -> (Revision, Vec<Entry>) {
        let state = self.lock();
        let entries = match (state.objects.get(resource), namespace) {
            (None, _) => Vec::new(),
            (Some(all), None) => all.values().cloned().collect(),
            (Some(all), Some(ns)) => {
                let from = Bound::Included((ns.to_owned(), String::new()));
                all.range((from, Bound::Unbounded))
                    .take_while(|((n, _), _)| n == ns)
                    .map(|(_, e)| e.clone())
                    .collect()
            }
        };
        (state.revision, entries)
    }

    /// Everything, at one revision.
    pub fn snapshot(&self) -> (Revision, Vec<(ObjectKey, Entry)>) {
        let state = self.lock();
        let all = state.objects.iter().flat_map(|(resource, objects)| {
            objects.iter().map(|((namespace, name), entry)| {
                let namespace = resource.is_namespaced().then(|| namespace.clone());
                (ObjectKey { resource, namespace, name: name.clone() }, entry.clone())
            })
        });
        (state.revision, all.collect())
    }

    /// Who holds a reservation (`/reserved/nodeports/30080`).
    pub fn reservation(&self, key: &str) -> Option<String> {
        self.lock().reservations.get(key).cloned()
    }

    /// All reservations under a prefix, with their holders.
    pub fn reservations(&self, prefix: &str) -> Vec<(String, String)> {
        let from: Bound<Key> = Bound::Included(prefix.into());
        let state = self.lock();
        let range = state.reservations.range((from, Bound::Unbounded));
        range.take_while(|(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.to_string(), v.clone())).collect()
    }

    /// Commits, and returns when reads of this cache see it, or what stood in its way.
    pub async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        let result = self.store.commit(txn).await;
        let (Ok(reached) | Err(CommitError::Unexpected { revision: reached, .. })) = &result else {
            return result;
        };
        let mut seen = self.revision.subscribe();
        let seen = seen.wait_for(|r| r >= reached).await.map(drop);
        seen.map_err(|_| CommitError::Engine("the cache stopped".into()))?;
        result
    }

    /// Every event of a kind after `since`, without a gap.
    pub fn watch(self: &Arc<Self>, resource: &'static Resource, since: Revision) -> Result<Watch, Expired> {
        self.start_watch(Some(resource), since)
    }

    /// Every event of every kind after `since`, without a gap.
    pub fn watch_all(self: &Arc<Self>, since: Revision) -> Result<Watch, Expired> {
        self.start_watch(None, since)
    }

    fn start_watch(
        self: &Arc<Self>,
        resource: Option<&'static Resource>,
        since: Revision,
    ) -> Result<Watch, Expired> {
        let state = self.lock();
        // A revision that is yet to come is one of another store's history: everything up to it would be kept from the watch.
        if since < state.ring_after || since > state.revision {
            return Err(Expired { oldest: state.ring_after });
        }
        drop(state);
        Ok(Watch {
            cache: self.clone(),
            revision: self.revision.subscribe(),
            resource,
            at: since,
            ready: VecDeque::new(),
        })
    }
}

fn place(key: &ObjectKey) -> (String, String) {
    (key.namespace.clone().unwrap_or_default(), key.name.clone())
}

impl State {
    fn apply(&mut self, revision: Revision, change: Change) {
        if change.key.starts_with(RESERVED) {
            match change.value {
                Some(owner) => {
                    self.reservations.insert(change.key, String::from_utf8_lossy(&owner).into_owned());
                }
                None => drop(self.reservations.remove(&change.key)),
            }
            return;
        }
        let Some(key) = parse_key(&change.key) else {
            tracing::error!(key = %change.key, "a key of no known kind was committed");
            return;
        };
        let size = change.value.as_ref().map_or(0, Bytes::len);
        let objects = self.objects.entry(key.resource).or_default();
        let (kind, entry, previous) = if let Some(value) = change.value {
            let Some(entry) = decode(&value, revision) else {
                tracing::error!(key = %change.key, "a value that is no object was committed");
                return;
            };
            let previous = objects.insert(place(&key), entry.clone());
            let kind = if previous.is_some() { EventType::Modified } else { EventType::Added };
            (kind, entry, previous)
        } else {
            let Some(previous) = objects.remove(&place(&key)) else { return };
            let mut last = (*previous.object).clone();
            last.set_revision(revision);
            (EventType::Deleted, Entry { revision, object: Arc::new(last) }, Some(previous))
        };
        let event = Event { revision, kind, key, entry, previous, line: OnceLock::new(), size };
        self.ring.push_back(Arc::new(event));
        self.ring_bytes += size;
        while (self.ring.len() > RING || self.ring_bytes > RING_BYTES)
            && let Some(dropped) = self.ring.pop_front()
        {
            self.ring_bytes -= dropped.size;
            self.ring_after = dropped.revision;
        }
    }
}

/// A position in the history of one kind, or of all.
pub struct Watch {
    cache: Arc<Cache>,
    revision: latest::Receiver<Revision>,
    /// `None`: every kind.
    resource: Option<&'static Resource>,
    /// Everything up to here has been taken out of the ring.
    at: Revision,
    ready: VecDeque<Item>,
}

/// Most items taken out of the ring at once: bounds the time under the lock.
const CHUNK: usize = 256;

impl Watch {
    /// The next event, or a bookmark once all events are told and the revision has moved on. `Err` when the watch was so slow
    /// that events it has not seen are no longer kept. Cancel-safe.
    pub async fn next(&mut self) -> Result<Item, Expired> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(item);
            }
            // Marked as seen before the ring is read, so that no revision slips between.
            self.revision.borrow_and_update();
            self.fill()?;
            if self.ready.is_empty() && self.revision.changed().await.is_err() {
                // The cache lives as long as its watches; this cannot end.
                std::future::pending::<()>().await;
            }
        }
    }

    fn fill(&mut self) -> Result<(), Expired> {
        let state = self.cache.lock();
        if self.at < state.ring_after {
            return Err(Expired { oldest: state.ring_after });
        }
        if self.at >= state.revision {
            return Ok(());
        }
        let start = state.ring.partition_point(|e| e.revision <= self.at);
        let mut last = self.at;
        for event in state.ring.range(start..) {
            // Whole transactions only: `at` is a revision.
            if self.ready.len() >= CHUNK && event.revision != last {
                self.at = last;
                return Ok(());
            }
            last = event.revision;
            if self.resource.is_none_or(|r| r == event.key.resource) {
                self.ready.push_back(Item::Event(event.clone()));
            }
        }
        self.at = state.revision;
        self.ready.push_back(Item::Bookmark(state.revision));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
