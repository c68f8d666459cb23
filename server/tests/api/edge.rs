//! The port as strangers see it: plain HTTP, certificates that do not count, silence, and names that are no names.

use std::{net::Ipv4Addr, path::Path, time::Duration};

use minisvc_server::{
    pki::{Pki, Request, Validity},
    run::Limits,
};
use rcgen::KeyPair;
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::harness::{Api, PODS, csr, pod};

#[tokio::test]
async fn plain_http_is_told_to_use_https() {
    let api = Api::start().await;
    for request in [
        "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        "POST / HTTP/1.0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\0\0\0",
    ] {
        let mut tcp = TcpStream::connect(api.address()).await.unwrap();
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{request:?}: {answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(body, "this port speaks TLS alone: use https:// instead of http://\n");
    }
    // As a user's tool reads it.
    let answer =
        reqwest::Client::builder().no_proxy().tls_backend_preconfigured(api.tls(false, &[])).build().unwrap();
    let answer = answer.get(format!("http://{}/api", api.address())).send().await.unwrap();
    assert_eq!(answer.status().as_u16(), 400);
    assert!(answer.text().await.unwrap().contains("use https://"));
    api.end().await;
}

/// What a client hears that comes with this certificate: the last error of a handshake and one request.
async fn hears(api: &Api, certificate: &str, key: &str) -> String {
    let stream = api.raw_with(api.tls_with(certificate, key)).await;
    let mut stream = match stream {
        Ok(stream) => stream,
        Err(error) => return error.to_string(),
    };
    // In TLS 1.3 the client is through before the server has seen its certificate.
    let _ = stream.write_all(b"GET /api HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    let mut answer = String::new();
    match stream.read_to_string(&mut answer).await {
        Ok(_) => answer,
        Err(error) => error.to_string(),
    }
}

fn node_certificate(pki: &Pki, validity: Validity) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let request = Request::from_pem(&csr(&key)).unwrap();
    let node = "node-1".parse().unwrap();
    (pki.sign_node(&request, &node, "identity", validity).unwrap(), key.serialize_pem())
}

#[tokio::test]
async fn certificates_that_have_ended_or_are_of_another_ca_are_refused_in_the_handshake() {
    let api = Api::start().await;
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = Pki::open(Path::new(elsewhere.path())).unwrap();
    let admin = stranger.issue_admin().unwrap();
    let said = hears(&api, &admin.certificate_pem(), &admin.key_pem()).await;
    assert!(said.contains("UnknownCA") || said.contains("DecryptError"), "{said}");

    let past = Validity::at(std::time::SystemTime::now() - Duration::from_hours(1), Duration::from_mins(1));
    let (certificate, key) = node_certificate(&api.pki(), past);
    let said = hears(&api, &certificate, &key).await;
    assert!(said.contains("CertificateExpired"), "{said}");

    // Good as a certificate, and of no machine that joined.
    let (certificate, key) = node_certificate(&api.pki(), Validity::now(Duration::from_hours(1)));
    let said = hears(&api, &certificate, &key).await;
    assert!(said.starts_with("HTTP/1.1 401") && said.contains("was revoked"), "{said}");
    api.end().await;
}

#[tokio::test]
async fn a_connection_does_not_outlive_its_certificate() {
    let api = Api::start().await;
    let machine = api.join("node-1", &api.token(json!({})).await).await;
    let (_, credential) = api.plain(true).get("/apis/minisvc.io/v1/nodecredentials/node-1").await;
    let key = KeyPair::from_pem(&machine.key).unwrap();
    let request = Request::from_pem(&csr(&key)).unwrap();
    let identity = credential["spec"]["identity"].as_str().unwrap();
    let soon = Validity::now(Duration::from_secs(3));
    let brief = api.pki().sign_node(&request, &"node-1".parse().unwrap(), identity, soon).unwrap();
    let node = api.plain_with(&brief, &machine.key);
    let watch = node.http.get(format!("{}/api/v1/services?watch=true", api.url)).send().await.unwrap();
    assert_eq!(watch.status().as_u16(), 200);
    let ended = tokio::time::timeout(Duration::from_secs(30), watch.bytes()).await;
    drop(ended.expect("the watch ends with the certificate"));
    assert!(std::time::SystemTime::now() > soon.not_after - Duration::from_secs(1));
    let said = hears(&api, &brief, &machine.key).await;
    assert!(said.contains("CertificateExpired"), "{said}");
    api.end().await;
}

#[tokio::test]
async fn those_who_say_nothing_take_nobody_elses_place() {
    let limits = Limits {
        handshakes: 3,
        anonymous: 3,
        // Long enough that nothing here ends by itself.
        handshake_time: Duration::from_mins(10),
        header_time: Duration::from_mins(10),
        anonymous_time: Duration::from_mins(10),
        ..Limits::default()
    };
    let api = Api::start_with(limits).await;
    let from = async |last: u8| {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::new(127, 0, 0, last), 0).into()).unwrap();
        socket.connect(api.address().parse().unwrap()).await.unwrap()
    };
    // One machine that has begun to shake hands, and one that has opened a connection without a certificate.
    let mut honest = from(2).await;
    honest.write_all(&[0x16]).await.unwrap();
    let anonymous = tokio_rustls::TlsConnector::from(std::sync::Arc::new(api.tls(false, &["http/1.1"])));
    let name = || "localhost".try_into().unwrap();
    let mut joining = anonymous.connect(name(), from(3).await).await.unwrap();
    joining.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();

    let mut crowd = Vec::new();
    for _ in 0..12 {
        let mut silent = from(9).await;
        silent.write_all(&[0x16, 3]).await.unwrap();
        crowd.push(silent);
        // Its head never ends.
        let mut slow = anonymous.connect(name(), from(9).await).await.unwrap();
        let _ = slow.write_all(b"GET /healthz HTTP/1.1\r\nX-").await;
        crowd.push(slow.into_inner().0);
    }
    // The first of the crowd were closed, the honest were not, and newcomers with and without a certificate get in.
    assert_eq!(crowd[0].read(&mut [0; 8]).await.unwrap_or(0), 0, "closed from the other side");
    joining.write_all(b"Host: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    joining.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(api.plain(true).get("/api/v1/nodes").await.0, 200);
    assert_eq!(api.plain(false).send(Method::GET, "/healthz", "", "").await.status().as_u16(), 200);
    let mut none = [0; 8];
    assert!(
        honest.try_read(&mut none).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock),
        "still open"
    );
    api.end().await;
}

