//! How far a service has come: its pods, and the kernels of the nodes.

use std::{collections::BTreeSet, sync::Arc};

use minisvc_proto::{NodeName, Object, Revision, report::ServiceProgress};
use serde_json::Value;

use crate::{
    conditions,
    controllers::{endpointslice, pod},
};

/// Judges a service. `since` is the revision of its last change that was no status-only write; `pods` are of its namespace,
/// `slices` those labelled with its name; `programmed` answers what a node has in its kernel.
pub fn judge(
    service: &Object,
    since: Revision,
    pods: &[Arc<Object>],
    slices: &[Arc<Object>],
    nodes: &[Arc<Object>],
    programmed: impl Fn(&NodeName) -> Option<(Revision, Revision)>,
) -> ServiceProgress {
    let selector = endpointslice::selector(service);
    let matches = |p: &&Arc<Object>| selector.as_ref().is_some_and(|s| s.matches(&p.labels()));
    let expected: Vec<_> =
        pods.iter().filter(matches).filter(|p| !pod::is_terminating(p) && !pod::is_ended(p)).collect();
    let ready: BTreeSet<&str> = slices
        .iter()
        .filter_map(|s| s.pointer("/endpoints")?.as_array())
        .flatten()
        .filter(|e| e.pointer("/conditions/ready").and_then(Value::as_bool) == Some(true))
        .filter_map(|e| e.pointer("/targetRef/uid")?.as_str())
        .collect();
    let late_pods: Vec<String> = expected
        .iter()
        .filter_map(|p| {
            let why = if !pod::is_ready(p) {
                format!("not Ready ({})", state(p))
            } else if ready.contains(p.uid()) {
                return None;
            } else {
                "Ready, but in no EndpointSlice (has it the service's target port?)".to_owned()
            };
            Some(format!("{}: {why}", p.name()))
        })
        .collect();

    let slices_at = slices.iter().filter_map(|s| s.revision()).max().unwrap_or_default();
    let alive: Vec<NodeName> = nodes
        .iter()
        .filter(|n| conditions::is_true(n, "Ready"))
        .filter_map(|n| n.name().parse().ok())
        .collect();
    let has = |n: &NodeName| programmed(n).is_some_and(|(s, e)| s >= since && e >= slices_at);
    let late_nodes: Vec<String> = alive.iter().filter(|n| !has(n)).map(ToString::to_string).collect();
    ServiceProgress {
        // Where no node is ready, nobody serves anything.
        complete: late_pods.is_empty() && late_nodes.is_empty() && !alive.is_empty(),
        pods: expected.len(),
        late_pods,
        late_nodes,
        ready_nodes: alive.len(),
    }
}

/// What a pod that is not Ready is at: why it waits, or its phase.
fn state(p: &Object) -> &str {
    let containers = p.pointer("/status/containerStatuses").and_then(Value::as_array);
    let waiting = containers.into_iter().flatten().find_map(|c| c.pointer("/state/waiting/reason")?.as_str());
    let unscheduled = || {
        let condition =
            conditions::get(p, "PodScheduled").filter(|c| c.get("status") == Some(&"False".into()))?;
        condition.get("message")?.as_str()
    };
    let lost = || conditions::get(p, "Ready")?.get("reason")?.as_str().filter(|r| *r == "NodeNotReady");
    waiting.or_else(unscheduled).or_else(lost).or_else(|| p.str_at("/status/phase")).unwrap_or("Pending")
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::{ENDPOINT_SLICES, NODES, PODS, SERVICES};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_is_complete_when_its_pods_are_ready_and_every_ready_node_has_it() {
        let mut service = Object::new(&SERVICES, Some("default"), "web");
        service.spec_mut().insert("selector".into(), json!({"app": "web"}));
        let mut p = Object::new(&PODS, Some("default"), "a");
        p.metadata_mut().insert("uid".into(), "u1".into());
        p.metadata_mut().insert("labels".into(), json!({"app": "web"}));
        p.status_mut().insert("conditions".into(), json!([{"type": "Ready", "status": "True"}]));
        let mut slice = Object::new(&ENDPOINT_SLICES, Some("default"), "web-0");
        slice.set_revision(Revision(9));
        let endpoint = json!({"conditions": {"ready": true}, "targetRef": {"uid": "u1"}});
        slice.0.insert("endpoints".into(), json!([endpoint]));
        let node = |name: &str, ready: &str| {
            let mut n = Object::new(&NODES, None, name);
            n.status_mut().insert("conditions".into(), json!([{"type": "Ready", "status": ready}]));
            Arc::new(n)
        };
        let nodes = [node("n1", "True"), node("n2", "Unknown")];
        let (pods, slices) = ([Arc::new(p)], [Arc::new(slice)]);
        for (has, with_slice, with_nodes, complete, late_pods, late_nodes) in [
            (Some((5, 9)), true, true, true, 0, 0),
            (Some((4, 9)), true, true, false, 0, 1),
            (Some((5, 8)), true, true, false, 0, 1),
            (None, true, true, false, 0, 1),
            (Some((5, 9)), false, true, false, 1, 0),
            (Some((5, 9)), true, false, false, 0, 0),
        ] {
            let slices = if with_slice { &slices[..] } else { &[] };
            let nodes = if with_nodes { &nodes[..] } else { &[] };
            let got = judge(&service, Revision(5), &pods, slices, nodes, |_| {
                has.map(|(s, e)| (Revision(s), Revision(e)))
            });
            assert_eq!(
                (got.complete, got.late_pods.len(), got.late_nodes.len(), got.pods),
                (complete, late_pods, late_nodes, 1),
                "{has:?} {with_slice} {with_nodes}"
            );
        }
    }

    #[test]
    fn a_late_pod_says_what_it_waits_for() {
        let mut service = Object::new(&SERVICES, Some("default"), "web");
        service.spec_mut().insert("selector".into(), json!({"app": "web"}));
        for (status, expected) in [
            (json!({}), "p: not Ready (Pending)"),
            (json!({"phase": "Running"}), "p: not Ready (Running)"),
            (
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0 nodes"}]}),
                "p: not Ready (0 nodes)",
            ),
            (
                json!({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}),
                "p: not Ready (CrashLoopBackOff)",
            ),
            (
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False", "reason": "NodeNotReady"}]}),
                "p: not Ready (NodeNotReady)",
            ),
            (
                json!({"conditions": [{"type": "Ready", "status": "True"}]}),
                "p: Ready, but in no EndpointSlice (has it the service's target port?)",
            ),
        ] {
            let mut p = Object::new(&PODS, Some("default"), "p");
            p.metadata_mut().insert("labels".into(), json!({"app": "web"}));
            p.0.insert("status".into(), status);
            let got = judge(&service, Revision(1), &[Arc::new(p)], &[], &[], |_| None);
            assert_eq!(got.late_pods, [expected]);
        }
    }
}
