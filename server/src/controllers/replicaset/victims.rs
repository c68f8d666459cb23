//! Which pods go first where there are too many. [pkg/controller, ActivePodsWithRanks]

use std::{cmp::Reverse, collections::HashMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use minisvc_proto::Object;
use serde_json::Value;

use super::super::pod;
use crate::conditions;

/// What a pod would like to cost its set; less goes first. [KEP-2255]
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The order in which pods go: what is least goes first. One that is ready and not yet available goes before one that is, whatever
/// it costs: a deployment counts upon that.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Worth {
    on_a_node: bool,
    phase: u8,
    ready: bool,
    available: bool,
    cost: i32,
    beside: Reverse<usize>,
    ready_since: Reverse<Timestamp>,
    restarts: Reverse<i64>,
    created: Reverse<String>,
    name: String,
}

/// Sorts pods, the first to go first. `related` are all that count where several stand on one node.
pub fn sort(pods: &mut [&Arc<Object>], related: &[Arc<Object>], min_ready: Duration, now: Timestamp) {
    let mut beside: HashMap<&str, usize> = HashMap::new();
    for node in
        related.iter().filter(|p| !pod::is_ended(p) && !pod::is_terminating(p)).filter_map(|p| pod::node(p))
    {
        *beside.entry(node).or_default() += 1;
    }
    let beside = |p: &Object| pod::node(p).and_then(|n| beside.get(n)).copied().unwrap_or(0);
    pods.sort_by_cached_key(|p| worth(p, beside(p), min_ready, now));
}

fn worth(p: &Object, beside: usize, min_ready: Duration, now: Timestamp) -> Worth {
    let since = conditions::get(p, "Ready").and_then(|c| c.get("lastTransitionTime")).and_then(Value::as_str);
    let since = since.filter(|_| pod::is_ready(p)).and_then(|t| t.parse().ok());
    let list = |field: &str| p.pointer(field).and_then(Value::as_array).into_iter().flatten();
    let restarts = list("/status/containerStatuses").chain(list("/status/initContainerStatuses"));
    Worth {
        on_a_node: pod::node(p).is_some(),
        phase: match p.str_at("/status/phase") {
            Some("Running") => 2,
            Some("Unknown") => 1,
            _ => 0,
        },
        ready: pod::is_ready(p),
        available: pod::available_in(p, min_ready, now).is_some_and(|left| left.is_zero()),
        cost: p.annotations().get(COST).and_then(|c| c.parse().ok()).unwrap_or(0),
        beside: Reverse(beside),
        // A time that nobody wrote is long ago.
        ready_since: Reverse(since.unwrap_or(Timestamp::MIN)),
        restarts: Reverse(restarts.filter_map(|s| s["restartCount"].as_i64()).max().unwrap_or(0)),
        created: Reverse(p.str_at("/metadata/creationTimestamp").unwrap_or("").to_owned()),
        name: p.name().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::PODS;
    use serde_json::json;

    use super::*;

    /// One that has been ready for an hour, on a node of its own.
    fn pod(name: &str) -> Object {
        let mut p = Object::new(&PODS, Some("default"), name);
        p.metadata_mut().insert("creationTimestamp".into(), "2026-01-01T00:00:00Z".into());
        p.spec_mut().insert("nodeName".into(), format!("node-of-{name}").into());
        p.status_mut().insert("phase".into(), "Running".into());
        ready(&mut p, "True", "2026-01-01T00:00:00Z");
        p
    }

    fn ready(p: &mut Object, status: &str, since: &str) {
        let condition = json!([{"type": "Ready", "status": status, "lastTransitionTime": since}]);
        p.status_mut().insert("conditions".into(), condition);
    }

    #[test]
    fn each_reason_counts_only_where_those_before_it_are_equal() {
        type Change = fn(&mut Object);
        // Each makes a pod less worth; a later one weighs less.
        let reasons: [(&str, Change); 9] = [
            ("unassigned", |p| drop(p.spec_mut().remove("nodeName"))),
            ("pending", |p| drop(p.status_mut().insert("phase".into(), "Pending".into()))),
            ("not ready", |p| ready(p, "False", "2026-01-01T00:00:00Z")),
            ("not yet available", |p| ready(p, "True", "2026-01-01T00:59:55Z")),
            ("cheap", |p| drop(p.metadata_mut().insert("annotations".into(), json!({COST: "-1"})))),
            ("doubled up", |p| drop(p.spec_mut().insert("nodeName".into(), "full".into()))),
            ("ready for shorter", |p| ready(p, "True", "2026-01-01T00:30:00Z")),
            ("restarted", |p| {
                drop(p.status_mut().insert("containerStatuses".into(), json!([{"restartCount": 3}])));
            }),
            ("newer", |p| {
                drop(p.metadata_mut().insert("creationTimestamp".into(), "2026-01-01T00:10:00Z".into()));
            }),
        ];
        let now = "2026-01-01T01:00:00Z".parse().unwrap();
        let full = |name: &str| {
            let mut p = pod(name);
            p.spec_mut().insert("nodeName".into(), "full".into());
            Arc::new(p)
        };
        let mut pods = vec![Arc::new(pod("a-whole"))];
        for (name, change) in &reasons {
            let mut p = pod(name);
            change(&mut p);
            pods.push(Arc::new(p));
        }
        let related: Vec<_> = pods.iter().cloned().chain([full("x"), full("y")]).collect();
        let mut order: Vec<_> = pods.iter().collect();
        sort(&mut order, &related, Duration::from_secs(10), now);
        let order: Vec<_> = order.iter().map(|p| p.name()).collect();
        let expected: Vec<_> = reasons.iter().map(|(name, _)| *name).chain(["a-whole"]).collect();
        assert_eq!(order, expected);
    }
}
