//! Deleting: at once, or marked first because somebody has to finish something. A pod is ended by its node; an object with
//! finalizers waits for those who put them there; a namespace waits for its contents.

use std::sync::Arc;

use minisvc_proto::{
    ApiError, Object, ObjectKey,
    resource::{ENDPOINT_SLICES, ENDPOINTS, NAMESPACES, SERVICES},
};
use serde_json::{Value, json};

use super::{MAX_TRIES, Registry, rules, written};
use crate::{
    cache::object_key,
    store::{Expect, Txn, Write},
};

/// The finalizer of an object whose dependents go first.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an object whose dependents are let go before it goes.
pub const ORPHAN: &str = "orphan";

/// What happens to the objects that an object owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// The object goes at once, its dependents after it.
    #[default]
    Background,
    /// The object goes when its dependents are gone.
    Foreground,
    /// The dependents stay, and forget their owner.
    Orphan,
}

/// Which deletion is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Only the object with this uid.
    pub uid: Option<String>,
    /// Only the object at this resourceVersion.
    pub resource_version: Option<String>,
    /// Seconds that a pod gets to end; the pod's own if absent, 0 removes the object at once.
    pub grace_seconds: Option<i64>,
    /// What happens to the dependents.
    pub propagation: Propagation,
    /// Everything but the deletion itself.
    pub dry_run: bool,
}

impl Registry {
    /// Deletes an object. A pod that runs on a node is only marked: its node removes it, with grace 0, when it has ended. So
    /// is an object with finalizers, and a namespace. Answers the object as it is then, or as it was last.
    pub async fn delete(&self, key: &ObjectKey, options: DeleteOptions) -> Result<Arc<Object>, ApiError> {
        if is_protected(key) {
            let why = "this object is part of the cluster and may not be deleted";
            return Err(ApiError::forbidden(key.resource, &key.name, why));
        }
        for _ in 0..MAX_TRIES {
            let old = self.entry(key)?;
            check_preconditions(key, &old.object, &options)?;
            let marked = mark(&old.object, &options, jiff::Timestamp::now());
            if options.dry_run || marked.as_ref() == Some(&*old.object) {
                return Ok(marked.map_or(old.object, Arc::new));
            }
            let mut txn = match &marked {
                Some(marked) => Self::transaction(key, Some(&old.object), marked)?,
                None => Self::removal(key, &old.object),
            };
            txn.expect.insert(object_key(key), Expect::At(old.revision));
            if let Some(revision) = self.commit(txn).await? {
                return Ok(marked.map_or(old.object, |marked| written(marked, revision)));
            }
        }
        Err(ApiError::modified(key))
    }

    /// Removes a namespace that is ending and has no finalizers of users: its controller has seen that it is empty.
    pub async fn finish_namespace(&self, name: &str) -> Result<(), ApiError> {
        let key = ObjectKey::cluster(&NAMESPACES, name);
        let old = self.entry(&key)?;
        if old.object.deletion_timestamp().is_none() || !finalizers(&old.object).is_empty() {
            return Err(ApiError::conflict(&NAMESPACES, name, "the namespace is not ready to go"));
        }
        let mut txn = Self::removal(&key, &old.object);
        txn.expect.insert(object_key(&key), Expect::At(old.revision));
        self.commit(txn).await?.map(drop).ok_or_else(|| ApiError::modified(&key))
    }

    /// The object and all it holds are gone.
    pub(super) fn removal(key: &ObjectKey, old: &Object) -> Txn {
        let mut txn = Txn::default();
        txn.writes.extend(rules::reservations(old).into_iter().map(|r| (r.into(), Write::Delete)));
        txn.writes.insert(object_key(key), Write::Delete);
        txn
    }
}

/// What no cluster is without: the namespace `default`, and the API server's own service with its endpoints.
fn is_protected(key: &ObjectKey) -> bool {
    let api_server = key.namespace.as_deref() == Some("default") && key.name == "kubernetes";
    (key.resource == &NAMESPACES && key.name == "default")
        || (api_server && [&SERVICES, &ENDPOINT_SLICES, &ENDPOINTS].contains(&key.resource))
}

