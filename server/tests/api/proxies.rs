//! Logs and commands by way of a node's agent. The agent here is a stand-in that tells what it was asked.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    Router,
    body::Body,
    extract::{Request, WebSocketUpgrade, ws},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::{SinkExt, StreamExt, TryStreamExt};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use minisvc_proto::client::SUBPROTOCOL;
use reqwest::Method;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::{Api, PODS, pod};

/// An agent's API with the credentials of `name`, that lets the server in.
async fn agent(api: &Api, name: &str) -> SocketAddr {
    let own = api.join(name, &api.token(json!({})).await).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(own.answer.ca.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(own.answer.certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap(),
        )
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/exec/{*place}", get(echo))
        .route("/exec-node", get(echo))
        .route("/logs/{ns}/endless/{container}", get(endless))
        .fallback(|request: Request| async move { format!("log of {}", request.uri()) });
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let (acceptor, router) = (TlsAcceptor::from(Arc::new(tls.clone())), router.clone());
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let service = TowerToHyperService::new(router);
                let builder = auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
            });
        }
    });
    address
}

/// First the path, then every message back.
async fn echo(upgrade: WebSocketUpgrade, request: Request) -> Response {
    let path = request.uri().to_string();
    upgrade.protocols([SUBPROTOCOL]).on_upgrade(|mut socket| async move {
        let _ = socket.send(ws::Message::Text(path.into())).await;
        while let Some(Ok(message)) = socket.recv().await {
            if socket.send(message).await.is_err() {
                return;
            }
        }
    })
}

async fn endless() -> Response {
    let first = futures::stream::iter([Ok::<_, std::io::Error>("first\n")]);
    Body::from_stream(first.chain(futures::stream::pending())).into_response()
}

async fn node(api: &Api, name: &str, address: SocketAddr) {
    api.create("/api/v1/nodes", json!({"metadata": {"name": name}})).await;
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": address.ip().to_string()}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}},
    }});
    let path = format!("/api/v1/nodes/{name}/status");
    let merge = "application/merge-patch+json";
    let (code, answer) = api.plain(true).answer(Method::PATCH, &path, merge, status.to_string()).await;
    assert_eq!(code, 200, "{answer}");
}

#[tokio::test]
async fn logs_and_commands_reach_the_node_of_the_pod() {
    let api = Api::start().await;
    node(&api, "node-1", agent(&api, "node-1").await).await;
    api.create(PODS, pod("web", "node-1")).await;
    let plain = api.plain(true);
    for (query, asked) in [
        ("", "/logs/test/web/main?"),
        (
            "?container=side&tailLines=3&follow=true",
            "/logs/test/web/side?container=side&tailLines=3&follow=true",
        ),
    ] {
        let answer = plain.send(Method::GET, &format!("{PODS}/web/log{query}"), "", "").await;
        assert_eq!(answer.text().await.unwrap(), format!("log of {asked}"));
    }
    for (path, asked) in [
        (
            format!("{PODS}/web/exec?command=ls&command=-l&stdout=true"),
            "/exec/test/web/main?command=ls&command=-l&stdout=true",
        ),
        ("/apis/minisvc.io/v1/nodes/node-1/exec?command=ls".into(), "/exec-node?command=ls"),
    ] {
        let mut stream = api.admin.exec(&path).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), Message::text(asked));
        let bytes = Message::binary(vec![7; 100_000]);
        stream.send(bytes.clone()).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), bytes);
        stream.close(None).await.unwrap();
    }
    // A log that is followed ends with the server.
    api.create(PODS, pod("endless", "node-1")).await;
    let mut log = Box::pin(api.admin.stream(&format!("{PODS}/endless/log?follow=true")).await.unwrap());
    assert_eq!(log.next().await.unwrap().unwrap(), "first\n");
    api.end().await;
    let rest: Vec<_> = log.try_collect().await.expect("an end, not a cut");
    assert!(rest.concat().is_empty());
}

#[tokio::test]
async fn what_cannot_be_reached_is_said_in_one_line() {
    let api = Api::start().await;
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    node(&api, "dead", unused).await;
    let one = agent(&api, "node-1").await;
    node(&api, "node-1", one).await;
    // Somebody else answers at the node's address.
    node(&api, "node-2", one).await;
    // The machine there is not node-3 any more.
    node(&api, "node-3", agent(&api, "node-3").await).await;
    api.join("node-3", &api.token(json!({})).await).await;
    api.create("/api/v1/nodes", json!({"metadata": {"name": "new"}})).await;
    for (name, on) in [
        ("nowhere", ""),
        ("lost", "dead"),
        ("early", "new"),
        ("usurped", "node-2"),
        ("revoked", "node-3"),
        ("here", "node-1"),
        ("stray", "gone"),
    ] {
        api.create(PODS, pod(name, on)).await;
    }
    let plain = api.plain(true);
    for (path, code, words) in [
        ("nowhere/log", 400, "pod nowhere is on no node yet"),
        ("lost/log", 503, "node dead does not answer at 127.0.0.1:"),
        ("early/log", 503, "node new has no address yet"),
        ("usurped/log", 503, "node node-2 does not answer at 127.0.0.1:"),
        ("revoked/log", 503, "a machine answers there whose certificate was revoked"),
        ("revoked/exec?command=ls", 503, "a machine answers there whose certificate was revoked"),
        ("stray/log", 404, "nodes \"gone\" not found"),
        ("lost/log?container=nope", 400, "container nope is not valid for pod lost; it has main, side"),
        ("lost/log?tailLines=many", 400, "tailLines: \"many\""),
        ("lost/exec?command=ls", 503, "node dead does not answer at 127.0.0.1:"),
        ("here/exec?command=ls", 400, "WebSocket"),
        ("lost/exec", 400, "command:"),
        ("absent/log", 404, "pods \"absent\" not found"),
    ] {
        let (got, status) = plain.get(&format!("{PODS}/{path}")).await;
        assert_eq!((got, &status["kind"]), (code, &json!("Status")), "{path}: {status}");
        assert!(status["message"].as_str().unwrap().contains(words), "{path}: {status}");
    }
    let refused = api.admin.exec(&format!("{PODS}/lost/exec?command=ls")).await.unwrap_err();
    assert_eq!(refused.api().unwrap().code, 503);
    api.end().await;
}
