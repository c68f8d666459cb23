//! Startup, readiness and liveness probes, and what they and hooks ask of a container: defaults and rules.
//! [pkg/apis/core/v1/defaults.go, SetDefaults_Probe; pkg/apis/core/validation, validateProbe and validateHandler]

use minisvc_proto::Cause;
use serde_json::{Map, Value};

use super::{super::service::is_port_name, Field, container::PORT_RULE, set_default};

/// The kinds of probes that a container may have.
pub const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

const HEADER_RULE: &str = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
                           validation is '[-A-Za-z0-9]+')";

/// Fills what the probes of a container leave out.
pub fn set_defaults(container: &mut Map<String, Value>) {
    for name in PROBES {
        let Some(probe) = container.get_mut(name).and_then(Value::as_object_mut) else { continue };
        for (field, value) in
            [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
        {
            // 0 means that the user left it out.
            if probe.get(field).and_then(Value::as_i64) == Some(0) {
                probe.remove(field);
            }
            set_default(probe, field, value.into());
        }
        set_handler_defaults(probe);
    }
}

/// Fills what a handler leaves out.
pub fn set_handler_defaults(handler: &mut Map<String, Value>) {
    if let Some(get) = handler.get_mut("httpGet").and_then(Value::as_object_mut) {
        set_default(get, "path", "/".into());
        set_default(get, "scheme", "HTTP".into());
    }
    if let Some(grpc) = handler.get_mut("grpc").and_then(Value::as_object_mut) {
        grpc.entry("service").or_insert_with(|| "".into());
    }
}

/// Every fault of a container's probes.
pub fn validate(container: &Field<'_>, faults: &mut Vec<Cause>) {
    for name in PROBES {
        let probe = container.child(name);
        if probe.value.is_none() {
            continue;
        }
        validate_handler(&probe, &["exec", "httpGet", "tcpSocket", "grpc"], container, faults);
        faults.extend(probe.child("initialDelaySeconds").at_least(0));
        for field in ["timeoutSeconds", "periodSeconds", "failureThreshold"] {
            faults.extend(probe.child(field).at_least(1));
        }
        let (success, grace) =
            (probe.child("successThreshold"), probe.child("terminationGracePeriodSeconds"));
        if name == "readinessProbe" {
            faults.extend(success.at_least(1));
            if grace.value.is_some() {
                faults.push(grace.invalid("must not be set for readinessProbes"));
            }
            continue;
        }
        if success.number().is_none_or(|n| n != 1) {
            faults.push(success.invalid("must be 1"));
        }
        if grace.value.is_some() && grace.number().is_none_or(|n| n <= 0) {
            faults.push(grace.invalid("must be greater than 0"));
        }
    }
}

/// Every fault of what stands at `at`, which must be one of these handlers.
pub fn validate_handler(at: &Field<'_>, known: &[&str], container: &Field<'_>, faults: &mut Vec<Cause>) {
    let set: Vec<_> = known.iter().map(|h| (*h, at.child(h))).filter(|(_, h)| h.value.is_some()).collect();
    match set.as_slice() {
        [] => faults.push(at.required("must specify a handler type")),
        [_] => {}
        [_, more @ ..] => {
            faults.extend(more.iter().map(|(_, h)| h.forbidden("may not specify more than 1 handler type")));
        }
    }
    let Some((name, handler)) = set.first() else { return };
    match *name {
        "exec" => {
            let command = handler.child("command");
            if !command.is_set() {
                faults.push(command.required(""));
            }
        }
        "httpGet" => http_get(handler, container, faults),
        "tcpSocket" => port(&handler.child("port"), container, faults),
        "grpc" => {
            let port = handler.child("port");
            if !port.number().is_some_and(|n| (1..=65535).contains(&n)) {
                faults.push(port.invalid(PORT_RULE));
            }
        }
        _ => {}
    }
}

fn http_get(get: &Field<'_>, container: &Field<'_>, faults: &mut Vec<Cause>) {
    port(&get.child("port"), container, faults);
    faults.extend(get.child("scheme").one_of(&["HTTP", "HTTPS"]));
    for header in get.child("httpHeaders").items() {
        let name = header.child("name").text();
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let path = get.child("httpHeaders").path;
            faults.push(Cause::invalid(&path, name, HEADER_RULE));
        }
    }
    let host = get.child("host");
    if host.is_set() && host.text().parse::<std::net::IpAddr>().is_err() {
        faults.push(host.invalid("must be an IP address, or left out: the pod is asked then"));
    }
}

