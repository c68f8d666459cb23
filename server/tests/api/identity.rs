//! Whom a node's certificate makes one: itself, as long as nobody else has its name, and nobody else.

use std::{fs, os::unix::fs::PermissionsExt};

use futures::StreamExt;
use minisvc_proto::{
    NodeName, Revision,
    client::{Client, Kubeconfig, ListParams},
    path::Target,
    report::NodeReport,
    resource::{JOIN_TOKENS, NODE_CREDENTIALS, SERVICES},
};
use rcgen::KeyPair;
use reqwest::Method;
use serde_json::{Value, json};
use x509_parser::parse_x509_certificate;

use crate::harness::{Api, PODS, Plain, csr, pod};

const MERGE: &str = "application/merge-patch+json";
const JSON: &str = "application/json";

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

async fn ready(api: &Api, node: &Plain, name: &str, status: Value) {
    let made = json!({"metadata": {"name": name}}).to_string();
    assert_eq!(node.answer(Method::POST, "/api/v1/nodes", JSON, made).await.0, 201);
    let path = format!("/api/v1/nodes/{name}/status");
    let (code, answer) =
        node.answer(Method::PATCH, &path, MERGE, json!({"status": status}).to_string()).await;
    assert_eq!(code, 200, "{answer}");
    report(node, name, 1).await;
    let is_ready = |n: &Value| {
        n["status"]["conditions"]
            .as_array()
            .is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
    };
    until(api, &format!("/api/v1/nodes/{name}"), is_ready).await;
}

async fn report(node: &Plain, name: &str, sequence: u64) {
    let report = NodeReport { boot_id: name.into(), sequence, ready: true, ..NodeReport::default() };
    let path = format!("/apis/minisvc.io/v1/nodes/{name}/report");
    let (code, answer) =
        node.answer(Method::POST, &path, JSON, serde_json::to_string(&report).unwrap()).await;
    assert_eq!((code, &answer["registered"]), (200, &json!(true)));
}

