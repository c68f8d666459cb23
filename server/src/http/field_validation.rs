//! `fieldValidation`: what is said of fields that nobody knows. Pure.
//! [apimachinery/pkg/apis/meta/v1/validation; apiserver/pkg/endpoints/handlers/{create,update,patch}.go]

use axum::response::Response;
use http::{HeaderValue, header::WARNING};
use minisvc_proto::{ApiError, Object, Reason};

use super::query::Query;
use crate::schema::unknown;

/// How many warnings one answer has at most.
const MOST_WARNINGS: usize = 32;

/// Looks at an object that is made, replaced or (with `old`, what it was) patched. Answers what to warn of; 400 or, of a patch, 422 if the
/// parameter is Strict.
pub fn check(query: &Query, old: Option<&Object>, new: &Object) -> Result<Vec<String>, ApiError> {
    let strict = match query.get("fieldValidation") {
        Some("Ignore") => return Ok(Vec::new()),
        None | Some("Warn") => false,
        Some("Strict") => true,
        Some(other) => {
            let message = format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
            );
            return Err(ApiError::new(Reason::Invalid, message));
        }
    };
    let before = old.map(unknown::fields).unwrap_or_default();
    let found = unknown::fields(new);
    let faults: Vec<String> =
        found.difference(&before).map(|path| format!("unknown field {path:?}")).collect();
    if !strict || faults.is_empty() {
        return Ok(faults);
    }
    let faults = faults.join(", ");
    if old.is_some() {
        let message = format!("the patch leaves no valid {}: strict decoding error: {faults}", new.kind());
        return Err(ApiError::new(Reason::Invalid, message));
    }
    let (kind, version) = (new.kind(), new.api_version());
    Err(ApiError::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {faults}"
    )))
}

/// The answer with a header for each warning, as RFC 7234 has them.
pub fn warn(mut answer: Response, warnings: &[String]) -> Response {
    for text in warnings.iter().take(MOST_WARNINGS) {
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        // What no header can hold is not worth an error.
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            answer.headers_mut().append(WARNING, value);
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::SERVICES;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_parameter_decides_what_an_unknown_field_means() {
        let mut web = Object::new(&SERVICES, Some("default"), "web");
        web.spec_mut().insert("prots".into(), json!([]));
        let said = |query: &str, old: Option<&Object>| {
            check(&Query::parse(query).unwrap(), old, &web).map_err(|e| (e.code, e.message))
        };
        let warnings = vec!["unknown field \"spec.prots\"".to_owned()];
        assert_eq!(said("", None), Ok(warnings.clone()));
        assert_eq!(said("fieldValidation=Warn", None), Ok(warnings.clone()));
        assert_eq!(said("fieldValidation=Ignore", None), Ok(Vec::new()));
        let message = "Service in version \"v1\" cannot be handled as a Service: strict decoding error: unknown field \"spec.prots\"";
        assert_eq!(said("fieldValidation=Strict", None), Err((400, message.to_owned())));
        let plain = Object::new(&SERVICES, Some("default"), "web");
        assert_eq!(said("fieldValidation=Strict", Some(&plain)).unwrap_err().0, 422);
        // It was there before: this patch is not to blame.
        assert_eq!(said("fieldValidation=Strict", Some(&web)), Ok(Vec::new()));
        assert_eq!(said("fieldValidation=strict", None).unwrap_err().0, 422);
        let answer = warn(Response::default(), &warnings);
        assert_eq!(answer.headers()[WARNING], "299 - \"unknown field \\\"spec.prots\\\"\"");
    }
}
