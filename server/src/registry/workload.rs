//! Deployment and ReplicaSet: defaults and rules, those of the pod template included.
//! [pkg/apis/apps/v1/defaults.go, pkg/apis/apps/validation/validation.go]

use std::collections::BTreeMap;

use minisvc_proto::{Cause, Object, selector::LabelSelector};
use serde_json::{Map, Value, json};

use super::{
    field::Field,
    is_unset, meta,
    pod::{self, set_default},
};

const UNNAMED: &str = "must be an integer or a percentage (e.g '5%')";

/// Fills what the user left out.
pub fn set_defaults(object: &mut Object) {
    let is_deployment = object.kind() == "Deployment";
    let spec = object.spec_mut();
    set_default(spec, "replicas", 1.into());
    if is_deployment {
        let strategy = spec.entry("strategy").or_insert_with(|| json!({}));
        if strategy.is_null() {
            *strategy = json!({});
        }
        if let Some(strategy) = strategy.as_object_mut() {
            set_default(strategy, "type", "RollingUpdate".into());
            if strategy.get("type").and_then(Value::as_str) == Some("RollingUpdate") {
                if is_unset(strategy.get("rollingUpdate")) {
                    strategy.insert("rollingUpdate".into(), json!({}));
                }
                if let Some(rolling) = strategy.get_mut("rollingUpdate").and_then(Value::as_object_mut) {
                    set_default(rolling, "maxUnavailable", "25%".into());
                    set_default(rolling, "maxSurge", "25%".into());
                }
            }
        }
        set_default(spec, "revisionHistoryLimit", 10.into());
        set_default(spec, "progressDeadlineSeconds", 600.into());
    }
    if let Some(template) =
        spec.get_mut("template").and_then(|t| t.get_mut("spec")).and_then(Value::as_object_mut)
    {
        pod::set_spec_defaults(template);
    }
}

/// Every fault of a Deployment or ReplicaSet.
pub fn validate(old: Option<&Object>, object: &Object) -> Vec<Cause> {
    let mut faults = Vec::new();
    let spec = Field::of(object, "spec");
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        faults.extend(spec.child(field).at_least(0));
    }
    let template = spec.child("template");
    let labels = template.child("metadata").child("labels");
    meta::labels(&labels, &mut faults);
    let annotations = template.child("metadata").child("annotations");
    meta::annotations(&annotations, &mut faults);
    faults.extend(pod::cost::validate(&annotations));
    validate_selector(&spec, object.kind(), &labels, &mut faults);
    if let Some(old) = old {
        let selector = spec.child("selector");
        if Field::of(old, "spec").child("selector").value != selector.value {
            faults.push(selector.invalid("field is immutable"));
        }
    }
    let pod_spec = template.child("spec");
    pod::validate_spec(&pod_spec, &mut faults);
    let restart = pod_spec.child("restartPolicy");
    if ["OnFailure", "Never"].contains(&restart.text()) {
        faults.push(Cause::not_supported(&restart.path, restart.text(), &["Always"]));
    }
    if object.kind() == "Deployment" {
        strategy(&spec.child("strategy"), &mut faults);
        let deadline = spec.child("progressDeadlineSeconds");
        faults.extend(deadline.at_least(0));
        let min_ready = spec.child("minReadySeconds").number().unwrap_or(0);
        if deadline.number().is_some_and(|d| d <= min_ready) {
            faults.push(deadline.invalid("must be greater than minReadySeconds"));
        }
    }
    faults
}

fn validate_selector(spec: &Field<'_>, kind: &str, labels: &Field<'_>, faults: &mut Vec<Cause>) {
    let selector = spec.child("selector");
    let Some(value) = selector.value else {
        faults
            .push(selector.required("it says which pods are its own, and must match the template's labels"));
        return;
    };
    let parsed = match LabelSelector::from_object(value) {
        Ok(parsed) if parsed.is_empty() => {
            let why = format!("empty selector is invalid for {}", kind.to_lowercase());
            faults.push(selector.invalid(&why));
            return;
        }
        Ok(parsed) => parsed,
        Err(error) => {
            faults.push(selector.invalid(&error.to_string()));
            return;
        }
    };
    meta::labels(&selector.child("matchLabels"), faults);
    let have: BTreeMap<String, String> =
        labels.entries().filter_map(|(k, v)| Some((k.to_owned(), v.as_str()?.to_owned()))).collect();
    if !parsed.matches(&have) {
        let value = labels.value.cloned().unwrap_or_else(|| Value::Object(Map::new()));
        faults.push(Cause::invalid(&labels.path, value, "`selector` does not match template `labels`"));
    }
}

fn strategy(strategy: &Field<'_>, faults: &mut Vec<Cause>) {
    faults.extend(strategy.child("type").one_of(&["Recreate", "RollingUpdate"]));
    let rolling = strategy.child("rollingUpdate");
    if strategy.child("type").text() == "Recreate" {
        if rolling.value.is_some() {
            faults.push(rolling.forbidden("may not be specified when strategy `type` is 'Recreate'"));
        }
        return;
    }
    let (unavailable, surge) = (rolling.child("maxUnavailable"), rolling.child("maxSurge"));
    let (u, s) = (amount(&unavailable, faults), amount(&surge, faults));
    if (u, s) == (Some(0), Some(0)) {
        faults.push(unavailable.invalid("may not be 0 when `maxSurge` is 0"));
    }
    let percent = unavailable.value.is_some_and(Value::is_string);
    if percent && u.is_some_and(|u| u > 100) {
        faults.push(unavailable.invalid("must not be greater than 100%"));
    }
}

