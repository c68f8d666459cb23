//! A pod's status, from what its containers do. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use minisvc_proto::Object;
use serde_json::{Map, Value, json};

use super::decide::{RestartPolicy, is_over};
use crate::runtime::{ContainerState, Exit};

/// All that the status depends on.
#[derive(Clone, Debug)]
pub struct Seen<'a> {
    /// The Pod.
    pub pod: &'a Object,
    /// The containers' names.
    pub names: &'a [String],
    /// What follows an end.
    pub restart: RestartPolicy,
    /// What the containers do, or did last.
    pub containers: &'a BTreeMap<String, ContainerState>,
    /// Which containers are ready to be used.
    pub ready: &'a BTreeMap<String, bool>,
    /// Why a container waits, other than for its next try: reason and message.
    pub waiting: &'a BTreeMap<String, (&'static str, String)>,
    /// The pod's addresses, while it has any; IPv4 first.
    pub ips: &'a [IpAddr],
    /// The node's addresses, IPv4 first.
    pub node_ips: &'a [IpAddr],
}

/// How an end is called.
fn reason(exit: &Exit) -> &'static str {
    match exit {
        Exit { not_started: Some(_), .. } => "StartError",
        Exit { code: 0, .. } => "Completed",
        _ => "Error",
    }
}

/// Seconds, as Kubernetes writes times.
pub fn time(millis: i64) -> String {
    let at = Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH);
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn terminated(exit: &Exit, id: &str) -> Value {
    let mut value = json!({
        "exitCode": exit.code,
        "reason": reason(exit),
        "startedAt": time(exit.started_at),
        "finishedAt": time(exit.finished_at),
        "containerID": id,
    });
    if let Some(signal) = exit.signal {
        value["signal"] = signal.into();
    }
    if let Some(message) = &exit.not_started {
        value["message"] = message.as_str().into();
    }
    value
}

fn container_status(seen: &Seen<'_>, name: &str) -> Value {
    let uid = seen.pod.uid();
    let id = |attempt: u32| format!("minisvc://{uid}/{name}/{attempt}");
    let state = seen.containers.get(name);
    let now;
    let mut last = json!({});
    let waiting = |reason: &str, message: Option<String>| match message {
        Some(message) => json!({"waiting": {"reason": reason, "message": message}}),
        None => json!({"waiting": {"reason": reason}}),
    };
    match state {
        Some(ContainerState { exit: None, started_at, attempt, previous }) => {
            now = json!({"running": {"startedAt": time(*started_at)}});
            if let Some(exit) = previous {
                last = json!({"terminated": terminated(exit, &id(attempt.saturating_sub(1)))});
            }
        }
        Some(ContainerState { exit: Some(exit), attempt, .. }) => {
            let end = json!({"terminated": terminated(exit, &id(*attempt))});
            if seen.restart.restarts(exit) && seen.pod.deletion_timestamp().is_none() {
                let why = exit.not_started.clone().unwrap_or_else(|| match exit.signal {
                    Some(signal) => format!("killed by signal {signal}"),
                    None => format!("exit code {}", exit.code),
                });
                now = if let Some((reason, message)) = seen.waiting.get(name) {
                    waiting(reason, Some(message.clone()))
                } else {
                    let message = format!("back-off before the next start of container {name}: {why}");
                    waiting("CrashLoopBackOff", Some(message))
                };
                last = end;
            } else {
                now = end;
            }
        }
        None => {
            let (reason, message) = match seen.waiting.get(name) {
                Some((reason, message)) => (*reason, Some(message.clone())),
                None => ("ContainerCreating", None),
            };
            now = waiting(reason, message);
        }
    }
    let image = seen.pod.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
    let image = image.filter(|c| c["name"] == name).find_map(|c| c["image"].as_str()).unwrap_or("");
    let running = state.is_some_and(ContainerState::is_running);
    let mut status = json!({
        "name": name,
        "image": image,
        "imageID": "",
        "restartCount": state.map_or(0, |s| s.attempt),
        "ready": running && seen.ready.get(name).copied().unwrap_or(false),
        "started": running,
        "state": now,
        "lastState": last,
    });
    if let Some(state) = state {
        status["containerID"] = id(state.attempt).into();
    }
    status
}

