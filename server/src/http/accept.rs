//! In which form an answer is wanted: the objects themselves, or rows for people.

use http::{HeaderMap, header::ACCEPT};
use minisvc_proto::{ApiError, Reason};

use super::query::Query;
use crate::registry::columns::Include;

/// OpenAPI v2 in protobuf; some clients say `@v1.0+protobuf` behind it, and some `.v1+protobuf`.
const OPENAPI_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2";

/// The form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Objects as JSON.
    Objects,
    /// A meta.k8s.io/v1 Table.
    Table(Include),
}

impl Form {
    /// The first form of `Accept` that can be had; 406 if there is none.
    pub fn parse(headers: &HeaderMap, query: &Query) -> Result<Self, ApiError> {
        let wanted: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect();
        if wanted.is_empty() {
            return Ok(Form::Objects);
        }
        let form = wanted.iter().flat_map(|line| line.split(',')).find_map(form);
        match form {
            Some(true) => include(query).map(Form::Table),
            Some(false) => Ok(Form::Objects),
            None => Err(ApiError::new(
                Reason::NotAcceptable,
                "only the following media types are accepted: application/json, application/json;as=Table;v=v1;g=meta.k8s.io",
            )),
        }
    }
}

/// Whether the first form of OpenAPI v2 that can be had is the one in protobuf.
pub fn wants_openapi_protobuf(headers: &HeaderMap) -> bool {
    let ranges =
        headers.get_all(ACCEPT).iter().filter_map(|v| v.to_str().ok()).flat_map(|line| line.split(','));
    let mut types = ranges.map(|range| range.split(';').next().unwrap_or("").trim());
    let known = |t: &&str| {
        matches!(*t, "application/json" | "application/*" | "*/*") || t.starts_with(OPENAPI_PROTOBUF)
    };
    types.find(known).is_some_and(|t| t.starts_with(OPENAPI_PROTOBUF))
}

/// Whether a media range asks for a table; `None` if it asks for what there is not.
fn form(range: &str) -> Option<bool> {
    let mut parts = range.split(';').map(str::trim);
    let media_type = parts.next()?;
    let (mut kind, mut group, mut version) = (None, None, None);
    for part in parts {
        match part.split_once('=') {
            Some(("as", value)) => kind = Some(value),
            Some(("g", value)) => group = Some(value),
            Some(("v", value)) => version = Some(value),
            _ => {}
        }
    }
    let json = matches!(media_type, "application/json" | "application/*" | "*/*");
    match kind {
        None => json.then_some(false),
        Some("Table") => (json && group == Some("meta.k8s.io") && version == Some("v1")).then_some(true),
        Some(_) => None,
    }
}

fn include(query: &Query) -> Result<Include, ApiError> {
    Ok(match query.get("includeObject") {
        None | Some("Metadata") => Include::Metadata,
        Some("None") => Include::None,
        Some("Object") => Include::Object,
        Some(other) => {
            let message = format!("includeObject: {other:?} is none of None, Metadata, Object");
            return Err(ApiError::bad_request(message));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kubectls_get_openapi_in_protobuf() {
        for (accept, expected) in [
            ("application/com.github.proto-openapi.spec.v2@v1.0+protobuf", true),
            ("application/com.github.proto-openapi.spec.v2.v1.0+protobuf, application/json", true),
            ("application/json, application/com.github.proto-openapi.spec.v2@v1.0+protobuf", false),
            ("*/*", false),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            assert_eq!(wants_openapi_protobuf(&headers), expected, "{accept}");
        }
        assert!(!wants_openapi_protobuf(&HeaderMap::new()));
    }

    #[test]
    fn the_first_form_that_can_be_had_is_taken() {
        let table = Ok(Form::Table(Include::Metadata));
        for (accept, expected) in [
            ("application/json", Ok(Form::Objects)),
            ("*/*", Ok(Form::Objects)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", table),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io, application/json", Ok(Form::Objects)),
            ("application/vnd.kubernetes.protobuf,application/json", Ok(Form::Objects)),
            (
                "application/json; as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=Table;g=meta.k8s.io;v=v1",
                table,
            ),
            ("application/vnd.kubernetes.protobuf", Err(406)),
            ("text/html", Err(406)),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, accept.parse().unwrap())]);
            let got = Form::parse(&headers, &Query::default()).map_err(|e| e.code);
            assert_eq!(got, expected, "{accept}");
        }
        assert_eq!(Form::parse(&HeaderMap::new(), &Query::default()), Ok(Form::Objects));
        assert_eq!(include(&Query::parse("includeObject=Object").unwrap()), Ok(Include::Object));
        assert_eq!(include(&Query::parse("includeObject=all").unwrap()).unwrap_err().code, 400);
    }
}
