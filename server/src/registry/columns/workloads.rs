//! Pods, Deployments and ReplicaSets.

use jiff::Timestamp;
use minisvc_proto::{Object, selector::LabelSelector};
use serde_json::Value;

use super::{NONE, Printer, age, condition, items, number_at, or_none, text_at};

pub const POD: Printer = Printer {
    columns: &[
        ("Name", "string", 0),
        ("Ready", "string", 0),
        ("Status", "string", 0),
        ("Restarts", "string", 0),
        ("Age", "string", 0),
        ("IP", "string", 1),
        ("Node", "string", 1),
        ("Nominated Node", "string", 1),
        ("Readiness Gates", "string", 1),
    ],
    cells: pod,
};

fn pod(o: &Object, now: Timestamp) -> Vec<Value> {
    let sidecars = items(o, "/spec/initContainers").filter(|c| c["restartPolicy"] == "Always").count();
    let containers = items(o, "/spec/containers").count() + sidecars;
    let is_running = |s: &&Value| s["ready"] == true && !s["state"]["running"].is_null();
    let running = items(o, "/status/containerStatuses").filter(is_running).count();
    let ready = running + items(o, "/status/initContainerStatuses").filter(is_running).count();
    let ip = o.str_at("/status/podIPs/0/ip").or_else(|| o.str_at("/status/podIP")).unwrap_or("");
    vec![
        o.name().into(),
        format!("{ready}/{containers}").into(),
        pod_status(o, running > 0).into(),
        restarts(o, now).into(),
        age::of(o, now).into(),
        or_none(ip.to_owned()),
        text_at(o, "/spec/nodeName"),
        text_at(o, "/status/nominatedNodeName"),
        NONE.into(),
    ]
}

/// Whether this init container stays beside the others.
fn is_sidecar(o: &Object, name: &Value) -> bool {
    items(o, "/spec/initContainers").any(|c| c["name"] == *name && c["restartPolicy"] == "Always")
}

/// A container that has ended without a reason.
fn ended_how(ended: &Value) -> String {
    match ended["signal"].as_i64().unwrap_or(0) {
        0 => format!("ExitCode:{}", ended["exitCode"].as_i64().unwrap_or(0)),
        signal => format!("Signal:{signal}"),
    }
}

/// The word of the first init container that holds up the others. [kubectl's printPod]
fn init_status(o: &Object) -> Option<String> {
    let named = |v: &Value| v["reason"].as_str().filter(|r| !r.is_empty()).map(str::to_owned);
    for (i, status) in items(o, "/status/initContainerStatuses").enumerate() {
        let (waiting, ended) = (&status["state"]["waiting"], &status["state"]["terminated"]);
        if ended.is_object() && ended["exitCode"].as_i64().unwrap_or(0) == 0
            || status["started"] == true && is_sidecar(o, &status["name"])
        {
            continue;
        }
        let word = if ended.is_object() {
            named(ended).unwrap_or_else(|| ended_how(ended))
        } else {
            let count = || format!("{i}/{}", items(o, "/spec/initContainers").count());
            named(waiting).filter(|r| r != "PodInitializing").unwrap_or_else(count)
        };
        return Some(format!("Init:{word}"));
    }
    None
}

/// Whether the pod is still about its init containers.
fn is_initializing(o: &Object) -> bool {
    condition(o, "Initialized") != Some("True") && init_status(o).is_some()
}

