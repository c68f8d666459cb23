//! Which nodes a pod wants by their labels and names: nodeSelector and nodeAffinity.
//! [staging/src/k8s.io/component-helpers/scheduling/corev1/nodeaffinity]

use minisvc_proto::Object;
use serde_json::Value;

fn list<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or("")
}

/// Whether a value, which may be absent, is what a requirement asks for.
fn meets(requirement: &Value, have: Option<&str>) -> bool {
    let mut values = list(requirement, "values").filter_map(Value::as_str);
    match text(requirement, "operator") {
        "In" => have.is_some_and(|have| values.any(|v| v == have)),
        "NotIn" => have.is_none_or(|have| values.all(|v| v != have)),
        "Exists" => have.is_some(),
        "DoesNotExist" => have.is_none(),
        operator => {
            let number = |s: &str| s.parse::<i64>().ok();
            let (Some(have), Some(limit)) = (have.and_then(number), values.next().and_then(number)) else {
                return false;
            };
            (operator == "Gt" && have > limit) || (operator == "Lt" && have < limit)
        }
    }
}

/// A term that asks for nothing matches nothing.
fn term_matches(term: &Value, node: &Object) -> bool {
    let is_empty = |field: &str| list(term, field).next().is_none();
    if is_empty("matchExpressions") && is_empty("matchFields") {
        return false;
    }
    // `metadata.name` is the only field.
    list(term, "matchExpressions").all(|r| meets(r, node.label(text(r, "key"))))
        && list(term, "matchFields").all(|r| meets(r, Some(node.name())))
}

/// Whether the node is one that the pod may be on, by its nodeSelector and required affinity.
pub fn matches(pod: &Object, node: &Object) -> bool {
    let mut wanted = pod.pointer("/spec/nodeSelector").and_then(Value::as_object).into_iter().flatten();
    if !wanted.all(|(k, v)| node.label(k) == v.as_str()) {
        return false;
    }
    let required = pod.pointer("/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution");
    required.is_none_or(|r| r.is_null() || list(r, "nodeSelectorTerms").any(|t| term_matches(t, node)))
}

/// The weights of the preferred terms that the node matches, together.
pub fn preference(pod: &Object, node: &Object) -> i64 {
    let preferred =
        pod.pointer("/spec/affinity/nodeAffinity/preferredDuringSchedulingIgnoredDuringExecution");
    let terms = preferred.and_then(Value::as_array).into_iter().flatten();
    let matching = terms.filter(|t| t.get("preference").is_some_and(|p| term_matches(p, node)));
    matching.filter_map(|t| t.get("weight")?.as_i64()).sum()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_term_is_all_of_its_requirements_and_an_affinity_any_of_its_terms() {
        let node: Object = serde_json::from_value(
            json!({"metadata": {"name": "n1", "labels": {"disk": "ssd", "gen": "7"}}}),
        )
        .unwrap();
        let is = |key: &str, operator: &str, values: &[&str]| json!({"key": key, "operator": operator, "values": values});
        for (term, expected) in [
            (json!({}), false),
            (json!({"matchExpressions": [is("disk", "In", &["hdd", "ssd"])]}), true),
            (json!({"matchExpressions": [is("disk", "In", &["hdd"])]}), false),
            (json!({"matchExpressions": [is("disk", "NotIn", &["hdd"])]}), true),
            (json!({"matchExpressions": [is("none", "NotIn", &["hdd"])]}), true),
            (json!({"matchExpressions": [is("disk", "Exists", &[])]}), true),
            (json!({"matchExpressions": [is("disk", "DoesNotExist", &[])]}), false),
            (json!({"matchExpressions": [is("gen", "Gt", &["6"])]}), true),
            (json!({"matchExpressions": [is("gen", "Gt", &["7"])]}), false),
            (json!({"matchExpressions": [is("gen", "Lt", &["8"]), is("disk", "Exists", &[])]}), true),
            (json!({"matchExpressions": [is("disk", "Lt", &["8"])]}), false),
            (json!({"matchExpressions": [is("none", "Lt", &["8"])]}), false),
            (json!({"matchFields": [is("metadata.name", "In", &["n1"])]}), true),
            (json!({"matchFields": [is("metadata.name", "NotIn", &["n1"])]}), false),
            (
                json!({"matchExpressions": [is("gen", "Gt", &["6"])], "matchFields": [is("metadata.name", "In", &["n2"])]}),
                false,
            ),
        ] {
            let pod = |affinity: Value| {
                serde_json::from_value::<Object>(json!({"spec": {"affinity": {"nodeAffinity": affinity}}}))
                    .unwrap()
            };
            let required = "requiredDuringSchedulingIgnoredDuringExecution";
            let one = pod(json!({required: {"nodeSelectorTerms": [term]}}));
            assert_eq!(matches(&one, &node), expected, "{term}");
            let any = pod(
                json!({required: {"nodeSelectorTerms": [term, {"matchExpressions": [is("gen", "Exists", &[])]}]}}),
            );
            assert!(matches(&any, &node));
            let liked = pod(json!({"preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 5, "preference": term}, {"weight": 7, "preference": term}]}));
            assert_eq!(preference(&liked, &node), if expected { 12 } else { 0 }, "{term}");
            assert!(matches(&liked, &node));
        }
    }
}
