//! Patches of objects, as values: JSON patch (RFC 6902), merge patch (RFC 7396) and strategic merge patch.

mod strategic;

use json_patch::PatchOperation;
use minisvc_proto::{ApiError, Object, Reason};
use serde_json::{Map, Value};

use crate::schema;

/// Operations that one JSON patch may have. [apiserver/pkg/endpoints/handlers/patch.go, maxJSONPatchOperations]
const MOST_OPERATIONS: usize = 10_000;
/// Bytes that the copies and moves of one JSON patch may carry in all: a few copies of copies would fill any memory.
const MOST_COPIED: usize = 3 << 20;
/// How deeply a JSON patch may nest: what walks through an object needs stack for each level.
const MOST_LEVELS: usize = 128;

/// A patch that was read from a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// `application/json-patch+json`.
    Json(json_patch::Patch),
    /// `application/merge-patch+json`.
    Merge(Value),
    /// `application/strategic-merge-patch+json`.
    Strategic(Map<String, Value>),
}

impl Patch {
    /// Reads a body by its media type: 415 for another type, 400 for a body that is no such patch.
    pub fn parse(media_type: &str, body: &[u8]) -> Result<Self, ApiError> {
        let bad = |e: serde_json::Error| ApiError::bad_request(format!("the patch cannot be read: {e}"));
        match media_type.split(';').next().unwrap_or("").trim() {
            "application/json-patch+json" => serde_json::from_slice(body).map(Patch::Json).map_err(bad),
            "application/merge-patch+json" => serde_json::from_slice(body).map(Patch::Merge).map_err(bad),
            "application/strategic-merge-patch+json" => {
                serde_json::from_slice(body).map(Patch::Strategic).map_err(bad)
            }
            other => Err(ApiError::new(
                Reason::UnsupportedMediaType,
                format!(
                    "a patch of type {other:?} is not supported: use application/strategic-merge-patch+json, application/merge-patch+json or application/json-patch+json"
                ),
            )),
        }
    }

    /// The patched object. A patch that does not fit (a failed test, an absent path) is 422, and changes nothing.
    pub fn apply(&self, object: &Object) -> Result<Object, ApiError> {
        let mut value = Value::Object(object.0.clone());
        match self {
            Patch::Json(patch) => apply_each(&mut value, patch)?,
            Patch::Merge(patch) => json_patch::merge(&mut value, patch),
            Patch::Strategic(patch) => {
                let mut map = object.0.clone();
                // As for custom resources: nobody but Kubernetes' own kinds says which lists are merged.
                let about = schema::of_kind(object.api_version(), object.kind()).ok_or_else(|| {
                    let message = format!(
                        "{} takes no strategic merge patch: use application/merge-patch+json",
                        object.kind()
                    );
                    ApiError::new(Reason::UnsupportedMediaType, message)
                })?;
                strategic::merge(&mut map, patch.clone(), Some(about))?;
                return Ok(Object(map));
            }
        }
        match value {
            Value::Object(map) => Ok(Object(map)),
            _ => Err(ApiError::bad_request("the patch leaves no JSON object")),
        }
    }
}

/// One operation after the other, each looked at before it is done.
fn apply_each(value: &mut Value, patch: &[PatchOperation]) -> Result<(), ApiError> {
    if patch.len() > MOST_OPERATIONS {
        let count = patch.len();
        let message = format!("the patch has {count} operations, at most {MOST_OPERATIONS} are allowed");
        return Err(ApiError::too_large(message));
    }
    let mut copied = 0;
    for (i, operation) in patch.iter().enumerate() {
        let from = match operation {
            PatchOperation::Copy(copy) => value.pointer(copy.from.as_str()),
            PatchOperation::Move(mov) => value.pointer(mov.from.as_str()),
            _ => None,
        };
        let (mut bytes, mut levels) = (0, 0);
        if let Some(from) = from {
            measure(from, MOST_COPIED.saturating_sub(copied), 0, &mut bytes, &mut levels);
        }
        copied += bytes;
        if copied > MOST_COPIED {
            let message = format!("the patch copies more than {MOST_COPIED} bytes, at operation {i}");
            return Err(ApiError::too_large(message));
        }
        if operation.path().count() + levels > MOST_LEVELS {
            let message = format!("the patch nests more than {MOST_LEVELS} levels deep, at operation {i}");
            return Err(ApiError::bad_request(message));
        }
        json_patch::patch_unsafe(value, std::slice::from_ref(operation)).map_err(|mut e| {
            e.operation = i;
            ApiError::new(Reason::Invalid, format!("the patch does not fit: {e}"))
        })?;
    }
    Ok(())
}

