//! postStart and preStop hooks: defaults and rules. [pkg/apis/core/validation, validateLifecycle]

use minisvc_proto::Cause;
use serde_json::{Map, Value};

use super::{
    Field,
    probes::{set_handler_defaults, validate_handler},
};

const HOOKS: [&str; 2] = ["postStart", "preStop"];

/// Fills what the hooks of a container leave out.
pub fn set_defaults(container: &mut Map<String, Value>) {
    let Some(lifecycle) = container.get_mut("lifecycle") else { return };
    for name in HOOKS {
        if let Some(hook) = lifecycle.get_mut(name).and_then(Value::as_object_mut) {
            set_handler_defaults(hook);
        }
    }
}

/// Every fault of a container's hooks, in a pod of this terminationGracePeriodSeconds.
pub fn validate(container: &Field<'_>, grace: Option<i64>, faults: &mut Vec<Cause>) {
    let lifecycle = container.child("lifecycle");
    let signal = lifecycle.child("stopSignal");
    if signal.is_set() {
        faults.push(signal.forbidden("a container is ended with SIGTERM: leave it out"));
    }
    for hook in HOOKS.map(|name| lifecycle.child(name)).into_iter().filter(|h| h.value.is_some()) {
        let tcp = hook.child("tcpSocket");
        if tcp.value.is_some() {
            faults.push(tcp.forbidden("Kubernetes takes it and never does it: use exec, httpGet or sleep"));
            continue;
        }
        validate_handler(&hook, &["exec", "httpGet", "sleep"], container, faults);
        let sleep = hook.child("sleep");
        if let (Some(_), Some(grace)) = (sleep.value, grace)
            && !sleep.child("seconds").number().is_some_and(|s| (0..=grace).contains(&s))
        {
            let rule = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
            let seconds = sleep.child("seconds").value.cloned().unwrap_or_default();
            faults.push(Cause::invalid(&sleep.path, seconds, &rule));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{container, faults, pod};

    #[test]
    fn hooks_are_taken_with_their_defaults() {
        let made = pod(container(json!({"lifecycle": {
            "postStart": {"httpGet": {"port": 80, "path": "/warm"}}, "preStop": {"sleep": {"seconds": 30}}}})));
        let get = made.pointer("/spec/containers/0/lifecycle/postStart/httpGet");
        assert_eq!(get, Some(&json!({"port": 80, "path": "/warm", "scheme": "HTTP"})));
        assert_eq!(super::super::validate(None, &made), []);
    }

    #[test]
    fn each_fault_names_its_field_and_the_rule() {
        for (lifecycle, expected) in [
            (json!({"preStop": {}}), ".preStop: Required value: must specify a handler type"),
            (json!({"postStart": {"exec": {}}}), ".postStart.exec.command: Required value"),
            (
                json!({"preStop": {"exec": {"command": ["a"]}, "sleep": {"seconds": 1}}}),
                ".preStop.sleep: Forbidden: may not specify more than 1",
            ),
            (json!({"preStop": {"tcpSocket": {"port": 1}}}), ".preStop.tcpSocket: Forbidden"),
            (json!({"stopSignal": "SIGUSR1"}), ".stopSignal: Forbidden"),
            (
                json!({"preStop": {"sleep": {"seconds": 31}}}),
                ".preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodSeconds (30)",
            ),
        ] {
            let found = faults(container(json!({"lifecycle": lifecycle})));
            let expected = format!("spec.containers[0].lifecycle{expected}");
            assert!(found.len() == 1 && found[0].starts_with(&expected), "{expected}\n{found:#?}");
        }
    }
}
