//! `wait`

use anyhow::{anyhow, bail};
use minisvc_proto::{Object, ObjectKey, path::Target};
use serde_json::Value;

use super::{DONE, Outcome, Session, complain, selection, watching};
use crate::{
    args::{Wait, values::Goal},
    output,
};

pub(super) async fn run(session: &Session, args: Wait) -> Outcome {
    let keys = selection::keys(session, &args.what, args.selector.as_deref(), args.all, "").await?;
    if keys.is_empty() {
        if args.goal == Goal::Delete {
            return Ok(DONE);
        }
        bail!("no matching resources found");
    }
    let mut code = DONE;
    for key in keys {
        match wait(session, &key, &args).await {
            Ok(()) => {
                let kind = key.resource.qualified_singular();
                output::line(&format!("{kind}/{} condition met", key.name))?;
            }
            Err(e) => code = complain(e),
        }
    }
    Ok(code)
}

async fn wait(session: &Session, key: &ObjectKey, args: &Wait) -> anyhow::Result<()> {
    if !matches!(args.goal, Goal::Create | Goal::Delete) {
        // What is not there has no conditions to wait for.
        session.client.get(&Target::object(key)).await?;
    }
    let reached = watching::until(session, key, Some(args.timeout), |object| match (object, &args.goal) {
        (None, Goal::Delete) | (Some(_), Goal::Create) => Some(Ok(())),
        (None, Goal::Create) | (Some(_), Goal::Delete) => None,
        (None, _) => {
            Some(Err(anyhow!("{} \"{}\" was deleted meanwhile", key.resource.qualified_singular(), key.name)))
        }
        (Some(object), goal) => is_reached(object, goal).then_some(Ok(())),
    });
    match reached.await? {
        Some(result) => result,
        None => {
            bail!("timed out waiting for the condition on {}/{}", key.resource.qualified_plural(), key.name)
        }
    }
}

fn is_reached(object: &Object, goal: &Goal) -> bool {
    match goal {
        Goal::Condition { kind, value } => {
            let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
            let same = |v: &Value, s: &str| v.as_str().is_some_and(|v| v.eq_ignore_ascii_case(s));
            // A condition that was seen for an older generation says nothing about this one.
            let current = |c: &Value| {
                c["observedGeneration"]
                    .as_i64()
                    .or(object.pointer("/status/observedGeneration").and_then(Value::as_i64))
                    .is_none_or(|seen| seen >= object.generation())
            };
            conditions
                .into_iter()
                .flatten()
                .any(|c| same(&c["type"], kind) && same(&c["status"], value) && current(c))
        }
        Goal::Field { pointer, value } => match (object.pointer(pointer), value) {
            (None | Some(Value::Null), _) => false,
            (Some(_), None) => true,
            (Some(Value::String(found)), Some(value)) => found == value,
            (Some(found), Some(value)) => {
                let text = found.to_string();
                text == *value
            }
        },
        Goal::Create | Goal::Delete => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::args::values::goal;

    #[test]
    fn a_goal_is_reached_by_the_current_state_only() {
        let object = |seen: i64| -> Object {
            serde_json::from_value(json!({"metadata": {"name": "x", "generation": 2}, "status": {"observedGeneration": seen, "replicas": 3,
                "phase": "Running", "conditions": [{"type": "Available", "status": "True"}, {"type": "Programmed", "status": "False"}]}}))
            .unwrap()
        };
        let reached = |seen, text: &str| is_reached(&object(seen), &goal(text).unwrap());
        assert!(reached(2, "condition=Available") && reached(2, "condition=available=true"));
        assert!(reached(2, "condition=Programmed=False"));
        assert!(!reached(2, "condition=Programmed") && !reached(2, "condition=Ready"));
        assert!(!reached(1, "condition=Available"));
        assert!(
            reached(2, "jsonpath={.status.phase}=Running") && reached(2, "jsonpath={.status.replicas}=3")
        );
        assert!(reached(2, "jsonpath={.status.conditions[1].type}"));
        assert!(!reached(2, "jsonpath={.status.phase}=Pending") && !reached(2, "jsonpath={.status.nope}"));
    }
}
