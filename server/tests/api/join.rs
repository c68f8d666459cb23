//! Machines that join: what they get, and what each kind of bad token or request is told.

use minisvc_proto::{NodeName, join::ClusterInfo};
use rcgen::KeyPair;
use reqwest::{Method, header};
use serde_json::{Value, json};
use x509_parser::parse_x509_certificate;

use crate::harness::{Api, csr};

const TOKENS: &str = "/apis/minisvc.io/v1/jointokens";

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_machine_with_a_token_becomes_a_node() {
    let api = Api::start().await;
    let token = api.token(json!({"uses": 2, "description": "rack 3"})).await;
    assert_eq!(token.ca_hash, api.pki().ca_hash());
    let machine = api.join("node-1", &token).await;
    let cluster = ClusterInfo {
        pod_cidr: "10.244.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        pod_cidr6: None,
        service_cidr6: None,
        node_port_range: (30000, 32767),
        vxlan_port: 8473,
        cluster_domain: "cluster.local".into(),
    };
    assert_eq!(machine.answer.cluster, cluster);
    assert_eq!(machine.answer.ca, api.pki().ca_pem());

    // The certificate says what was decided here, not what was asked for.
    let pem = x509_parser::pem::parse_x509_pem(machine.answer.certificate.as_bytes()).unwrap().1;
    let (_, certificate) = parse_x509_certificate(&pem.contents).unwrap();
    let subject = certificate.subject().to_string();
    let (_, stored) = api.plain(true).get("/apis/minisvc.io/v1/nodecredentials/node-1").await;
    let identity = stored["spec"]["identity"].as_str().unwrap();
    assert_eq!(subject, format!("O=system:nodes, OU={identity}, CN=system:node:node-1"));
    let sans = certificate.subject_alternative_name().unwrap().unwrap();
    assert_eq!(sans.value.general_names.len(), 1);
    assert!(format!("{:?}", sans.value.general_names).contains("node-1.nodes.minisvc.internal"));
    let (from, to) = (certificate.validity().not_before, certificate.validity().not_after);
    assert_eq!(to.timestamp() - from.timestamp(), (24 + 30 * 24) * 3600);
    assert!(!certificate.is_ca());
    assert_eq!(stored["spec"]["joinedWith"], token.id.as_str());

    // It works, and only for this node.
    let node = api.plain_with(&machine.answer.certificate, &machine.key);
    let (code, seen) = node.get("/apis/minisvc.io/v1/cluster").await;
    assert_eq!((code, serde_json::from_value(seen).unwrap()), (200, cluster));
    let (code, made) = node
        .answer(Method::POST, "/api/v1/nodes", "application/json", r#"{"metadata": {"name": "node-1"}}"#)
        .await;
    assert_eq!(code, 201, "{made}");

    // The use was counted; of the secret there is nothing left but a hash.
    let (_, shown) = api.plain(true).get(&format!("{TOKENS}/{}", token.id)).await;
    assert_eq!((&shown["status"]["uses"], &shown["status"]["token"]), (&json!(1), &Value::Null));
    assert!(!shown.to_string().contains(&token.secret));
    api.end().await;
}

#[tokio::test]
async fn a_bad_token_is_told_why_in_one_line() {
    let api = Api::start().await;
    let admin = api.plain(true);
    let anonymous = api.plain(false);
    let request = csr(&KeyPair::generate().unwrap());
    let good = api.token(json!({"uses": 1})).await;
    let expired = api.token(json!({})).await;
    let past = json!({"spec": {"expirationTimestamp": "2026-01-01T00:00:00Z"}}).to_string();
    let merge = "application/merge-patch+json";
    let (code, _) = admin.answer(Method::PATCH, &format!("{TOKENS}/{}", expired.id), merge, past).await;
    assert_eq!(code, 200);
    let revoked = api.token(json!({})).await;
    let (code, _) = admin.answer(Method::DELETE, &format!("{TOKENS}/{}", revoked.id), "", "").await;
    assert_eq!(code, 200);
    let used_up = api.token(json!({"uses": 1})).await;
    api.join("first", &used_up).await;
    let wrong = format!("{}.{}", good.id, revoked.secret);
    for (bearer, says) in [
        (wrong.as_str(), format!("the secret of join token {} is wrong", good.id)),
        (&expired.bearer(), format!("join token {} expired at 2026-01-01T00:00:00Z", expired.id)),
        (&revoked.bearer(), format!("join token {} is unknown: it was revoked", revoked.id)),
        (&used_up.bearer(), format!("join token {} is used up: it was for 1 machine", used_up.id)),
        ("0123456789", "the Authorization header holds no join token".into()),
        ("../../etc/passwd", "the Authorization header holds no join token".into()),
        (&good.to_string(), "the Authorization header holds no join token".into()),
        ("", "a join token is needed".into()),
    ] {
        let (code, answer) = api.ask(&anonymous, "node-1", bearer, &request).await;
        assert_eq!((code, &answer["reason"]), (401, &json!("Unauthorized")), "{says}: {answer}");
        assert!(message(&answer).starts_with(&says), "{says}: {answer}");
        assert_eq!(message(&answer).lines().count(), 1);
    }
    // Who has not the secret does not hear that a token has ended.
    let (_, answer) =
        api.ask(&anonymous, "node-1", &format!("{}.{}", expired.id, good.secret), &request).await;
    assert!(message(&answer).starts_with("the secret of join token"), "{answer}");

    // None of that used the good one, and a token opens one door alone.
    for (path, method) in
        [("/api/v1/nodes", Method::GET), (TOKENS, Method::POST), ("/apis/minisvc.io/v1/cluster", Method::GET)]
    {
        let url = format!("{}{path}", api.url);
        let asked = anonymous
            .http
            .request(method, url)
            .header(header::AUTHORIZATION, format!("Bearer {}", good.bearer()));
        let answer = asked.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 401, "{path}");
    }
    api.join("node-1", &good).await;
    api.end().await;
}

