//! `describe`: an object and what belongs to it as a page for people, in kubectl's sections.

mod layout;
mod network;
mod node;
mod pod;
mod workload;

use jiff::Timestamp;
use minisvc_proto::{
    Object,
    report::ServiceProgress,
    resource::{DEPLOYMENTS, ENDPOINT_SLICES, ENDPOINTS, NAMESPACES, NODES, PODS, REPLICA_SETS, SERVICES},
};
use serde_json::Value;

use self::layout::Page;

/// What belongs to an object.
#[derive(Debug, Default)]
pub struct Related {
    /// The pods that it owns, selects or runs.
    pub pods: Vec<Object>,
    /// The EndpointSlices of a service.
    pub slices: Vec<Object>,
    /// The ReplicaSets of a deployment.
    pub replica_sets: Vec<Object>,
    /// What the server knows about a service's progress.
    pub progress: Option<ServiceProgress>,
    /// Events about it.
    pub events: Vec<Object>,
}

/// The pod template of a workload, as its page shows it.
pub fn template(workload: &Object) -> String {
    let mut page = Page::default();
    workload::template(&mut page, workload);
    page.finish()
}

/// The page, as it reads at a moment.
pub fn describe(object: &Object, related: &Related, now: Timestamp) -> String {
    let mut page = Page::default();
    page.field("Name", object.name());
    if let Some(namespace) = object.namespace() {
        page.field("Namespace", namespace);
    }
    match object.resource() {
        Some(r) if *r == PODS => pod::describe(&mut page, object, now),
        Some(r) if *r == NODES => node::describe(&mut page, object, related, now),
        Some(r) if *r == SERVICES => network::service(&mut page, object, related),
        Some(r) if *r == ENDPOINT_SLICES => network::slice(&mut page, object),
        Some(r) if *r == ENDPOINTS => network::endpoints_object(&mut page, object),
        Some(r) if *r == DEPLOYMENTS => workload::deployment(&mut page, object, related),
        Some(r) if *r == REPLICA_SETS => workload::replica_set(&mut page, object, related),
        Some(r) if *r == NAMESPACES => {
            labels(&mut page, object);
            page.field("Status", object.str_at("/status/phase").unwrap_or("Active"));
        }
        _ => {
            labels(&mut page, object);
            page.text(&super::to_yaml(&Value::Object(object.0.clone())));
        }
    }
    events(&mut page, &related.events, now);
    page.finish()
}

fn labels(page: &mut Page, object: &Object) {
    page.field("Labels", &pairs(&Value::from_iter(object.labels())));
    page.field("Annotations", &pairs_with(&Value::from_iter(object.annotations()), ": "));
}

/// One `k=v` a line.
fn pairs(map: &Value) -> String {
    pairs_with(map, "=")
}

fn pairs_with(map: &Value, between: &str) -> String {
    let pairs: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}{between}{}", scalar(Some(v)).replace('\n', " ")))
        .collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join("\n") }
}

/// A selector on one line: `a=b,c=d`.
fn selector(map: Option<&Value>) -> String {
    map.map_or_else(|| "<none>".into(), |m| pairs(m).replace('\n', ","))
}

/// A value on one line.
fn scalar(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "<none>".into(),
        Some(Value::String(s)) if s.is_empty() => "<none>".into(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    }
}

/// `Wed, 25 Nov 2026 07:15:03 +0000`.
fn time(value: Option<&Value>) -> String {
    let Some(text) = value.and_then(Value::as_str) else { return "<unset>".into() };
    match text.parse::<Timestamp>() {
        Ok(at) => at.strftime("%a, %d %b %Y %H:%M:%S +0000").to_string(),
        Err(_) => text.to_owned(),
    }
}

/// How long ago, as kubectl shortens it.
fn age(value: Option<&Value>, now: Timestamp) -> String {
    let at = value.and_then(Value::as_str).and_then(|t| t.parse::<Timestamp>().ok());
    at.map_or_else(|| "<unknown>".into(), |at| duration(now.duration_since(at).as_secs()))
}

/// apimachinery's `HumanDuration`.
fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let two = |a: i64, unit: &str, b: i64, small: &str| {
        if b == 0 { format!("{a}{unit}") } else { format!("{a}{unit}{b}{small}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if hours < 3 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () => two(days / 365, "y", days % 365, "d"),
    }
}

/// `Controlled By`, where somebody does.
fn controlled_by(page: &mut Page, object: &Object) {
    if let Some(owner) = object.controller() {
        page.field("Controlled By", &format!("{}/{}", owner.kind, owner.name));
    }
}

/// Types and states, with the reasons of those that are not as they should be.
fn conditions(page: &mut Page, object: &Object) {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let Some(conditions) = conditions.filter(|c| !c.is_empty()) else { return };
    let with_reason = conditions.iter().any(|c| c["reason"].as_str().is_some_and(|r| !r.is_empty()));
    page.heading("Conditions");
    let mut rows = Vec::new();
    for c in conditions {
        let mut row = vec![scalar(c.get("type")), scalar(c.get("status"))];
        if with_reason {
            row.push(c["reason"].as_str().unwrap_or_default().to_owned());
            row.push(c["message"].as_str().unwrap_or_default().to_owned());
        }
        rows.push(row);
    }
    let head = if with_reason { &["Type", "Status", "Reason", "Message"][..] } else { &["Type", "Status"] };
    page.table(2, head, &rows);
}

fn events(page: &mut Page, events: &[Object], now: Timestamp) {
    if events.is_empty() {
        page.field("Events", "<none>");
        return;
    }
    let last = |e: &Object| {
        ["/lastTimestamp", "/eventTime", "/firstTimestamp", "/metadata/creationTimestamp"]
            .iter()
            .find_map(|p| e.pointer(p).filter(|v| v.is_string()).cloned())
    };
    let mut events: Vec<&Object> = events.iter().collect();
    // Within a second, in the order in which the server heard of them.
    events.sort_by_cached_key(|e| (last(e).and_then(|v| v.as_str().map(str::to_owned)), e.revision()));
    page.heading("Events");
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|e| {
            let mut when = age(last(e).as_ref(), now);
            let count = e.pointer("/count").and_then(Value::as_u64).unwrap_or(1);
            if count > 1 {
                when = format!("{when} (x{count} over {})", age(e.pointer("/firstTimestamp"), now));
            }
            let from = e.str_at("/source/component").or(e.str_at("/reportingComponent")).unwrap_or_default();
            let message = e.str_at("/message").unwrap_or_default().trim();
            [
                e.str_at("/type").unwrap_or_default(),
                e.str_at("/reason").unwrap_or_default(),
                &when,
                from,
                message,
            ]
            .map(str::to_owned)
            .to_vec()
        })
        .collect();
    page.underlined_table(2, &["Type", "Reason", "Age", "From", "Message"], &rows);
}

#[cfg(test)]
mod tests;
