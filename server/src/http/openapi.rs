//! As much of OpenAPI v3 as kubectl needs before it sends a file: that the server itself looks at the fields
//! (`fieldValidation`), so that no schema has to be fetched. Pure, from the table of kinds.

use minisvc_proto::{Resource, path::Target, resource::RESOURCES};
use serde_json::{Map, Value, json};

/// The OpenAPI document at a path, if there is one.
pub fn document(path: &str) -> Option<Value> {
    let rest = path.strip_prefix("/openapi/v3")?;
    let rest = rest.trim_matches('/');
    if rest.is_empty() {
        let places = RESOURCES.iter().map(|r| place(r));
        let entry = |p: String| {
            let at = json!({"serverRelativeURL": format!("/openapi/v3/{p}")});
            (p, at)
        };
        return Some(json!({"paths": places.map(entry).collect::<Map<_, _>>()}));
    }
    let kinds: Vec<&&Resource> = RESOURCES.iter().filter(|r| place(r) == rest).collect();
    kinds.first()?;
    let paths: Map<String, Value> = kinds.into_iter().map(|r| operations(r)).collect();
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "minisvc", "version": env!("CARGO_PKG_VERSION")},
        "paths": paths,
    }))
}

/// `api/v1`, `apis/apps/v1`.
fn place(r: &Resource) -> String {
    let root = if r.group.is_empty() { "api" } else { "apis" };
    format!("{root}/{}", r.api_version())
}

/// The path of an object of the kind, and what its patch takes.
fn operations(r: &'static Resource) -> (String, Value) {
    let path = format!("{}/{{name}}", Target::collection(r, Some("{namespace}")));
    let query = |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string"}});
    let patch = json!({
        "parameters": [query("dryRun"), query("fieldManager"), query("fieldValidation")],
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": "patch",
        "x-kubernetes-group-version-kind": {"group": r.group, "version": r.version, "kind": r.kind},
    });
    (path, json!({"patch": patch}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_that_the_root_names_says_what_a_patch_takes() {
        let root = document("/openapi/v3").unwrap();
        let places = root["paths"].as_object().unwrap();
        assert_eq!(
            places.keys().collect::<Vec<_>>(),
            ["api/v1", "apis/apps/v1", "apis/discovery.k8s.io/v1", "apis/minisvc.io/v1"]
        );
        for place in places.values() {
            let document = document(place["serverRelativeURL"].as_str().unwrap()).unwrap();
            for operations in document["paths"].as_object().unwrap().values() {
                assert_eq!(operations["patch"]["parameters"][2]["name"], "fieldValidation");
            }
        }
        let core = document("/openapi/v3/api/v1").unwrap();
        assert!(core["paths"].get("/api/v1/namespaces/{namespace}/services/{name}").is_some());
        assert!(core["paths"].get("/api/v1/nodes/{name}").is_some());
        assert_eq!(document("/openapi/v3/api/v2"), None);
    }
}