#[tokio::test]
async fn a_refused_request_costs_no_use_and_neither_does_a_lost_answer() {
    let api = Api::start().await;
    let anonymous = api.plain(false);
    let token = api.token(json!({"uses": 2})).await;
    let uses =
        async || api.plain(true).get(&format!("{TOKENS}/{}", token.id)).await.1["status"]["uses"].clone();
    let key = KeyPair::generate().unwrap();
    let good = csr(&key);
    let broken = good.replacen("MI", "MX", 1);
    for (node, request, code) in [
        ("node-1", "", 400),
        ("node-1", "-----BEGIN CERTIFICATE REQUEST-----", 400),
        ("node-1", broken.as_str(), 400),
        ("node-1", &"x".repeat(9000), 400),
        ("node-1", &"x".repeat(20_000), 413),
        ("Node_1", &good, 400),
        ("..%2f..", &good, 400),
        ("node-1", include_str!("../../src/pki/request/rsa-1024.csr"), 422),
    ] {
        let (got, answer) = api.ask(&anonymous, node, &token.bearer(), request).await;
        assert_eq!(got, code, "{node}: {answer}");
    }
    assert_eq!(uses().await, Value::Null);
    // The answer was lost, and the machine asks again with the same key: no second use, the same identity.
    let identity = async || {
        api.plain(true).get("/apis/minisvc.io/v1/nodecredentials/node-1").await.1["spec"]["identity"].clone()
    };
    assert_eq!(api.ask(&anonymous, "node-1", &token.bearer(), &good).await.0, 200);
    let first = identity().await;
    assert_eq!(api.ask(&anonymous, "node-1", &token.bearer(), &good).await.0, 200);
    assert_eq!((uses().await, identity().await), (json!(1), first));
    api.end().await;
}

#[tokio::test]
async fn many_that_come_at_once_get_as_many_certificates_as_there_are_uses() {
    let api = Api::start().await;
    let token = api.token(json!({"uses": 3})).await;
    let anonymous = api.plain(false);
    let bearer = token.bearer();
    let asked = (0..12).map(|i| {
        let (api, anonymous, bearer) = (&api, &anonymous, &bearer);
        async move {
            let name: NodeName = format!("node-{i}").parse().unwrap();
            api.ask(anonymous, name.as_str(), bearer, &csr(&KeyPair::generate().unwrap())).await.0
        }
    });
    let mut codes = futures::future::join_all(asked).await;
    codes.sort_unstable();
    assert_eq!(codes, [vec![200; 3], vec![401; 9]].concat());
    let (_, list) = api.plain(true).get("/apis/minisvc.io/v1/nodecredentials").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 3);
    api.end().await;
}
