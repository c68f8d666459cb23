//! Waiting until a service works everywhere, so that the next command does.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::bail;
use minisvc_proto::{
    Object, ObjectKey,
    client::{Client, ListParams},
    path::Target,
    report::ServiceProgress,
    resource::{DEPLOYMENTS, REPLICA_SETS, SERVICES},
};
use serde_json::Value;

use super::{Session, doors};
use crate::{args::ServiceWait, output};

/// One request waits so long at most: well below the client's limit for an answer.
const SLICE: Duration = Duration::from_secs(20);
/// A server that answers at once and says "not yet" is not asked more often than this.
const PAUSE: Duration = Duration::from_millis(50);

/// Waits for a service that was just made (unless it should not), and says on stderr where it answers.
pub async fn wait(session: &Session, service: &Object, how: ServiceWait) -> anyhow::Result<()> {
    if !how.wait {
        doors::tell(service, &[], &[]);
        return Ok(());
    }
    let namespace = service.namespace().unwrap_or(&session.namespace);
    let end = Instant::now() + how.timeout;
    let left = || end.saturating_duration_since(Instant::now());
    let progress = await_progress(&session.client, namespace, service, how.timeout).await?;
    if progress.pods == 0 {
        output::note(&nobody(service));
    }
    let balanced;
    let mut service = service;
    // Under policy Local the addresses are those of the nodes with pods.
    let placed = service.str_at("/spec/externalTrafficPolicy") != Some("Local") || progress.pods > 0;
    if service.str_at("/spec/type") == Some("LoadBalancer") && placed {
        if let Some(class) = service.str_at("/spec/loadBalancerClass") {
            output::note(&format!("note: its addresses come from the load balancer {class}"));
        } else {
            balanced = await_addresses(&session.client, namespace, service.name(), how.timeout, left).await?;
            service = &balanced;
            // The nodes answer there when they have seen the addresses.
            await_progress(&session.client, namespace, service, left()).await?;
        }
    }
    if !doors::is_here(session.client.server()) {
        doors::tell(service, &[], &[]);
        return Ok(());
    }
    let (here, taken) = doors::await_relay(&session.client, service, how.timeout).await;
    doors::tell(service, &here, &taken);
    Ok(())
}

/// Why nobody answers yet.
fn nobody(service: &Object) -> String {
    let name = service.name();
    if super::pods::selector(service).is_some() {
        format!(
            "note: the selector of service \"{name}\" matches no pod now; it answers as soon as one is Ready"
        )
    } else {
        format!(
            "note: service \"{name}\" selects no pods; its back-ends are the Endpoints \"{name}\", or EndpointSlices labelled \
             kubernetes.io/service-name={name}"
        )
    }
}

