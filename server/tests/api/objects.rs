//! Objects: made, read, changed and removed.

use minisvc_proto::{
    Object,
    client::{ListParams, PatchKind},
    path::Target,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Api, SERVICES, service};

fn target(path: &str) -> Target {
    Target::parse(path).unwrap()
}

#[tokio::test]
async fn an_object_lives_from_create_to_delete() {
    let api = Api::start().await;
    let made = api.create(SERVICES, service("web")).await;
    assert_eq!((made.kind(), made.api_version(), made.namespace()), ("Service", "v1", Some("test")));
    let web = target(&format!("{SERVICES}/web"));
    assert_eq!(api.admin.get(&web).await.unwrap(), made);

    let again = api.admin.create(&target(SERVICES), &made, false).await.unwrap_err();
    assert_eq!(again.api().unwrap().message, "services \"web\" already exists");

    let mut changed = made.clone();
    changed.spec_mut().insert("selector".into(), json!({"app": "other"}));
    let second = api.admin.update(&web, &changed).await.unwrap();
    assert!(second.revision() > made.revision());
    let stale = api.admin.update(&web, &changed).await.unwrap_err();
    assert!(stale.api().unwrap().is_conflict());

    let deleted = api.admin.delete(&web, &json!({"preconditions": {"uid": "another"}})).await.unwrap_err();
    assert_eq!(deleted.api().unwrap().code, 409);
    let deleted = api.admin.delete(&web, &json!({})).await.unwrap();
    assert_eq!((&deleted["kind"], &deleted["status"]), (&json!("Status"), &json!("Success")));
    assert!(api.admin.get(&web).await.unwrap_err().is_not_found());
    api.end().await;
}

#[tokio::test]
async fn lists_are_selected_by_labels_and_fields() {
    let api = Api::start().await;
    for name in ["a", "b", "c"] {
        api.create(SERVICES, service(name)).await;
    }
    let names = async |params: ListParams| -> Vec<String> {
        let (revision, items) = api.admin.list(&target(SERVICES), &params).await.unwrap();
        assert!(revision.0 > 0);
        items.iter().map(|o| o.name().to_owned()).collect()
    };
    assert_eq!(names(ListParams::default()).await, ["a", "b", "c"]);
    assert_eq!(names(ListParams::labels("app in (a,c)")).await, ["a", "c"]);
    assert_eq!(names(ListParams::fields("metadata.name!=a,metadata.namespace=test")).await, ["b", "c"]);
    let (code, list) = api.plain(true).get("/api/v1/services?limit=500").await;
    assert_eq!((code, &list["kind"], &list["apiVersion"]), (200, &json!("ServiceList"), &json!("v1")));
    let (code, status) = api.plain(true).get("/api/v1/services?fieldSelector=spec.nodeName%3Da").await;
    assert_eq!((code, &status["reason"]), (400, &json!("BadRequest")));
    api.end().await;
}

#[tokio::test]
async fn patches_change_what_they_name_and_conflict_only_on_a_version() {
    let api = Api::start().await;
    let made = api.create(SERVICES, service("web")).await;
    let web = target(&format!("{SERVICES}/web"));
    let merged = api
        .admin
        .patch(&web, PatchKind::Merge, &json!({"metadata": {"labels": {"tier": "front", "app": null}}}))
        .await
        .unwrap();
    assert_eq!(merged.pointer("/metadata/labels"), Some(&json!({"tier": "front"})));
    let json_patch = json!([{"op": "replace", "path": "/spec/selector/app", "value": "x"}]);
    let patched = api.admin.patch(&web, PatchKind::Json, &json_patch).await.unwrap();
    assert_eq!(patched.str_at("/spec/selector/app"), Some("x"));

    let stale =
        json!({"metadata": {"resourceVersion": made.revision().unwrap().to_string(), "labels": {"a": "b"}}});
    let error = api.admin.patch(&web, PatchKind::Merge, &stale).await.unwrap_err();
    assert!(error.api().unwrap().is_conflict());
    let fits = json!({"metadata": {"resourceVersion": patched.revision().unwrap().to_string(), "labels": {"a": "b"}}});
    api.admin.patch(&web, PatchKind::Merge, &fits).await.unwrap();

    let status = web.clone().with_subresource("status");
    let both = json!({"spec": {"selector": {"app": "no"}}, "status": {"loadBalancer": {}}});
    let only = api.admin.patch(&status, PatchKind::Merge, &both).await.unwrap();
    assert_eq!(
        (only.str_at("/spec/selector/app"), only.pointer("/status/loadBalancer")),
        (Some("x"), Some(&json!({})))
    );

    // Many who change one object at a time, none of them naming a version: all are heard.
    let one = |i: usize| {
        let (client, web) = (api.admin.clone(), web.clone());
        async move {
            client
                .patch(&web, PatchKind::Merge, &json!({"metadata": {"labels": {format!("l{i}"): "1"}}}))
                .await
        }
    };
    for done in futures::future::join_all((0..8).map(one)).await {
        done.unwrap();
    }
    assert_eq!(api.admin.get(&web).await.unwrap().labels().len(), 10);
    api.end().await;
}

#[tokio::test]
async fn a_dry_run_answers_as_if_and_changes_nothing() {
    let api = Api::start().await;
    let object: Object = serde_json::from_value(service("web")).unwrap();
    let tried = api.admin.create(&target(SERVICES), &object, true).await.unwrap();
    assert!(tried.str_at("/spec/clusterIP").is_some());
    let web = target(&format!("{SERVICES}/web"));
    assert!(api.admin.get(&web).await.unwrap_err().is_not_found());

    api.create(SERVICES, service("web")).await;
    let plain = api.plain(true);
    let merge = "application/merge-patch+json";
    let path = format!("{SERVICES}/web?dryRun=All");
    let (code, patched) =
        plain.answer(Method::PATCH, &path, merge, r#"{"metadata":{"labels":{"a":"b"}}}"#).await;
    assert_eq!((code, &patched["metadata"]["labels"]["a"]), (200, &json!("b")));
    let (code, _) = plain.answer(Method::DELETE, &path, "", "").await;
    assert_eq!(code, 200);
    assert!(!api.admin.get(&web).await.unwrap().labels().contains_key("a"));
    let (code, status) = plain.answer(Method::DELETE, &format!("{SERVICES}/web?dryRun=Some"), "", "").await;
    assert_eq!((code, &status["reason"]), (400, &json!("BadRequest")));
    api.end().await;
}

#[tokio::test]
async fn names_are_made_from_a_prefix_and_yaml_is_read() {
    let api = Api::start().await;
    let made = api
        .create(SERVICES, json!({"metadata": {"generateName": "web-"}, "spec": {"ports": [{"port": 1}]}}))
        .await;
    assert!(made.name().starts_with("web-") && made.name().len() == 9, "{}", made.name());
    let yaml = "kind: Service\napiVersion: v1\nmetadata:\n  name: from-yaml\nspec:\n  ports:\n  - port: 80\n";
    let (code, made): (u16, Value) =
        api.plain(true).answer(Method::POST, SERVICES, "application/yaml", yaml).await;
    assert_eq!((code, &made["spec"]["ports"][0]["port"]), (201, &json!(80)));
    api.end().await;
}
