//! What is refused: each with its code, its reason and words that say what would be right.

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{Api, SERVICES, service};

const JSON: &str = "application/json";

#[tokio::test]
async fn each_fault_has_its_status() {
    let api = Api::start().await;
    api.create(SERVICES, service("taken")).await;
    let plain = api.plain(true);
    let put = format!("{SERVICES}/taken");
    let named =
        |name: &str| json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}}).to_string();
    let port = |node_port: u32| {
        json!({"metadata": {"name": "p"}, "spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": node_port}]}}).to_string()
    };
    let long = format!("a{}", "b".repeat(70));
    let cases: Vec<(Method, String, &str, String, u16, &str, &str)> = vec![
        (
            Method::POST,
            SERVICES.into(),
            JSON,
            "{\"a\": }".into(),
            400,
            "BadRequest",
            "expected value at line 1 column 7",
        ),
        (
            Method::POST,
            SERVICES.into(),
            JSON,
            String::new(),
            400,
            "BadRequest",
            "EOF while parsing a value at line 1 column 0",
        ),
        (Method::POST, SERVICES.into(), "application/yaml", "a: [1\nb: 2".into(), 400, "BadRequest", "line"),
        (
            Method::POST,
            SERVICES.into(),
            "text/plain",
            named("x"),
            415,
            "UnsupportedMediaType",
            "(text/plain)",
        ),
        (
            Method::POST,
            SERVICES.into(),
            "application/x-www-form-urlencoded",
            named("x"),
            415,
            "UnsupportedMediaType",
            "application/json",
        ),
        (
            Method::POST,
            SERVICES.into(),
            JSON,
            named("Web_1"),
            422,
            "Invalid",
            "metadata.name: Invalid value: \"Web_1\"",
        ),
        (Method::POST, SERVICES.into(), JSON, named(&long), 422, "Invalid", "no more than 63 characters"),
        (
            Method::POST,
            SERVICES.into(),
            JSON,
            json!({}).to_string(),
            422,
            "Invalid",
            "metadata.name: Required value",
        ),
        (
            Method::POST,
            SERVICES.into(),
            JSON,
            port(80),
            422,
            "Invalid",
            "spec.ports[0].nodePort: Invalid value: 80",
        ),
        (
            Method::POST,
            SERVICES.into(),
            JSON,
            named("taken"),
            409,
            "AlreadyExists",
            "services \"taken\" already exists",
        ),
        (
            Method::POST,
            SERVICES.into(),
            JSON,
            json!({"kind": "Pod", "metadata": {"name": "x"}}).to_string(),
            400,
            "BadRequest",
            "kind is \"Pod\"",
        ),
        (
            Method::POST,
            SERVICES.into(),
            JSON,
            json!({"metadata": {"name": "x", "namespace": "other"}}).to_string(),
            400,
            "BadRequest",
            "namespace",
        ),
        (
            Method::POST,
            "/api/v1/namespaces/absent/services".into(),
            JSON,
            named("x"),
            404,
            "NotFound",
            "namespaces \"absent\" not found",
        ),
        (
            Method::PUT,
            put.clone(),
            JSON,
            named("other"),
            400,
            "BadRequest",
            "does not match the name on the URL (taken)",
        ),
        (
            Method::PUT,
            format!("{SERVICES}/absent"),
            JSON,
            named("absent"),
            404,
            "NotFound",
            "services \"absent\" not found",
        ),
        (
            Method::PATCH,
            put.clone(),
            JSON,
            "{}".into(),
            415,
            "UnsupportedMediaType",
            "application/merge-patch+json",
        ),
        (
            Method::PATCH,
            put.clone(),
            "application/strategic-merge-patch+json",
            r#"{"spec":{"ports":[{"name":"a"}]}}"#.into(),
            422,
            "Invalid",
            "does not contain declared merge key: port",
        ),
        (
            Method::PATCH,
            put.clone(),
            "application/json-patch+json",
            r#"[{"op":"test","path":"/kind","value":"x"}]"#.into(),
            422,
            "Invalid",
            "the patch does not fit",
        ),
        (
            Method::PATCH,
            put.clone(),
            "application/merge-patch+json",
            r#"{"metadata":{"name":"other"}}"#.into(),
            400,
            "BadRequest",
            "does not match the name",
        ),
        (
            Method::DELETE,
            put.clone(),
            JSON,
            r#"{"gracePeriodSeconds":"soon"}"#.into(),
            400,
            "BadRequest",
            "gracePeriodSeconds",
        ),
        (
            Method::DELETE,
            put.clone(),
            JSON,
            r#"{"propagationPolicy":"Never"}"#.into(),
            400,
            "BadRequest",
            "Background, Foreground or Orphan",
        ),
        (
            Method::DELETE,
            SERVICES.into(),
            "",
            String::new(),
            405,
            "MethodNotAllowed",
            "does not allow this method",
        ),
        (
            Method::PUT,
            "/healthz".into(),
            "",
            String::new(),
            405,
            "MethodNotAllowed",
            "does not allow this method",
        ),
        (
            Method::GET,
            "/api/v1/widgets".into(),
            "",
            String::new(),
            404,
            "NotFound",
            "could not find the requested resource",
        ),
        (
            Method::GET,
            "/apis/example.com/v1/widgets".into(),
            "",
            String::new(),
            404,
            "NotFound",
            "could not find the requested resource",
        ),
        (
            Method::GET,
            format!("{SERVICES}?labelSelector=a%20b"),
            "",
            String::new(),
            400,
            "BadRequest",
            "labelSelector",
        ),
        (
            Method::GET,
            format!("{SERVICES}?watch=true&resourceVersion=x"),
            "",
            String::new(),
            400,
            "BadRequest",
            "resourceVersion",
        ),
        (
            Method::GET,
            format!("{SERVICES}?watch=true&resourceVersion=99999999"),
            "",
            String::new(),
            410,
            "Expired",
            "too old resource version",
        ),
    ];
    for (method, path, media_type, body, code, reason, words) in cases {
        let what = format!("{method} {path} {body:.60}");
        let (got, status) = plain.answer(method, &path, media_type, body).await;
        assert_eq!(
            (got, &status["kind"], &status["reason"]),
            (code, &json!("Status"), &json!(reason)),
            "{what}: {status}"
        );
        assert_eq!(
            (status["code"].as_u64(), &status["status"]),
            (Some(code.into()), &json!("Failure")),
            "{what}"
        );
        let message = status["message"].as_str().unwrap();
        assert!(message.contains(words) && !message.contains('\n'), "{what}: {message}");
    }
    api.end().await;
}

