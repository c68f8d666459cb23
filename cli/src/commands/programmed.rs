//! Waiting until a service works everywhere, so that the next command does.

use std::time::{Duration, Instant};

use anyhow::bail;
use minisvc_proto::{Object, client::Client, report::ServiceProgress};
use serde_json::Value;

use super::Session;
use crate::{args::ServiceWait, output};

/// One request waits so long at most: well below the client's limit for an answer.
const SLICE: Duration = Duration::from_secs(20);
/// A server that answers at once and says "not yet" is not asked more often than this.
const PAUSE: Duration = Duration::from_millis(200);

/// Waits for a service that was just made (unless it should not), and says on stderr where it answers.
pub async fn wait(session: &Session, service: &Object, how: ServiceWait) -> anyhow::Result<()> {
    if how.wait {
        let namespace = service.namespace().unwrap_or(&session.namespace);
        let progress = await_progress(&session.client, namespace, service.name(), how.timeout).await?;
        if progress.pods == 0 {
            output::note(&format!(
                "note: the selector of service \"{}\" matches no pod now; it answers as soon as one is Ready",
                service.name()
            ));
        }
    }
    for line in doors(service, session.client.server()) {
        output::note(&line);
    }
    Ok(())
}

/// Waits until every ready node has programmed the service with every pod that it selects, or there is none to wait for.
pub async fn await_progress(
    client: &Client,
    namespace: &str,
    name: &str,
    timeout: Duration,
) -> anyhow::Result<ServiceProgress> {
    let end = Instant::now() + timeout;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let slice = left.min(SLICE);
        // Whole seconds are asked for; the rest of the last one is cut off here.
        let seconds = slice.as_secs() + u64::from(slice.subsec_nanos() > 0);
        let path = format!(
            "/apis/minisvc.io/v1/namespaces/{namespace}/services/{name}/progress?timeoutSeconds={seconds}"
        );
        let asked = Instant::now();
        let answer = client.raw(reqwest::Method::GET, &path, None).await?;
        let progress: ServiceProgress = serde_json::from_value(answer)?;
        if progress.complete || progress.pods == 0 {
            return Ok(progress);
        }
        if asked.elapsed() >= left {
            bail!("service \"{name}\" is there, but after {timeout:?} these are late: {}", late(&progress));
        }
        tokio::time::sleep(PAUSE.saturating_sub(asked.elapsed())).await;
    }
}

/// Who is late.
fn late(progress: &ServiceProgress) -> String {
    let pods = progress.late_pods.iter().map(|p| format!("pod {p}"));
    let nodes = progress.late_nodes.iter().map(|n| format!("node {n} has not programmed it"));
    let mut all: Vec<String> = pods.chain(nodes).collect();
    if progress.ready_nodes == 0 {
        all.push("no node is Ready".into());
    }
    if all.is_empty() { "the server does not say who is late".into() } else { all.join("; ") }
}

/// How to reach a service.
fn doors(service: &Object, server: &str) -> Vec<String> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let node_ports: Vec<String> =
        ports.filter_map(|p| Some(format!("{}", p["nodePort"].as_u64().filter(|n| *n > 0)?))).collect();
    if node_ports.is_empty() {
        return Vec::new();
    }
    // A cluster of `up` has its API on the loopback, and every nodePort beside it.
    let here =
        ["https://127.0.0.1:", "https://localhost:", "https://[::1]:"].iter().any(|p| server.starts_with(p));
    let mut ports = node_ports.clone();
    ports.dedup();
    ports
        .iter()
        .map(|port| {
            if here {
                format!("reach it at 127.0.0.1:{port}, and at port {port} of every node")
            } else {
                format!("reach it at port {port} of every node")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::SERVICES;
    use serde_json::json;

    use super::*;

    #[test]
    fn who_is_late_is_named() {
        let progress = ServiceProgress {
            pods: 2,
            late_pods: vec!["hello-1: not Ready (Pending)".into()],
            late_nodes: vec!["node-2".into()],
            ready_nodes: 2,
            ..ServiceProgress::default()
        };
        assert_eq!(late(&progress), "pod hello-1: not Ready (Pending); node node-2 has not programmed it");
        let nobody = ServiceProgress { pods: 1, ..ServiceProgress::default() };
        assert_eq!(late(&nobody), "no node is Ready");
    }

    #[test]
    fn a_node_port_is_reached_here_only_in_a_cluster_of_up() {
        let mut service = Object::new(&SERVICES, None, "hello");
        service.spec_mut().insert(
            "ports".into(),
            json!([{"port": 80, "nodePort": 30080}, {"port": 80, "nodePort": 30080}]),
        );
        assert_eq!(
            doors(&service, "https://127.0.0.1:7443"),
            ["reach it at 127.0.0.1:30080, and at port 30080 of every node"]
        );
        assert_eq!(doors(&service, "https://192.168.1.5:7443"), ["reach it at port 30080 of every node"]);
        assert!(doors(&Object::new(&SERVICES, None, "x"), "https://127.0.0.1:7443").is_empty());
    }
}