/// Waits until a load balancer has addresses, or cannot have any.
async fn await_addresses(
    client: &Client,
    namespace: &str,
    name: &str,
    timeout: Duration,
    left: impl Fn() -> Duration,
) -> anyhow::Result<Object> {
    let target = Target::object(&ObjectKey::namespaced(&SERVICES, namespace, name));
    loop {
        let service = client.get(&target).await?;
        if service.pointer("/status/loadBalancer/ingress/0").is_some() {
            return Ok(service);
        }
        if let Some(why) = refusal(&service) {
            bail!("service \"{name}\" is there, but has no address: {why}");
        }
        if left().is_zero() {
            bail!("service \"{name}\" is there, but after {timeout:?} it has no address: no node can answer");
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Why a load balancer has none of its ports.
fn refusal(service: &Object) -> Option<&str> {
    let conditions = service.pointer("/status/conditions").and_then(Value::as_array)?;
    let refused = |c: &&Value| c["type"] == "PortsAllocated" && c["status"] == "False";
    conditions.iter().find(refused)?["message"].as_str()
}

/// Waits until every ready node has programmed the service with every pod that it selects, or there is none to wait for. Pods that
/// a deployment or a replica set is about to make are waited for too: whoever types two commands in a row means them.
pub async fn await_progress(
    client: &Client,
    namespace: &str,
    service: &Object,
    timeout: Duration,
) -> anyhow::Result<ServiceProgress> {
    let name = service.name();
    let end = Instant::now() + timeout;
    loop {
        let unborn = unborn(client, namespace, service).await?;
        let left = end.saturating_duration_since(Instant::now());
        // A look at first: where there are no pods there is nothing to wait for.
        let look = progress(client, namespace, name, Duration::ZERO).await?;
        if unborn.is_empty() && (look.complete || look.pods == 0) {
            return Ok(look);
        }
        let asked = Instant::now();
        let mut stand = look;
        if unborn.is_empty() {
            stand = progress(client, namespace, name, left.min(SLICE)).await?;
            if stand.complete {
                return Ok(stand);
            }
        }
        if asked.elapsed() >= left {
            let late: Vec<String> = unborn.into_iter().chain(late(&stand)).collect();
            bail!("service \"{name}\" is there, but after {timeout:?} these are late: {}", late.join("; "));
        }
        tokio::time::sleep(PAUSE.saturating_sub(asked.elapsed()).min(left)).await;
    }
}

/// What the server knows, as soon as it is complete, or after `slice`.
async fn progress(
    client: &Client,
    namespace: &str,
    name: &str,
    slice: Duration,
) -> anyhow::Result<ServiceProgress> {
    // Whole seconds are asked for.
    let seconds = slice.as_secs() + u64::from(slice.subsec_nanos() > 0);
    let path = format!(
        "/apis/minisvc.io/v1/namespaces/{namespace}/services/{name}/progress?timeoutSeconds={seconds}"
    );
    Ok(serde_json::from_value(client.raw(reqwest::Method::GET, &path, None).await?)?)
}

/// Deployments and replica sets whose pods the service selects, and which have not made all of them yet.
async fn unborn(client: &Client, namespace: &str, service: &Object) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for resource in [&DEPLOYMENTS, &REPLICA_SETS] {
        let target = Target::collection(resource, Some(namespace));
        let (_, objects) = client.list(&target, &ListParams::default()).await?;
        found.extend(objects.iter().filter_map(|workload| missing(service, workload)));
    }
    Ok(found)
}

/// `deployment hello has made 1 of 4 pods`, for one whose pods the service selects.
fn missing(service: &Object, workload: &Object) -> Option<String> {
    let labels = workload.pointer("/spec/template/metadata/labels")?;
    let labels: BTreeMap<String, String> = serde_json::from_value(labels.clone()).ok()?;
    if !super::pods::selector(service)?.matches(&labels) || workload.deletion_timestamp().is_some() {
        return None;
    }
    let number = |at: &str| workload.pointer(at).and_then(Value::as_i64);
    let wanted = number("/spec/replicas").unwrap_or(1);
    let made = number("/status/replicas").unwrap_or(0);
    let seen = number("/status/observedGeneration").unwrap_or(0) >= workload.generation();
    (made < wanted || (!seen && wanted > 0)).then(|| {
        format!("{} {} has made {made} of {wanted} pods", workload.kind().to_lowercase(), workload.name())
    })
}

/// Who is late.
fn late(progress: &ServiceProgress) -> Vec<String> {
    let pods = progress.late_pods.iter().map(|p| format!("pod {p}"));
    let nodes = progress.late_nodes.iter().map(|n| format!("node {n} has not programmed it"));
    let mut all: Vec<String> = pods.chain(nodes).collect();
    if progress.ready_nodes == 0 {
        all.push("no node is Ready".into());
    }
    all
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_does_not_answer_is_told_why() {
        let mut service = Object::new(&SERVICES, None, "db");
        let bare = nobody(&service);
        assert!(bare.contains("selects no pods") && bare.contains("kubernetes.io/service-name=db"), "{bare}");
        service.spec_mut().insert("selector".into(), json!({"app": "db"}));
        assert!(nobody(&service).contains("matches no pod now"));
        assert_eq!(refusal(&service), None);
        let condition =
            |status: &str| json!([{"type": "PortsAllocated", "status": status, "message": "taken"}]);
        service.status_mut().insert("conditions".into(), condition("True"));
        assert_eq!(refusal(&service), None);
        service.status_mut().insert("conditions".into(), condition("False"));
        assert_eq!(refusal(&service), Some("taken"));
    }

    #[test]
    fn who_is_late_is_named() {
        let progress = ServiceProgress {
            pods: 2,
            late_pods: vec!["hello-1: not Ready (Pending)".into()],
            late_nodes: vec!["node-2".into()],
            ready_nodes: 2,
            ..ServiceProgress::default()
        };
        assert_eq!(
            late(&progress),
            ["pod hello-1: not Ready (Pending)", "node node-2 has not programmed it"]
        );
        let nobody = ServiceProgress { pods: 1, ..ServiceProgress::default() };
        assert_eq!(late(&nobody), ["no node is Ready"]);
    }

    #[test]
    fn pods_that_are_about_to_be_made_are_waited_for() {
        let mut service = Object::new(&SERVICES, None, "hello");
        service.spec_mut().insert("selector".into(), json!({"app": "hello"}));
        let workload = |labels: serde_json::Value, made: u32, seen: u32| -> Object {
            serde_json::from_value(
                json!({"kind": "Deployment", "metadata": {"name": "hello", "generation": 2},
                "spec": {"replicas": 4, "template": {"metadata": {"labels": labels}}},
                "status": {"replicas": made, "observedGeneration": seen}}),
            )
            .unwrap()
        };
        let ours = json!({"app": "hello", "x": "y"});
        let says = |made| Some(format!("deployment hello has made {made} of 4 pods"));
        assert_eq!(missing(&service, &workload(ours.clone(), 1, 2)), says(1));
        assert_eq!(missing(&service, &workload(ours.clone(), 4, 1)), says(4));
        assert_eq!(missing(&service, &workload(ours, 4, 2)), None);
        assert_eq!(missing(&service, &workload(json!({"app": "other"}), 0, 0)), None);
    }
}
