//! `status.conditions`, as every kind keeps them.

use minisvc_proto::Object;
use serde_json::{Map, Value, json};

/// The reason of a silent node's condition Ready while most nodes are silent: its pods stay where they are.
pub const MOST_SILENT: &str = "MostNodesSilent";

/// A condition's content, without its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// `Ready`, `Available` …
    pub kind: &'static str,
    /// `True`, `False` or `Unknown`.
    pub status: &'static str,
    /// One CamelCase word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// The condition of this type.
pub fn get<'a>(object: &'a Object, kind: &str) -> Option<&'a Map<String, Value>> {
    let all = object.pointer("/status/conditions")?.as_array()?;
    all.iter().filter_map(Value::as_object).find(|c| c.get("type").and_then(Value::as_str) == Some(kind))
}

/// Whether the condition of this type is `True`.
pub fn is_true(object: &Object, kind: &str) -> bool {
    status(object, kind) == Some("True")
}

/// The status of the condition of this type.
pub fn status<'a>(object: &'a Object, kind: &str) -> Option<&'a str> {
    get(object, kind)?.get("status")?.as_str()
}

/// Sets a condition; `lastTransitionTime` moves only when its status flips. Answers whether anything changed.
pub fn set(object: &mut Object, condition: &Condition, now: &str) -> bool {
    let old = get(object, condition.kind).cloned();
    let field = |name: &str| old.as_ref().and_then(|c| c.get(name)).and_then(Value::as_str);
    if field("status") == Some(condition.status)
        && field("reason") == Some(condition.reason)
        && field("message") == Some(condition.message.as_str())
    {
        return false;
    }
    let since = field("lastTransitionTime").filter(|_| field("status") == Some(condition.status));
    let mut new = old.clone().unwrap_or_default();
    for (name, value) in [
        ("type", condition.kind),
        ("status", condition.status),
        ("reason", condition.reason),
        ("message", condition.message.as_str()),
        ("lastTransitionTime", since.unwrap_or(now)),
    ] {
        new.insert(name.to_owned(), json!(value));
    }
    let list = object.status_mut().entry("conditions").or_insert_with(|| json!([]));
    if !list.is_array() {
        *list = json!([]);
    }
    if let Some(list) = list.as_array_mut() {
        match list.iter_mut().find(|c| c.get("type").and_then(Value::as_str) == Some(condition.kind)) {
            Some(slot) => *slot = Value::Object(new),
            None => list.push(Value::Object(new)),
        }
    }
    true
}

/// Takes a condition away; answers whether there was one.
pub fn remove(object: &mut Object, kind: &str) -> bool {
    let list = object.0.get_mut("status").and_then(|s| s.get_mut("conditions")).and_then(Value::as_array_mut);
    let Some(list) = list else { return false };
    let before = list.len();
    list.retain(|c| c.get("type").and_then(Value::as_str) != Some(kind));
    list.len() < before
}

/// RFC 3339 in UTC with whole seconds, as the API writes times.
pub fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::NODES;

    use super::*;

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let mut node = Object::new(&NODES, None, "n1");
        let mut ready = Condition { kind: "Ready", status: "True", reason: "Up", message: String::new() };
        assert!(set(&mut node, &ready, "t1"));
        assert!(!set(&mut node, &ready, "t2"));
        ready.message = "more".into();
        assert!(set(&mut node, &ready, "t3"));
        assert_eq!(get(&node, "Ready").unwrap()["lastTransitionTime"], "t1");
        ready.status = "False";
        assert!(set(&mut node, &ready, "t4"));
        assert_eq!(get(&node, "Ready").unwrap()["lastTransitionTime"], "t4");
        assert_eq!(node.pointer("/status/conditions").unwrap().as_array().unwrap().len(), 1);
    }
}
