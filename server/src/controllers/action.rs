//! What a reconcile asks for, as values.

use std::time::Duration;

use minisvc_proto::{ApiError, Object, ObjectKey, path::Target};
use serde_json::{Value, json};

use crate::registry::{DeleteOptions, Part, Registry, WriteOptions};

/// One write that a reconcile wants.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Creates the object.
    Create(Object),
    /// Replaces the object; its resourceVersion is the optimistic lock.
    Update(Object),
    /// Replaces the status; its resourceVersion is the optimistic lock.
    UpdateStatus(Object),
    /// Deletes the object, if it still has this uid.
    Delete {
        /// Which object.
        key: ObjectKey,
        /// The uid that was seen: one recreated under the same name is another object.
        uid: String,
    },
}

/// What a reconcile comes to.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// The writes it wants.
    pub actions: Vec<Action>,
    /// When time alone will make something to do.
    pub again: Option<Duration>,
}

impl Action {
    /// Deletes this object; `None` if it has no key.
    pub fn delete(object: &Object) -> Option<Self> {
        Some(Action::Delete { key: object.key()?, uid: object.uid().to_owned() })
    }

    /// Writes it. What is gone already, or was replaced by another of the same name, needs no deletion.
    pub async fn carry_out(self, registry: &Registry) -> Result<(), ApiError> {
        let options = WriteOptions::default();
        match self {
            Action::Create(object) => {
                let resource = object.resource().ok_or_else(|| ApiError::internal("an object of no kind"))?;
                let target = Target::collection(resource, object.namespace());
                registry.create(&target, object, options).await.map(drop)
            }
            Action::Update(object) => registry.update(Part::Main, object, options).await.map(drop),
            Action::UpdateStatus(object) => registry.update(Part::Status, object, options).await.map(drop),
            Action::Delete { key, uid } => {
                let options = DeleteOptions { uid: Some(uid), ..DeleteOptions::default() };
                match registry.delete(&key, options).await {
                    Err(e) if e.is_not_found() || e.is_conflict() => Ok(()),
                    other => other.map(drop),
                }
            }
        }
    }
}

/// `metadata.ownerReferences` with one entry: this object is the controller.
pub fn owned_by(owner: &Object) -> Value {
    json!([{
        "apiVersion": owner.api_version(), "kind": owner.kind(), "name": owner.name(), "uid": owner.uid(),
        "controller": true, "blockOwnerDeletion": true,
    }])
}

/// Whether `owner` is the controller of `object`, by uid.
pub fn is_controlled_by(object: &Object, owner: &Object) -> bool {
    !owner.uid().is_empty() && object.controller_uid() == Some(owner.uid())
}

/// A number by JSON pointer.
pub fn number(object: &Object, pointer: &str) -> Option<i64> {
    object.pointer(pointer).and_then(Value::as_i64)
}
