//! What a pod asks of its node: nodeSelector and nodeAffinity; and its priority.
//! [pkg/apis/core/validation/validation.go, ValidateNodeSelector, validateAffinity]

use minisvc_proto::{
    Cause,
    selector::{is_label_key, is_label_value},
};

use super::Field;

/// The faults of nodeSelector and nodeAffinity.
pub fn node_selector(spec: &Field<'_>, faults: &mut Vec<Cause>) {
    let selector = spec.child("nodeSelector");
    for (key, value) in selector.entries() {
        if !is_label_key(key) || !value.as_str().is_some_and(is_label_value) {
            faults.push(selector.invalid(&format!("{key}: {value} is no label of a node")));
        }
    }
    let affinity = spec.child("affinity").child("nodeAffinity");
    let required = affinity.child("requiredDuringSchedulingIgnoredDuringExecution");
    let terms = required.child("nodeSelectorTerms");
    if required.value.is_some() && terms.items().next().is_none() {
        faults.push(terms.required("must have at least one node selector term"));
    }
    for one in terms.items() {
        term(&one, faults);
    }
    for preferred in affinity.child("preferredDuringSchedulingIgnoredDuringExecution").items() {
        let weight = preferred.child("weight");
        if !weight.number().is_some_and(|w| (1..=100).contains(&w)) {
            faults.push(weight.invalid("must be in the range 1-100"));
        }
        term(&preferred.child("preference"), faults);
    }
}

fn term(term: &Field<'_>, faults: &mut Vec<Cause>) {
    for requirement in term.child("matchExpressions").items() {
        let [key, operator, values] = ["key", "operator", "values"].map(|f| requirement.child(f));
        if !is_label_key(key.text()) {
            faults.push(key.invalid("must be the key of a label"));
        }
        let count = values.items().count();
        match operator.text() {
            "In" | "NotIn" if count == 0 => {
                faults.push(values.required("must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if count > 0 => {
                faults.push(
                    values.forbidden("may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
                );
            }
            "Gt" | "Lt" if count != 1 => {
                faults
                    .push(values.required("must be specified single value when `operator` is 'Lt' or 'Gt'"));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => faults.push(operator.invalid("not a valid selector operator")),
        }
    }
    for requirement in term.child("matchFields").items() {
        let [key, operator, values] = ["key", "operator", "values"].map(|f| requirement.child(f));
        if key.text() != "metadata.name" {
            faults.push(key.invalid("not a valid field selector key"));
        }
        if !["In", "NotIn"].contains(&operator.text()) {
            faults.push(operator.invalid("not a valid selector operator"));
        } else if values.items().count() != 1 {
            faults.push(values.required(
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ));
        }
    }
}

/// The classes that every cluster has. [pkg/apis/scheduling/v1/helpers.go]
const CLASSES: [(&str, i64); 2] =
    [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];
/// The highest priority that a pod may name itself.
const HIGHEST: i64 = 1_000_000_000;

/// The priority that a class stands for.
pub fn class_priority(class: &str) -> Option<i64> {
    CLASSES.iter().find(|(name, _)| *name == class).map(|(_, priority)| *priority)
}

/// The faults of priority and priorityClassName. [plugin/pkg/admission/priority]
pub fn priority(spec: &Field<'_>, faults: &mut Vec<Cause>) {
    let (class, priority) = (spec.child("priorityClassName"), spec.child("priority"));
    let wanted = class_priority(class.text());
    if class.is_set() && wanted.is_none() {
        faults.push(class.invalid(&format!("no PriorityClass with name {} was found", class.text())));
    }
    match (wanted, priority.number()) {
        (Some(wanted), Some(has)) if has != wanted => {
            faults.push(priority.invalid(&format!("the class {} stands for {wanted}", class.text())));
        }
        (None, Some(has)) if has > HIGHEST => {
            faults.push(priority.invalid(&format!("must be less than or equal to {HIGHEST}")));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{container, faults, pod};

    #[test]
    fn each_fault_names_its_field_and_the_rule() {
        let with = |field: &str, value: Value| {
            let mut spec = container(json!({}));
            spec[field] = value;
            spec
        };
        let affinity = |affinity: Value| with("affinity", json!({"nodeAffinity": affinity}));
        let required = |term: Value| {
            affinity(json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}))
        };
        let is = |key: &str, operator: &str, values: Value| json!({"key": key, "operator": operator, "values": values});
        let at =
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
        for (spec, expected) in [
            (with("priorityClassName", json!("system-node-critical")), String::new()),
            (
                with("priorityClassName", json!("gold")),
                "spec.priorityClassName: Invalid value: \"gold\": no PriorityClass with name gold was found".into(),
            ),
            (with("priority", json!(1_000_000_001)), "spec.priority: Invalid value: 1000000001: must be less".into()),
            (required(json!({"matchExpressions": [is("a", "In", json!(["b"]))]})), String::new()),
            (required(json!({"matchFields": [is("metadata.name", "In", json!(["n1"]))]})), String::new()),
            (
                affinity(json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}})),
                format!("{at}: Required value: must have at least one"),
            ),
            (
                required(json!({"matchExpressions": [is("a", "In", json!([]))]})),
                format!("{at}[0].matchExpressions[0].values: Required value: must be specified when"),
            ),
            (
                required(json!({"matchExpressions": [is("a", "Exists", json!(["b"]))]})),
                format!("{at}[0].matchExpressions[0].values: Forbidden: may not be specified"),
            ),
            (
                required(json!({"matchExpressions": [is("a", "Gt", json!(["1", "2"]))]})),
                format!("{at}[0].matchExpressions[0].values: Required value: must be specified single"),
            ),
            (
                required(json!({"matchExpressions": [is("a", "Like", json!([]))]})),
                format!("{at}[0].matchExpressions[0].operator: Invalid value: \"Like\""),
            ),
            (
                required(json!({"matchFields": [is("spec.x", "In", json!(["b"]))]})),
                format!("{at}[0].matchFields[0].key: Invalid value: \"spec.x\": not a valid field"),
            ),
            (
                affinity(json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 101, "preference": {}}]})),
                "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101"
                    .into(),
            ),
        ] {
            let found = faults(spec.clone());
            let fits = if expected.is_empty() { found.is_empty() } else { found.len() == 1 && found[0].starts_with(&expected) };
            assert!(fits, "{spec}\n{found:#?}");
        }
        let made = pod(with("priorityClassName", json!("system-node-critical")));
        assert_eq!(made.pointer("/spec/priority"), Some(&json!(2_000_001_000)));
        assert_eq!(pod(container(json!({}))).pointer("/spec/priority"), None);
    }
}
