//! Label and field selectors: the string form of the API and the object form in specs.
//! Grammar and meaning follow apimachinery `pkg/labels/selector.go`.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde_json::Value;

use crate::object::Object;

/// A conjunction of requirements on labels. Empty matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector(pub Vec<Requirement>);

/// One requirement on one label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    /// The label.
    pub key: String,
    /// What it must be.
    pub op: Op,
}

/// The operator of a [`Requirement`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The value is one of these (`=`, `==`, `in`).
    In(Vec<String>),
    /// The label is absent or has none of these (`!=`, `notin`).
    NotIn(Vec<String>),
    /// The label is there.
    Exists,
    /// The label is absent (`!key`).
    DoesNotExist,
}

/// A selector that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unable to parse requirement: {0}")]
pub struct SelectorError(pub String);

impl LabelSelector {
    /// The plain map form: every label has its value.
    pub fn from_map(map: &BTreeMap<String, String>) -> Self {
        let one = |(k, v): (&String, &String)| Requirement { key: k.clone(), op: Op::In(vec![v.clone()]) };
        LabelSelector(map.iter().map(one).collect())
    }

    /// The object form, `{matchLabels, matchExpressions}`.
    pub fn from_object(value: &Value) -> Result<Self, SelectorError> {
        let mut out = Vec::new();
        if let Some(labels) = value.get("matchLabels").and_then(Value::as_object) {
            for (k, v) in labels {
                let v = v.as_str().ok_or_else(|| SelectorError(format!("matchLabels[{k}] is no string")))?;
                out.push(Requirement { key: k.clone(), op: Op::In(vec![v.to_owned()]) });
            }
        }
        for e in value.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let key = e.get("key").and_then(Value::as_str).unwrap_or("").to_owned();
            let values: Vec<String> = e
                .get("values")
                .and_then(Value::as_array)
                .map(|a| a.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect())
                .unwrap_or_default();
            let op = match e.get("operator").and_then(Value::as_str).unwrap_or("") {
                "In" if !values.is_empty() => Op::In(values),
                "NotIn" if !values.is_empty() => Op::NotIn(values),
                "Exists" if values.is_empty() => Op::Exists,
                "DoesNotExist" if values.is_empty() => Op::DoesNotExist,
                other => {
                    return Err(SelectorError(format!("operator {other:?} with {} values", values.len())));
                }
            };
            out.push(Requirement { key, op });
        }
        Ok(LabelSelector(out))
    }

    /// Whether these labels satisfy every requirement.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|r| {
            let have = labels.get(&r.key);
            match &r.op {
                Op::In(values) => have.is_some_and(|v| values.contains(v)),
                Op::NotIn(values) => have.is_none_or(|v| !values.contains(v)),
                Op::Exists => have.is_some(),
                Op::DoesNotExist => have.is_none(),
            }
        })
    }

    /// Matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match &r.op {
                Op::In(v) if v.len() == 1 => write!(f, "{}={}", r.key, v[0]),
                Op::NotIn(v) if v.len() == 1 => write!(f, "{}!={}", r.key, v[0]),
                Op::In(v) => write!(f, "{} in ({})", r.key, v.join(",")),
                Op::NotIn(v) => write!(f, "{} notin ({})", r.key, v.join(",")),
                Op::Exists => f.write_str(&r.key),
                Op::DoesNotExist => write!(f, "!{}", r.key),
            }?;
        }
        Ok(())
    }
}

impl FromStr for LabelSelector {
    type Err = SelectorError;

    fn from_str(s: &str) -> Result<Self, SelectorError> {
        // Commas inside parentheses separate values, outside they separate requirements.
        let mut parts = Vec::new();
        let (mut depth, mut start) = (0_i32, 0);
        for (i, c) in s.char_indices() {
            match c {
                '(' => depth += 1,
                ')' => depth -= 1,
                ',' if depth == 0 => {
                    parts.push(&s[start..i]);
                    start = i + 1;
                }
                _ => {}
            }
            if !(0..=1).contains(&depth) {
                return Err(SelectorError(format!("unbalanced parentheses in {s:?}")));
            }
        }
        if depth != 0 {
            return Err(SelectorError(format!("unbalanced parentheses in {s:?}")));
        }
        parts.push(&s[start..]);
        if s.trim().is_empty() {
            return Ok(LabelSelector::default());
        }
        parts.into_iter().map(|p| parse_requirement(p.trim())).collect::<Result<_, _>>().map(LabelSelector)
    }
}

fn parse_requirement(s: &str) -> Result<Requirement, SelectorError> {
    let bad = || {
        SelectorError(format!("{s:?} is no requirement such as a=b, a!=b, a in (b,c), a notin (b), a or !a"))
    };
    let label = |k: &str| if is_label_key(k) { Ok(k.to_owned()) } else { Err(bad()) };
    let value = |v: &str| if is_label_value(v) { Ok(v.to_owned()) } else { Err(bad()) };
    if let Some(key) = s.strip_prefix('!') {
        return Ok(Requirement { key: label(key.trim())?, op: Op::DoesNotExist });
    }
    if let Some((head, list)) = s.strip_suffix(')').and_then(|s| s.split_once('(')) {
        let (key, word) = head.trim().split_once(char::is_whitespace).ok_or_else(bad)?;
        let values = list.split(',').map(|v| value(v.trim())).collect::<Result<Vec<_>, _>>()?;
        let op = match word.trim() {
            "in" => Op::In(values),
            "notin" => Op::NotIn(values),
            _ => return Err(bad()),
        };
        return Ok(Requirement { key: label(key)?, op });
    }
    if let Some((k, v)) = s.split_once("!=") {
        return Ok(Requirement { key: label(k.trim())?, op: Op::NotIn(vec![value(v.trim())?]) });
    }
    if let Some((k, v)) = s.split_once("==").or_else(|| s.split_once('=')) {
        return Ok(Requirement { key: label(k.trim())?, op: Op::In(vec![value(v.trim())?]) });
    }
    Ok(Requirement { key: label(s)?, op: Op::Exists })
}

