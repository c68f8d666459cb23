//! Events: what users are told about objects, by whichever part of minisvc noticed. core/v1 Event, in its legacy form, which is the
//! one that kubectl prints.

use serde_json::json;

use crate::{object::Object, resource::EVENTS};

/// How grave it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Things take their course.
    Normal,
    /// Somebody may have to do something.
    Warning,
}

/// Something to be told about an object. Two equal notes are one event that happened twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Note {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    name: String,
    uid: String,
    severity: Severity,
    reason: &'static str,
    message: String,
}

/// Who tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    /// `minisvc-server`, `minisvc-agent` …
    pub component: &'a str,
    /// The node, where there is one.
    pub host: Option<&'a str>,
}

impl Note {
    /// `reason` is one CamelCase word, `message` is for people.
    pub fn new(about: &Object, severity: Severity, reason: &'static str, message: impl Into<String>) -> Self {
        Note {
            api_version: about.api_version().to_owned(),
            kind: about.kind().to_owned(),
            namespace: about.namespace().map(str::to_owned),
            name: about.name().to_owned(),
            uid: about.uid().to_owned(),
            severity,
            reason,
            message: message.into(),
        }
    }

    /// Where its Event lives: beside the object, or in `default` for cluster-scoped ones.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().unwrap_or("default")
    }

    /// Name of the object that it is about.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The reason.
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    /// The Event object for `count` occurrences up to `now` (RFC 3339). `suffix` tells it from other events of the object.
    pub fn to_event(&self, suffix: &str, source: Source<'_>, count: i64, now: &str) -> Object {
        let mut event = Object::new(&EVENTS, Some(self.namespace()), &format!("{}.{suffix}", self.name));
        let mut about = json!({
            "apiVersion": self.api_version, "kind": self.kind, "name": self.name, "uid": self.uid,
        });
        if let Some(namespace) = &self.namespace {
            about["namespace"] = namespace.as_str().into();
        }
        let mut from = json!({"component": source.component});
        if let Some(host) = source.host {
            from["host"] = host.into();
        }
        let severity = match self.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        };
        for (field, value) in [
            ("involvedObject", about),
            ("type", severity.into()),
            ("reason", self.reason.into()),
            ("message", self.message.as_str().into()),
            ("count", count.into()),
            ("firstTimestamp", now.into()),
            ("lastTimestamp", now.into()),
            ("source", from),
            ("reportingComponent", source.component.into()),
            ("reportingInstance", source.host.unwrap_or("").into()),
        ] {
            event.0.insert(field.into(), value);
        }
        event
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{NODES, PODS};

    #[test]
    fn an_event_stands_beside_its_object_and_names_it() {
        let source = Source { component: "minisvc-agent", host: Some("node-1") };
        let event = |about: &Object| {
            Note::new(about, Severity::Warning, "BackOff", "x").to_event(
                "1a",
                source,
                2,
                "2026-01-01T00:00:00Z",
            )
        };
        let pod = event(&Object::new(&PODS, Some("shop"), "web"));
        assert_eq!((pod.namespace(), pod.name()), (Some("shop"), "web.1a"));
        assert_eq!(pod.str_at("/involvedObject/namespace"), Some("shop"));
        let node = event(&Object::new(&NODES, None, "node-1"));
        assert_eq!((node.namespace(), node.pointer("/involvedObject/namespace")), (Some("default"), None));
        assert_eq!((node.str_at("/type"), node.str_at("/source/host")), (Some("Warning"), Some("node-1")));
    }
}
