//! Errors of the API, as Kubernetes `Status` objects. The reasons and codes follow apimachinery's `api/errors`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{names::ObjectKey, resource::Resource};

/// Why a request failed, in a form for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// 400.
    BadRequest,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 406.
    NotAcceptable,
    /// 409: create of something that is there.
    AlreadyExists,
    /// 409: update of an older version.
    Conflict,
    /// 410: a resourceVersion before the history that is kept.
    Expired,
    /// 413.
    RequestEntityTooLarge,
    /// 415.
    UnsupportedMediaType,
    /// 422.
    Invalid,
    /// 429.
    TooManyRequests,
    /// 500.
    InternalError,
    /// 503.
    ServiceUnavailable,
    /// 504.
    Timeout,
    /// A reason of a newer server.
    #[serde(other)]
    Unknown,
}

impl Reason {
    /// The HTTP status code.
    pub fn code(self) -> u16 {
        match self {
            Reason::BadRequest => 400,
            Reason::Unauthorized => 401,
            Reason::Forbidden => 403,
            Reason::NotFound => 404,
            Reason::MethodNotAllowed => 405,
            Reason::NotAcceptable => 406,
            Reason::AlreadyExists | Reason::Conflict => 409,
            Reason::Expired => 410,
            Reason::RequestEntityTooLarge => 413,
            Reason::UnsupportedMediaType => 415,
            Reason::Invalid => 422,
            Reason::TooManyRequests => 429,
            Reason::InternalError | Reason::Unknown => 500,
            Reason::ServiceUnavailable => 503,
            Reason::Timeout => 504,
        }
    }
}

/// One fault of one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// `FieldValueRequired`, `FieldValueInvalid`, `FieldValueForbidden`, `FieldValueDuplicate`, `FieldValueNotSupported` …
    pub reason: String,
    /// For people, starting with the kind of fault: `Invalid value: "x": …`.
    pub message: String,
    /// Path of the field, `spec.ports[0].nodePort`.
    pub field: String,
}

impl Cause {
    /// A required field is absent.
    pub fn required(field: impl Into<String>, detail: &str) -> Self {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Cause { reason: "FieldValueRequired".into(), message, field: field.into() }
    }

    /// A value breaks a rule. Strings are shown in quotes, other values as they are.
    pub fn invalid(field: impl Into<String>, value: impl Into<serde_json::Value>, detail: &str) -> Self {
        Cause {
            reason: "FieldValueInvalid".into(),
            message: format!("Invalid value: {}: {detail}", value.into()),
            field: field.into(),
        }
    }

