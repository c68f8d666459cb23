//! Keeps a pod's status on the server as it should be.

use std::{sync::Arc, time::Duration};

use minisvc_proto::{
    Object, ObjectKey,
    client::{Client, PatchKind},
    path::Target,
    resource::PODS,
};
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};

use super::status::{merge, time};
use crate::runtime::now_millis;

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// Between writes of one and the same status: somebody else writes too, and must not be answered without end.
const AGAIN: Duration = Duration::from_secs(1);

/// Writes whenever the wanted status changes, and when the stored one is no longer it. Ends when the wanted one does.
pub async fn run(
    client: Client,
    mut want: watch::Receiver<Option<Value>>,
    mut stored: watch::Receiver<Option<Arc<Object>>>,
) {
    let mut newest: Option<Arc<Object>> = None;
    let mut retry = FIRST_RETRY;
    // What was written last, and when.
    let mut last: Option<(Value, Instant)> = None;
    loop {
        // The answer to our own write may be ahead of what was watched.
        if let Some(object) = stored.borrow_and_update().clone()
            && newest.as_ref().is_none_or(|n| n.revision() <= object.revision())
        {
            newest = Some(object);
        }
        let wanted = want.borrow_and_update().clone();
        let mut wait = None;
        if let (Some(wanted), Some(object)) = (wanted, &newest)
            && let Some(status) = merge(object.0.get("status"), &wanted, &time(now_millis()))
        {
            let repeated = last.as_ref().filter(|(w, _)| *w == wanted).map(|(_, at)| *at + AGAIN);
            match repeated.filter(|at| *at > Instant::now()) {
                Some(at) => wait = Some(at),
                None => match write(&client, object, status).await {
                    Ok(answer) => {
                        newest = Some(Arc::new(answer));
                        last = Some((wanted, Instant::now()));
                        retry = FIRST_RETRY;
                        continue;
                    }
                    Err(error) if error.is_not_found() => {}
                    Err(error) if error.api().is_some_and(|e| e.code < 500) => {
                        tracing::error!(%error, pod = object.name(), "the pod's status was refused");
                        last = Some((wanted, Instant::now()));
                    }
                    Err(error) => {
                        tracing::debug!(%error, pod = object.name(), "the pod's status waits");
                        wait = Some(Instant::now() + retry);
                        retry = (retry * 2).min(LAST_RETRY);
                    }
                },
            }
        }
        let sleep = async {
            match wait {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = want.changed() => if changed.is_err() { return },
            changed = stored.changed() => if changed.is_err() { return },
            () = sleep => {}
        }
    }
}

async fn write(
    client: &Client,
    object: &Object,
    status: Value,
) -> Result<Object, minisvc_proto::client::ClientError> {
    let key = ObjectKey::namespaced(&PODS, object.namespace().unwrap_or("default"), object.name());
    // The uid keeps us from writing to another pod of the same name.
    let patch = json!({"metadata": {"uid": object.uid()}, "status": status});
    client.patch(&Target::object(&key).with_subresource("status"), PatchKind::Merge, &patch).await
}
