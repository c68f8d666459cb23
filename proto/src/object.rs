//! An API object as JSON. Fields that minisvc does not know stay where they are.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{
    names::{ObjectKey, Revision},
    resource::{Resource, by_kind},
};

/// A JSON object with `metadata`. Typed views are made where logic needs them, with [`Object::typed`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Object(pub Map<String, Value>);

/// One entry of `metadata.ownerReferences`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerReference {
    /// apiVersion of the owner.
    pub api_version: String,
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// The owner's uid: an owner recreated under the same name is another owner.
    pub uid: String,
    /// Whether this owner manages the object.
    #[serde(default)]
    pub controller: bool,
    /// Whether foreground deletion of the owner waits for this object.
    #[serde(default)]
    pub block_owner_deletion: bool,
}

impl Object {
    /// An object of a kind with a name, and nothing else.
    pub fn new(resource: &Resource, namespace: Option<&str>, name: &str) -> Self {
        let mut meta = Map::new();
        meta.insert("name".into(), name.into());
        if let Some(ns) = namespace {
            meta.insert("namespace".into(), ns.into());
        }
        let mut map = Map::new();
        map.insert("apiVersion".into(), resource.api_version().into());
        map.insert("kind".into(), resource.kind.into());
        map.insert("metadata".into(), Value::Object(meta));
        Object(map)
    }

    /// From a typed value of k8s-openapi (or any struct that serialises to an object).
    pub fn from_typed<T: Serialize>(value: &T) -> Result<Self, serde_json::Error> {
        serde_json::from_value(serde_json::to_value(value)?)
    }