fn check_preconditions(key: &ObjectKey, old: &Object, options: &DeleteOptions) -> Result<(), ApiError> {
    let version = old.str_at("/metadata/resourceVersion").unwrap_or("");
    for (name, wanted, has) in
        [("UID", &options.uid, old.uid()), ("ResourceVersion", &options.resource_version, version)]
    {
        if wanted.as_deref().is_some_and(|w| w != has) {
            let why = format!("the {name} in the precondition does not match the {name} in record {has}");
            return Err(ApiError::conflict(key.resource, &key.name, &why));
        }
    }
    Ok(())
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Object) -> Vec<&str> {
    let list = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Takes a finalizer away; answers whether it was there.
pub fn remove_finalizer(object: &mut Object, name: &str) -> bool {
    let kept: Vec<String> =
        finalizers(object).into_iter().filter(|f| *f != name).map(str::to_owned).collect();
    let had = kept.len() < finalizers(object).len();
    if kept.is_empty() {
        object.metadata_mut().remove("finalizers");
    } else {
        object.metadata_mut().insert("finalizers".into(), json!(kept));
    }
    had
}

/// The seconds that a pod on a node gets to end; `None` if nobody has to end anything.
fn grace(object: &Object, wanted: Option<i64>) -> Option<i64> {
    let on_a_node = object.kind() == "Pod" && object.str_at("/spec/nodeName").is_some_and(|n| !n.is_empty());
    let own = object.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
    Some(wanted.unwrap_or(own).max(0)).filter(|g| on_a_node && *g > 0)
}

/// The object marked as ending; `None` if it goes at once.
fn mark(object: &Object, options: &DeleteOptions, now: jiff::Timestamp) -> Option<Object> {
    let grace = grace(object, options.grace_seconds);
    let mut marked = object.clone();
    let own = match options.propagation {
        Propagation::Background => None,
        Propagation::Foreground => Some(FOREGROUND),
        Propagation::Orphan => Some(ORPHAN),
    };
    // Pods own nothing.
    if let Some(own) = own.filter(|_| object.kind() != "Pod" && object.kind() != "Namespace") {
        remove_finalizer(&mut marked, own);
        let mut all: Vec<String> = finalizers(&marked).into_iter().map(str::to_owned).collect();
        all.push(own.to_owned());
        marked.metadata_mut().insert("finalizers".into(), json!(all));
    }
    if object.kind() == "Namespace" {
        marked.status_mut().insert("phase".into(), "Terminating".into());
    } else if grace.is_none() && finalizers(&marked).is_empty() {
        return None;
    }
    let before = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    let grace = grace.unwrap_or(0);
    // A later request may shorten the time, never lengthen it.
    if before.is_none_or(|b| grace < b) {
        // A time beyond what can be written is as good as the last one.
        let end = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(jiff::Timestamp::MAX);
        let meta = marked.metadata_mut();
        meta.insert("deletionTimestamp".into(), end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into());
        meta.insert("deletionGracePeriodSeconds".into(), grace.into());
    }
    Some(marked)
}

/// Whether this change took away the last that an ending object waited for. A pod that its node still has to end waits for
/// that, and a namespace for its contents.
pub fn is_due(old: &Object, new: &Object) -> bool {
    let ends = new.deletion_timestamp().is_some() && new.kind() != "Namespace";
    let pending = new.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    ends && pending == 0 && !finalizers(old).is_empty() && finalizers(new).is_empty()
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::{DEPLOYMENTS, PODS};

    use super::*;

    fn with(propagation: Propagation) -> DeleteOptions {
        DeleteOptions { propagation, ..DeleteOptions::default() }
    }

    #[test]
    fn what_goes_at_once_and_what_waits() {
        let now = "2026-01-01T00:00:00Z".parse().unwrap();
        let plain = Object::new(&DEPLOYMENTS, Some("default"), "web");
        assert_eq!(mark(&plain, &with(Propagation::Background), now), None);
        for (propagation, name) in [(Propagation::Foreground, FOREGROUND), (Propagation::Orphan, ORPHAN)] {
            let marked = mark(&plain, &with(propagation), now).unwrap();
            assert_eq!(finalizers(&marked), [name]);
            assert_eq!(marked.deletion_timestamp(), Some("2026-01-01T00:00:00Z"));
            let again = mark(&marked, &with(propagation), "2026-01-02T00:00:00Z".parse().unwrap());
            assert_eq!(again.as_ref(), Some(&marked), "a second wish changes nothing");
            let mut freed = marked.clone();
            assert!(remove_finalizer(&mut freed, name) && is_due(&marked, &freed));
        }
        let mut pod = Object::new(&PODS, Some("default"), "a");
        assert_eq!(mark(&pod, &with(Propagation::Foreground), now), None, "no node runs it");
        pod.spec_mut().insert("nodeName".into(), "n1".into());
        let marked = mark(&pod, &with(Propagation::Background), now).unwrap();
        assert_eq!(marked.deletion_timestamp(), Some("2026-01-01T00:00:30Z"));
        let forever = DeleteOptions { grace_seconds: Some(i64::MAX), ..DeleteOptions::default() };
        let patient = mark(&pod, &forever, now).unwrap();
        assert!(patient.deletion_timestamp().unwrap().starts_with("9999-"), "{patient:?}");
        pod.metadata_mut().insert("finalizers".into(), json!(["mine/keep"]));
        let ended = mark(&pod, &DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() }, now);
        let mut freed = ended.clone().unwrap();
        remove_finalizer(&mut freed, "mine/keep");
        assert!(is_due(&ended.unwrap(), &freed));
    }
}
