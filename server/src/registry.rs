//! The only writer of objects: every create, change and delete passes through here, whoever asks.
//!
//! A write reads the present from the cache, applies defaults and rules, and commits object and reservations in one
//! transaction that expects exactly what was read. Where somebody else was quicker, a request that names a version gets a
//! conflict, and one that does not is worked out again on the new state.

mod binding;
pub mod columns;
pub mod deletion;
mod endpoints;
mod field;
pub mod join;
pub mod join_token;
mod meta;
mod namespace;
pub mod node_credential;
pub mod nodes;
mod pod;
mod reserved;
pub mod rules;
pub mod scale;
pub mod service;
mod slice;
#[cfg(test)]
pub mod testing;
mod workload;

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;
use minisvc_proto::{
    ApiError, Cause, Object, ObjectKey, Resource, Revision, path::Target, resource::NAMESPACES,
};
use serde_json::Value;

pub use self::{
    deletion::{DeleteOptions, Propagation},
    reserved::with_reservations,
    slice::special_address,
};

use crate::{
    alloc::{Family, NodePortRange, PodRange, ServiceRange},
    cache::{Cache, Entry, Watch, object_key},
    store::{CommitError, Expect, Key, Txn, Write},
};

/// Largest object that is stored, in bytes of JSON after patch and defaults.
pub const MAX_OBJECT_BYTES: usize = 3 << 19;
/// How deeply lists and maps of an object may stand in each other; the JSON parser's own limit is 128.
const MAX_DEPTH: usize = 100;
/// How often a write without a version is worked out again before it gives up with a conflict.
const MAX_TRIES: usize = 16;

/// What the cluster may give out.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// Cluster IPs of the primary family, IPv4.
    pub services: ServiceRange,
    /// Cluster IPs of the second family, IPv6, in a cluster that has it.
    pub services6: Option<ServiceRange>,
    /// Node ports.
    pub node_ports: NodePortRange,
    /// Pod addresses of the primary family, a part for each node.
    pub pods: PodRange,
    /// Pod addresses of the second family, in a cluster that has it.
    pub pods6: Option<PodRange>,
}

impl Ranges {
    /// The cluster IPs of a family, where the cluster has it.
    pub fn services_of(&self, family: Family) -> Option<&ServiceRange> {
        [Some(&self.services), self.services6.as_ref()].into_iter().flatten().find(|r| r.family() == family)
    }

    /// The ranges that belong to no machine outside of the cluster, each with what it is for.
    pub fn own(&self) -> impl Iterator<Item = (&'static str, IpNet)> {
        let services = [Some(self.services), self.services6];
        let services = services.into_iter().flatten().map(|range| ("service", range.net()));
        let pods = [Some(self.pods), self.pods6].into_iter().flatten().map(|range| ("pod", range.net()));
        services.chain(pods)
    }

    /// What nodes get a part of.
    pub fn pods(&self) -> nodes::Pods<'_> {
        nodes::Pods { first: &self.pods, second: self.pods6.as_ref() }
    }
}

/// How a write is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Everything but the write itself; reserves nothing.
    pub dry_run: bool,
}

/// Which part of an object a write may change: the other part keeps its stored value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Main,
    /// The status only.
    Status,
    /// A pod's node, with the condition that says so: what [`Registry::bind`] writes.
    Binding,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    cache: Arc<Cache>,
    ranges: Arc<Ranges>,
}

impl Registry {
    /// A registry over a cache.
    pub fn new(cache: Arc<Cache>, ranges: Ranges) -> Self {
        Registry { cache, ranges: Arc::new(ranges) }
    }

    /// What the cluster may give out.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// One object; 404 if it is not there.
    pub fn get(&self, key: &ObjectKey) -> Result<Arc<Object>, ApiError> {
        self.entry(key).map(|e| e.object)
    }

    fn entry(&self, key: &ObjectKey) -> Result<Entry, ApiError> {
        self.cache.get(key).ok_or_else(|| ApiError::not_found(key.resource, &key.name))
    }

    /// All objects of a kind, or of a namespace, with the revision of this picture.
    pub fn list(&self, resource: &'static Resource, namespace: Option<&str>) -> (Revision, Vec<Arc<Object>>) {
        let (revision, entries) = self.cache.list(resource, namespace);
        (revision, entries.into_iter().map(|e| e.object).collect())
    }

    /// The revision that reads see: at least that of every write that was answered.
    pub fn revision(&self) -> Revision {
        self.cache.revision()
    }

    /// All objects of all kinds, at one revision.
    pub fn snapshot(&self) -> (Revision, Vec<(ObjectKey, Arc<Object>)>) {
        let (revision, entries) = self.cache.snapshot();
        (revision, entries.into_iter().map(|(key, e)| (key, e.object)).collect())
    }

