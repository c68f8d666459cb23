//! Namespace: what the server says of it. [pkg/registry/core/namespace/strategy.go]

use minisvc_proto::Object;
use serde_json::json;

/// The label that lets selectors find a namespace by its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Its finalizer is the server's own, its label says its name; a new one is active.
pub fn set_defaults(namespace: &mut Object, is_new: bool) {
    let name = namespace.name().to_owned();
    namespace.spec_mut().insert("finalizers".into(), json!(["kubernetes"]));
    let labels = namespace.metadata_mut().entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(NAME_LABEL.into(), name.into());
    }
    if is_new {
        namespace.0.insert("status".into(), json!({"phase": "Active"}));
    }
}