    /// A typed view. Unknown fields are dropped in it, so never write it back whole: change the JSON instead.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.0)
    }

    /// `apiVersion`, or "".
    pub fn api_version(&self) -> &str {
        self.0.get("apiVersion").and_then(Value::as_str).unwrap_or("")
    }

    /// `kind`, or "".
    pub fn kind(&self) -> &str {
        self.0.get("kind").and_then(Value::as_str).unwrap_or("")
    }

    /// The kind's entry in the resource table.
    pub fn resource(&self) -> Option<&'static Resource> {
        by_kind(self.api_version(), self.kind())
    }

    /// The key, when kind and name are there.
    pub fn key(&self) -> Option<ObjectKey> {
        let resource = self.resource()?;
        (!self.name().is_empty()).then(|| ObjectKey {
            resource,
            namespace: resource.is_namespaced().then(|| self.namespace().unwrap_or("default").to_owned()),
            name: self.name().to_owned(),
        })
    }

    /// `metadata`, empty if absent.
    pub fn metadata(&self) -> Option<&Map<String, Value>> {
        self.0.get("metadata").and_then(Value::as_object)
    }

    /// `metadata`, made if absent (or if it was no object).
    pub fn metadata_mut(&mut self) -> &mut Map<String, Value> {
        child_mut(&mut self.0, "metadata")
    }

    /// `spec`, made if absent (or if it was no object).
    pub fn spec_mut(&mut self) -> &mut Map<String, Value> {
        child_mut(&mut self.0, "spec")
    }

    /// `status`, made if absent (or if it was no object).
    pub fn status_mut(&mut self) -> &mut Map<String, Value> {
        child_mut(&mut self.0, "status")
    }

    fn meta_str(&self, field: &str) -> Option<&str> {
        self.metadata()?.get(field)?.as_str().filter(|s| !s.is_empty())
    }

    /// `metadata.name`, or "".
    pub fn name(&self) -> &str {
        self.meta_str("name").unwrap_or("")
    }

    /// `metadata.namespace`.
    pub fn namespace(&self) -> Option<&str> {
        self.meta_str("namespace")
    }

    /// `metadata.uid`, or "".
    pub fn uid(&self) -> &str {
        self.meta_str("uid").unwrap_or("")
    }

    /// `metadata.resourceVersion` as a number.
    pub fn revision(&self) -> Option<Revision> {
        self.meta_str("resourceVersion")?.parse().ok()
    }

    /// Sets `metadata.resourceVersion`.
    pub fn set_revision(&mut self, revision: Revision) {
        self.metadata_mut().insert("resourceVersion".into(), revision.to_string().into());
    }

    /// `metadata.deletionTimestamp`, RFC 3339.
    pub fn deletion_timestamp(&self) -> Option<&str> {
        self.meta_str("deletionTimestamp")
    }

    /// `metadata.generation`, or 0.
    pub fn generation(&self) -> i64 {
        self.metadata().and_then(|m| m.get("generation")).and_then(Value::as_i64).unwrap_or(0)
    }

    /// `metadata.labels`.
    pub fn labels(&self) -> BTreeMap<String, String> {
        self.string_map("labels")
    }

    /// `metadata.annotations`.
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.string_map("annotations")
    }

    fn string_map(&self, field: &str) -> BTreeMap<String, String> {
        self.metadata()
            .and_then(|m| m.get(field))
            .and_then(Value::as_object)
            .map(|m| m.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect())
            .unwrap_or_default()
    }

    /// `metadata.ownerReferences`; entries of another shape are left out.
    pub fn owner_references(&self) -> Vec<OwnerReference> {
        self.metadata()
            .and_then(|m| m.get("ownerReferences"))
            .and_then(Value::as_array)
            .map(|a| a.iter().filter_map(|v| OwnerReference::deserialize(v).ok()).collect())
            .unwrap_or_default()
    }

    /// The uids of all owners.
    pub fn owner_uids(&self) -> impl Iterator<Item = &str> {
        let list = self.metadata().and_then(|m| m.get("ownerReferences")).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|o| o.get("uid")?.as_str())
    }

    /// The uid of the owner with `controller: true`.
    pub fn controller_uid(&self) -> Option<&str> {
        let list = self.metadata()?.get("ownerReferences")?.as_array()?;
        let is_controller = |o: &&Value| o.get("controller").and_then(Value::as_bool) == Some(true);
        list.iter().find(is_controller)?.get("uid")?.as_str()
    }

    /// The value of one label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata()?.get("labels")?.get(key)?.as_str()
    }

    /// The owner with `controller: true`.
    pub fn controller(&self) -> Option<OwnerReference> {
        self.owner_references().into_iter().find(|o| o.controller)
    }

    /// A value by JSON pointer, `/spec/nodeName`.
    pub fn pointer(&self, pointer: &str) -> Option<&Value> {
        let mut parts =
            pointer.strip_prefix('/')?.split('/').map(|p| p.replace("~1", "/").replace("~0", "~"));
        let mut at = self.0.get(&parts.next()?)?;
        for part in parts {
            at = match at {
                Value::Object(m) => m.get(&part)?,
                Value::Array(a) => a.get(part.parse::<usize>().ok()?)?,
                _ => return None,
            };
        }
        Some(at)
    }

    /// A string by JSON pointer.
    pub fn str_at(&self, pointer: &str) -> Option<&str> {
        self.pointer(pointer)?.as_str()
    }
}

/// The object under `field`, made if absent or of another type.
fn child_mut<'a>(map: &'a mut Map<String, Value>, field: &str) -> &'a mut Map<String, Value> {
    let entry = map.entry(field).or_insert_with(|| Value::Object(Map::new()));
    if !entry.is_object() {
        *entry = Value::Object(Map::new());
    }
    match entry {
        Value::Object(m) => m,
        _ => unreachable!("just made an object"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::SERVICES;

    #[test]
    fn accessors_read_what_is_there_and_survive_what_is_not() {
        let mut o = Object::new(&SERVICES, Some("default"), "web");
        assert_eq!(o.key(), Some(ObjectKey::namespaced(&SERVICES, "default", "web")));
        o.set_revision(Revision(7));
        assert_eq!(o.revision(), Some(Revision(7)));
        o.spec_mut().insert("ports".into(), serde_json::json!([{"port": 80}]));
        assert_eq!(o.pointer("/spec/ports/0/port"), Some(&80.into()));
        assert_eq!(o.pointer("/spec/nope/0"), None);
        o.0.insert("metadata".into(), Value::Null);
        assert_eq!((o.name(), o.labels().len(), o.owner_references().len()), ("", 0, 0));
    }
}
