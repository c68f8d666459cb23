//! OpenAPI of the kinds that are served, and of nothing else: what their fields are, and what a patch takes (so kubectl leaves the look at the
//! fields to the server, `fieldValidation`). Pure, from the tables of kinds and fields.

mod protobuf;
mod schemas;

use minisvc_proto::{Resource, path::Target, resource::RESOURCES};
use serde_json::{Map, Value, json};

use self::schemas::Edition;

/// The OpenAPI v3 document at a path, if there is one.
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
    let kinds: Vec<&'static Resource> = RESOURCES.iter().copied().filter(|r| place(r) == rest).collect();
    kinds.first()?;
    let paths: Map<String, Value> = kinds.iter().map(|r| operations(r, Edition::Three)).collect();
    Some(json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": paths,
        "components": {"schemas": schemas::of(kinds.into_iter(), Edition::Three)},
    }))
}

/// The document of `/openapi/v2`.
pub fn second() -> Value {
    let paths: Map<String, Value> = RESOURCES.iter().map(|r| operations(r, Edition::Two)).collect();
    json!({"swagger": "2.0", "info": info(), "paths": paths, "definitions": schemas::all(Edition::Two)})
}

/// The same in protobuf.
pub fn second_in_protobuf() -> Vec<u8> {
    protobuf::write(&second())
}

fn info() -> Value {
    json!({"title": "minisvc", "version": env!("CARGO_PKG_VERSION")})
}

/// `api/v1`, `apis/apps/v1`.
fn place(r: &Resource) -> String {
    let root = if r.group.is_empty() { "api" } else { "apis" };
    format!("{root}/{}", r.api_version())
}

/// The path of an object of the kind, and what its patch takes.
fn operations(r: &'static Resource, edition: Edition) -> (String, Value) {
    let path = format!("{}/{{name}}", Target::collection(r, Some("{namespace}")));
    let query = |name: &str| match edition {
        Edition::Two => json!({"name": name, "in": "query", "type": "string"}),
        Edition::Three => json!({"name": name, "in": "query", "schema": {"type": "string"}}),
    };
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
    #[test]
    fn schemas_are_whole_and_of_served_kinds_alone() {
        fn references(value: &Value, found: &mut Vec<String>) {
            if let Some(reference) = value["$ref"].as_str() {
                found.push(reference.trim_start_matches('#').replace("~1", "/"));
            }
            match value {
                Value::Object(map) => map.values().for_each(|v| references(v, found)),
                Value::Array(list) => list.iter().for_each(|v| references(v, found)),
                _ => {}
            }
        }
        let third = ["api/v1", "apis/apps/v1", "apis/discovery.k8s.io/v1", "apis/minisvc.io/v1"];
        let third = third.iter().map(|place| document(&format!("/openapi/v3/{place}")).unwrap());
        for document in third.chain([second()]) {
            let mut found = Vec::new();
            references(&document, &mut found);
            assert!(!found.is_empty());
            for reference in found {
                assert!(document.pointer(&reference).is_some(), "{reference}");
            }
        }
        let document = second();
        let definitions = document["definitions"].as_object().unwrap();
        let kinds = definitions.values().filter(|d| d.get("x-kubernetes-group-version-kind").is_some());
        assert_eq!(kinds.count(), RESOURCES.len());
        assert!(!definitions.contains_key("io.k8s.api.core.v1.Secret"));
        let containers = &definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["items"]["$ref"], "#/definitions/io.k8s.api.core.v1.Container");
        let bytes = second_in_protobuf();
        assert!(bytes.starts_with(b"\x0a\x032.0"), "{:?}", &bytes[..8]);
    }
}
