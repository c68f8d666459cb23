//! Pod, and the pod templates of other kinds: defaults and rules. A pod runs the node's own programs in namespaces of its own;
//! what cannot be had that way is refused with its field and the reason, never silently left out.
//! Rules from Kubernetes: pkg/apis/core/v1/defaults.go, pkg/apis/core/validation/validation.go.

mod container;
pub mod cost;
mod hooks;
mod init;
mod probes;
mod resources;
mod scheduling;
mod volumes;

use std::collections::BTreeSet;

use minisvc_proto::{
    Cause, Object,
    names::{check_dns_label, check_dns_subdomain},
};
use serde_json::{Map, Value, json};

use super::{field::Field, is_unset};

/// Fields of a pod's spec that would change what the pod does and cannot be had, with the reason.
const REFUSED: [(&str, &str); 14] = [
    ("ephemeralContainers", "ephemeral containers are not supported: use `minisvc exec`"),
    ("hostNetwork", "a pod has a network of its own: reach it through a service of type NodePort"),
    ("hostPID", "a pod has process ids of its own"),
    ("hostIPC", "a pod has an IPC namespace of its own"),
    ("activeDeadlineSeconds", "a deadline for the whole pod is not supported"),
    ("runtimeClassName", "there is one runtime, which runs the node's own programs"),
    ("readinessGates", "readiness gates are not supported: nobody would set their conditions"),
    ("schedulingGates", "scheduling gates are not supported"),
    ("resourceClaims", "resource claims are not supported"),
    ("resources", "nobody enforces resources of a pod: leave them out"),
    ("overhead", "nobody accounts for resources of a pod: leave it out"),
    ("setHostnameAsFQDN", "a pod's host name is its name"),
    (
        "affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution",
        "required affinity to other pods is not supported",
    ),
    (
        "affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution",
        "required distance from other pods is not supported; pods of one owner are spread over the nodes anyway",
    ),
];

/// The same for `securityContext`, beyond the user and group ids that a pod may have.
const REFUSED_SECURITY: [(&str, &str); 8] = [
    ("fsGroup", "supplementary groups are not supported: an emptyDir is open to every user"),
    ("supplementalGroups", "supplementary groups are not supported"),
    ("sysctls", "sysctls of a pod are not supported"),
    ("seLinuxOptions", "SELinux labels are not supported"),
    ("appArmorProfile", "AppArmor profiles are not supported"),
    ("windowsOptions", "pods run on Linux"),
    ("privileged", "a container has the rights of its user, and no more"),
    ("readOnlyRootFilesystem", "a container sees the node's file system as its user does"),
];

/// Sets a field that the user left out.
pub fn set_default(map: &mut Map<String, Value>, field: &str, value: Value) {
    if is_unset(map.get(field)) {
        map.insert(field.to_owned(), value);
    }
}

/// Fills what a pod's spec leaves out.
pub fn set_spec_defaults(spec: &mut Map<String, Value>) {
    set_default(spec, "restartPolicy", "Always".into());
    set_default(spec, "terminationGracePeriodSeconds", 30.into());
    set_default(spec, "dnsPolicy", "ClusterFirst".into());
    set_default(spec, "schedulerName", "default-scheduler".into());
    set_default(spec, "securityContext", json!({}));
    volumes::set_defaults(spec);
    for list in ["initContainers", "containers"] {
        for one in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(container) = one.as_object_mut() {
                container::set_defaults(container);
            }
        }
    }
}

/// Fills what a pod leaves out.
pub fn set_defaults(pod: &mut Object) {
    let spec = pod.spec_mut();
    set_default(spec, "enableServiceLinks", true.into());
    let class = spec.get("priorityClassName").and_then(Value::as_str);
    // None means 0, and is left out: pods that were stored without it must not change.
    if let Some(priority) = class.and_then(scheduling::class_priority) {
        set_default(spec, "priority", priority.into());
    }
    set_spec_defaults(spec);
}

/// What an update that leaves it out keeps: the node.
pub fn inherit(old: &Object, new: &mut Object) {
    if let Some(node) = old.pointer("/spec/nodeName").filter(|n| !is_unset(Some(n))) {
        let node = node.clone();
        set_default(new.spec_mut(), "nodeName", node);
    }
}

/// Every fault of a pod.
pub fn validate(old: Option<&Object>, pod: &Object) -> Vec<Cause> {
    let mut faults = Vec::new();
    validate_spec(&Field::of(pod, "spec"), &mut faults);
    faults.extend(cost::validate(&Field::of(pod, "metadata").child("annotations")));
    faults.extend(old.and_then(|old| changed(old, pod)));
    faults
}

/// The fault of changing what a pod is given for life.
fn changed(old: &Object, new: &Object) -> Option<Cause> {
    let rest = |pod: &Object| -> Map<String, Value> {
        let mut spec = pod.0.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
        spec.remove("tolerations");
        for list in ["initContainers", "containers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(container) = container.as_object_mut() {
                    container.remove("image");
                }
            }
        }
        spec
    };
    let tolerations = |pod: &Object| {
        pod.pointer("/spec/tolerations").and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let (before, after) = (tolerations(old), tolerations(new));
    let kept = before.iter().all(|t| after.contains(t));
    (rest(old) != rest(new) || !kept).then(|| {
        let why = "pod updates may not change fields other than `spec.containers[*].image`, \
                   `spec.initContainers[*].image`, `spec.tolerations` \
                   (only additions to existing tolerations); delete the pod and create it anew";
        Cause::forbidden("spec", why)
    })
}

