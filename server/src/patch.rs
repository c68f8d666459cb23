//! Patches of objects, as values: JSON patch (RFC 6902) and merge patch (RFC 7396).

use minisvc_proto::{ApiError, Object, Reason};
use serde_json::Value;

/// A patch that was read from a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Patch {
    /// `application/json-patch+json`.
    Json(json_patch::Patch),
    /// `application/merge-patch+json`.
    Merge(Value),
}

impl Patch {
    /// Reads a body by its media type: 415 for another type, 400 for a body that is no such patch.
    pub fn parse(media_type: &str, body: &[u8]) -> Result<Self, ApiError> {
        let bad = |e: serde_json::Error| ApiError::bad_request(format!("the patch cannot be read: {e}"));
        match media_type.split(';').next().unwrap_or("").trim() {
            "application/json-patch+json" => serde_json::from_slice(body).map(Patch::Json).map_err(bad),
            "application/merge-patch+json" => serde_json::from_slice(body).map(Patch::Merge).map_err(bad),
            other => Err(ApiError::new(
                Reason::UnsupportedMediaType,
                format!(
                    "a patch of type {other:?} is not supported: use application/merge-patch+json or application/json-patch+json"
                ),
            )),
        }
    }

    /// The patched object. A patch that does not fit (a failed test, an absent path) is 422, and changes nothing.
    pub fn apply(&self, object: &Object) -> Result<Object, ApiError> {
        let mut value = Value::Object(object.0.clone());
        match self {
            Patch::Json(patch) => json_patch::patch(&mut value, patch)
                .map_err(|e| ApiError::new(Reason::Invalid, format!("the patch does not fit: {e}")))?,
            Patch::Merge(patch) => json_patch::merge(&mut value, patch),
        }
        match value {
            Value::Object(map) => Ok(Object(map)),
            _ => Err(ApiError::bad_request("the patch leaves no JSON object")),
        }
    }
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::SERVICES;

    use super::*;

    #[test]
    fn both_kinds_change_the_object_and_faults_have_their_codes() {
        let web = Object::new(&SERVICES, Some("default"), "web");
        let merge =
            Patch::parse("application/merge-patch+json; charset=utf-8", br#"{"spec":{"a":1,"b":null}}"#)
                .unwrap();
        let merged = merge.apply(&web).unwrap();
        assert_eq!((merged.pointer("/spec/a"), merged.pointer("/spec/b")), (Some(&1.into()), None));
        let json = |body: &[u8]| Patch::parse("application/json-patch+json", body).unwrap().apply(&merged);
        let out = json(br#"[{"op":"replace","path":"/spec/a","value":2}]"#).unwrap();
        assert_eq!(out.pointer("/spec/a"), Some(&2.into()));
        assert_eq!(json(br#"[{"op":"test","path":"/spec/a","value":9}]"#).unwrap_err().code, 422);
        assert_eq!(Patch::parse("text/plain", b"{}").unwrap_err().code, 415);
        assert_eq!(Patch::parse("application/json-patch+json", b"{").unwrap_err().code, 400);
        assert_eq!(Patch::Merge(Value::Null).apply(&web).unwrap_err().code, 400);
    }
}
