//! Logs and exec, through the server as users ask for them.

use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use minisvc_proto::client::{ClientError, ExecStream, kubeconfig::Credentials, query};
use minisvc_tests::{
    node::{TestNode, condition, container, pod},
    rooted::as_root,
};
use rustls::{ClientConfig, RootCertStore, crypto::ring};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::Message;

/// What a command said.
pub struct Said {
    pub out: Vec<u8>,
    pub err: Vec<u8>,
    pub status: Value,
}

/// Exec with these flags on.
async fn open(node: &TestNode, name: &str, command: &[&str], flags: &[&str]) -> ExecStream {
    let words = command.iter().map(|w| ("command", *w)).chain(flags.iter().map(|f| (*f, "true")));
    let path = format!("{}{}", pod(name).with_subresource("exec"), query(words));
    node.admin.exec(&path).await.unwrap()
}

/// Everything until the other side says how it ended.
async fn finish(mut stream: ExecStream) -> Said {
    let mut said = Said { out: Vec::new(), err: Vec::new(), status: Value::Null };
    while let Some(message) = stream.next().await {
        let Message::Binary(bytes) = message.unwrap() else { continue };
        match bytes[0] {
            1 => said.out.extend_from_slice(&bytes[1..]),
            2 => said.err.extend_from_slice(&bytes[1..]),
            3 => {
                said.status = serde_json::from_slice(&bytes[1..]).unwrap();
                break;
            }
            other => panic!("channel {other}"),
        }
    }
    said
}

/// Runs a command in a pod with this input.
pub async fn exec(node: &TestNode, name: &str, command: &[&str], input: &[u8]) -> Said {
    let mut stream = open(node, name, command, &["stdin", "stdout", "stderr"]).await;
    for chunk in input.chunks(1000) {
        stream.send(Message::Binary([&[0], chunk].concat().into())).await.unwrap();
    }
    stream.send(Message::Binary(vec![255, 0].into())).await.unwrap();
    finish(stream).await
}

/// Runs a command in a container of a pod, without input.
pub async fn exec_in(node: &TestNode, name: &str, container: &str, command: &[&str]) -> Said {
    let words = command.iter().map(|w| ("command", *w));
    let words = words.chain([("container", container), ("stdout", "true"), ("stderr", "true")]);
    let path = format!("{}{}", pod(name).with_subresource("exec"), query(words));
    finish(node.admin.exec(&path).await.unwrap()).await
}

/// A log, with these parameters.
pub async fn log(node: &TestNode, name: &str, parameters: &[(&str, &str)]) -> Result<String, ClientError> {
    let path = format!("{}{}", pod(name).with_subresource("log"), query(parameters.iter().copied()));
    let mut stream = node.admin.stream(&path).await?;
    let mut text = Vec::new();
    while let Some(bytes) = stream.next().await {
        text.extend_from_slice(&bytes?);
    }
    Ok(String::from_utf8(text).unwrap())
}

#[test]
fn exec_carries_streams_and_the_end() {
    as_root("streams::exec_carries_streams_and_the_end", async |home| {
        let node = TestNode::start(&home, 10).await;
        node.run("web", &["sleep", "1000"], json!({}), json!({})).await;
        node.until("web", |p| condition(p, "Ready") == "True").await;
        // More than pipes and queues hold, so that both directions must flow at a time.
        let input: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let said = exec(&node, "web", &["cat"], &input).await;
        assert_eq!(said.out.len(), input.len());
        assert!(said.out == input && said.status["status"] == "Success", "{}", said.status);

        let said = exec(&node, "web", &["sh", "-c", "hostname; echo bad >&2; exit 3"], b"").await;
        assert_eq!((said.out.as_slice(), said.err.as_slice()), (b"web\n".as_slice(), b"bad\n".as_slice()));
        assert_eq!(said.status["reason"], "NonZeroExitCode");
        assert_eq!(said.status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));

        let said = exec(&node, "web", &["no-such-program"], b"").await;
        assert_eq!(said.status["message"], "exec: \"no-such-program\": not found in PATH");
        node.end().await;
    });
}

#[test]
fn exec_has_a_terminal_that_can_be_resized() {
    as_root("streams::exec_has_a_terminal_that_can_be_resized", async |home| {
        let node = TestNode::start(&home, 11).await;
        node.run("web", &["sleep", "1000"], json!({}), json!({})).await;
        node.until("web", |p| condition(p, "Ready") == "True").await;
        let script = "stty -echo; echo up; read x; test -t 0 && stty size; ps -o tty= -p $$ | grep -c pts";
        let mut stream = open(&node, "web", &["sh", "-c", script], &["stdin", "stdout", "tty"]).await;
        let first = stream.next().await.unwrap().unwrap().into_data();
        assert!(first.starts_with(b"\x01up"), "{first:?}");
        let size = [&[4], json!({"Width": 91, "Height": 33}).to_string().as_bytes()].concat();
        stream.send(Message::Binary(size.into())).await.unwrap();
        stream.send(Message::Binary(b"\0go\n".as_slice().into())).await.unwrap();
        let said = finish(stream).await;
        let text = String::from_utf8(said.out).unwrap();
        assert!(text.contains("33 91") && text.trim_end().ends_with('1'), "{text:?}");
        assert_eq!(said.status["status"], "Success", "{}", said.status);
        node.end().await;
    });
}

