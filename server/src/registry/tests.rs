use minisvc_proto::{
    Reason,
    resource::{DEPLOYMENTS, NODES, PODS, SERVICES},
};
use serde_json::json;

use super::*;

async fn registry() -> Registry {
    let registry = testing::registry();
    let namespace = Object::new(&NAMESPACES, None, "default");
    registry
        .create(&Target::collection(&NAMESPACES, None), namespace, WriteOptions::default())
        .await
        .unwrap();
    registry
}

fn object(json: Value) -> Object {
    serde_json::from_value(json).unwrap()
}

fn service(name: &str, node_port: u16) -> Object {
    object(
        json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": node_port}]}}),
    )
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced(&SERVICES, "default", name)
}

async fn create(registry: &Registry, object: Object) -> Result<Arc<Object>, ApiError> {
    let target = Target::collection(&SERVICES, Some("default"));
    registry.create(&target, object, WriteOptions::default()).await
}

#[tokio::test]
async fn a_created_service_has_all_that_the_server_gives_and_keeps_what_it_does_not_know() {
    let registry = registry().await;
    let mut wish = service("web", 0);
    wish.spec_mut().insert("fromTheFuture".into(), json!({"a": 1}));
    let made = create(&registry, wish).await.unwrap();
    assert_eq!(made.pointer("/spec/fromTheFuture/a"), Some(&json!(1)));
    assert!(made.str_at("/spec/clusterIP").unwrap().starts_with("10.96."));
    assert!(made.pointer("/spec/ports/0/nodePort").unwrap().as_u64().unwrap() >= 30086);
    assert_eq!((made.generation(), made.uid().len(), made.namespace()), (1, 36, Some("default")));
    assert_eq!(create(&registry, service("web", 0)).await.unwrap_err().reason, Reason::AlreadyExists);
}

#[tokio::test]
async fn of_many_that_want_one_port_one_wins_and_the_others_hear_why() {
    let registry = registry().await;
    let tries = (0..16).map(|i| {
        let registry = registry.clone();
        tokio::spawn(async move { create(&registry, service(&format!("s{i}"), 30100)).await })
    });
    let mut won = 0;
    for one in tries.collect::<Vec<_>>() {
        match one.await.unwrap() {
            Ok(_) => won += 1,
            Err(e) => assert!(e.message.ends_with("provided port is already allocated"), "{}", e.message),
        }
    }
    assert_eq!(won, 1);
    let winner = registry.list(&SERVICES, None).1[0].name().to_owned();
    registry.delete(&key(&winner), DeleteOptions::default()).await.unwrap();
    create(&registry, service("next", 30100)).await.expect("a freed port is free at once");
}

#[tokio::test]
async fn an_update_needs_the_version_it_names_and_applies_the_original_again() {
    let registry = registry().await;
    let made = create(&registry, service("web", 30100)).await.unwrap();
    let again = object(
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "NodePort", "ports": [{"port": 80}]}}),
    );
    let same = registry.update(Part::Main, again.clone(), WriteOptions::default()).await.unwrap();
    assert_eq!(same.revision(), made.revision(), "nothing changed, so nothing was written");

    let mut changed = (*made).clone();
    changed.spec_mut().insert("selector".into(), json!({"app": "web"}));
    let second = registry.update(Part::Main, changed.clone(), WriteOptions::default()).await.unwrap();
    assert_eq!(second.generation(), 2);
    let stale = registry.update(Part::Main, changed, WriteOptions::default()).await.unwrap_err();
    assert_eq!(stale.reason, Reason::Conflict);

    let mut moved = (*second).clone();
    moved.spec_mut().insert("clusterIP".into(), "10.96.9.9".into());
    let fixed = registry.update(Part::Main, moved, WriteOptions::default()).await.unwrap_err();
    assert!(fixed.message.contains("may not change once set"), "{}", fixed.message);
}

