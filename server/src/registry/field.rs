//! A place in an object: its path, as error messages name it, and the value that stands there.

use std::collections::BTreeSet;

use minisvc_proto::{Cause, Object, names::check_dns_label};
use serde_json::Value;

/// See the module. `null` counts as absent.
#[derive(Clone, Debug)]
pub struct Field<'a> {
    /// `spec.ports[0].name`.
    pub path: String,
    /// What stands there.
    pub value: Option<&'a Value>,
}

impl<'a> Field<'a> {
    /// A top-level field of an object.
    pub fn of(object: &'a Object, name: &str) -> Self {
        Field { path: name.to_owned(), value: object.0.get(name).filter(|v| !v.is_null()) }
    }

    /// A field of the object that stands here.
    pub fn child(&self, name: &str) -> Field<'a> {
        let value = self.value.and_then(|v| v.get(name)).filter(|v| !v.is_null());
        Field { path: format!("{}.{name}", self.path), value }
    }

    /// The entries of the list that stands here.
    pub fn items(&self) -> impl Iterator<Item = Field<'a>> {
        let list = self.value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let path = self.path.clone();
        list.iter().enumerate().map(move |(i, v)| Field { path: format!("{path}[{i}]"), value: Some(v) })
    }

    /// The entries of the map that stands here, with their keys.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.value.and_then(Value::as_object).into_iter().flatten().map(|(k, v)| (k.as_str(), v))
    }

    /// The text, or "".
    pub fn text(&self) -> &'a str {
        self.value.and_then(Value::as_str).unwrap_or("")
    }

    /// The number, if it is a whole one.
    pub fn number(&self) -> Option<i64> {
        self.value.and_then(Value::as_i64)
    }

    /// Whether something stands here that says something: not false, 0, or empty.
    pub fn is_set(&self) -> bool {
        match self.value {
            None | Some(Value::Null) => false,
            Some(Value::Bool(b)) => *b,
            Some(Value::Number(n)) => n.as_f64() != Some(0.0),
            Some(Value::String(s)) => !s.is_empty(),
            Some(Value::Array(a)) => !a.is_empty(),
            Some(Value::Object(o)) => !o.is_empty(),
        }
    }

    /// The fault that this value breaks a rule.
    pub fn invalid(&self, rule: &str) -> Cause {
        Cause::invalid(&self.path, self.value.cloned().unwrap_or_default(), rule)
    }

    /// The fault that this may not be set.
    pub fn forbidden(&self, why: &str) -> Cause {
        Cause::forbidden(&self.path, why)
    }

    /// The fault that this is missing.
    pub fn required(&self, why: &str) -> Cause {
        Cause::required(&self.path, why)
    }

    /// A fault unless the value is a DNS label that is not among `names`; then it is one of them from here on.
    pub fn unique_label(&self, names: &mut BTreeSet<&'a str>) -> Option<Cause> {
        let name = self.text();
        if name.is_empty() {
            return Some(self.required(""));
        }
        match check_dns_label(name) {
            Err(rule) => Some(self.invalid(rule.0)),
            Ok(()) => (!names.insert(name)).then(|| Cause::duplicate(&self.path, name)),
        }
    }

    /// A fault unless the value, where there is one, is one of these.
    pub fn one_of(&self, supported: &[&str]) -> Option<Cause> {
        let value = self.value?;
        let known = value.as_str().is_some_and(|v| supported.contains(&v));
        (!known).then(|| Cause::not_supported(&self.path, value.clone(), supported))
    }

    /// A fault unless the number, where there is one, is at least this.
    pub fn at_least(&self, least: i64) -> Option<Cause> {
        let value = self.value?;
        let enough = value.as_i64().is_some_and(|n| n >= least);
        (!enough).then(|| self.invalid(&format!("must be greater than or equal to {least}")))
    }
}
