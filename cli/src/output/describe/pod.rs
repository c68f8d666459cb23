//! Pods, and the pod templates of workloads.

use jiff::Timestamp;
use minisvc_proto::Object;
use serde_json::Value;

use super::{Page, conditions, controlled_by, duration, labels, pairs, scalar, time};

pub fn describe(page: &mut Page, pod: &Object, now: Timestamp) {
    let node = match (pod.str_at("/spec/nodeName"), pod.str_at("/status/hostIP")) {
        (Some(node), Some(ip)) => format!("{node}/{ip}"),
        (Some(node), None) => node.to_owned(),
        (None, _) => "<none>".into(),
    };
    page.field("Node", &node);
    if pod.pointer("/status/startTime").is_some() {
        page.field("Start Time", &time(pod.pointer("/status/startTime")));
    }
    labels(page, pod);
    match pod.deletion_timestamp() {
        Some(at) => {
            let grace = scalar(pod.pointer("/metadata/deletionGracePeriodSeconds"));
            page.field("Status", &format!("Terminating (by {at}; grace period {grace} s)"));
        }
        None => page.field("Status", pod.str_at("/status/phase").unwrap_or("Pending")),
    }
    for (key, at) in [("Reason", "/status/reason"), ("Message", "/status/message")] {
        if let Some(text) = pod.str_at(at).filter(|t| !t.is_empty()) {
            page.field(key, text);
        }
    }
    page.field("IP", &scalar(pod.pointer("/status/podIP")));
    controlled_by(page, pod);
    for (heading, spec, status) in [
        ("Init Containers", "/spec/initContainers", "/status/initContainerStatuses"),
        ("Containers", "/spec/containers", "/status/containerStatuses"),
    ] {
        let containers = pod.pointer(spec).and_then(Value::as_array).filter(|all| !all.is_empty());
        let statuses = pod.pointer(status).and_then(Value::as_array);
        if containers.is_some() || heading == "Containers" {
            page.heading(heading);
        }
        for container in containers.into_iter().flatten() {
            let status = statuses.and_then(|s| s.iter().find(|s| s["name"] == container["name"]));
            self::container(page, 2, container, status.map(|s| (s, now)));
        }
    }
    conditions(page, pod);
    volumes(page, pod);
    if let Some(nodes) = pod.pointer("/spec/nodeSelector") {
        page.field("Node-Selectors", &pairs(nodes));
    }
}

/// A container of a pod, with its status at a moment, or of a template.
pub fn container(page: &mut Page, indent: usize, container: &Value, status: Option<(&Value, Timestamp)>) {
    page.indented_heading(indent, container["name"].as_str().unwrap_or("?"));
    let inside = indent + 2;
    if let Some(id) = status.and_then(|(s, _)| s["containerID"].as_str()).filter(|s| !s.is_empty()) {
        page.indented_field(inside, "Container ID", id);
    }
    page.indented_field(
        inside,
        "Image",
        container["image"].as_str().filter(|i| !i.is_empty()).unwrap_or("host"),
    );
    let ports: Vec<String> = list(container, "ports")
        .map(|p| format!("{}/{}", scalar(p.get("containerPort")), p["protocol"].as_str().unwrap_or("TCP")))
        .collect();
    page.indented_field(inside, if ports.len() > 1 { "Ports" } else { "Port" }, &or_none(ports.join(", ")));
    for (key, field) in [("Command", "command"), ("Args", "args")] {
        let words: Vec<String> = list(container, field).map(|w| scalar(Some(w)).replace('\n', " ")).collect();
        if !words.is_empty() {
            page.indented_heading(inside, key);
            for word in words {
                page.line(inside + 2, &word);
            }
        }
    }
    if container["restartPolicy"].is_string() {
        page.indented_field(inside, "Restart Policy", &scalar(container.get("restartPolicy")));
    }
    if let Some((status, now)) = status {
        state(page, inside, "State", &status["state"]);
        if let Some(at) = next_start(&status["state"]) {
            let left = at.duration_since(now).as_secs();
            let text = if left > 0 { format!("in {}", duration(left)) } else { "now".to_owned() };
            page.indented_field(inside + 2, "Next Start", &text);
        }
        if status["lastState"].as_object().is_some_and(|s| !s.is_empty()) {
            state(page, inside, "Last State", &status["lastState"]);
        }
        page.indented_field(inside, "Ready", if status["ready"] == true { "True" } else { "False" });
        page.indented_field(inside, "Restart Count", &scalar(status.get("restartCount")));
    }
    for (key, field) in [("Limits", "limits"), ("Requests", "requests")] {
        let amounts = container["resources"][field].as_object().filter(|all| !all.is_empty());
        if let Some(amounts) = amounts {
            page.indented_heading(inside, key);
            for (resource, amount) in amounts {
                page.indented_field(inside + 2, resource, &scalar(Some(amount)));
            }
        }
    }
    for (key, field) in
        [("Liveness", "livenessProbe"), ("Readiness", "readinessProbe"), ("Startup", "startupProbe")]
    {
        if container[field].is_object() {
            page.indented_field(inside, key, &probe(&container[field]));
        }
    }
    for (key, field) in [("Post Start", "postStart"), ("Pre Stop", "preStop")] {
        if container["lifecycle"][field].is_object() {
            page.indented_field(inside, key, &handler(&container["lifecycle"][field]));
        }
    }
    let environment: Vec<String> = list(container, "env").map(variable).collect();
    if environment.is_empty() {
        page.indented_field(inside, "Environment", "<none>");
    } else {
        page.indented_heading(inside, "Environment");
        for line in environment {
            page.line(inside + 2, &line);
        }
    }
    let mounts: Vec<String> = list(container, "volumeMounts").map(mount).collect();
    if !mounts.is_empty() {
        page.indented_heading(inside, "Mounts");
        for line in mounts {
            page.line(inside + 2, &line);
        }
    }
}