#[tokio::test]
async fn names_lead_out_of_nothing() {
    let api = Api::start().await;
    api.create("/api/v1/nodes", json!({"metadata": {"name": "node-1"}})).await;
    api.create(PODS, pod("web", "node-1")).await;
    let admin = api.plain(true);
    let names = [
        "..",
        "../../../etc/passwd",
        "%2e%2e",
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e%2f%2e%2e%2fca.key",
        "a%00b",
        "web%2f..%2fweb",
        "..\\..",
        "%252e%252e",
    ];
    let mut paths = Vec::new();
    for name in names {
        paths.extend([
            format!("/api/v1/nodes/{name}"),
            format!("{PODS}/{name}"),
            format!("/api/v1/namespaces/{name}/pods/web"),
            format!("{PODS}/{name}/log"),
            format!("{PODS}/web/log?container={name}"),
            format!("/api/v1/namespaces/{name}/pods/web/log"),
            format!("{PODS}/{name}/exec?command=id"),
            format!("{PODS}/web/exec?command=id&container={name}"),
            format!("/apis/minisvc.io/v1/nodes/{name}/exec?command=id"),
            format!("/apis/minisvc.io/v1/jointokens/{name}"),
            format!("/{name}"),
            format!("/openapi/v3/{name}"),
            format!("/apis/{name}"),
        ]);
    }
    for path in &paths {
        // As it is written: a client library would tidy it.
        let mut raw = api.raw(true).await;
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        raw.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        raw.read_to_string(&mut answer).await.unwrap();
        let code = answer.split(' ').nth(1).unwrap_or_default();
        assert!(matches!(code, "400" | "404"), "{path}: {answer}");
        assert!(!answer.contains("root:") && !answer.contains("PRIVATE KEY"), "{path}: {answer}");
    }
    for name in ["..", "../x", "a/b", "%2e%2e", "a\u{0}b"] {
        for (path, body) in [
            ("/api/v1/nodes", json!({"metadata": {"name": name}})),
            (PODS, pod(name, "")),
            ("/api/v1/namespaces", json!({"metadata": {"name": name}})),
        ] {
            let (code, answer) = admin.answer(Method::POST, path, "application/json", body.to_string()).await;
            assert_eq!(code, 422, "{path} {name:?}: {answer}");
        }
    }
    api.end().await;
}