/// A label key: an optional DNS subdomain and `/`, then a name of at most 63 characters.
pub fn is_label_key(s: &str) -> bool {
    let (prefix, name) = s.rsplit_once('/').map_or((None, s), |(p, n)| (Some(p), n));
    prefix.is_none_or(|p| crate::names::check_dns_subdomain(p).is_ok())
        && !name.is_empty()
        && is_label_value(name)
}

/// A label value: empty, or at most 63 characters of `[A-Za-z0-9_.-]` with alphanumeric ends.
pub fn is_label_value(s: &str) -> bool {
    let alnum = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    s.len() <= 63
        && alnum(s.chars().next())
        && alnum(s.chars().next_back())
        && s.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

/// A conjunction of `path=value` and `path!=value` on fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(pub Vec<FieldRequirement>);

/// One requirement of a [`FieldSelector`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// Dotted path, `spec.nodeName`.
    pub path: String,
    /// Whether it must be equal, or must differ.
    pub equal: bool,
    /// The value; an absent field is "".
    pub value: String,
}

impl FromStr for FieldSelector {
    type Err = SelectorError;

    fn from_str(s: &str) -> Result<Self, SelectorError> {
        let parts = s.split(',').map(str::trim).filter(|p| !p.is_empty());
        parts
            .map(|p| {
                let (path, equal, value) = if let Some((k, v)) = p.split_once("!=") {
                    (k, false, v)
                } else if let Some((k, v)) = p.split_once("==").or_else(|| p.split_once('=')) {
                    (k, true, v)
                } else {
                    return Err(SelectorError(format!(
                        "{p:?} is no field requirement such as metadata.name=web"
                    )));
                };
                Ok(FieldRequirement { path: path.trim().to_owned(), equal, value: value.trim().to_owned() })
            })
            .collect::<Result<_, _>>()
            .map(FieldSelector)
    }
}

impl FieldSelector {
    /// Whether the object satisfies every requirement.
    pub fn matches(&self, object: &Object) -> bool {
        self.0.iter().all(|r| {
            let pointer = format!("/{}", r.path.replace('.', "/"));
            let have = match object.pointer(&pointer) {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(s)) => s.clone(),
                Some(other) => other.to_string(),
            };
            (have == r.value) == r.equal
        })
    }

    /// The value that a field is pinned to (`path=value`), for indexes.
    pub fn pinned(&self, path: &str) -> Option<&str> {
        self.0.iter().find(|r| r.equal && r.path == path).map(|r| r.value.as_str())
    }

    /// Matches everything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn selectors_mean_what_kubernetes_says() {
        let web = labels(&[("app", "web"), ("tier", "front")]);
        for (selector, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (web, db),tier notin (back)", true),
            ("app,!zone", true),
            ("zone", false),
            ("!app", false),
            ("zone!=a", true),
            ("app in (db)", false),
            ("app=", false),
        ] {
            assert_eq!(selector.parse::<LabelSelector>().unwrap().matches(&web), expected, "{selector}");
        }
        for bad in ["a in b", "a=(b", "=x", "a in ()x", "a==b=c", "a b", ",", "a)(b"] {
            assert!(bad.parse::<LabelSelector>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_object_form_checks_its_operators() {
        let ok = serde_json::json!({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "DoesNotExist"}]});
        assert!(LabelSelector::from_object(&ok).unwrap().matches(&labels(&[("app", "web")])));
        let bad = serde_json::json!({"matchExpressions": [{"key": "x", "operator": "In"}]});
        assert!(LabelSelector::from_object(&bad).is_err());
    }

    #[test]
    fn field_selectors_read_fields_and_take_absence_for_empty() {
        let pod: Object = serde_json::from_value(
            serde_json::json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n1"}}),
        )
        .unwrap();
        for (s, expected) in [
            ("metadata.name=a", true),
            ("spec.nodeName!=n1", false),
            ("spec.nodeName==n1,status.phase=", true),
        ] {
            assert_eq!(s.parse::<FieldSelector>().unwrap().matches(&pod), expected, "{s}");
        }
        assert!("oops".parse::<FieldSelector>().is_err());
    }

    proptest! {
        #[test]
        fn printing_and_parsing_a_selector_gives_it_back(
            reqs in proptest::collection::vec(("[a-z]{1,8}", 0_u8..4, proptest::collection::vec("[a-z0-9]{1,5}", 1..4)), 0..5)
        ) {
            let selector = LabelSelector(reqs.into_iter().map(|(key, op, values)| Requirement { key, op: match op {
                0 => Op::In(values), 1 => Op::NotIn(values), 2 => Op::Exists, _ => Op::DoesNotExist,
            }}).collect());
            prop_assert_eq!(selector.to_string().parse::<LabelSelector>().unwrap(), selector);
        }

        #[test]
        fn no_input_panics(s in ".{0,40}") {
            let _ = s.parse::<LabelSelector>();
            let _ = s.parse::<FieldSelector>();
        }
    }
}