#[tokio::test]
async fn each_part_is_written_without_the_other() {
    let registry = registry().await;
    let made = create(&registry, service("web", 0)).await.unwrap();
    let mut both = (*made).clone();
    both.status_mut().insert("x".into(), 1.into());
    both.spec_mut().insert("selector".into(), json!({"a": "b"}));
    let after = registry.update(Part::Status, both.clone(), WriteOptions::default()).await.unwrap();
    assert_eq!((after.pointer("/status/x"), after.pointer("/spec/selector")), (Some(&json!(1)), None));
    let after = registry
        .modify(&key("web"), Part::Main, |o| {
            o.0.remove("status");
            Ok(true)
        })
        .await
        .unwrap();
    assert_eq!(after.pointer("/status/x"), Some(&json!(1)));
}

#[tokio::test]
async fn writers_without_a_version_do_not_lose_each_others_changes() {
    let registry = registry().await;
    create(&registry, service("web", 0)).await.unwrap();
    let writers = (0..8).map(|i| {
        let registry = registry.clone();
        tokio::spawn(async move {
            let label = |o: &mut Object| {
                let labels = o.metadata_mut().entry("labels").or_insert_with(|| json!({}));
                labels[format!("l{i}")] = "x".into();
                Ok(true)
            };
            registry.modify(&key("web"), Part::Main, label).await.map(drop)
        })
    });
    for one in writers.collect::<Vec<_>>() {
        one.await.unwrap().unwrap();
    }
    assert_eq!(registry.get(&key("web")).unwrap().labels().len(), 8);
}

#[tokio::test]
async fn a_dry_run_reserves_nothing_and_a_fault_leaves_nothing() {
    let registry = registry().await;
    let target = Target::collection(&SERVICES, Some("default"));
    registry.create(&target, service("a", 30100), WriteOptions { dry_run: true }).await.unwrap();
    create(&registry, service("b", 30100)).await.unwrap();
    let error = create(&registry, service("c", 80)).await.unwrap_err();
    assert_eq!((error.code, registry.list(&SERVICES, None).1.len()), (422, 1));
    let big = object(
        json!({"metadata": {"name": "big"}, "spec": {"ports": [{"port": 1}], "x": "x".repeat(MAX_OBJECT_BYTES)}}),
    );
    let dry = registry.create(&target, big.clone(), WriteOptions { dry_run: true }).await;
    assert_eq!(dry.unwrap_err().code, 413);
    assert_eq!(create(&registry, big).await.unwrap_err().code, 413);
    let mut deep = service("deep", 0);
    let nested = (0..MAX_DEPTH).fold(json!(1), |inner, _| json!([inner]));
    deep.spec_mut().insert("x".into(), nested);
    assert_eq!(create(&registry, deep).await.unwrap_err().code, 400);
    let odd = object(json!({"metadata": {"name": "odd"}, "spec": {"ports": [{"port": "web"}]}}));
    let error = create(&registry, odd).await.unwrap_err();
    let cause = &error.details.as_ref().unwrap().causes[0];
    assert_eq!(
        (cause.field.as_str(), cause.reason.as_str()),
        ("spec.ports[0].port", "FieldValueTypeInvalid")
    );
    let lost = Target::collection(&SERVICES, Some("nowhere"));
    let error = registry.create(&lost, service("a", 0), WriteOptions::default()).await.unwrap_err();
    assert_eq!(error.message, "namespaces \"nowhere\" not found");
}

#[tokio::test]
async fn a_pod_on_a_node_is_marked_first_and_the_time_only_shrinks() {
    let registry = registry().await;
    let pod = object(
        json!({"metadata": {"generateName": "p-"}, "spec": {"nodeName": "n1", "containers": [{"name": "c", "command": ["true"]}]}}),
    );
    let target = Target::collection(&PODS, Some("default"));
    let pod = registry.create(&target, pod, WriteOptions::default()).await.unwrap();
    let key = pod.key().unwrap();
    assert_eq!(pod.name().len(), 7);
    let grace = |s| DeleteOptions { grace_seconds: Some(s), ..DeleteOptions::default() };
    let marked = registry.delete(&key, grace(20)).await.unwrap();
    assert_eq!(marked.pointer("/metadata/deletionGracePeriodSeconds"), Some(&json!(20)));
    assert_eq!(registry.delete(&key, grace(60)).await.unwrap().revision(), marked.revision());
    let other = DeleteOptions { uid: Some("other".into()), ..grace(0) };
    assert!(registry.delete(&key, other).await.unwrap_err().is_conflict());
    registry.delete(&key, grace(0)).await.unwrap();
    assert!(registry.get(&key).unwrap_err().is_not_found());
}

