//! Fields that an object has and its kind does not. Pure.

use std::collections::BTreeSet;

use minisvc_proto::Object;
use serde_json::{Map, Value};

use super::{Shape, Struct, of_kind};

/// The paths of unknown fields, `spec.ports[0].prot`. What a status says is between the server and its nodes; kinds of minisvc's own are
/// not looked at.
pub fn fields(object: &Object) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    if let Some(about) = of_kind(object.api_version(), object.kind()) {
        let own = |key: &str| matches!(key, "apiVersion" | "kind" | "status");
        let rest: Map<String, Value> =
            object.0.iter().filter(|(key, _)| !own(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        walk(&rest, about, "", &mut found);
    }
    found
}

fn walk(map: &Map<String, Value>, about: &'static Struct, path: &str, found: &mut BTreeSet<String>) {
    for (key, value) in map {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        let Some(field) = about.field(key) else {
            found.insert(path);
            continue;
        };
        let Some(target) = field.target() else { continue };
        match (field.shape, value) {
            (Shape::One, Value::Object(inner)) => walk(inner, target, &path, found),
            (Shape::List, Value::Array(list)) => {
                for (i, element) in list.iter().enumerate() {
                    if let Value::Object(inner) = element {
                        walk(inner, target, &format!("{path}[{i}]"), found);
                    }
                }
            }
            (Shape::Map, Value::Object(entries)) => {
                for (key, element) in entries {
                    if let Value::Object(inner) = element {
                        walk(inner, target, &format!("{path}.{key}"), found);
                    }
                }
            }
            // Another type than the field's: that is its own fault.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unknown_fields_are_named_by_their_paths() {
        for (object, expected) in [
            (
                json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "labels": {"any": "x"}, "nam": 1},
                    "spec": {"ports": [{"port": 80}, {"prot": 81}], "selektor": {}}, "status": {"mine": 1}, "more": 1}),
                &["metadata.nam", "more", "spec.ports[1].prot", "spec.selektor"][..],
            ),
            (
                json!({"apiVersion": "v1", "kind": "Pod", "spec": {"volumes": [{"name": "v", "emptyDir": {}, "tmp": {}}],
                    "containers": [{"name": "a", "livenessProbe": {"httpGet": {"port": 1}, "perod": 1}}], "nodeSelector": {"any": "x"}}}),
                &["spec.containers[0].livenessProbe.perod", "spec.volumes[0].tmp"],
            ),
            (json!({"apiVersion": "minisvc.io/v1", "kind": "JoinToken", "spec": {"any": 1}}), &[]),
            (json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": "none"}}), &[]),
        ] {
            let object: Object = serde_json::from_value(object).unwrap();
            assert_eq!(fields(&object).iter().collect::<Vec<_>>(), expected, "{object:?}");
        }
    }
}
