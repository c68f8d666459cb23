//! One container: defaults and rules.

use std::collections::BTreeSet;

use minisvc_proto::Cause;
use serde_json::{Map, Value};

use super::{super::service::is_port_name, Field, hooks, probes, refuse, resources, security, set_default};

/// Fields of a container that would change what it does and cannot be had, with the reason.
const REFUSED: [(&str, &str); 5] = [
    ("envFrom", "there are no ConfigMaps and Secrets: name each variable in env"),
    ("volumeDevices", "block devices are not supported"),
    ("resources.claims", "resource claims are not supported"),
    ("stdin", "a container reads nothing from its standard input"),
    ("tty", "a container has no terminal: use `minisvc exec -t`"),
];

/// Field paths that an environment variable may take its value from; labels and annotations by key as well.
const FIELD_PATHS: [&str; 9] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

/// Of a port that a container has.
pub const PORT_RULE: &str = "must be between 1 and 65535, inclusive";

/// Fills what the user left out.
pub fn set_defaults(container: &mut Map<String, Value>) {
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            set_default(port, "protocol", "TCP".into());
        }
    }
    probes::set_defaults(container);
    hooks::set_defaults(container);
    resources::set_defaults(container);
    for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef").and_then(Value::as_object_mut) {
            set_default(field, "apiVersion", "v1".into());
        }
    }
}

/// Every fault of a container. `names` and `port_names` are those of the containers before it, `grace` the pod's
/// terminationGracePeriodSeconds.
pub fn validate<'a>(
    container: &Field<'a>,
    names: &mut BTreeSet<&'a str>,
    port_names: &mut BTreeSet<&'a str>,
    grace: Option<i64>,
    faults: &mut Vec<Cause>,
) {
    faults.extend(container.child("name").unique_label(names));
    let image = container.child("image");
    if !["", "host"].contains(&image.text()) {
        faults.push(image.invalid(
            "minisvc pulls no images: a pod runs the programs of the node's own file system; leave image out, or \
             write \"host\"",
        ));
    }
    let command = container.child("command");
    if !command.is_set() {
        faults.push(command.required("there is no image that could bring one: name the program to run"));
    }
    refuse(container, &REFUSED, faults);
    security(&container.child("securityContext"), faults);
    for port in container.child("ports").items() {
        let number = port.child("containerPort");
        match number.number() {
            None => faults.push(number.required("")),
            Some(1..=65535) => {}
            Some(_) => faults.push(number.invalid(PORT_RULE)),
        }
        let name = port.child("name");
        if name.is_set() && !is_port_name(name.text()) {
            faults.push(name.invalid(
                "must be an IANA service name: at most 15 characters of a-z, 0-9 and '-', with a letter in it",
            ));
        } else if name.is_set() && !port_names.insert(name.text()) {
            faults.push(Cause::duplicate(&name.path, name.text()));
        }
        faults.extend(port.child("protocol").one_of(&["SCTP", "TCP", "UDP"]));
        for field in ["hostPort", "hostIP"].map(|f| port.child(f)).into_iter().filter(Field::is_set) {
            faults.push(field.forbidden("a pod takes no ports of its node: use a service of type NodePort"));
        }
    }
    for variable in container.child("env").items() {
        env(&variable, faults);
    }
    let message = container.child("terminationMessagePath");
    let inside =
        ["/tmp/", "/dev/shm/"].iter().any(|d| message.text().strip_prefix(d).is_some_and(|f| !f.is_empty()));
    if message.is_set() && (!inside || message.text().split('/').any(|part| part == "..")) {
        faults.push(message.invalid(
            "a container sees the node's file system: name a file below /tmp or /dev/shm, which are the pod's own",
        ));
    }
    faults.extend(container.child("terminationMessagePolicy").one_of(&["File", "FallbackToLogsOnError"]));
    probes::validate(container, faults);
    hooks::validate(container, grace, faults);
    resources::validate(container, faults);
}

fn env(variable: &Field<'_>, faults: &mut Vec<Cause>) {
    let name = variable.child("name");
    if name.text().is_empty() {
        faults.push(name.required(""));
    } else if name.text().contains(['=', '\0']) {
        faults.push(name.invalid("an environment variable's name must not contain '='"));
    }
    let from = variable.child("valueFrom");
    if from.value.is_none() {
        return;
    }
    if variable.child("value").is_set() {
        faults.push(from.invalid("may not be specified when `value` is not empty"));
    }
    for field in ["configMapKeyRef", "secretKeyRef", "resourceFieldRef", "fileKeyRef"] {
        let field = from.child(field);
        if field.value.is_some() {
            faults.push(field.forbidden("only fieldRef can be had: there are no ConfigMaps and Secrets"));
        }
    }
    let path = from.child("fieldRef").child("fieldPath");
    if from.child("fieldRef").value.is_some() {
        let keyed = ["metadata.labels['", "metadata.annotations['"]
            .iter()
            .any(|p| path.text().strip_prefix(p).is_some_and(|rest| rest.ends_with("']")));
        if !keyed && !FIELD_PATHS.contains(&path.text()) {
            faults.push(Cause::not_supported(&path.path, path.text(), &FIELD_PATHS));
        }
    }
}

/// A container of a program, for tests.
#[cfg(test)]
pub fn example() -> Value {
    serde_json::json!({"name": "c", "command": ["true"]})
}
