//! Answers.

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use minisvc_proto::{ApiError, Object, Resource, Revision, table::Table};
use serde::Serialize;
use serde_json::json;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// 200 with JSON.
pub fn json(value: &impl Serialize) -> Response {
    json_with(StatusCode::OK, value)
}

/// JSON with a code.
pub fn json_with(code: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => with(code, JSON, bytes),
        // Values that are made here can be written; a map with keys that are no strings would be a mistake in the code.
        Err(error) => {
            tracing::error!(%error, "an answer cannot be written");
            with(StatusCode::INTERNAL_SERVER_ERROR, JSON, Vec::new())
        }
    }
}

/// 200 with plain text.
pub fn text(text: &'static str) -> Response {
    with(StatusCode::OK, HeaderValue::from_static("text/plain; charset=utf-8"), text)
}

/// OpenAPI v2 in protobuf. Named without the `@` that old kubectls ask with: they cannot read it.
pub fn openapi_protobuf(document: Vec<u8>) -> Response {
    let media_type = HeaderValue::from_static("application/com.github.proto-openapi.spec.v2.v1.0+protobuf");
    with(StatusCode::OK, media_type, document)
}

/// A failure as its Status.
pub fn status(error: &ApiError) -> Response {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    json_with(code, error)
}

/// The Status of something done that has no object of its own.
pub fn created() -> Response {
    let status =
        json!({"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success", "code": 201});
    json_with(StatusCode::CREATED, &status)
}

/// The Status of a deletion that is done.
pub fn deleted(resource: &Resource, object: &Object) -> Response {
    json(&json!({
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Success",
        "details": {"name": object.name(), "group": resource.group, "kind": resource.plural, "uid": object.uid()},
    }))
}

/// A list of objects.
pub fn list<'a>(
    resource: &Resource,
    revision: Revision,
    objects: impl Iterator<Item = &'a Object>,
) -> Result<Response, ApiError> {
    let mut out = Vec::with_capacity(4096);
    out.extend(
        format!(
            r#"{{"kind":"{}List","apiVersion":"{}","metadata":{{"resourceVersion":"{revision}"}},"items":["#,
            resource.kind,
            resource.api_version()
        )
        .bytes(),
    );
    for (i, object) in objects.enumerate() {
        if i > 0 {
            out.push(b',');
        }
        serde_json::to_writer(&mut out, object).map_err(ApiError::internal)?;
    }
    out.extend(b"]}");
    Ok(with(StatusCode::OK, JSON, out))
}

/// A table, read at a revision.
pub fn table(mut table: Table, revision: Option<Revision>) -> Response {
    table.metadata = json!({"resourceVersion": revision.map_or_else(String::new, |r| r.to_string())});
    json(&table)
}

/// JSON that comes line by line.
pub fn stream<E>(lines: impl futures::Stream<Item = Result<Bytes, E>> + Send + 'static) -> Response
where
    E: Into<Box<dyn std::error::Error + Send + Sync>> + 'static,
{
    with(StatusCode::OK, JSON, Body::from_stream(lines))
}

fn with(code: StatusCode, media_type: HeaderValue, body: impl Into<Body>) -> Response {
    let mut answer = Response::new(body.into());
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, media_type);
    answer
}
