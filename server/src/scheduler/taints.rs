//! Taints of nodes, and the pods that tolerate them. [plugins/tainttoleration, plugins/nodeunschedulable]

use minisvc_proto::Object;
use serde_json::{Value, json};

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

/// `Toleration.ToleratesTaint` of k8s.io/component-helpers: an empty key with Exists tolerates all, an empty effect every effect.
pub fn tolerates(t: &Value, taint: &Value) -> bool {
    let (effect, key) = (text(t, "effect"), text(t, "key"));
    (effect.is_empty() || effect == text(taint, "effect"))
        && (key == text(taint, "key") || (key.is_empty() && text(t, "operator") == "Exists"))
        && match text(t, "operator") {
            "" | "Equal" => text(t, "value") == text(taint, "value"),
            operator => operator == "Exists",
        }
}

fn is_tolerated(pod: &Object, taint: &Value) -> bool {
    let mut tolerations = pod.pointer("/spec/tolerations").and_then(Value::as_array).into_iter().flatten();
    tolerations.any(|t| tolerates(t, taint))
}

fn of(node: &Object) -> impl Iterator<Item = &Value> {
    node.pointer("/spec/taints").and_then(Value::as_array).into_iter().flatten()
}

/// The first taint that keeps the pod off the node.
pub fn untolerated<'a>(pod: &Object, node: &'a Object) -> Option<&'a Value> {
    let keeps_out = |t: &&Value| matches!(text(t, "effect"), "NoSchedule" | "NoExecute");
    of(node).filter(keeps_out).find(|t| !is_tolerated(pod, t))
}

/// `{key: value}`, as the reason names it.
pub fn shown(taint: &Value) -> String {
    format!("{{{}: {}}}", text(taint, "key"), text(taint, "value"))
}

/// How many taints ask the pod to go elsewhere if it can.
pub fn discouraging(pod: &Object, node: &Object) -> i64 {
    let count = of(node).filter(|t| text(t, "effect") == "PreferNoSchedule" && !is_tolerated(pod, t)).count();
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Whether the node was cordoned, and the pod does not tolerate that.
pub fn is_cordoned(pod: &Object, node: &Object) -> bool {
    let taint = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"});
    node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) && !is_tolerated(pod, &taint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_toleration_names_the_taint_or_all() {
        let taint = json!({"key": "x", "value": "y", "effect": "NoSchedule"});
        let node: Object =
            serde_json::from_value(json!({"spec": {"taints": [taint], "unschedulable": true}})).unwrap();
        for (toleration, tolerates, cordoned) in [
            (json!({"operator": "Exists"}), true, false),
            (json!({"key": "x", "value": "y"}), true, true),
            (json!({"key": "x", "operator": "Exists", "effect": "NoSchedule"}), true, true),
            (json!({"key": "x", "value": "z"}), false, true),
            (json!({"key": "x", "value": "y", "effect": "NoExecute"}), false, true),
            (json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}), false, false),
        ] {
            let pod: Object = serde_json::from_value(json!({"spec": {"tolerations": [toleration]}})).unwrap();
            assert_eq!(untolerated(&pod, &node).is_none(), tolerates, "{toleration}");
            assert_eq!(is_cordoned(&pod, &node), cordoned, "{toleration}");
        }
        assert_eq!(shown(&taint), "{x: y}");
    }
}