#[test]
fn a_client_that_goes_away_takes_its_program_with_it() {
    as_root("streams::a_client_that_goes_away_takes_its_program_with_it", async |home| {
        let node = TestNode::start(&home, 12).await;
        node.run("web", &["sleep", "1000"], json!({}), json!({})).await;
        node.until("web", |p| condition(p, "Ready") == "True").await;
        // The program holds a pipe whose other end the test has: it is closed when the program is gone.
        let fifo = home.join("run/alive");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = format!("exec 3> {}; echo up >&3; sleep 1000", fifo.display());
        let stream = open(&node, "web", &["sh", "-c", &script], &["stdout"]).await;
        let mut file = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::File::open(fifo).unwrap();
            std::io::Read::read_exact(&mut file, &mut [0; 3]).unwrap();
            file
        })
        .await
        .unwrap();
        drop(stream);
        let rest = tokio::task::spawn_blocking(move || {
            std::io::Read::read_to_end(&mut file, &mut Vec::new()).unwrap()
        });
        assert_eq!(rest.await.unwrap(), 0);
        let pod = node.until("web", |_| true).await;
        assert_eq!(container(&pod)["restartCount"], 0);
        node.end().await;
    });
}

#[test]
fn a_log_is_followed_over_starts_to_the_end() {
    as_root("streams::a_log_is_followed_over_starts_to_the_end", async |home| {
        let node = TestNode::start(&home, 13).await;
        let mark = home.join("run/second");
        let script = format!(
            "if test -e {0}; then echo second; exec sleep 1000; fi; : > {0}; echo one; echo two >&2; printf three",
            mark.display()
        );
        node.run("web", &["sh", "-c", &script], json!({}), json!({})).await;
        node.until("web", |p| container(p)["started"] == true || container(p)["restartCount"] == 1).await;
        let follow = log(&node, "web", &[("follow", "true")]);
        let rest = async {
            node.until("web", |p| container(p)["restartCount"] == 1 && condition(p, "Ready") == "True").await;
            // It is told of as running before it has said anything.
            streams_until(&node, "web", "second\n").await;
            assert_eq!(log(&node, "web", &[]).await.unwrap(), "second\n");
            let previous = log(&node, "web", &[("previous", "true")]).await.unwrap();
            // Two streams have no order between them.
            for text in ["one\n", "two\n", "three"] {
                assert!(previous.contains(text), "{previous:?}");
            }
            let tail = log(&node, "web", &[("tailLines", "1"), ("timestamps", "true")]).await.unwrap();
            let (time, text) = tail.split_once(' ').unwrap();
            assert!(time.ends_with('Z') && text == "second\n", "{tail:?}");
            let cut = log(&node, "web", &[("limitBytes", "3")]).await.unwrap();
            assert_eq!(cut, "sec");
            node.delete("web", json!({"gracePeriodSeconds": 1})).await;
        };
        let (followed, ()) = tokio::join!(follow, rest);
        let followed = followed.unwrap();
        assert!(followed.ends_with("second\n"), "{followed:?}");
        node.end().await;
    });
}

/// Follows the newest start until it has said this.
async fn streams_until(node: &TestNode, name: &str, text: &str) {
    let path = format!("{}?follow=true", pod(name).with_subresource("log"));
    let mut stream = node.admin.stream(&path).await.unwrap();
    let mut seen = String::new();
    while !seen.contains(text) {
        seen.push_str(&String::from_utf8_lossy(&stream.next().await.unwrap().unwrap()));
    }
}

#[test]
fn what_has_no_log_says_so() {
    as_root("streams::what_has_no_log_says_so", async |home| {
        let node = TestNode::start(&home, 14).await;
        node.run("web", &["sleep", "1000"], json!({}), json!({})).await;
        node.until("web", |p| condition(p, "Ready") == "True").await;
        let error = log(&node, "web", &[("previous", "true")]).await.unwrap_err().to_string();
        assert!(error.starts_with("previous terminated container \"c\" in pod \"web\" not found"), "{error}");
        assert!(log(&node, "other", &[]).await.unwrap_err().is_not_found());
        node.end().await;
    });
}

#[test]
fn only_the_server_may_ask_an_agent() {
    as_root("streams::only_the_server_may_ask_an_agent", async |home| {
        let node = TestNode::start(&home, 15).await;
        let port = node.api.unwrap().port();
        let credentials = node.kubeconfig.credentials().unwrap();
        // The node's own certificate is of the same CA, but not the server's.
        for (identity, code) in [(true, "403"), (false, "401")] {
            let answer = ask(port, &credentials, identity).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {code}")), "{answer}");
            assert!(answer.contains("minisvc-server"), "{answer}");
        }
        node.end().await;
    });
}

/// Asks the agent's API directly, with or without a certificate.
async fn ask(port: u16, credentials: &Credentials, identity: bool) -> String {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&credentials.ca) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = if identity {
        let chain = CertificateDer::pem_slice_iter(&credentials.certificate).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(&credentials.key).unwrap();
        builder.with_client_auth_cert(chain, key).unwrap()
    } else {
        builder.with_no_client_auth()
    };
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let name = ServerName::try_from("node-1.nodes.minisvc.internal").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
    let request = "GET /logs/default/web/c HTTP/1.1\r\nHost: node-1\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // The other side may end without saying goodbye.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}
