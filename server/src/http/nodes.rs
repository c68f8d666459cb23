//! What nodes report, and how far that brings a service.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{extract::Request, response::Response};
use minisvc_proto::{
    ApiError, NodeName, ObjectKey,
    report::{NodeReport, ReportAnswer, ServiceProgress},
    resource::{ENDPOINT_SLICES, NODES, PODS, SERVICES},
};
use tokio::time::{sleep, sleep_until};

use super::{Edge, answer, body, query::Query};
use crate::progress::{service::judge, withdrawal};

/// How long a progress request waits that names no time, and at most.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
const MAX_WAIT: Duration = Duration::from_mins(10);
/// Judging costs at most one part in this many of a request's time, so that many who wait in a busy cluster stay cheap.
const SHARE: u32 = 10;
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// Takes a report. A node that is not registered is told so, and nothing of it is kept.
pub async fn report(edge: &Edge, node: &str, request: Request) -> Result<Response, ApiError> {
    let name: NodeName =
        node.parse().map_err(|e| ApiError::bad_request(format!("{node:?} is no name of a node: {e}")))?;
    let report: NodeReport = body::json(request).await?;
    let registered = edge.registry.get(&ObjectKey::cluster(&NODES, node)).is_ok();
    if registered {
        edge.progress.record(&name, report, Instant::now());
    }
    Ok(answer::json(&ReportAnswer { registered }))
}

/// Answers when the service is complete, or with what stands when the time is over.
pub async fn progress(
    edge: &Arc<Edge>,
    namespace: &str,
    name: &str,
    query: &Query,
) -> Result<Response, ApiError> {
    let key = ObjectKey::namespaced(&SERVICES, namespace, name);
    let judge = || judged(edge, &key).map(|state| (state.complete, state));
    wait(edge, query, judge).await.map(|state| answer::json(&state))
}

/// Answers when no new connections are led to the pod any more, or with what stands when the time is over. A pod that is gone gets
/// none.
pub async fn withdrawal(edge: &Arc<Edge>, pod: &ObjectKey, query: &Query) -> Result<Response, ApiError> {
    let uid = edge.registry.get(pod)?.uid().to_owned();
    // Other pods change the same slices: what the nodes need of this one is known when it is first seen, and stays.
    let mut needed = None;
    let judge = || {
        if needed.is_none() {
            let (_, slices) = edge.registry.list(&ENDPOINT_SLICES, pod.namespace.as_deref());
            needed = withdrawal::withdrawn_at(&uid, &slices);
        }
        let (_, nodes) = edge.registry.list(&NODES, None);
        let state = withdrawal::judge(needed, &nodes, |node| edge.progress.programmed(node));
        Ok((state.complete, state))
    };
    wait(edge, query, judge).await.map(|state| answer::json(&state))
}

/// Judges whenever something has changed, until it is complete or the time that the query names is over.
async fn wait<T>(
    edge: &Edge,
    query: &Query,
    mut judge: impl FnMut() -> Result<(bool, T), ApiError>,
) -> Result<T, ApiError> {
    let wait = query.number("timeoutSeconds")?.map_or(DEFAULT_WAIT, Duration::from_secs).min(MAX_WAIT);
    let end = tokio::time::Instant::now() + wait;
    let (mut reports, mut revisions) = (edge.progress.subscribe(), edge.registry.revisions());
    loop {
        // Marked as seen before they are read, so that no change slips between.
        reports.borrow_and_update();
        revisions.borrow_and_update();
        let before = Instant::now();
        let (complete, state) = judge()?;
        if complete {
            return Ok(state);
        }
        let pause = (before.elapsed() * SHARE).min(MAX_PAUSE);
        let changed = async {
            sleep(pause).await;
            tokio::select! { _ = reports.changed() => {}, _ = revisions.changed() => {} }
        };
        tokio::select! {
            () = changed => {}
            () = edge.shutdown.cancelled() => return Ok(state),
            () = sleep_until(end) => return judge().map(|(_, state)| state),
        }
    }
}

fn judged(edge: &Edge, key: &ObjectKey) -> Result<ServiceProgress, ApiError> {
    let registry = &edge.registry;
    let service = registry.get(key)?;
    let namespace = key.namespace.as_deref();
    let (_, pods) = registry.list(&PODS, namespace);
    let (_, mut slices) = registry.list(&ENDPOINT_SLICES, namespace);
    slices.retain(|s| s.str_at("/metadata/labels/kubernetes.io~1service-name") == Some(key.name.as_str()));
    let (_, nodes) = registry.list(&NODES, None);
    // The whole object's revision: a change of the status alone makes the nodes speak once more, which takes a moment.
    let since = service.revision().unwrap_or_default();
    Ok(judge(&service, since, &pods, &slices, &nodes, |node| edge.progress.programmed(node)))
}