#[tokio::test]
async fn what_is_too_large_is_413_before_and_after_it_is_read() {
    let api = Api::start().await;
    let plain = api.plain(true);
    let with_note = |bytes: usize| {
        let note = "x".repeat(bytes);
        json!({"metadata": {"name": "big"}, "spec": {"note": note, "ports": [{"port": 80}]}}).to_string()
    };
    for (bytes, words) in [(4 << 20, "limit is 3145728 bytes"), (2 << 20, "at most 1572864 can be stored")] {
        let (code, status) = plain.answer(Method::POST, SERVICES, JSON, with_note(bytes)).await;
        assert_eq!((code, &status["reason"]), (413, &json!("RequestEntityTooLarge")));
        assert!(status["message"].as_str().unwrap().contains(words), "{status}");
    }
    // A patch of a few bytes may not take an object over the limit either.
    let (code, _) = plain.answer(Method::POST, SERVICES, JSON, with_note(1_400_000)).await;
    assert_eq!(code, 201);
    let more = json!({"spec": {"more": "x".repeat(300_000)}}).to_string();
    let patch = format!("{SERVICES}/big");
    let (code, _) = plain.answer(Method::PATCH, &patch, "application/merge-patch+json", more).await;
    assert_eq!(code, 413);
    api.end().await;
}

#[tokio::test]
async fn a_body_that_is_cut_short_makes_nothing() {
    let api = Api::start().await;
    let mut stream = api.raw(true).await;
    let head = format!(
        "POST {SERVICES} HTTP/1.1\r\nhost: x\r\ncontent-type: {JSON}\r\ncontent-length: 500\r\n\r\n{{\"metadata\":"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    // The connection may end without a word of TLS; what counts is what was said before.
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("the body was cut short"), "{answer}");
    let (_, list) = api.plain(true).get(SERVICES).await;
    assert_eq!(list["items"], json!([]));
    api.end().await;
}