    /// Every change of every kind after `since`; 410 if that is too long ago.
    pub fn follow(&self, since: Revision) -> Result<Watch, ApiError> {
        self.cache.watch_all(since).map_err(|e| ApiError::expired(format!("{e} (asked for {since})")))
    }

    /// Every change of a kind after `since`; 410 if that is too long ago.
    pub fn watch(&self, resource: &'static Resource, since: Revision) -> Result<Watch, ApiError> {
        self.cache.watch(resource, since).map_err(|e| ApiError::expired(format!("{e} (asked for {since})")))
    }

    /// Changes with every revision that reads see.
    pub fn revisions(&self) -> tokio::sync::watch::Receiver<Revision> {
        self.cache.revisions()
    }

    /// Cancelled when the store takes no more writes.
    pub fn store_ended(&self) -> tokio_util::sync::CancellationToken {
        self.cache.ended()
    }

    /// Creates the object at a collection; `target.namespace` and the object's own must agree.
    pub async fn create(
        &self,
        target: &Target,
        mut object: Object,
        options: WriteOptions,
    ) -> Result<Arc<Object>, ApiError> {
        let unnamed = object.name().is_empty().then(|| object.clone());
        let mut key = rules::admit(target, &mut object)?;
        for _ in 0..MAX_TRIES {
            let namespace = match &key.namespace {
                Some(name) => Some(self.check_namespace(key.resource, name)?),
                None => None,
            };
            if self.cache.get(&key).is_some() {
                // Of a few thousand names that are made from one prefix, two are likely to be the same.
                let Some(unnamed) = &unnamed else {
                    return Err(ApiError::already_exists(key.resource, &key.name));
                };
                object.clone_from(unnamed);
                key = rules::admit(target, &mut object)?;
                continue;
            }
            let mut new = object.clone();
            rules::stamp_new(&mut new);
            self.prepare(&key, None, &mut new)?;
            let mut txn = Self::transaction(&key, None, &new)?;
            if options.dry_run {
                return Ok(Arc::new(new));
            }
            txn.expect.insert(object_key(&key), Expect::Absent);
            // Nothing is made in a namespace that begins to go at the same time.
            txn.expect.extend(namespace);
            if let Some(revision) = self.commit(txn).await? {
                return Ok(written(new, revision));
            }
        }
        Err(ApiError::modified(&key))
    }

    /// Replaces one part of an object. A resourceVersion in it is an optimistic lock.
    pub async fn update(
        &self,
        part: Part,
        object: Object,
        options: WriteOptions,
    ) -> Result<Arc<Object>, ApiError> {
        let key = object.key().ok_or_else(|| ApiError::bad_request("the object has no kind or name"))?;
        self.change(&key, part, options, |_| Ok(Some(object.clone()))).await
    }

    /// Reads, changes and writes one part of an object, again if somebody else was quicker. `change` returns whether it
    /// changed anything; if not, nothing is written.
    pub async fn modify(
        &self,
        key: &ObjectKey,
        part: Part,
        mut change: impl FnMut(&mut Object) -> Result<bool, ApiError>,
    ) -> Result<Arc<Object>, ApiError> {
        self.change(key, part, WriteOptions::default(), |old| {
            let mut new = old.clone();
            new.metadata_mut().remove("resourceVersion");
            Ok(change(&mut new)?.then_some(new))
        })
        .await
    }

    async fn change(
        &self,
        key: &ObjectKey,
        part: Part,
        options: WriteOptions,
        mut make: impl FnMut(&Object) -> Result<Option<Object>, ApiError>,
    ) -> Result<Arc<Object>, ApiError> {
        for _ in 0..MAX_TRIES {
            let old = self.entry(key)?;
            let Some(mut new) = make(&old.object)? else { return Ok(old.object) };
            if !rules::has_version(&new, old.revision)? {
                return Err(ApiError::modified(key));
            }
            if !new.uid().is_empty() && new.uid() != old.object.uid() {
                let why = format!("the uid is {}, but {} was given", old.object.uid(), new.uid());
                return Err(ApiError::conflict(key.resource, &key.name, &why));
            }
            rules::keep_other_part(&old.object, &mut new, part);
            if part == Part::Main {
                self.prepare(key, Some(&old.object), &mut new)?;
                rules::bump_generation(&old.object, &mut new);
            } else {
                rules::prepare_status(&mut new);
                let causes = rules::validate_status(&new, &self.ranges);
                if !causes.is_empty() {
                    return Err(ApiError::invalid(key.resource, &key.name, causes));
                }
            }
            if new == *old.object {
                return Ok(old.object);
            }
            // The last finalizer was taken from an object that was to go: now it goes.
            let gone = deletion::is_due(&old.object, &new);
            let mut txn = if gone {
                Self::removal(key, &old.object)
            } else {
                Self::transaction(key, Some(&old.object), &new)?
            };
            if options.dry_run {
                return Ok(Arc::new(new));
            }
            txn.expect.insert(object_key(key), Expect::At(old.revision));
            if let Some(revision) = self.commit(txn).await? {
                return Ok(written(new, revision));
            }
        }
        Err(ApiError::modified(key))
    }

