//! Init containers, and sidecars, which are init containers with restartPolicy Always: their own rules.
//! [KEP-753; pkg/apis/core/validation, validateInitContainers]

use std::collections::BTreeSet;

use minisvc_proto::Cause;

use super::{Field, container, probes::PROBES};

/// Every fault of the init containers of a pod. `names` are those of its containers.
pub fn validate<'a>(
    spec: &Field<'a>,
    names: &mut BTreeSet<&'a str>,
    grace: Option<i64>,
    faults: &mut Vec<Cause>,
) {
    for one in spec.child("initContainers").items() {
        // They run one after the other: each may have the ports of another one.
        container::validate(&one, names, &mut BTreeSet::new(), grace, faults);
        let restart = one.child("restartPolicy");
        if restart.value.is_some() {
            faults.extend(restart.one_of(&["Always"]));
            continue;
        }
        for field in PROBES.into_iter().chain(["lifecycle"]).map(|f| one.child(f)) {
            if field.value.is_some() {
                faults
                    .push(field.forbidden("may not be set for init containers without restartPolicy=Always"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{container, faults, pod};

    fn with(more: &Value) -> Value {
        let mut init = json!({"name": "i", "command": ["true"]});
        init.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let mut spec = container(json!({}));
        spec["initContainers"] = json!([init]);
        spec
    }

    #[test]
    fn what_a_sidecar_may_have_an_init_container_may_not() {
        let more = json!({"ports": [{"containerPort": 80}], "startupProbe": {"tcpSocket": {"port": 80}},
            "readinessProbe": {"tcpSocket": {"port": 80}}, "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}});
        let mut sidecar = more.clone();
        sidecar["restartPolicy"] = "Always".into();
        let made = pod(with(&sidecar));
        assert_eq!(super::super::validate(None, &made), []);
        assert_eq!(made.pointer("/spec/initContainers/0/ports/0/protocol"), Some(&json!("TCP")));
        assert_eq!(made.pointer("/spec/initContainers/0/startupProbe/periodSeconds"), Some(&json!(10)));
        let rule = "Forbidden: may not be set for init containers without restartPolicy=Always";
        let want = ["readinessProbe", "startupProbe", "lifecycle"];
        assert_eq!(faults(with(&more)), want.map(|f| format!("spec.initContainers[0].{f}: {rule}")));
    }

    #[test]
    fn each_fault_names_its_field_and_the_rule() {
        for (more, expected) in [
            (json!({"name": "c"}), "name: Duplicate value: \"c\""),
            (json!({"command": []}), "command: Required value"),
            (
                json!({"restartPolicy": "Never"}),
                "restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ),
        ] {
            let found = faults(with(&more));
            let expected = format!("spec.initContainers[0].{expected}");
            assert!(found.len() == 1 && found[0].starts_with(&expected), "{expected}\n{found:#?}");
        }
    }
}
