//! Who may do what, over the wire; the whole table is tested beside `http::access`.

use minisvc_proto::{
    NodeName, Object,
    client::{ListParams, PatchKind},
    path::Target,
    report::NodeReport,
    resource::NODES,
};
use reqwest::Method;
use serde_json::json;

use crate::harness::{Api, SERVICES};

#[tokio::test]
async fn without_a_certificate_one_sees_that_the_server_lives_and_nothing_else() {
    let api = Api::start().await;
    let anonymous = api.plain(false);
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        let answer = anonymous.send(Method::GET, path, "", "").await;
        assert_eq!(answer.status().as_u16(), 200, "{path}");
    }
    for path in ["/", "/api", "/apis", "/api/v1", "/api/v1/namespaces", SERVICES, "/nope", "/openapi/v2"] {
        let (code, status) = anonymous.get(path).await;
        assert_eq!(
            (code, &status["kind"], &status["reason"]),
            (401, &json!("Status"), &json!("Unauthorized")),
            "{path}"
        );
    }
    let (code, _) = anonymous.answer(Method::DELETE, "/healthz", "", "").await;
    assert_eq!(code, 401);
    api.end().await;
}

#[tokio::test]
async fn a_node_speaks_for_itself_alone() {
    let api = Api::start().await;
    let node = api.node("node-1").await;
    let (_, services) =
        node.list(&Target::parse("/api/v1/services").unwrap(), &ListParams::default()).await.unwrap();
    assert!(services.iter().all(|s| s.kind() == "Service"));
    let name: NodeName = "node-1".parse().unwrap();
    let report = NodeReport { boot_id: "b".into(), sequence: 1, ready: true, ..NodeReport::default() };
    assert!(!node.post_report(&name, &report).await.unwrap().registered);

    let nodes = Target::collection(&NODES, None);
    let made = node.create(&nodes, &Object::new(&NODES, None, "node-1"), false).await.unwrap();
    assert_eq!(made.str_at("/spec/podCIDR"), Some("10.244.0.0/24"));
    assert!(node.post_report(&name, &report).await.unwrap().registered);
    let status = Target::parse("/api/v1/nodes/node-1/status").unwrap();
    node.patch(&status, PatchKind::Merge, &json!({"status": {"phase": "x"}})).await.unwrap();

    let refused = node.create(&nodes, &Object::new(&NODES, None, "node-2"), false).await.unwrap_err();
    let refused = refused.api().unwrap();
    assert_eq!(refused.code, 403);
    assert_eq!(
        refused.message,
        "nodes \"node-2\" is forbidden: User \"system:node:node-1\" cannot create resource \"nodes\""
    );
    let other: NodeName = "node-2".parse().unwrap();
    assert_eq!(node.post_report(&other, &report).await.unwrap_err().api().unwrap().code, 403);
    api.end().await;
}