    /// What a create expects of its namespace: that it is still as it was seen, and that was not ending.
    fn check_namespace(&self, resource: &Resource, namespace: &str) -> Result<(Key, Expect), ApiError> {
        let key = ObjectKey::cluster(&NAMESPACES, namespace);
        let entry = self.entry(&key)?;
        if entry.object.deletion_timestamp().is_some() {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            );
            return Err(ApiError::forbidden(resource, "", &why));
        }
        Ok((object_key(&key), Expect::At(entry.revision)))
    }

    /// Defaults, what is inherited from the stored object, rules, and what is allocated.
    fn prepare(&self, key: &ObjectKey, old: Option<&Object>, new: &mut Object) -> Result<(), ApiError> {
        rules::prepare(old, new, &self.ranges);
        let causes = rules::validate(old, new, &self.ranges);
        if !causes.is_empty() {
            return Err(ApiError::invalid(key.resource, &key.name, causes));
        }
        let mine: BTreeSet<String> = old.map(rules::reservations).unwrap_or_default();
        let taken = |r: &str| !mine.contains(r) && self.cache.reservation(r).is_some();
        let causes: Vec<Cause> = rules::reservations(new)
            .iter()
            .filter(|r| taken(r))
            .map(|r| rules::already_taken(new, r))
            .collect();
        if !causes.is_empty() {
            return Err(ApiError::invalid(key.resource, &key.name, causes));
        }
        rules::allocate(new, &self.ranges, taken)
    }

    /// Object and reservations: what is new is expected to be absent, what is no longer held is given back.
    fn transaction(key: &ObjectKey, old: Option<&Object>, new: &Object) -> Result<Txn, ApiError> {
        // What is nested more deeply could be written, but not be read back.
        if new.0.values().any(|v| is_deeper(v, MAX_DEPTH)) {
            let message = format!("{key}: the object is nested more than {MAX_DEPTH} levels deep");
            return Err(ApiError::bad_request(message));
        }
        let mut stored = new.clone();
        stored.metadata_mut().remove("resourceVersion");
        let bytes = serde_json::to_vec(&stored).map_err(ApiError::internal)?;
        if bytes.len() > MAX_OBJECT_BYTES {
            let size = bytes.len();
            return Err(ApiError::too_large(format!(
                "{key}: the object has {size} bytes as JSON, at most {MAX_OBJECT_BYTES} can be stored"
            )));
        }
        let (before, after) = (old.map(rules::reservations).unwrap_or_default(), rules::reservations(new));
        let mut txn = Txn::default();
        for gone in before.difference(&after) {
            txn.writes.insert(gone.as_str().into(), Write::Delete);
        }
        for added in after.difference(&before) {
            txn.expect.insert(added.as_str().into(), Expect::Absent);
            txn.writes.insert(added.as_str().into(), Write::Put(key.to_string().into()));
        }
        txn.writes.insert(object_key(key), Write::Put(bytes.into()));
        Ok(txn)
    }

    /// The revision of the write; `None` if somebody else was quicker, and the cache has what they wrote.
    async fn commit(&self, txn: Txn) -> Result<Option<Revision>, ApiError> {
        match self.cache.commit(txn).await {
            Ok(revision) => Ok(Some(revision)),
            Err(CommitError::Unexpected { .. }) => Ok(None),
            Err(error @ CommitError::Engine(_)) => Err(ApiError::internal(error)),
        }
    }
}

/// The object as it stands in the store: what comes after may have changed it again.
fn written(mut object: Object, revision: Revision) -> Arc<Object> {
    object.set_revision(revision);
    Arc::new(object)
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    match value {
        Value::Array(list) => levels == 0 || list.iter().any(|v| is_deeper(v, levels - 1)),
        Value::Object(map) => levels == 0 || map.values().any(|v| is_deeper(v, levels - 1)),
        _ => false,
    }
}

/// A JSON value that means that the user left the field out.
fn is_unset(value: Option<&Value>) -> bool {
    value.is_none_or(|v| v.is_null() || v.as_str() == Some(""))
}

#[cfg(test)]
mod tests;