fn port(port: &Field<'_>, container: &Field<'_>, faults: &mut Vec<Cause>) {
    let named = |name: &str| container.child("ports").items().any(|p| p.child("name").text() == name);
    match port.value {
        None => faults.push(port.required("")),
        Some(Value::String(name)) if !is_port_name(name) => {
            faults.push(port.invalid(
                "must be an IANA service name: at most 15 characters of a-z, 0-9 and '-', with a letter in it",
            ));
        }
        Some(Value::String(name)) if !named(name) => {
            faults.push(port.invalid("no port of this container has that name"));
        }
        Some(Value::Number(n)) if !n.as_u64().is_some_and(|n| (1..=65535).contains(&n)) => {
            faults.push(port.invalid(PORT_RULE));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{container, faults, pod};
    use super::*;

    #[test]
    fn what_is_left_out_is_filled_as_kubernetes_fills_it() {
        let made = pod(container(json!({
            "startupProbe": {"exec": {"command": ["true"]}, "periodSeconds": 0},
            "livenessProbe": {"grpc": {"port": 80}, "failureThreshold": 7},
            "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 2},
        })));
        let whole = |period: i64, failures: i64| json!({"timeoutSeconds": 1, "periodSeconds": period, "successThreshold": 1, "failureThreshold": failures});
        for (probe, handler, numbers) in [
            ("startupProbe", json!({"exec": {"command": ["true"]}}), whole(10, 3)),
            ("livenessProbe", json!({"grpc": {"port": 80, "service": ""}}), whole(10, 7)),
            ("readinessProbe", json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}}), whole(2, 3)),
        ] {
            let mut want = handler;
            want.as_object_mut().unwrap().extend(numbers.as_object().unwrap().clone());
            assert_eq!(made.pointer(&format!("/spec/containers/0/{probe}")), Some(&want));
        }
        assert_eq!(super::super::validate(None, &made), []);
    }

    #[test]
    fn each_fault_names_its_field_and_the_rule() {
        let tcp = |more: Value| {
            let mut probe = json!({"tcpSocket": {"port": 80}});
            probe.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            probe
        };
        for (field, probe, expected) in [
            ("readinessProbe", json!({}), ": Required value: must specify a handler type"),
            ("livenessProbe", json!({"exec": {"command": []}}), ".exec.command: Required value"),
            (
                "startupProbe",
                tcp(json!({"grpc": {"port": 1}})),
                ".grpc: Forbidden: may not specify more than 1 handler type",
            ),
            (
                "readinessProbe",
                json!({"tcpSocket": {"port": "web"}}),
                ".tcpSocket.port: Invalid value: \"web\": no port of this container",
            ),
            (
                "readinessProbe",
                json!({"tcpSocket": {"port": "a_b"}}),
                ".tcpSocket.port: Invalid value: \"a_b\": must be an IANA",
            ),
            (
                "livenessProbe",
                json!({"grpc": {"port": 65536}}),
                ".grpc.port: Invalid value: 65536: must be between 1 and 65535",
            ),
            (
                "livenessProbe",
                json!({"httpGet": {"port": 80, "scheme": "FTP"}}),
                ".httpGet.scheme: Unsupported value: \"FTP\": supported values: \"HTTP\", \"HTTPS\"",
            ),
            (
                "livenessProbe",
                json!({"httpGet": {"port": 80, "httpHeaders": [{"name": "X Y", "value": "1"}]}}),
                ".httpGet.httpHeaders: Invalid value: \"X Y\": a valid HTTP header must consist",
            ),
            (
                "livenessProbe",
                json!({"httpGet": {"port": 80, "host": "web"}}),
                ".httpGet.host: Invalid value: \"web\": must be an IP address",
            ),
            (
                "livenessProbe",
                tcp(json!({"successThreshold": 2})),
                ".successThreshold: Invalid value: 2: must be 1",
            ),
            (
                "startupProbe",
                tcp(json!({"successThreshold": 2})),
                ".successThreshold: Invalid value: 2: must be 1",
            ),
            (
                "startupProbe",
                tcp(json!({"terminationGracePeriodSeconds": 0})),
                ".terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0",
            ),
            (
                "readinessProbe",
                tcp(json!({"terminationGracePeriodSeconds": 5})),
                ".terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes",
            ),
            (
                "readinessProbe",
                tcp(json!({"periodSeconds": -1})),
                ".periodSeconds: Invalid value: -1: must be greater than or equal to 1",
            ),
        ] {
            let found = faults(container(json!({field: probe})));
            let expected = format!("spec.containers[0].{field}{expected}");
            assert!(found.len() == 1 && found[0].starts_with(&expected), "{expected}\n{found:#?}");
        }
    }
}