/// Waits for a state of an object, watching it.
async fn until(api: &Api, path: &str, holds: impl Fn(&Value) -> bool) {
    let target = Target::parse(path).unwrap();
    let mut watch = api.admin.watch(&target, &ListParams::default(), Revision(0)).await.unwrap();
    let seen = async {
        while let Some(event) = watch.next().await {
            if holds(&serde_json::to_value(event.unwrap().object).unwrap()) {
                return;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), seen).await.expect(path);
}

#[tokio::test]
async fn a_ready_nodes_name_is_taken_and_a_silent_ones_goes_to_the_next_machine() {
    let api = Api::start().await;
    let anonymous = api.plain(false);
    let token = api.token(json!({"uses": 2})).await;
    let first = api.join("node-1", &token).await;
    let old = api.plain_with(&first.answer.certificate, &first.key);
    ready(&api, &old, "node-1", json!({"addresses": [{"type": "InternalIP", "address": "10.0.0.5"}]})).await;

    let key = KeyPair::generate().unwrap();
    let (code, answer) = api.ask(&anonymous, "node-1", &token.bearer(), &csr(&key)).await;
    assert_eq!((code, &answer["reason"]), (409, &json!("Conflict")));
    let said = message(&answer);
    assert!(said.starts_with("node node-1 is Ready (address 10.0.0.5, last heard "), "{said}");
    assert!(said.contains("--node-name") && said.contains("minisvc node remove node-1"), "{said}");
    let uses = || async {
        api.plain(true).get(&format!("/apis/minisvc.io/v1/jointokens/{}", token.id)).await.1["status"]["uses"]
            .clone()
    };
    assert_eq!(uses().await, json!(1));

    // The first machine follows the services, and falls silent.
    let (revision, _) =
        api.admin.list(&Target::collection(&SERVICES, None), &ListParams::default()).await.unwrap();
    let url = format!("{}/api/v1/services?watch=true&resourceVersion={revision}", api.url);
    let watch = old.http.get(url).send().await.unwrap();
    assert_eq!(watch.status().as_u16(), 200);
    until(&api, "/api/v1/nodes/node-1", |n| n["status"]["conditions"][0]["status"] == "Unknown").await;

    let (code, answer) = api.ask(&anonymous, "node-1", &token.bearer(), &csr(&key)).await;
    assert_eq!(code, 200, "{answer}");
    let new = api.plain_with(answer["certificate"].as_str().unwrap(), &key.serialize_pem());
    // What the old one had open ends, and each of its requests is told why.
    let cut = tokio::time::timeout(std::time::Duration::from_secs(20), watch.bytes()).await;
    drop(cut.expect("the watch of the revoked certificate ends"));
    let old = api.plain_with(&first.answer.certificate, &first.key);
    for (method, path) in [
        (Method::GET, "/api/v1/services"),
        (Method::GET, "/apis/minisvc.io/v1/cluster"),
        (Method::PATCH, "/api/v1/nodes/node-1/status"),
        (Method::POST, "/apis/minisvc.io/v1/nodes/node-1/report"),
        (Method::POST, "/apis/minisvc.io/v1/nodes/node-1/certificate"),
    ] {
        let (code, answer) = old.answer(method, path, MERGE, "{}").await;
        assert_eq!((code, &answer["reason"]), (401, &json!("Unauthorized")), "{path}");
        assert!(message(&answer).starts_with("the certificate of node node-1 was revoked: "), "{answer}");
    }
    report(&new, "node-1", 1).await;
    assert_eq!(uses().await, json!(2));
    api.end().await;
}

#[tokio::test]
async fn a_removed_node_is_revoked() {
    let api = Api::start().await;
    let token = api.token(json!({})).await;
    let machine = api.join("node-1", &token).await;
    let node = api.plain_with(&machine.answer.certificate, &machine.key);
    assert_eq!(node.get("/api/v1/services").await.0, 200);
    let key = Target::collection(&NODE_CREDENTIALS, None).to_string() + "/node-1";
    assert_eq!(api.plain(true).answer(Method::DELETE, &key, "", "").await.0, 200);
    // What was open may end under a request's hands: a new connection is refused in words.
    let again = api.plain_with(&machine.answer.certificate, &machine.key);
    let (code, answer) = again.get("/api/v1/services").await;
    assert_eq!(code, 401);
    assert!(
        message(&answer).starts_with("the certificate of node node-1 was revoked: the node was removed"),
        "{answer}"
    );
    api.end().await;
}

#[tokio::test]
async fn who_joined_and_which_tokens_there_are_outlives_the_server() {
    let api = Api::start().await;
    let token = api.token(json!({"uses": 2})).await;
    let machine = api.join("node-1", &token).await;
    let after = api.start_on_copy().await;
    let node = after.plain_with(&machine.answer.certificate, &machine.key);
    assert_eq!(node.get("/api/v1/services").await.0, 200);
    after.join("node-2", &token).await;
    let (code, answer) =
        after.ask(&after.plain(false), "node-3", &token.bearer(), &csr(&KeyPair::generate().unwrap())).await;
    assert_eq!(code, 401);
    assert!(message(&answer).contains("is used up: it was for 2 machines"), "{answer}");
    after.end().await;
    api.end().await;
}

#[tokio::test]
async fn the_administrators_file_is_for_its_owner_and_works() {
    let api = Api::start().await;
    let path = api.dir.path().join("admin.kubeconfig");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let kubeconfig = Kubeconfig::load(&path).unwrap();
    assert_eq!(kubeconfig.clusters[0].cluster.server, api.url);
    let admin = Client::from_kubeconfig(&kubeconfig).unwrap();
    let tokens = Target::collection(&JOIN_TOKENS, None);
    assert!(admin.list(&tokens, &ListParams::default()).await.unwrap().1.is_empty());
    api.end().await;
}

#[tokio::test]
async fn a_node_renews_its_own_certificate_and_no_other() {
    let api = Api::start().await;
    let token = api.token(json!({"uses": 2})).await;
    let machine = api.join("node-1", &token).await;
    let other = api.join("node-2", &token).await;
    let node = api.plain_with(&machine.answer.certificate, &machine.key);
    let key = KeyPair::generate().unwrap();
    let (code, answer) = api.ask(&node, "node-1", "", &csr(&key)).await;
    assert_eq!(code, 200, "{answer}");
    let renewed = answer["certificate"].as_str().unwrap();
    let subject = |pem: &str| {
        let pem = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1;
        parse_x509_certificate(&pem.contents).unwrap().1.subject().to_string()
    };
    assert_eq!(subject(renewed), subject(&machine.answer.certificate));
    // Both are good: the agent changes over when it likes.
    for client in [&node, &api.plain_with(renewed, &key.serialize_pem())] {
        assert_eq!(client.get("/api/v1/nodes").await.0, 200);
    }
    let (_, shown) = api.plain(true).get(&format!("/apis/minisvc.io/v1/jointokens/{}", token.id)).await;
    assert_eq!(shown["status"]["uses"], 2);

    let (code, answer) = api.ask(&node, "node-2", "", &csr(&key)).await;
    assert_eq!((code, &answer["reason"]), (403, &json!("Forbidden")), "{answer}");
    let (code, answer) = api.ask(&api.plain(true), "node-2", "", &csr(&key)).await;
    assert_eq!(code, 400, "{answer}");
    let other = api.plain_with(&other.answer.certificate, &other.key);
    assert_eq!(other.get("/api/v1/nodes").await.0, 200);
    api.end().await;
}

#[tokio::test]
async fn a_node_writes_what_is_its_own() {
    let api = Api::start().await;
    let token = api.token(json!({})).await;
    let (mine, other) = (api.join("node-1", &token).await, api.join("node-2", &token).await);
    let node = api.plain_with(&mine.answer.certificate, &mine.key);
    let other = api.plain_with(&other.answer.certificate, &other.key);
    let at = |ip: &str| json!({"addresses": [{"type": "InternalIP", "address": ip}]});
    ready(&api, &other, "node-2", at("10.0.0.2")).await;
    ready(&api, &node, "node-1", at("10.0.0.1")).await;
    for (name, on) in [("mine", "node-1"), ("theirs", "node-2")] {
        api.create(PODS, pod(name, on)).await;
    }
    let event = |host: &str| {
        json!({
            "metadata": {"generateName": "e."}, "reason": "Test", "type": "Normal",
            "involvedObject": {"kind": "Pod", "name": "mine", "namespace": "test"},
            "source": {"component": "minisvc-agent", "host": host},
        })
    };
    let events = "/api/v1/namespaces/test/events";
    let (code, told) = node.answer(Method::POST, events, JSON, event("node-1").to_string()).await;
    assert_eq!(code, 201, "{told}");
    let (code, theirs) = other.answer(Method::POST, events, JSON, event("node-2").to_string()).await;
    assert_eq!(code, 201, "{theirs}");
    let event_path = |event: &Value| format!("{events}/{}", event["metadata"]["name"].as_str().unwrap());
    let (told, theirs) = (event_path(&told), event_path(&theirs));

    let status = |s: Value| json!({"status": s});
    let cases = [
        (Method::GET, format!("{PODS}/mine"), json!(null), 200),
        (Method::GET, format!("{PODS}/theirs"), json!(null), 403),
        (Method::GET, "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-1".into(), json!(null), 200),
        (Method::GET, "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-2".into(), json!(null), 403),
        (Method::GET, "/api/v1/pods".into(), json!(null), 403),
        (Method::GET, "/api/v1/pods?watch=true".into(), json!(null), 403),
        (Method::PATCH, format!("{PODS}/mine/status"), status(json!({"phase": "Running"})), 200),
        (Method::PATCH, format!("{PODS}/mine/status"), status(json!({"podIP": "10.244.0.9"})), 422),
        (Method::PATCH, format!("{PODS}/mine/status"), status(json!({"podIP": "10.244.1.9"})), 200),
        (Method::PATCH, format!("{PODS}/theirs/status"), status(json!({"phase": "Failed"})), 403),
        (Method::PATCH, format!("{PODS}/mine"), json!({"metadata": {"labels": {"app": "db"}}}), 403),
        (Method::DELETE, format!("{PODS}/theirs"), json!(null), 403),
        (Method::PATCH, "/api/v1/nodes/node-2/status".into(), status(json!({})), 403),
        (Method::PATCH, "/api/v1/nodes/node-1".into(), json!({"spec": {"taints": []}}), 403),
        (Method::PATCH, "/api/v1/nodes/node-1".into(), json!({"spec": {"podCIDR": "10.244.9.0/24"}}), 403),
        (Method::PATCH, "/api/v1/nodes/node-1/status".into(), status(at("10.0.0.2")), 422),
        (Method::PATCH, "/api/v1/nodes/node-1/status".into(), status(at("10.96.0.1")), 422),
        (Method::PATCH, "/api/v1/nodes/node-1/status".into(), status(at("10.0.0.7")), 200),
        (
            Method::POST,
            "/apis/minisvc.io/v1/nodes/node-2/report".into(),
            json!({"bootId": "x", "sequence": 1}),
            403,
        ),
        (Method::POST, events.into(), event("node-2"), 403),
        (Method::POST, events.into(), event(""), 403),
        (Method::PATCH, told.clone(), json!({"count": 2}), 200),
        (Method::PATCH, told, json!({"source": {"host": "node-2"}}), 403),
        (Method::PATCH, theirs.clone(), json!({"count": 9}), 403),
        (Method::PATCH, theirs, json!({"source": {"host": "node-1"}}), 403),
        (Method::GET, "/apis/minisvc.io/v1/jointokens".into(), json!(null), 403),
        (Method::GET, "/apis/minisvc.io/v1/nodecredentials/node-1".into(), json!(null), 403),
        (Method::POST, "/apis/minisvc.io/v1/jointokens".into(), json!({}), 403),
        (Method::GET, "/api/v1/namespaces".into(), json!(null), 403),
        (Method::GET, format!("{PODS}/mine/log"), json!(null), 403),
    ];
    for (method, path, body, code) in cases {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let media = if method == Method::PATCH { MERGE } else { JSON };
        let (got, answer) = node.answer(method.clone(), &path, media, text).await;
        assert_eq!(got, code, "{method} {path}: {answer}");
        assert!(code == 200 || message(&answer).lines().count() == 1, "{answer}");
    }
    let (_, seen) = api.plain(true).get("/api/v1/nodes/node-1").await;
    assert_eq!(seen["status"]["addresses"][0]["address"], "10.0.0.7");
    let (_, seen) = api.plain(true).get(&format!("{PODS}/theirs")).await;
    assert_ne!(seen["status"]["phase"], "Failed");
    // With a range of its own choice, a machine does not even begin.
    let third = api.join("node-3", &token).await;
    let third = api.plain_with(&third.answer.certificate, &third.key);
    let body = json!({"metadata": {"name": "node-3"}, "spec": {"podCIDR": "10.244.77.0/24"}}).to_string();
    let (code, answer) = third.answer(Method::POST, "/api/v1/nodes", JSON, body).await;
    assert_eq!(code, 422, "{answer}");
    assert!(
        message(&answer).contains("spec.podCIDR: Forbidden: a node may not say this of itself"),
        "{answer}"
    );
    let name: NodeName = "node-3".parse().unwrap();
    assert!(
        api.admin
            .get(&Target::parse(&format!("/api/v1/nodes/{name}")).unwrap())
            .await
            .unwrap_err()
            .is_not_found()
    );
    api.end().await;
}
