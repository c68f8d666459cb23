//! Whether a pod that ends gets no new connections any more.

use std::sync::Arc;

use minisvc_proto::{NodeName, Object, Revision, report::PodWithdrawal};
use serde_json::Value;

use crate::conditions;

/// The revision of EndpointSlices that says of a pod everywhere that it ends; `None` while a slice does not say so yet. `slices` are
/// those of its namespace.
pub fn withdrawn_at(uid: &str, slices: &[Arc<Object>]) -> Option<Revision> {
    let mut at = Revision::default();
    for slice in slices {
        let endpoints = slice.pointer("/endpoints").and_then(Value::as_array).into_iter().flatten();
        for endpoint in endpoints.filter(|e| e.pointer("/targetRef/uid").and_then(Value::as_str) == Some(uid))
        {
            if endpoint.pointer("/conditions/terminating") != Some(&Value::Bool(true)) {
                return None;
            }
            at = at.max(slice.revision().unwrap_or_default());
        }
    }
    Some(at)
}

/// Judges a pod whose end EndpointSlices say at this revision. `programmed` answers what a node has in its kernel; nodes that are not
/// ready forward for nobody who could be told.
pub fn judge(
    needed: Option<Revision>,
    nodes: &[Arc<Object>],
    programmed: impl Fn(&NodeName) -> Option<(Revision, Revision)>,
) -> PodWithdrawal {
    let Some(needed) = needed else { return PodWithdrawal::default() };
    let ready =
        nodes.iter().filter(|n| conditions::is_true(n, "Ready")).filter_map(|n| n.name().parse().ok());
    let has = |node: &NodeName| programmed(node).is_some_and(|(_, slices)| slices >= needed);
    let late_nodes: Vec<String> = ready.filter(|n| !has(n)).map(|n| n.to_string()).collect();
    PodWithdrawal { complete: late_nodes.is_empty(), late_nodes }
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::{ENDPOINT_SLICES, NODES};
    use serde_json::json;

    use super::*;

    fn slice(revision: u64, endpoints: &[(&str, bool)]) -> Arc<Object> {
        let mut slice = Object::new(&ENDPOINT_SLICES, Some("default"), &format!("s{revision}"));
        slice.set_revision(Revision(revision));
        let endpoints: Value = endpoints
            .iter()
            .map(|(uid, ends)| json!({"targetRef": {"uid": uid}, "conditions": {"terminating": ends}}))
            .collect();
        slice.0.insert("endpoints".into(), endpoints);
        Arc::new(slice)
    }

    #[test]
    fn every_slice_that_names_the_pod_must_say_that_it_ends() {
        let at = |slices: &[Arc<Object>]| withdrawn_at("u", slices).map(|r| r.0);
        assert_eq!(at(&[]), Some(0));
        assert_eq!(at(&[slice(9, &[("other", false)])]), Some(0));
        assert_eq!(at(&[slice(9, &[("u", false)])]), None);
        assert_eq!(at(&[slice(5, &[("u", true)]), slice(9, &[("u", false)])]), None);
        assert_eq!(at(&[slice(5, &[("other", false), ("u", true)]), slice(9, &[("other", false)])]), Some(5));
        assert_eq!(at(&[slice(5, &[("u", true)]), slice(7, &[("u", true)])]), Some(7));
    }

    #[test]
    fn every_ready_node_must_have_programmed_it() {
        let node = |name: &str, ready: &str| {
            let mut n = Object::new(&NODES, None, name);
            n.status_mut().insert("conditions".into(), json!([{"type": "Ready", "status": ready}]));
            Arc::new(n)
        };
        let nodes = [node("n1", "True"), node("n2", "True"), node("n3", "Unknown")];
        let judge = |needed: Option<u64>, n1, n2| {
            let has = |node: &NodeName| match node.as_str() {
                "n1" => Some((Revision(0), Revision(n1))),
                "n2" => Some((Revision(0), Revision(n2))),
                _ => None,
            };
            let state = judge(needed.map(Revision), &nodes, has);
            (state.complete, state.late_nodes.join(","))
        };
        for (needed, n1, n2, complete, late) in [
            (None, 9, 9, false, ""),
            (Some(5), 5, 6, true, ""),
            (Some(5), 5, 4, false, "n2"),
            (Some(5), 0, 0, false, "n1,n2"),
        ] {
            assert_eq!(judge(needed, n1, n2), (complete, late.to_owned()), "{needed:?} {n1} {n2}");
        }
    }
}
