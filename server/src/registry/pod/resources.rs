//! What containers ask for and may have: defaults and rules. [pkg/apis/core/validation, ValidateResourceRequirements]

use minisvc_proto::{Cause, Quantity};
use serde_json::{Map, Value, json};

use super::{Field, set_default};

/// What a node enforces and the scheduler counts.
const NAMES: [&str; 2] = ["cpu", "memory"];

/// A container that says what it may have, and not what it asks for, asks for that.
pub fn set_defaults(container: &mut Map<String, Value>) {
    let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut) else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    if limits.is_empty() {
        return;
    }
    set_default(resources, "requests", json!({}));
    if let Some(requests) = resources.get_mut("requests").and_then(Value::as_object_mut) {
        for (name, limit) in limits {
            set_default(requests, &name, limit);
        }
    }
}

/// Every fault of a container's resources.
pub fn validate(container: &Field<'_>, faults: &mut Vec<Cause>) {
    let resources = container.child("resources");
    let (limits, requests) = (resources.child("limits"), resources.child("requests"));
    let allowed = amounts(&limits, faults);
    for (name, asked) in amounts(&requests, faults) {
        if let Some((_, limit)) = allowed.iter().find(|(n, limit)| *n == name && asked > *limit) {
            let rule = format!("must be less than or equal to {name} limit of {limit}");
            faults.push(Cause::invalid(&requests.path, json!(asked.to_string()), &rule));
        }
    }
}

/// The amounts that are right.
fn amounts<'a>(list: &Field<'a>, faults: &mut Vec<Cause>) -> Vec<(&'a str, Quantity)> {
    let mut right = Vec::new();
    for (name, value) in list.entries() {
        let path = format!("{}[{name}]", list.path);
        if !NAMES.contains(&name) {
            faults.push(Cause::not_supported(&path, name, &NAMES));
            continue;
        }
        match Quantity::from_json(value) {
            Err(e) => faults.push(Cause::invalid(&path, value.clone(), &e.to_string())),
            Ok(q) if q.is_negative() => {
                faults.push(Cause::invalid(&path, value.clone(), "must be greater than or equal to 0"));
            }
            Ok(q) => right.push((name, q)),
        }
    }
    right
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{container, faults, pod};

    #[test]
    fn limits_are_asked_for_unless_it_says_otherwise() {
        let made = pod(container(json!({"resources": {
            "limits": {"cpu": 1, "memory": "64Mi"}, "requests": {"cpu": "100m"}}})));
        let requests = made.pointer("/spec/containers/0/resources/requests");
        assert_eq!(requests, Some(&json!({"cpu": "100m", "memory": "64Mi"})));
        assert_eq!(super::super::validate(None, &made), []);
    }

    #[test]
    fn each_fault_names_its_field_and_the_rule() {
        for (resources, expected) in [
            (
                json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1500m"}}),
                "requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1500m",
            ),
            (
                json!({"requests": {"memory": "-1"}}),
                "requests[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (json!({"requests": {"memory": "64MB"}}), "requests[memory]: Invalid value: \"64MB\": unable to"),
            (json!({"requests": {"example.com/gpu": 1}}), "requests[example.com/gpu]: Unsupported value"),
        ] {
            let found = faults(container(json!({"resources": resources})));
            let expected = format!("spec.containers[0].resources.{expected}");
            assert!(found.len() == 1 && found[0].starts_with(&expected), "{expected}\n{found:#?}");
        }
    }
}