/// About how many bytes a value has as JSON, and how many levels; no further than to `most` bytes.
fn measure(value: &Value, most: usize, level: usize, bytes: &mut usize, levels: &mut usize) {
    *levels = level.max(*levels);
    *bytes += 1;
    match value {
        Value::String(text) => *bytes += text.len(),
        Value::Array(list) => {
            for one in list {
                measure(one, most, level + 1, bytes, levels);
                if *bytes > most {
                    return;
                }
            }
        }
        Value::Object(map) => {
            for (key, one) in map {
                *bytes += key.len();
                measure(one, most, level + 1, bytes, levels);
                if *bytes > most {
                    return;
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::SERVICES;
    use serde_json::json;

    use super::*;

    #[test]
    fn both_kinds_change_the_object_and_faults_have_their_codes() {
        let web = Object::new(&SERVICES, Some("default"), "web");
        let merge =
            Patch::parse("application/merge-patch+json; charset=utf-8", br#"{"spec":{"a":1,"b":null}}"#)
                .unwrap();
        let merged = merge.apply(&web).unwrap();
        assert_eq!((merged.pointer("/spec/a"), merged.pointer("/spec/b")), (Some(&1.into()), None));
        let patched = |body: &[u8]| Patch::parse("application/json-patch+json", body).unwrap().apply(&merged);
        let out = patched(br#"[{"op":"replace","path":"/spec/a","value":2}]"#).unwrap();
        assert_eq!(out.pointer("/spec/a"), Some(&2.into()));
        assert_eq!(patched(br#"[{"op":"test","path":"/spec/a","value":9}]"#).unwrap_err().code, 422);
        assert_eq!(Patch::parse("text/plain", b"{}").unwrap_err().code, 415);
        assert_eq!(Patch::parse("application/json-patch+json", b"{").unwrap_err().code, 400);
        assert_eq!(Patch::Merge(Value::Null).apply(&web).unwrap_err().code, 400);
    }

    #[test]
    fn a_small_patch_cannot_make_a_huge_object() {
        let web = Object::new(&SERVICES, Some("default"), "web");
        let apply = |operations: Vec<Value>| {
            let body = serde_json::to_vec(&operations).unwrap();
            Patch::parse("application/json-patch+json", &body).unwrap().apply(&web)
        };
        // Each copy doubles what is there: 60 of them would be more than any memory.
        let doubling =
            (0..60).map(|i| json!({"op": "copy", "from": "/metadata", "path": format!("/metadata/c{i}")}));
        assert_eq!(apply(doubling.collect()).unwrap_err().code, 413);
        // Each step goes one level deeper: what walks through it would run out of stack.
        let deeper = (1..200).map(|i| json!({"op": "add", "path": "/a".repeat(i), "value": {}}));
        assert_eq!(apply(deeper.collect()).unwrap_err().code, 400);
        let sinking =
            (0..200).map(|_| json!({"op": "move", "from": "/metadata", "path": "/a"})).flat_map(|m| {
                [
                    m,
                    json!({"op": "add", "path": "/metadata", "value": {}}),
                    json!({"op": "move", "from": "/a", "path": "/metadata/a"}),
                ]
            });
        assert_eq!(apply(sinking.collect()).unwrap_err().code, 400);
        let many = (0..=MOST_OPERATIONS).map(|_| json!({"op": "test", "path": "/kind", "value": "Service"}));
        assert_eq!(apply(many.collect()).unwrap_err().code, 413);
        let why = apply(vec![
            json!({"op": "copy", "from": "/metadata/name", "path": "/metadata/other"}),
            json!({"op": "remove", "path": "/nope"}),
        ]);
        let why = why.unwrap_err().message;
        assert!(why.contains("'/1'") && why.contains("/nope"), "{why}");
    }
}
