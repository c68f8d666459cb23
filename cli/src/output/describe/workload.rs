//! Deployments and ReplicaSets.

use minisvc_proto::Object;
use serde_json::Value;

use super::{
    Page, Related, conditions, controlled_by, labels, pairs, pairs_with, pod, scalar, selector, time,
};

pub fn deployment(page: &mut Page, deployment: &Object, related: &Related) {
    page.field("CreationTimestamp", &time(deployment.pointer("/metadata/creationTimestamp")));
    labels(page, deployment);
    page.field("Selector", &selector_of(deployment));
    let count = |at: &str| deployment.pointer(at).and_then(Value::as_u64).unwrap_or(0);
    page.field(
        "Replicas",
        &format!(
            "{} desired | {} updated | {} total | {} available | {} unavailable",
            count("/spec/replicas"),
            count("/status/updatedReplicas"),
            count("/status/replicas"),
            count("/status/availableReplicas"),
            count("/status/unavailableReplicas")
        ),
    );
    let strategy = deployment.str_at("/spec/strategy/type").unwrap_or("RollingUpdate");
    page.field("StrategyType", strategy);
    page.field("MinReadySeconds", &count("/spec/minReadySeconds").to_string());
    if let Some(rolling) = deployment.pointer("/spec/strategy/rollingUpdate") {
        let max = |field: &str| scalar(rolling.get(field));
        page.field(
            "RollingUpdateStrategy",
            &format!("{} max unavailable, {} max surge", max("maxUnavailable"), max("maxSurge")),
        );
    }
    template(page, deployment);
    conditions(page, deployment);
    let current = |r: &&Object| template_of(r) == template_of(deployment);
    let shown = |sets: Vec<&Object>| {
        let sets: Vec<String> = sets
            .iter()
            .map(|r| {
                let number = |at: &str| r.pointer(at).and_then(Value::as_u64).unwrap_or(0);
                format!(
                    "{} ({}/{} replicas created)",
                    r.name(),
                    number("/status/replicas"),
                    number("/spec/replicas")
                )
            })
            .collect();
        if sets.is_empty() { "<none>".into() } else { sets.join(", ") }
    };
    let (new, old): (Vec<&Object>, Vec<&Object>) = related.replica_sets.iter().partition(current);
    page.field("OldReplicaSets", &shown(old));
    page.field("NewReplicaSet", &shown(new));
}

pub fn replica_set(page: &mut Page, set: &Object, related: &Related) {
    page.field("Selector", &selector_of(set));
    labels(page, set);
    controlled_by(page, set);
    let count = |at: &str| set.pointer(at).and_then(Value::as_u64).unwrap_or(0);
    page.field(
        "Replicas",
        &format!("{} current / {} desired", count("/status/replicas"), count("/spec/replicas")),
    );
    let phase = |name: &str| related.pods.iter().filter(|p| p.str_at("/status/phase") == Some(name)).count();
    page.field(
        "Pods Status",
        &format!(
            "{} Running / {} Waiting / {} Succeeded / {} Failed",
            phase("Running"),
            phase("Pending"),
            phase("Succeeded"),
            phase("Failed")
        ),
    );
    template(page, set);
    conditions(page, set);
}

fn selector_of(workload: &Object) -> String {
    match minisvc_proto::selector::LabelSelector::from_object(
        workload.pointer("/spec/selector").unwrap_or(&Value::Null),
    ) {
        Ok(selector) if !selector.0.is_empty() => selector.to_string(),
        _ => selector(None),
    }
}

pub fn template(page: &mut Page, workload: &Object) {
    page.heading("Pod Template");
    page.indented_field(
        2,
        "Labels",
        &pairs(workload.pointer("/spec/template/metadata/labels").unwrap_or(&Value::Null)),
    );
    if let Some(annotations) = workload.pointer("/spec/template/metadata/annotations") {
        page.indented_field(2, "Annotations", &pairs_with(annotations, ": "));
    }
    let init = workload.pointer("/spec/template/spec/initContainers").and_then(Value::as_array);
    if let Some(init) = init.filter(|all| !all.is_empty()) {
        page.indented_heading(2, "Init Containers");
        for container in init {
            pod::container(page, 4, container, None);
        }
    }
    page.indented_heading(2, "Containers");
    let containers = workload.pointer("/spec/template/spec/containers").and_then(Value::as_array);
    for container in containers.into_iter().flatten() {
        pod::container(page, 4, container, None);
    }
}

/// A replica set's template is its deployment's with one label more.
fn template_of(workload: &Object) -> Option<Value> {
    let mut template = workload.pointer("/spec/template")?.clone();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove("pod-template-hash");
    }
    Some(template)
}