    /// A field may not be set here.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Self {
        Cause {
            reason: "FieldValueForbidden".into(),
            message: format!("Forbidden: {detail}"),
            field: field.into(),
        }
    }

    /// A value names something that is not there.
    pub fn not_found(field: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        Cause {
            reason: "FieldValueNotFound".into(),
            message: format!("Not found: {}", value.into()),
            field: field.into(),
        }
    }

    /// A value stands twice where it must be unique.
    pub fn duplicate(field: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        Cause {
            reason: "FieldValueDuplicate".into(),
            message: format!("Duplicate value: {}", value.into()),
            field: field.into(),
        }
    }

    /// A value is not one of a list.
    pub fn not_supported(
        field: impl Into<String>,
        value: impl Into<serde_json::Value>,
        supported: &[&str],
    ) -> Self {
        let list = supported.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(", ");
        Cause {
            reason: "FieldValueNotSupported".into(),
            message: format!("Unsupported value: {}: supported values: {list}", value.into()),
            field: field.into(),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// What a failed request was about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Details {
    /// Name of the object.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Group of the kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Plural (or kind, for 422) of the kind.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The uid, where it matters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Field by field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// When to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
}

/// A failed request: the body of every answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase", into = "WireStatus", from = "WireStatus")]
pub struct ApiError {
    /// For programs.
    pub reason: Reason,
    /// HTTP status code.
    pub code: u16,
    /// For people.
    pub message: String,
    /// What it was about.
    pub details: Option<Box<Details>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireStatus {
    api_version: String,
    kind: String,
    #[serde(default)]
    metadata: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    status: String,
    #[serde(default)]
    message: String,
    #[serde(default = "unknown")]
    reason: Reason,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    details: Option<Box<Details>>,
    #[serde(default)]
    code: u16,
}

fn unknown() -> Reason {
    Reason::Unknown
}

impl From<ApiError> for WireStatus {
    fn from(e: ApiError) -> Self {
        WireStatus {
            api_version: "v1".into(),
            kind: "Status".into(),
            metadata: serde_json::Map::new(),
            status: "Failure".into(),
            message: e.message,
            reason: e.reason,
            details: e.details,
            code: e.code,
        }
    }
}

impl From<WireStatus> for ApiError {
    fn from(w: WireStatus) -> Self {
        let code = if w.code == 0 { w.reason.code() } else { w.code };
        ApiError { reason: w.reason, code, message: w.message, details: w.details }
    }
}

impl ApiError {
    /// An error with nothing but a reason and words.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        ApiError { reason, code: reason.code(), message: message.into(), details: None }
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// 500. The message is for people; log the cause as well.
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {message}"))
    }

    /// 404 of an object.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        Self::about(
            Reason::NotFound,
            resource,
            name,
            format!("{} \"{name}\" not found", resource.qualified_plural()),
        )
    }

    /// 404 of a path.
    pub fn no_such_path() -> Self {
        Self::new(Reason::NotFound, "the server could not find the requested resource")
    }

    /// 409 of a create.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified_plural());
        Self::about(Reason::AlreadyExists, resource, name, message)
    }

    /// 409 of an update.
    pub fn conflict(resource: &Resource, name: &str, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} \"{name}\": {why}", resource.qualified_plural());
        Self::about(Reason::Conflict, resource, name, message)
    }

    /// 409: the object was changed since it was read.
    pub fn modified(key: &ObjectKey) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(key.resource, &key.name, why)
    }

    /// 403.
    pub fn forbidden(resource: &Resource, name: &str, why: &str) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", resource.qualified_plural());
        Self::about(Reason::Forbidden, resource, name, message)
    }

    /// 410.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(Reason::Expired, message)
    }

    /// 422, one cause per fault. `causes` must not be empty.
    pub fn invalid(resource: &Resource, name: &str, causes: Vec<Cause>) -> Self {
        let list = match causes.as_slice() {
            [one] => one.to_string(),
            many => format!("[{}]", many.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")),
        };
        let kind = if resource.group.is_empty() {
            resource.kind.to_owned()
        } else {
            format!("{}.{}", resource.kind, resource.group)
        };
        let details = Details {
            name: name.to_owned(),
            group: resource.group.to_owned(),
            kind: resource.kind.to_owned(),
            causes,
            ..Details::default()
        };
        ApiError {
            reason: Reason::Invalid,
            code: 422,
            message: format!("{kind} \"{name}\" is invalid: {list}"),
            details: Some(Box::new(details)),
        }
    }

    /// 413.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(Reason::RequestEntityTooLarge, message)
    }

    fn about(reason: Reason, resource: &Resource, name: &str, message: String) -> Self {
        let details = Details {
            name: name.to_owned(),
            group: resource.group.to_owned(),
            kind: resource.plural.to_owned(),
            ..Details::default()
        };
        ApiError { reason, code: reason.code(), message, details: Some(Box::new(details)) }
    }

    /// Whether the object was not there.
    pub fn is_not_found(&self) -> bool {
        self.reason == Reason::NotFound
    }

    /// Whether a write lost a race and may be tried again on a fresh read.
    pub fn is_conflict(&self) -> bool {
        self.reason == Reason::Conflict
    }

    /// Whether a create found the object there.
    pub fn is_already_exists(&self) -> bool {
        self.reason == Reason::AlreadyExists
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{DEPLOYMENTS, SERVICES};

    #[test]
    fn errors_read_as_kubernetes_writes_them_and_round_trip() {
        let e = ApiError::invalid(
            &SERVICES,
            "web",
            vec![Cause::invalid("spec.ports[0].nodePort", 30000, "provided port is already allocated")],
        );
        assert_eq!(
            e.message,
            "Service \"web\" is invalid: spec.ports[0].nodePort: Invalid value: 30000: provided port is already allocated"
        );
        let json = serde_json::to_value(&e).unwrap();
        assert_eq!(json["kind"], "Status");
        assert_eq!(json["details"]["causes"][0]["field"], "spec.ports[0].nodePort");
        assert_eq!(serde_json::from_value::<ApiError>(json).unwrap(), e);
        assert_eq!(ApiError::not_found(&DEPLOYMENTS, "x").message, "deployments.apps \"x\" not found");
    }
}
