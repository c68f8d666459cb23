//! What a stored status says: all that is known after a restart of the agent or the machine. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use minisvc_proto::Object;
use serde_json::Value;

use crate::runtime::{ContainerState, Exit};

/// What a stored status says the containers did before: after a restart of the machine nothing else knows. Whatever ran then
/// was ended by the restart.
pub fn read_back(pod: &Object, now: i64) -> BTreeMap<String, ContainerState> {
    let millis = |v: &Value, field: &str| {
        v[field].as_str().and_then(|t| t.parse::<Timestamp>().ok()).map(Timestamp::as_millisecond)
    };
    let exit = |v: &Value| Exit {
        code: v["exitCode"].as_i64().and_then(|c| i32::try_from(c).ok()).unwrap_or(137),
        signal: v["signal"].as_i64().and_then(|c| i32::try_from(c).ok()),
        not_started: (v["reason"] == "StartError").then(|| v["message"].as_str().unwrap_or("").to_owned()),
        message: v["message"].as_str().filter(|_| v["reason"] != "StartError").map(str::to_owned),
        oom_killed: v["reason"] == "OOMKilled",
        started_at: millis(v, "startedAt").unwrap_or(now),
        finished_at: millis(v, "finishedAt").unwrap_or(now),
    };
    let mut out = BTreeMap::new();
    for status in statuses(pod) {
        let (Some(name), Some(_)) = (status["name"].as_str(), status["containerID"].as_str()) else {
            continue;
        };
        let attempt = status["restartCount"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let (state, last) = (&status["state"], &status["lastState"]["terminated"]);
        let ended = if let Some(running) = state.get("running") {
            Exit::killed(millis(running, "startedAt").unwrap_or(now), now)
        } else if let Some(ended) = state.get("terminated") {
            exit(ended)
        } else if last.is_object() {
            exit(last)
        } else {
            continue;
        };
        let started_at = ended.started_at;
        out.insert(
            name.to_owned(),
            ContainerState { attempt, started_at, exit: Some(ended), previous: None },
        );
    }
    out
}

/// The stored statuses of all containers.
fn statuses(pod: &Object) -> impl Iterator<Item = &Value> {
    let list = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    list("/status/initContainerStatuses").chain(list("/status/containerStatuses"))
}

fn starts<'a>(statuses: impl Iterator<Item = &'a Value>) -> BTreeMap<String, u32> {
    statuses
        .filter_map(|s| Some((s["name"].as_str()?.to_owned(), s["restartCount"].as_u64()?.try_into().ok()?)))
        .collect()
}

/// Which starts of containers the stored status calls started.
pub fn started_starts(pod: &Object) -> BTreeMap<String, u32> {
    starts(statuses(pod).filter(|s| s["started"] == true))
}

/// Which starts of containers the stored status calls ready. Nothing while the pod is not: then nobody counts on it.
pub fn ready_starts(pod: &Object) -> BTreeMap<String, u32> {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    let ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
    starts(statuses(pod).filter(|s| ready && s["ready"] == true))
}

/// Whether what [`read_back`] found at `now` ran when the machine ended: it did not fail.
pub fn ended_with_machine(state: &ContainerState, now: i64) -> bool {
    state.exit.as_ref().is_some_and(|e| e.finished_at == now)
}
