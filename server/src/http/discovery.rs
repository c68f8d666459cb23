//! Discovery: which groups and kinds there are. Pure, from the table of kinds.

use minisvc_proto::{Resource, resource::RESOURCES};
use serde_json::{Value, json};

/// The Kubernetes minor version whose wire format this server speaks.
const MINOR: u32 = 34;

/// `/version`.
pub fn version() -> Value {
    json!({
        "major": "1",
        "minor": MINOR.to_string(),
        "gitVersion": format!("v1.{MINOR}.0+minisvc-{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

/// The discovery document at a path, if there is one.
pub fn document(path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api"] => Some(json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        })),
        ["api", "v1"] => resources("", "v1"),
        ["apis"] => {
            let groups: Vec<Value> = groups().into_iter().map(|(g, v)| group(g, v)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] => {
            let (name, version) = groups().into_iter().find(|(g, _)| g == name)?;
            let mut document = group(name, version);
            document["kind"] = "APIGroup".into();
            document["apiVersion"] = "v1".into();
            Some(document)
        }
        ["apis", name, version] if !name.is_empty() => resources(name, version),
        _ => None,
    }
}

/// The named groups with their versions, in the order of the table.
fn groups() -> Vec<(&'static str, &'static str)> {
    let mut found: Vec<(&str, &str)> = Vec::new();
    for r in RESOURCES.iter().filter(|r| !r.group.is_empty()) {
        if !found.contains(&(r.group, r.version)) {
            found.push((r.group, r.version));
        }
    }
    found
}

fn group(name: &str, version: &str) -> Value {
    let version = json!({"groupVersion": format!("{name}/{version}"), "version": version});
    json!({"name": name, "versions": [version.clone()], "preferredVersion": version})
}

fn resources(group: &str, version: &str) -> Option<Value> {
    let kinds: Vec<&&Resource> =
        RESOURCES.iter().filter(|r| r.group == group && r.version == version).collect();
    let group_version = kinds.first()?.api_version();
    let entries: Vec<Value> = kinds.into_iter().flat_map(|r| entries(r)).collect();
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": entries,
    }))
}

/// A kind and its subresources.
fn entries(r: &Resource) -> Vec<Value> {
    let mut main = json!({
        "name": r.plural,
        "singularName": r.singular,
        "namespaced": r.is_namespaced(),
        "kind": r.kind,
        "verbs": r.verbs,
    });
    if !r.short_names.is_empty() {
        main["shortNames"] = json!(r.short_names);
    }
    if !r.categories.is_empty() {
        main["categories"] = json!(r.categories);
    }
    let sub = r.subresources.iter().map(|s| {
        let (kind, verbs): (&str, &[&str]) = match *s {
            "scale" => ("Scale", &["get", "patch", "update"]),
            "binding" => ("Binding", &["create"]),
            "exec" => ("PodExecOptions", &["create", "get"]),
            "log" => (r.kind, &["get"]),
            _ => (r.kind, &["get", "patch", "update"]),
        };
        let mut entry = json!({
            "name": format!("{}/{s}", r.plural),
            "singularName": "",
            "namespaced": r.is_namespaced(),
            "kind": kind,
            "verbs": verbs,
        });
        if *s == "scale" {
            entry["group"] = "autoscaling".into();
            entry["version"] = "v1".into();
        }
        entry
    });
    std::iter::once(main).chain(sub).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_way_of_its_group() {
        assert_eq!(document("/api").unwrap()["versions"][0], "v1");
        let groups = document("/apis/").unwrap();
        for group in groups["groups"].as_array().unwrap() {
            let version = group["preferredVersion"]["groupVersion"].as_str().unwrap();
            assert_eq!(document(&format!("/apis/{version}")).unwrap()["groupVersion"], version);
            let one = document(&format!("/apis/{}", group["name"].as_str().unwrap())).unwrap();
            assert_eq!((one["kind"].as_str(), &one["name"]), (Some("APIGroup"), &group["name"]));
        }
        let core = document("/api/v1").unwrap();
        let names: Vec<&str> =
            core["resources"].as_array().unwrap().iter().filter_map(|r| r["name"].as_str()).collect();
        assert!(["pods", "pods/log", "pods/binding", "services/status"].iter().all(|n| names.contains(n)));
        for absent in ["/", "/api/v2", "/apis/apps/v2", "/apis/nope", "/api/v1/pods"] {
            assert_eq!(document(absent), None, "{absent}");
        }
    }
}