/// One word for how a pod is: its phase, unless a container says more.
fn pod_status(o: &Object, any_running: bool) -> String {
    let phase = o.str_at("/status/phase").unwrap_or("Pending");
    let mut word = o.str_at("/status/reason").filter(|r| !r.is_empty()).unwrap_or(phase).to_owned();
    let why_not = items(o, "/status/conditions").find(|c| c["type"] == "PodScheduled");
    if why_not.is_some_and(|c| c["reason"] == "SchedulingGated") {
        word = "SchedulingGated".into();
    }
    if let Some(init) = init_status(o) {
        word = init;
    }
    // From the last to the first: the first container has the last word.
    let states = items(o, "/status/containerStatuses").rev().map(|s| &s["state"]);
    for state in states.filter(|_| !is_initializing(o)) {
        let (waiting, ended) = (&state["waiting"], &state["terminated"]);
        if let Some(reason) = waiting["reason"].as_str().filter(|r| !r.is_empty()) {
            reason.clone_into(&mut word);
        } else if let Some(reason) = ended["reason"].as_str().filter(|r| !r.is_empty()) {
            reason.clone_into(&mut word);
        } else if ended.is_object() {
            word = ended_how(ended);
        }
    }
    if word == "Completed" && any_running {
        word = if condition(o, "Ready") == Some("True") { "Running" } else { "NotReady" }.into();
    }
    if o.deletion_timestamp().is_some() {
        if o.str_at("/status/reason") == Some("NodeLost") {
            return "Unknown".into();
        }
        if !matches!(phase, "Succeeded" | "Failed") {
            return "Terminating".into();
        }
    }
    word
}

/// `0`, `3 (2m ago)`: of the init containers while they are at work, then of the others and of sidecars.
fn restarts(o: &Object, now: Timestamp) -> String {
    let initializing = is_initializing(o);
    let init =
        items(o, "/status/initContainerStatuses").filter(|s| initializing || is_sidecar(o, &s["name"]));
    let main = items(o, "/status/containerStatuses").filter(|_| !initializing);
    let counted: Vec<&Value> = init.chain(main).collect();
    let count: i64 = counted.iter().map(|s| s["restartCount"].as_i64().unwrap_or(0)).sum();
    let last = counted.iter().filter_map(|s| s["lastState"]["terminated"]["finishedAt"].as_str()).max();
    match last {
        Some(_) if count > 0 => format!("{count} ({} ago)", age::since(last, now)),
        _ => count.to_string(),
    }
}

pub const DEPLOYMENT: Printer = Printer {
    columns: &[
        ("Name", "string", 0),
        ("Ready", "string", 0),
        ("Up-to-date", "integer", 0),
        ("Available", "integer", 0),
        ("Age", "string", 0),
        ("Containers", "string", 1),
        ("Images", "string", 1),
        ("Selector", "string", 1),
    ],
    cells: |o, now| {
        let ready = format!("{}/{}", number_at(o, "/status/readyReplicas"), number_at(o, "/spec/replicas"));
        let mut cells = vec![
            o.name().into(),
            ready.into(),
            number_at(o, "/status/updatedReplicas").into(),
            number_at(o, "/status/availableReplicas").into(),
            age::of(o, now).into(),
        ];
        cells.extend(template(o));
        cells
    },
};

pub const REPLICA_SET: Printer = Printer {
    columns: &[
        ("Name", "string", 0),
        ("Desired", "integer", 0),
        ("Current", "integer", 0),
        ("Ready", "integer", 0),
        ("Age", "string", 0),
        ("Containers", "string", 1),
        ("Images", "string", 1),
        ("Selector", "string", 1),
    ],
    cells: |o, now| {
        let mut cells = vec![
            o.name().into(),
            number_at(o, "/spec/replicas").into(),
            number_at(o, "/status/replicas").into(),
            number_at(o, "/status/readyReplicas").into(),
            age::of(o, now).into(),
        ];
        cells.extend(template(o));
        cells
    },
};

/// Containers, images and selector.
fn template(o: &Object) -> [Value; 3] {
    let all = |field: &str| {
        let texts = items(o, "/spec/template/spec/containers").filter_map(|c| c[field].as_str());
        or_none(texts.collect::<Vec<_>>().join(","))
    };
    let selector = o.pointer("/spec/selector").and_then(|s| LabelSelector::from_object(s).ok());
    [all("name"), all("image"), or_none(selector.unwrap_or_default().to_string())]
}
