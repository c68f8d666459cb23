//! The subresource `scale` of Deployments and ReplicaSets, as autoscaling/v1 Scale objects.

use minisvc_proto::{ApiError, Cause, Object, ObjectKey, selector::LabelSelector};
use serde_json::{Value, json};

use super::{Part, Registry, WriteOptions};

const KEPT: [&str; 5] = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"];

/// The scale of an object that has `spec.replicas`.
pub fn of(object: &Object) -> Object {
    let meta = object.metadata().cloned().unwrap_or_default();
    let meta: serde_json::Map<_, _> = meta.into_iter().filter(|(k, _)| KEPT.contains(&k.as_str())).collect();
    let selector = object.pointer("/spec/selector").and_then(|s| LabelSelector::from_object(s).ok());
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let mut scale = Object(serde_json::Map::new());
    scale.0.insert("apiVersion".into(), "autoscaling/v1".into());
    scale.0.insert("kind".into(), "Scale".into());
    scale.0.insert("metadata".into(), Value::Object(meta));
    scale.0.insert("spec".into(), json!({"replicas": number("/spec/replicas")}));
    let selector = selector.unwrap_or_default().to_string();
    scale.0.insert("status".into(), json!({"replicas": number("/status/replicas"), "selector": selector}));
    scale
}

impl Registry {
    /// The scale of a Deployment or ReplicaSet.
    pub fn scale(&self, key: &ObjectKey) -> Result<Object, ApiError> {
        Self::check_scalable(key)?;
        self.get(key).map(|o| of(&o))
    }

    /// Sets `spec.replicas` as the Scale says. A resourceVersion or uid in it is a precondition.
    pub async fn update_scale(
        &self,
        key: &ObjectKey,
        scale: Object,
        options: WriteOptions,
    ) -> Result<Object, ApiError> {
        Self::check_scalable(key)?;
        if scale.kind() != "Scale" {
            let message = format!("kind is {:?}, but this path takes \"Scale\"", scale.kind());
            return Err(ApiError::bad_request(message));
        }
        let replicas = match scale.pointer("/spec/replicas") {
            None | Some(Value::Null) => 0,
            Some(value) => {
                value.as_i64().filter(|n| (0..=i64::from(i32::MAX)).contains(n)).ok_or_else(|| {
                    let cause =
                        Cause::invalid("spec.replicas", value.clone(), "must be greater than or equal to 0");
                    ApiError::invalid(key.resource, &key.name, vec![cause])
                })?
            }
        };
        let written = self
            .change(key, Part::Main, options, |old| {
                let mut new = old.clone();
                new.spec_mut().insert("replicas".into(), replicas.into());
                let meta = new.metadata_mut();
                for field in ["uid", "resourceVersion"] {
                    match scale.metadata().and_then(|m| m.get(field)) {
                        Some(value) => drop(meta.insert(field.into(), value.clone())),
                        None => drop(meta.remove(field)),
                    }
                }
                Ok(Some(new))
            })
            .await?;
        Ok(of(&written))
    }

    fn check_scalable(key: &ObjectKey) -> Result<(), ApiError> {
        if key.resource.subresources.contains(&"scale") { Ok(()) } else { Err(ApiError::no_such_path()) }
    }
}