#[tokio::test]
async fn nodes_get_a_pod_range_each_and_give_it_back() {
    let registry = registry().await;
    let target = Target::collection(&NODES, None);
    let create = |name: &'static str, spec: Value| {
        let (registry, target) = (registry.clone(), target.clone());
        async move {
            let node = object(json!({"metadata": {"name": name}, "spec": spec}));
            registry.create(&target, node, WriteOptions::default()).await
        }
    };
    let made = futures::future::join_all(["a", "b", "c"].map(|n| create(n, json!({})))).await;
    let cidrs: BTreeSet<String> =
        made.into_iter().map(|n| n.unwrap().str_at("/spec/podCIDR").unwrap().to_owned()).collect();
    assert_eq!(
        cidrs.iter().map(String::as_str).collect::<Vec<_>>(),
        ["10.244.0.0/24", "10.244.1.0/24", "10.244.2.0/24"]
    );
    let taken = create("d", json!({"podCIDR": "10.244.1.0/24"})).await.unwrap_err();
    assert!(taken.message.ends_with("is already the pod range of another node"), "{}", taken.message);

    let gone = registry
        .list(&NODES, None)
        .1
        .into_iter()
        .find(|n| n.str_at("/spec/podCIDR") == Some("10.244.1.0/24"));
    registry.delete(&gone.unwrap().key().unwrap(), DeleteOptions::default()).await.unwrap();
    assert_eq!(create("d", json!({})).await.unwrap().str_at("/spec/podCIDR"), Some("10.244.1.0/24"));
}

#[tokio::test]
async fn a_pod_is_bound_once_and_to_a_node_that_is_named() {
    let registry = registry().await;
    let pod = object(
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "command": ["true"]}]}}),
    );
    let pod = registry
        .create(&Target::collection(&PODS, Some("default")), pod, WriteOptions::default())
        .await
        .unwrap();
    let key = pod.key().unwrap();
    let bind = |node: &str, uid: &str| {
        let binding =
            object(json!({"metadata": {"name": "p", "uid": uid}, "target": {"kind": "Node", "name": node}}));
        let (registry, key) = (registry.clone(), key.clone());
        async move { registry.bind(&key, &binding).await }
    };
    assert_eq!(bind("", "").await.unwrap_err().code, 422);
    assert!(bind("n1", "other").await.unwrap_err().is_conflict());
    let bound = bind("n1", pod.uid()).await.unwrap();
    assert_eq!(bound.str_at("/spec/nodeName"), Some("n1"));
    assert!(crate::conditions::is_true(&bound, "PodScheduled"));
    let again = bind("n2", "").await.unwrap_err();
    assert!(again.is_conflict() && again.message.contains("already assigned to node \"n1\""), "{again}");
}

#[tokio::test]
async fn a_scale_reads_and_writes_replicas_under_its_version() {
    let registry = registry().await;
    let made = object(json!({"metadata": {"name": "web"}, "spec": {
        "replicas": 2, "selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "c", "command": ["true"]}]}}}}));
    let target = Target::collection(&DEPLOYMENTS, Some("default"));
    let key = registry.create(&target, made, WriteOptions::default()).await.unwrap().key().unwrap();
    let scale = registry.scale(&key).unwrap();
    assert_eq!((scale.kind(), scale.pointer("/spec/replicas")), ("Scale", Some(&json!(2))));
    assert_eq!(scale.str_at("/status/selector"), Some("app=web"));
    let write = |change: Value| {
        let (registry, key, mut scale) = (registry.clone(), key.clone(), scale.clone());
        scale.spec_mut().insert("replicas".into(), change);
        async move { registry.update_scale(&key, scale, WriteOptions::default()).await }
    };
    assert_eq!(write(json!(-1)).await.unwrap_err().code, 422);
    let after = write(json!(5)).await.unwrap();
    assert_eq!(after.pointer("/spec/replicas"), Some(&json!(5)));
    assert!(
        write(json!(6)).await.unwrap_err().is_conflict(),
        "the scale that was read is no longer the stored one"
    );
    assert_eq!(registry.scale(&ObjectKey::namespaced(&PODS, "default", "x")).unwrap_err().code, 404);
}
