//! How a server starts, refuses to start, and ends; and what clients may cost it.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use futures::TryStreamExt;
use minisvc_proto::{client::ListParams, path::Target, watch::EventType};
use minisvc_server::run::{Limits, Server};
use reqwest::Method;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::harness::{Api, SERVICES, config, service};

#[tokio::test]
async fn what_was_answered_is_there_after_a_kill_and_old_watches_start_over() {
    let api = Api::start().await;
    let first = api.create(SERVICES, service("web")).await;
    let again = api.start_on_copy().await;
    let web = Target::parse(&format!("{SERVICES}/web")).unwrap();
    assert_eq!(again.admin.get(&web).await.unwrap(), first);
    let services = Target::parse(SERVICES).unwrap();
    let early = again.admin.watch(&services, &ListParams::default(), minisvc_proto::Revision(1)).await;
    assert!(early.err().unwrap().is_expired(), "history does not outlive the process");
    again.end().await;
    api.end().await;
}

#[tokio::test]
async fn each_reason_not_to_start_is_one_clear_line() {
    let api = Api::start().await;
    let fault = async |change: &dyn Fn(&mut minisvc_server::run::ServerConfig)| {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(&dir);
        change(&mut config);
        let error = Server::open(config).await.err().expect("it must not start");
        assert!(std::error::Error::source(&error).is_none(), "the command line prints sources too: {error}");
        let text = error.to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    };
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap().into_std().unwrap();
    let address = taken.local_addr().unwrap();
    let busy = fault(&|c| c.listen = address).await;
    assert!(
        busy.starts_with(&format!("--listen {address}: ")) && busy.contains("choose another port"),
        "{busy}"
    );
    let data = api.dir.path().to_owned();
    let in_use = fault(&|c| c.data_dir.clone_from(&data)).await;
    assert!(in_use.contains("is in use by another minisvc server"), "{in_use}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let no_dir = fault(&|c| c.data_dir = file.path().to_owned()).await;
    assert!(no_dir.starts_with(&format!("data directory {}: ", file.path().display())), "{no_dir}");
    let rotten = api.copy();
    fs::write(rotten.path().join("store/db"), vec![0x55; 100_000]).unwrap();
    let damaged = fault(&|c| c.data_dir = rotten.path().to_owned()).await;
    for says in ["is damaged", "`minisvc server salvage`", "`minisvc server restore`"] {
        assert!(damaged.contains(says), "{damaged}");
    }
    let open_key = fault(&|c| {
        minisvc_server::pki::Pki::open(&c.data_dir.join("pki")).unwrap();
        fs::set_permissions(c.data_dir.join("pki/ca.key"), fs::Permissions::from_mode(0o644)).unwrap();
    })
    .await;
    assert!(open_key.contains("0600 would be right"), "{open_key}");
    let range = fault(&|c| c.service_cidr = "10.96.0.0/30".parse().unwrap()).await;
    assert!(range.starts_with("--service-cidr: "), "{range}");
    let ports = fault(&|c| c.node_port_range = (9, 8)).await;
    assert!(ports.starts_with("--node-port-range: 9-8"), "{ports}");
    api.end().await;
}

#[tokio::test]
async fn the_end_of_the_server_ends_watches_well_and_refuses_newcomers() {
    let api = Api::start().await;
    let since = api.create(SERVICES, service("web")).await.revision().unwrap();
    let services = Target::parse(SERVICES).unwrap();
    let watch = api.admin.watch(&services, &ListParams::default(), since).await.unwrap();
    let address = api.url.strip_prefix("https://").unwrap().to_owned();
    api.end().await;
    let rest: Vec<_> = watch.try_collect().await.expect("an end, not a cut");
    assert!(rest.iter().all(|e| e.kind == EventType::Bookmark), "{rest:?}");
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn clients_that_do_nothing_are_bounded_and_leave_room_for_others() {
    let limits = Limits {
        handshakes: 2,
        handshake_time: Duration::from_secs(1),
        header_time: Duration::from_secs(1),
        anonymous: 1,
        ..Limits::default()
    };
    let api = Api::start_with(limits).await;
    let address = api.url.strip_prefix("https://").unwrap().to_owned();
    // More than may shake hands at once, and none of them ever does.
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    api.create(SERVICES, service("web")).await;
    for mut one in silent {
        assert_eq!(one.read(&mut [0; 8]).await.unwrap_or(0), 0, "closed from the other side");
    }
    // A request whose head never ends.
    let mut slow = api.raw(true).await;
    slow.write_all(b"GET /healthz HTTP/1.1\r\nhost:").await.unwrap();
    let mut answer = Vec::new();
    let _ = slow.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    // One without a certificate holds the only place for such; those with one do not need it.
    let mut first = api.raw(false).await;
    let second = api.plain(false);
    assert_eq!(second.send(Method::GET, "/healthz", "", "").await.status().as_u16(), 200);
    // A newcomer takes the place of the one that holds it and does nothing with it.
    assert_eq!(first.read(&mut [0; 8]).await.unwrap_or(0), 0, "closed from the other side");
    let (code, _) = api.plain(true).get(SERVICES).await;
    assert_eq!(code, 200);
    api.end().await;
}

#[tokio::test]
async fn a_progress_request_answers_when_the_service_is_complete_or_the_time_is_over() {
    let api = Api::start().await;
    api.create(SERVICES, json!({"metadata": {"name": "bare"}, "spec": {"ports": [{"port": 80}]}})).await;
    let path = "/apis/minisvc.io/v1/namespaces/test/services/bare/progress";
    let plain = api.plain(true);
    let (code, none_ready) = plain.get(&format!("{path}?timeoutSeconds=0")).await;
    assert_eq!((code, &none_ready["complete"], &none_ready["readyNodes"]), (200, &json!(false), &json!(0)));
    let (code, _) = plain.get("/apis/minisvc.io/v1/namespaces/test/services/none/progress").await;
    assert_eq!(code, 404);

    api.create("/api/v1/nodes", json!({"metadata": {"name": "node-1"}})).await;
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}).to_string();
    let merge = "application/merge-patch+json";
    plain.answer(Method::PATCH, "/api/v1/nodes/node-1/status", merge, ready).await;
    let (_, late) = plain.get(&format!("{path}?timeoutSeconds=0")).await;
    assert_eq!((&late["complete"], &late["lateNodes"]), (&json!(false), &json!(["node-1"])));

    let waiting = tokio::spawn({
        let (http, url) = (plain.http.clone(), format!("{}{path}?timeoutSeconds=60", plain.url));
        async move { http.get(url).send().await.unwrap().json::<serde_json::Value>().await.unwrap() }
    });
    let report =
        json!({"bootId": "b", "sequence": 1, "services": 1 << 30, "endpointSlices": 1 << 30, "ready": true});
    let (code, answer) = plain
        .answer(
            Method::POST,
            "/apis/minisvc.io/v1/nodes/node-1/report",
            "application/json",
            report.to_string(),
        )
        .await;
    assert_eq!((code, &answer["registered"]), (200, &json!(true)));
    let done = waiting.await.unwrap();
    assert_eq!((&done["complete"], &done["lateNodes"]), (&json!(true), &json!([])));
    api.end().await;
}