fn phase(seen: &Seen<'_>) -> &'static str {
    if is_over(seen.names, seen.restart, seen.containers) {
        let good = seen.containers.values().all(|c| c.exit.as_ref().is_some_and(|e| e.code == 0));
        return if good { "Succeeded" } else { "Failed" };
    }
    // Ended in the middle of a deletion: its object is about to go.
    if seen.names.iter().all(|n| seen.containers.contains_key(n)) { "Running" } else { "Pending" }
}

fn condition(kind: &str, is: bool, reason: &str, message: &str) -> Value {
    let mut value = json!({"type": kind, "status": if is { "True" } else { "False" }});
    if !is {
        value["reason"] = reason.into();
        value["message"] = message.into();
    }
    value
}

/// The status that should stand on the server, without the times of [`merge`].
pub fn render(seen: &Seen<'_>) -> Value {
    let statuses: Vec<Value> = seen.names.iter().map(|n| container_status(seen, n)).collect();
    let phase = phase(seen);
    let unready: Vec<&str> =
        statuses.iter().filter(|s| s["ready"] != true).filter_map(|s| s["name"].as_str()).collect();
    let ready = unready.is_empty() && phase == "Running";
    let (reason, message) = match phase {
        "Succeeded" => ("PodCompleted", String::new()),
        "Failed" => ("PodFailed", String::new()),
        _ => ("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))),
    };
    let mut status = json!({
        "phase": phase,
        "conditions": [
            condition("PodScheduled", true, "", ""),
            condition("Initialized", true, "", ""),
            condition("ContainersReady", ready, reason, &message),
            condition("Ready", ready, reason, &message),
        ],
        "hostIP": seen.node_ips.first().map(ToString::to_string),
        "hostIPs": list(seen.node_ips),
        "containerStatuses": statuses,
        "qosClass": qos_class(seen.pod),
    });
    if let Some(ip) = seen.ips.first() {
        status["podIP"] = ip.to_string().into();
        status["podIPs"] = list(seen.ips);
    }
    status
}

/// `podIPs` and `hostIPs`.
fn list(ips: &[IpAddr]) -> Value {
    ips.iter().map(|ip| json!({"ip": ip.to_string()})).collect()
}

/// Guaranteed, Burstable or BestEffort, by what the containers ask for.
fn qos_class(pod: &Object) -> &'static str {
    let containers = pod.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
    let (mut any, mut all) = (false, true);
    for container in containers {
        let part = |part: &str| {
            let of = |resource: &str| container.pointer(&format!("/resources/{part}/{resource}")).cloned();
            [of("cpu"), of("memory")]
        };
        let (requests, limits) = (part("requests"), part("limits"));
        any |= requests.iter().chain(&limits).any(Option::is_some);
        all &= limits.iter().all(Option::is_some)
            && requests.iter().zip(&limits).all(|(r, l)| r.is_none() || r == l);
    }
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// What to write so that the stored status says what it should; `None` if it does. Times of conditions that stay as they are
/// stay too, and so do conditions of others.
pub fn merge(stored: Option<&Value>, want: &Value, now: &str) -> Option<Value> {
    let old = |field: &str| stored.and_then(|s| s.get(field));
    let no_conditions = Vec::new();
    let old_conditions = old("conditions").and_then(Value::as_array).unwrap_or(&no_conditions);
    let wanted = want["conditions"].as_array().unwrap_or(&no_conditions);
    let mut conditions = Vec::new();
    for condition in wanted {
        let mut condition = condition.clone();
        let before = old_conditions.iter().find(|c| c["type"] == condition["type"]);
        let since = before.filter(|c| c["status"] == condition["status"]);
        condition["lastTransitionTime"] = since
            .map(|c| c["lastTransitionTime"].clone())
            .filter(Value::is_string)
            .unwrap_or_else(|| now.into());
        condition["lastProbeTime"] = Value::Null;
        conditions.push(condition);
    }
    let others = old_conditions.iter().filter(|c| !wanted.iter().any(|w| w["type"] == c["type"]));
    conditions.extend(others.cloned());
    let mut new: Map<String, Value> = want.as_object().cloned().unwrap_or_default();
    let same_conditions = bare(&conditions) == bare(old_conditions);
    new.insert(
        "conditions".into(),
        if same_conditions { old_conditions.clone().into() } else { conditions.into() },
    );
    new.insert(
        "startTime".into(),
        old("startTime").filter(|t| t.is_string()).cloned().unwrap_or_else(|| now.into()),
    );
    // A pod that has lost its address: an absent field would leave it in place.
    for field in ["podIP", "podIPs", "reason", "message"] {
        if !new.contains_key(field) && old(field).is_some() {
            new.insert(field.into(), Value::Null);
        }
    }
    let stands = |(field, value): (&String, &Value)| old(field).unwrap_or(&Value::Null) == value;
    (!new.iter().all(stands)).then_some(Value::Object(new))
}

/// Conditions without what says nothing.
fn bare(conditions: &[Value]) -> Vec<Value> {
    let mut bare = conditions.to_vec();
    for condition in &mut bare {
        if let Some(map) = condition.as_object_mut() {
            map.retain(|_, v| !v.is_null());
        }
    }
    bare.sort_by_key(|c| c["type"].to_string());
    bare
}

/// What a stored status says the containers did before: after a restart of the machine nothing else knows. Whatever ran then
/// was ended by the restart.
pub fn read_back(pod: &Object, now: i64) -> BTreeMap<String, ContainerState> {
    let statuses = pod.pointer("/status/containerStatuses").and_then(Value::as_array);
    let millis = |v: &Value, field: &str| {
        v[field].as_str().and_then(|t| t.parse::<Timestamp>().ok()).map(Timestamp::as_millisecond)
    };
    let exit = |v: &Value| Exit {
        code: v["exitCode"].as_i64().and_then(|c| i32::try_from(c).ok()).unwrap_or(137),
        signal: v["signal"].as_i64().and_then(|c| i32::try_from(c).ok()),
        not_started: (v["reason"] == "StartError").then(|| v["message"].as_str().unwrap_or("").to_owned()),
        started_at: millis(v, "startedAt").unwrap_or(now),
        finished_at: millis(v, "finishedAt").unwrap_or(now),
    };
    let mut out = BTreeMap::new();
    for status in statuses.into_iter().flatten() {
        let (Some(name), Some(_)) = (status["name"].as_str(), status["containerID"].as_str()) else {
            continue;
        };
        let attempt = status["restartCount"].as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        let (state, last) = (&status["state"], &status["lastState"]["terminated"]);
        let ended = if let Some(running) = state.get("running") {
            let started_at = millis(running, "startedAt").unwrap_or(now);
            Exit { code: 137, signal: Some(9), not_started: None, started_at, finished_at: now }
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

/// Which starts of containers the stored status calls ready. Nothing while the pod is not: then nobody counts on it.
pub fn ready_starts(pod: &Object) -> BTreeMap<String, u32> {
    let list = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let ready = list("/status/conditions").any(|c| c["type"] == "Ready" && c["status"] == "True");
    let starts = list("/status/containerStatuses").filter(|s| ready && s["ready"] == true);
    starts
        .filter_map(|s| Some((s["name"].as_str()?.to_owned(), s["restartCount"].as_u64()?.try_into().ok()?)))
        .collect()
}

/// Whether what [`read_back`] found at `now` ran when the machine ended: it did not fail.
pub fn ended_with_machine(state: &ContainerState, now: i64) -> bool {
    state.exit.as_ref().is_some_and(|e| e.finished_at == now)
}

#[cfg(test)]
mod tests;
