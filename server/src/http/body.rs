//! Bodies of requests: bounded in size and time, and read as what they say that they are.

use std::time::Duration;

use axum::{body::Body, extract::Request};
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt;
use minisvc_proto::{ApiError, Object, Reason};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::protobuf;

/// What Kubernetes' typed clients write.
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// Largest body of a request.
pub const MAX_BODY: usize = 3 << 20;
/// How much of a body that is too large is taken and dropped, so that its sender reads the answer.
const MAX_DROPPED: usize = 13 << 20;
/// How long a body may take to come.
const TIME: Duration = Duration::from_secs(30);

/// The media type of a request's body, without parameters; empty if it names none.
pub fn media_type(request: &Request) -> String {
    let text = request.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    text.split(';').next().unwrap_or("").trim().to_ascii_lowercase()
}

/// All of a body: 413 if it is too large, 400 if it is cut short, 504 if it does not come.
pub async fn read(request: Request) -> Result<Bytes, ApiError> {
    let announced = request
        .headers()
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<usize>().ok())
        .unwrap_or(0);
    if announced > MAX_BODY + MAX_DROPPED {
        return Err(too_large());
    }
    tokio::time::timeout(TIME, collect(request.into_body())).await.map_err(|_| {
        let seconds = TIME.as_secs();
        ApiError::new(Reason::Timeout, format!("the body did not come within {seconds} s"))
    })?
}

async fn collect(mut body: Body) -> Result<Bytes, ApiError> {
    let (mut buffer, mut dropped) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let cut = |e| ApiError::bad_request(format!("the body was cut short: {e}"));
        let Ok(data) = frame.map_err(cut)?.into_data() else { continue };
        if buffer.len() + data.len() > MAX_BODY {
            dropped += data.len();
            if dropped > MAX_DROPPED {
                return Err(too_large());
            }
        } else if dropped == 0 {
            buffer.extend_from_slice(&data);
        }
    }
    if dropped > 0 { Err(too_large()) } else { Ok(buffer.freeze()) }
}

fn too_large() -> ApiError {
    ApiError::too_large(format!("Request entity too large: limit is {MAX_BODY} bytes"))
}

/// The object in a request's body: JSON, YAML, or protobuf of a kind that is known here.
pub async fn object(request: Request) -> Result<Object, ApiError> {
    let media_type = media_type(&request);
    if !matches!(media_type.as_str(), "" | "application/json" | "application/yaml" | PROTOBUF) {
        return Err(ApiError::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format ({media_type}) - accepted media types include: application/json, application/yaml, application/vnd.kubernetes.protobuf"
            ),
        ));
    }
    parse(&media_type, &read(request).await?)
}

/// JSON of this shape.
pub async fn json<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    serde_json::from_slice(&read(request).await?).map_err(not_json)
}

/// JSON of this shape in at most so many bytes, for those who are hardly known: 413 if there is more.
pub async fn small_json<T: DeserializeOwned>(request: Request, limit: usize) -> Result<T, ApiError> {
    let read = axum::body::to_bytes(request.into_body(), limit);
    let bytes = tokio::time::timeout(TIME, read)
        .await
        .map_err(|_| ApiError::new(Reason::Timeout, "the body did not come in time"))?
        .map_err(|_| ApiError::too_large(format!("Request entity too large: limit is {limit} bytes")))?;
    serde_json::from_slice(&bytes).map_err(not_json)
}

/// JSON, or protobuf, that need not be there.
pub async fn optional_json(request: Request) -> Result<Option<Value>, ApiError> {
    let media_type = media_type(&request);
    let bytes = read(request).await?;
    if media_type == PROTOBUF && !bytes.is_empty() {
        return protobuf::read(&bytes).map(|map| Some(Value::Object(map)));
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    serde_json::from_slice(&bytes).map(Some).map_err(not_json)
}

fn not_json(e: impl std::fmt::Display) -> ApiError {
    ApiError::bad_request(format!("the body is no JSON: {e}"))
}

fn parse(media_type: &str, bytes: &[u8]) -> Result<Object, ApiError> {
    if media_type == PROTOBUF {
        return protobuf::read(bytes).map(Object);
    }
    let value: Value = if media_type == "application/yaml" {
        let text = std::str::from_utf8(bytes)
            .map_err(|e| ApiError::bad_request(format!("the body is no UTF-8 text: {e}")))?;
        serde_saphyr::from_str(text).map_err(|e| {
            let text = e.to_string();
            let line = text.lines().next().unwrap_or("").trim_start_matches("error: ");
            ApiError::bad_request(format!("the body is no YAML: {line}"))
        })?
    } else {
        serde_json::from_slice(bytes).map_err(not_json)?
    };
    match value {
        Value::Object(map) => Ok(Object(map)),
        other => {
            let what = match other {
                Value::Array(_) => "an array",
                Value::Null => "null",
                _ => "a single value",
            };
            Err(ApiError::bad_request(format!("the body is {what}, but one object is wanted")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_is_refused_with_its_place() {
        for (media_type, body, expected) in [
            ("", "{\"a\": }", "the body is no JSON: expected value at line 1 column 7"),
            (
                "application/json",
                "{\"a\": 1",
                "the body is no JSON: EOF while parsing an object at line 1 column 7",
            ),
            ("application/json", "", "the body is no JSON: EOF while parsing a value at line 1 column 0"),
            ("application/json", "[]", "the body is an array, but one object is wanted"),
            ("application/yaml", "a: b", ""),
        ] {
            let got = parse(media_type, body.as_bytes()).map_or_else(|e| e.message, |_| String::new());
            assert_eq!(got, expected, "{body}");
        }
        let yaml = parse("application/yaml", b"a: [1\nb: 2").unwrap_err();
        assert!(yaml.code == 400 && yaml.message.contains("line"), "{yaml}");
    }
}
