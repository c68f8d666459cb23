//! Which pod is meant by the name of something that owns or selects pods.

use std::cmp::Reverse;

use anyhow::{Context as _, bail};
use minisvc_proto::{
    Object,
    client::ListParams,
    path::Target,
    resource::{PODS, SERVICES},
    selector::LabelSelector,
};
use serde_json::Value;

use super::{Session, selection};
use crate::output;

/// The pod that `POD`, `pod/NAME`, `deployment/NAME` … means; of several the first that is Ready, and that is said.
pub async fn pick(session: &Session, word: &str) -> anyhow::Result<Object> {
    let (resource, name) = selection::one(word, None, Some(&PODS))?;
    let key = session.key(resource, &name);
    let object = session.client.get(&Target::object(&key)).await?;
    if *resource == PODS {
        return Ok(object);
    }
    let selector = selector(&object).with_context(|| format!("{word} selects no pods"))?;
    let target = session.collection(&PODS, false);
    let (_, mut pods) = session.client.list(&target, &ListParams::labels(selector.to_string())).await?;
    pods.sort_by_key(rank);
    let Some(first) = pods.first() else { bail!("{word} has no pods") };
    if pods.len() > 1 {
        output::note(&format!("Found {} pods, using pod/{}", pods.len(), first.name()));
    }
    Ok(pods.swap_remove(0))
}

/// The selector of a workload or of a service; an empty one would mean everything, and so means nothing here.
pub fn selector(object: &Object) -> Option<LabelSelector> {
    let value = object.pointer("/spec/selector")?;
    let selector = if object.resource() == Some(&SERVICES) {
        LabelSelector::from_map(&serde_json::from_value(value.clone()).ok()?)
    } else {
        LabelSelector::from_object(value).ok()?
    };
    (!selector.0.is_empty()).then_some(selector)
}

/// Ready ones first, then those that run, the youngest of them first; those that end come last.
fn rank(pod: &Object) -> (bool, bool, bool, Reverse<String>) {
    let started = pod.str_at("/metadata/creationTimestamp").unwrap_or_default().to_owned();
    let runs = pod.str_at("/status/phase") == Some("Running");
    (pod.deletion_timestamp().is_some(), !is_ready(pod), !runs, Reverse(started))
}

fn is_ready(pod: &Object) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions.is_some_and(|c| c.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}

/// The container that is meant: the one that is named, init containers included, or the first of the others; several are said on
/// stderr, as kubectl does.
pub fn container(pod: &Object, asked: Option<&str>) -> anyhow::Result<String> {
    let names = |pointer: &str| -> Vec<&str> {
        let containers = pod.pointer(pointer).and_then(Value::as_array);
        containers.into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (main, init) = (names("/spec/containers"), names("/spec/initContainers"));
    let all = || {
        let init = init.iter().map(|n| format!("{n} (init)"));
        main.iter().map(|n| (*n).to_owned()).chain(init).collect::<Vec<_>>().join(", ")
    };
    match (asked, main.as_slice()) {
        (Some(asked), _) if main.contains(&asked) || init.contains(&asked) => Ok(asked.to_owned()),
        (Some(asked), _) => {
            bail!("container {asked} is not valid for pod {}: it has {}", pod.name(), all())
        }
        (None, []) => bail!("pod {} has no containers", pod.name()),
        (None, [only]) if init.is_empty() => Ok((*only).to_owned()),
        (None, [first, ..]) => {
            output::note(&format!("Defaulted container \"{first}\" out of: {}", all()));
            Ok((*first).to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, ready: bool, created: &str) -> Object {
        let ready = if ready { "True" } else { "False" };
        serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "creationTimestamp": created},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}}))
        .unwrap()
    }

    #[test]
    fn a_ready_pod_is_preferred_and_one_that_ends_is_the_last_choice() {
        let mut ending = pod("ending", true, "2026-01-01T00:00:04Z");
        ending.metadata_mut().insert("deletionTimestamp".into(), "2026-01-01T00:00:05Z".into());
        let mut pods = [
            ending,
            pod("late", false, "2026-01-01T00:00:03Z"),
            pod("old", true, "2026-01-01T00:00:01Z"),
            pod("new", true, "2026-01-01T00:00:02Z"),
        ];
        pods.sort_by_key(rank);
        assert_eq!(pods.each_ref().map(Object::name), ["new", "old", "late", "ending"]);
    }

    #[test]
    fn a_container_is_named_or_the_first() {
        let pod = pod("p", true, "");
        assert_eq!(container(&pod, Some("b")).unwrap(), "b");
        assert_eq!(container(&pod, None).unwrap(), "a");
        assert_eq!(
            container(&pod, Some("c")).unwrap_err().to_string(),
            "container c is not valid for pod p: it has a, b"
        );
        let mut pod = pod;
        pod.spec_mut().insert("initContainers".into(), json!([{"name": "i"}]));
        assert_eq!(container(&pod, Some("i")).unwrap(), "i");
        assert_eq!(container(&pod, None).unwrap(), "a");
        assert!(container(&pod, Some("c")).unwrap_err().to_string().ends_with("it has a, b, i (init)"));
    }

    #[test]
    fn selectors_are_those_of_the_kind() {
        let of = |value: serde_json::Value| {
            selector(&serde_json::from_value(value).unwrap()).map(|s| s.to_string())
        };
        let service = json!({"apiVersion": "v1", "kind": "Service", "spec": {"selector": {"app": "x"}}});
        assert_eq!(of(service), Some("app=x".into()));
        let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"selector": {"matchLabels": {"app": "y"}}}});
        assert_eq!(of(deployment), Some("app=y".into()));
        assert_eq!(of(json!({"apiVersion": "v1", "kind": "Service", "spec": {"selector": {}}})), None);
        assert_eq!(of(json!({"apiVersion": "v1", "kind": "Service", "spec": {}})), None);
    }
}