/// Every fault of a pod's spec, wherever it stands.
pub fn validate_spec(spec: &Field<'_>, faults: &mut Vec<Cause>) {
    let Some(_) = spec.value else {
        faults.push(spec.required("a pod needs containers"));
        return;
    };
    refuse(spec, &REFUSED, faults);
    faults.extend(spec.child("restartPolicy").one_of(&["Always", "OnFailure", "Never"]));
    faults.extend(spec.child("terminationGracePeriodSeconds").at_least(0));
    let policies = ["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    faults.extend(spec.child("dnsPolicy").one_of(&policies));
    let nameservers = spec.child("dnsConfig").child("nameservers");
    if spec.child("dnsPolicy").text() == "None" && !nameservers.is_set() {
        faults
            .push(nameservers.required("must provide at least one DNS nameserver when `dnsPolicy` is None"));
    }
    for name in ["hostname", "subdomain"].map(|f| spec.child(f)).into_iter().filter(Field::is_set) {
        faults.extend(check_dns_label(name.text()).err().map(|rule| name.invalid(rule.0)));
    }
    for name in ["nodeName", "serviceAccountName"].map(|f| spec.child(f)).into_iter().filter(Field::is_set) {
        faults.extend(check_dns_subdomain(name.text()).err().map(|rule| name.invalid(rule.0)));
    }
    faults.extend(spec.child("os").child("name").one_of(&["linux"]));
    scheduling::node_selector(spec, faults);
    scheduling::priority(spec, faults);
    for toleration in spec.child("tolerations").items() {
        faults.extend(toleration.child("operator").one_of(&["Equal", "Exists"]));
        let effect = toleration.child("effect");
        faults.extend(Some(&effect).filter(|e| e.is_set()).and_then(|e| e.one_of(&super::nodes::EFFECTS)));
    }
    for constraint in spec.child("topologySpreadConstraints").items() {
        let unsatisfiable = constraint.child("whenUnsatisfiable");
        if unsatisfiable.text() == "DoNotSchedule" {
            faults.push(unsatisfiable.invalid(
                "only ScheduleAnyway can be had: pods of one owner are spread over the nodes, as far as that goes",
            ));
        }
    }
    for alias in spec.child("hostAliases").items() {
        let ip = alias.child("ip");
        if ip.text().parse::<std::net::IpAddr>().is_err() {
            faults.push(ip.invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"));
        }
    }
    security(&spec.child("securityContext"), faults);

    let containers = spec.child("containers");
    if containers.items().next().is_none() {
        faults.push(containers.required("a pod needs at least one container"));
    }
    let (mut names, mut ports) = (BTreeSet::new(), BTreeSet::new());
    let grace = spec.child("terminationGracePeriodSeconds").number();
    for one in containers.items() {
        container::validate(&one, &mut names, &mut ports, grace, faults);
        let restart = one.child("restartPolicy");
        if restart.value.is_some() {
            faults.push(restart.forbidden("may not be set for non-init containers"));
        }
    }
    init::validate(spec, &mut names, grace, faults);
    let volumes = volumes::validate(spec, faults);
    for list in ["initContainers", "containers"] {
        for one in spec.child(list).items() {
            volumes::validate_mounts(&one, &volumes, faults);
        }
    }
}

/// The faults of what is set and cannot be had.
fn refuse(at: &Field<'_>, refused: &[(&str, &str)], faults: &mut Vec<Cause>) {
    for (path, why) in refused {
        let field = path.split('.').fold(at.clone(), |at, name| at.child(name));
        if field.is_set() {
            faults.push(field.forbidden(why));
        }
    }
}

/// The faults of a securityContext, a pod's or a container's.
fn security(context: &Field<'_>, faults: &mut Vec<Cause>) {
    refuse(context, &REFUSED_SECURITY, faults);
    for id in ["runAsUser", "runAsGroup"].map(|f| context.child(f)) {
        if id.value.is_some() && !id.number().is_some_and(|n| (0..=i64::from(i32::MAX)).contains(&n)) {
            faults.push(id.invalid("must be between 0 and 2147483647, inclusive"));
        }
    }
    let seccomp = context.child("seccompProfile").child("type");
    if !["", "Unconfined"].contains(&seccomp.text()) {
        faults.push(seccomp.invalid("seccomp profiles are not supported: leave it out"));
    }
    let capabilities = context.child("capabilities");
    for field in ["add", "drop"].map(|f| capabilities.child(f)) {
        if field.is_set() {
            faults.push(field.forbidden("capabilities are those of the container's user"));
        }
    }
    let escalation = context.child("allowPrivilegeEscalation");
    if escalation.value == Some(&Value::Bool(false)) {
        faults.push(escalation.invalid("a program may gain the rights that its file gives it: leave it out"));
    }
}

#[cfg(test)]
mod tests;