fn variable(e: &Value) -> String {
    let name = scalar(e.get("name"));
    let from = &e["valueFrom"];
    match (from["fieldRef"]["fieldPath"].as_str(), from["resourceFieldRef"]["resource"].as_str()) {
        (Some(path), _) => format!("{name}: (v1:{path})"),
        (None, Some(resource)) => format!("{name}: ({resource})"),
        (None, None) => format!("{name}: {}", e["value"].as_str().unwrap_or_default()),
    }
}

fn mount(m: &Value) -> String {
    let access = if m["readOnly"] == true { "ro" } else { "rw" };
    let part = m["subPath"].as_str().filter(|p| !p.is_empty());
    let part = part.map(|path| format!(",path=\"{path}\"")).unwrap_or_default();
    format!("{} from {} ({access}{part})", scalar(m.get("mountPath")), scalar(m.get("name")))
}

fn volumes(page: &mut Page, pod: &Object) {
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array).filter(|all| !all.is_empty());
    let Some(volumes) = volumes else { return };
    page.heading("Volumes");
    for volume in volumes {
        page.indented_heading(2, &scalar(volume.get("name")));
        let source = volume.as_object().and_then(|v| v.iter().find(|(field, _)| *field != "name"));
        let Some((kind, fields)) = source else { continue };
        page.indented_field(4, "Type", kind);
        for (field, value) in fields.as_object().into_iter().flatten() {
            page.indented_field(4, field, &scalar(Some(value)));
        }
    }
}

/// When a container that ended is started again, which the agent's message says.
fn next_start(state: &Value) -> Option<Timestamp> {
    let message = state.pointer("/waiting/message")?.as_str()?;
    let (_, rest) = message.split_once("next start at ")?;
    rest.split(';').next()?.parse().ok()
}

fn state(page: &mut Page, indent: usize, key: &str, state: &Value) {
    let inside = indent + 2;
    if state["running"].is_object() {
        page.indented_field(indent, key, "Running");
        page.indented_field(inside, "Started", &time(state.pointer("/running/startedAt")));
    } else if let Some(ended) = state["terminated"].as_object() {
        page.indented_field(indent, key, "Terminated");
        for (key, field) in [("Reason", "reason"), ("Message", "message")] {
            if let Some(text) = ended.get(field).and_then(Value::as_str).filter(|t| !t.is_empty()) {
                page.indented_field(inside, key, text);
            }
        }
        page.indented_field(inside, "Exit Code", &scalar(ended.get("exitCode")));
        page.indented_field(inside, "Started", &time(ended.get("startedAt")));
        page.indented_field(inside, "Finished", &time(ended.get("finishedAt")));
    } else {
        page.indented_field(indent, key, "Waiting");
        for (key, field) in [("Reason", "reason"), ("Message", "message")] {
            if let Some(text) = state.pointer(&format!("/waiting/{field}")).and_then(Value::as_str) {
                page.indented_field(inside, key, text);
            }
        }
    }
}

/// What a probe or a hook asks.
fn handler(handler: &Value) -> String {
    let port = |kind: &str| scalar(handler[kind].get("port"));
    if let Some(get) = handler["httpGet"].as_object() {
        let text = |field: &str| get.get(field).and_then(Value::as_str);
        let (scheme, host) = (text("scheme").unwrap_or("http").to_lowercase(), text("host").unwrap_or(""));
        format!("http-get {scheme}://{host}:{}{}", port("httpGet"), text("path").unwrap_or("/"))
    } else if handler["tcpSocket"].is_object() {
        format!("tcp-socket :{}", port("tcpSocket"))
    } else if handler["grpc"].is_object() {
        let service = handler["grpc"]["service"].as_str().unwrap_or("");
        format!("grpc <pod>:{} {service}", port("grpc")).trim_end().to_owned()
    } else if handler["exec"].is_object() {
        let words: Vec<String> = list(&handler["exec"], "command").map(|w| scalar(Some(w))).collect();
        format!("exec [{}]", words.join(" ").replace('\n', " "))
    } else if handler["sleep"].is_object() {
        format!("sleep {}s", scalar(handler["sleep"].get("seconds")))
    } else {
        "unknown".to_owned()
    }
}

fn probe(probe: &Value) -> String {
    let what = handler(probe);
    let number = |field: &str, default: u64| probe[field].as_u64().unwrap_or(default);
    format!(
        "{what} delay={}s timeout={}s period={}s #success={} #failure={}",
        number("initialDelaySeconds", 0),
        number("timeoutSeconds", 1),
        number("periodSeconds", 10),
        number("successThreshold", 1),
        number("failureThreshold", 3)
    )
}

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".into() } else { text }
}