/// A number, or the number of a percentage; a fault and `None` if it is neither, `None` if it is absent.
fn amount(field: &Field<'_>, faults: &mut Vec<Cause>) -> Option<u64> {
    let amount = match field.value? {
        Value::Number(n) => n.as_u64(),
        Value::String(s) => {
            s.strip_suffix('%').filter(|n| n.bytes().all(|b| b.is_ascii_digit())).and_then(|n| n.parse().ok())
        }
        _ => None,
    };
    if amount.is_none() {
        faults.push(field.invalid(UNNAMED));
    }
    amount
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::{DEPLOYMENTS, REPLICA_SETS};

    use super::*;

    fn deployment(change: impl FnOnce(&mut Value)) -> Object {
        let mut spec = json!({
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "command": ["true"]}]}},
        });
        change(&mut spec);
        let mut d = Object::new(&DEPLOYMENTS, Some("default"), "web");
        d.0.insert("spec".into(), spec);
        set_defaults(&mut d);
        d
    }

    #[test]
    fn what_is_left_out_is_filled_as_kubernetes_fills_it() {
        let made = deployment(|_| ());
        for (field, value) in [
            ("/spec/replicas", json!(1)),
            ("/spec/strategy/type", json!("RollingUpdate")),
            ("/spec/strategy/rollingUpdate/maxSurge", json!("25%")),
            ("/spec/strategy/rollingUpdate/maxUnavailable", json!("25%")),
            ("/spec/revisionHistoryLimit", json!(10)),
            ("/spec/progressDeadlineSeconds", json!(600)),
            ("/spec/template/spec/restartPolicy", json!("Always")),
        ] {
            assert_eq!(made.pointer(field), Some(&value), "{field}");
        }
        assert_eq!(validate(None, &made), []);
        let mut set = Object::new(&REPLICA_SETS, Some("default"), "web");
        set_defaults(&mut set);
        assert_eq!(set.pointer("/spec"), Some(&json!({"replicas": 1})));
    }

    #[test]
    fn each_fault_names_its_field_and_the_rule() {
        for (pointer, value, expected) in [
            ("replicas", json!(-1), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
            ("selector", json!(null), "spec.selector: Required value"),
            (
                "selector",
                json!({}),
                "spec.selector: Invalid value: {}: empty selector is invalid for deployment",
            ),
            (
                "selector",
                json!({"matchLabels": {"app": "db"}}),
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
            ),
            ("strategy", json!({"type": "Slow"}), "spec.strategy.type: Unsupported value: \"Slow\""),
            (
                "strategy",
                json!({"type": "Recreate", "rollingUpdate": {"maxSurge": 1}}),
                "spec.strategy.rollingUpdate: Forbidden: may not be",
            ),
            (
                "strategy",
                json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"0%\": may not be 0 when",
            ),
            (
                "strategy",
                json!({"rollingUpdate": {"maxUnavailable": "101%"}}),
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be",
            ),
            (
                "strategy",
                json!({"rollingUpdate": {"maxSurge": "many"}}),
                "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"many\": must be an integer",
            ),
            (
                "progressDeadlineSeconds",
                json!(0),
                "spec.progressDeadlineSeconds: Invalid value: 0: must be greater than",
            ),
            (
                "minReadySeconds",
                json!(600),
                "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
            ),
            (
                "revisionHistoryLimit",
                json!(-1),
                "spec.revisionHistoryLimit: Invalid value: -1: must be greater than or",
            ),
            (
                "template",
                json!({"metadata": {"labels": {"app": "web"}, "annotations": {"controller.kubernetes.io/pod-deletion-cost": "x"}},
                    "spec": {"containers": [{"name": "c", "command": ["a"]}]}}),
                "spec.template.metadata.annotations[controller.kubernetes.io/pod-deletion-cost]: Invalid value: \"x\": must be a 32bit",
            ),
            (
                "template",
                json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "command": ["a"], "image": "x"}]}}),
                "spec.template.spec.containers[0].image: Invalid value: \"x\": minisvc pulls no images",
            ),
            (
                "template",
                json!({"metadata": {"labels": {"app": "web"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "command": ["a"]}]}}),
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\"",
            ),
        ] {
            let found: Vec<_> = validate(None, &deployment(|s| s[pointer] = value.clone()))
                .iter()
                .map(ToString::to_string)
                .collect();
            assert!(found.len() == 1 && found[0].starts_with(expected), "{pointer}: {value}\n{found:#?}");
        }
        let late = validate(None, &deployment(|s| s["progressDeadlineSeconds"] = json!(-1)));
        let late: Vec<_> = late.iter().map(|c| c.message.clone()).collect();
        assert!(late.len() == 2 && late[0].ends_with("must be greater than or equal to 0"), "{late:?}");
        let other = deployment(|s| {
            s["selector"]["matchLabels"] = json!({"app": "web", "tier": "a"});
            s["template"]["metadata"]["labels"] = json!({"app": "web", "tier": "a"});
        });
        let found = validate(Some(&other), &deployment(|_| ()));
        assert!(found[0].to_string().ends_with("field is immutable"), "{found:?}");
    }
}
