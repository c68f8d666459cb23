//! `rollout history`, and where `rollout undo` goes.

use anyhow::{Context as _, bail};
use minisvc_proto::{Object, ObjectKey};
use serde_json::{Value, json};

use super::with_sets;
use crate::{commands::Session, output};

const REVISION: &str = "deployment.kubernetes.io/revision";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotations that each has for itself. [pkg/controller/deployment/util, annotationsToSkip]
const OWN: [&str; 5] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    "deployment.kubernetes.io/revision-history",
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
];

/// 0 where there is none.
pub fn revision(object: &Object) -> u64 {
    object.annotations().get(REVISION).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// The revisions, or the template of one of them.
pub async fn page(session: &Session, key: &ObjectKey, wanted: u64) -> anyhow::Result<String> {
    let (_, sets) = with_sets(session, key).await?;
    let name = format!("{}/{}", key.resource.qualified_singular(), key.name);
    if wanted == 0 {
        return Ok(format!("{name}\n{}\n", table(&sets)));
    }
    let set = sets.iter().find(|s| revision(s) == wanted);
    let set = set.context("unable to find the specified revision")?;
    Ok(format!("{name} with revision #{wanted}\n{}", output::describe::template(&with_cause(set))))
}

/// A revision's cause is shown among the annotations of its template.
fn with_cause(set: &Object) -> Object {
    let mut shown = set.clone();
    if let Some(cause) = set.annotations().get(CHANGE_CAUSE)
        && let Some(template) = shown.spec_mut().get_mut("template")
    {
        template["metadata"]["annotations"][CHANGE_CAUSE] = cause.as_str().into();
    }
    shown
}

fn table(sets: &[Object]) -> String {
    let mut known: Vec<&Object> = sets.iter().filter(|s| revision(s) > 0).collect();
    if known.is_empty() {
        return "No rollout history found.\n".into();
    }
    known.sort_by_key(|s| revision(s));
    let head = vec!["REVISION".to_owned(), "CHANGE-CAUSE".to_owned()];
    let rows = known.iter().map(|s| {
        let cause = s.annotations().get(CHANGE_CAUSE).filter(|c| !c.is_empty()).cloned();
        vec![
            revision(s).to_string(),
            cause.map_or_else(|| "<none>".into(), |c| c.replace(char::is_control, " ")),
        ]
    });
    output::grid(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// The set to go back to; 0: the one before the newest.
pub fn target<'a>(deployment: &Object, sets: &'a [Object], to: u64) -> anyhow::Result<&'a Object> {
    if to > 0 {
        let found = sets.iter().find(|s| revision(s) == to);
        return found.with_context(|| format!("unable to find specified revision {to} in history"));
    }
    let mut known: Vec<&Object> = sets.iter().filter(|s| revision(s) > 0).collect();
    known.sort_by_key(|s| std::cmp::Reverse(revision(s)));
    match known.get(1) {
        Some(set) => Ok(set),
        None => bail!("no rollout history found for deployment \"{}\"", deployment.name()),
    }
}

/// The JSON patch that brings the set's template and annotations back; `None` if the template is there already.
pub fn back_to(deployment: &Object, set: &Object) -> Option<Value> {
    let mut template = set.pointer("/spec/template").cloned().unwrap_or_default();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(TEMPLATE_HASH);
    }
    if deployment.pointer("/spec/template") == Some(&template) {
        return None;
    }
    let is_own = |name: &String| OWN.contains(&name.as_str());
    let mut annotations = deployment.annotations();
    annotations.retain(|name, _| is_own(name));
    annotations.extend(set.annotations().into_iter().filter(|(name, _)| !is_own(name)));
    Some(json!([
        {"op": "replace", "path": "/spec/template", "value": template},
        {"op": "add", "path": "/metadata/annotations", "value": annotations},
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(revision: &str, image: &str, cause: Option<&str>) -> Object {
        let mut annotations = json!({REVISION: revision, "deployment.kubernetes.io/max-replicas": "5"});
        if let Some(cause) = cause {
            annotations[CHANGE_CAUSE] = cause.into();
        }
        let template =
            json!({"metadata": {"labels": {"app": "web", TEMPLATE_HASH: "x"}}, "spec": {"image": image}});
        serde_json::from_value(
            json!({"metadata": {"annotations": annotations}, "spec": {"template": template}}),
        )
        .unwrap()
    }

    fn deployment(image: &str) -> Object {
        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"image": image}});
        let annotations = json!({REVISION: "10", CHANGE_CAUSE: "third", "team": "blue"});
        serde_json::from_value(
            json!({"metadata": {"name": "web", "annotations": annotations}, "spec": {"template": template}}),
        )
        .unwrap()
    }

    #[test]
    fn revisions_stand_in_their_order() {
        let sets = [set("10", "c", Some("third\nline")), set("2", "b", None), set("", "z", None)];
        assert_eq!(table(&sets), "REVISION   CHANGE-CAUSE\n2          <none>\n10         third line\n");
        assert_eq!(table(&sets[2..]), "No rollout history found.\n");
    }

    #[test]
    fn a_revision_is_shown_with_its_cause() {
        let shown = |cause| output::describe::template(&with_cause(&set("2", "b", cause)));
        assert!(
            shown(Some("second")).contains("Annotations:  kubernetes.io/change-cause: second"),
            "{}",
            shown(None)
        );
        assert!(!shown(None).contains("Annotations"));
    }

    #[test]
    fn the_way_back_leads_to_what_was_before_or_was_asked_for() {
        let sets = [set("10", "c", None), set("2", "b", None), set("1", "a", None)];
        let web = deployment("c");
        let to = |sets: &[Object], n| target(&web, sets, n).map(revision).map_err(|e| e.to_string());
        assert_eq!(to(&sets, 0), Ok(2));
        assert_eq!(to(&sets, 1), Ok(1));
        assert_eq!(to(&sets, 3), Err("unable to find specified revision 3 in history".into()));
        assert_eq!(to(&sets[..1], 0), Err("no rollout history found for deployment \"web\"".into()));
    }

    #[test]
    fn template_and_annotations_come_back_and_what_is_the_deployments_own_stays() {
        let patch = back_to(&deployment("c"), &set("2", "b", Some("second"))).unwrap();
        assert_eq!(
            patch,
            json!([
                {"op": "replace", "path": "/spec/template",
                    "value": {"metadata": {"labels": {"app": "web"}}, "spec": {"image": "b"}}},
                {"op": "add", "path": "/metadata/annotations", "value": {REVISION: "10", CHANGE_CAUSE: "second"}},
            ])
        );
        assert_eq!(back_to(&deployment("b"), &set("2", "b", None)), None);
    }
}
