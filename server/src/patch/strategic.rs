//! Strategic merge patches: merge patches that know which lists are merged, and by what. Pure.
//! [apimachinery/pkg/util/strategicpatch/patch.go; contributors/devel/sig-api-machinery/strategic-merge-patch.md]

mod list;
mod order;

use minisvc_proto::{ApiError, Reason};
use serde_json::{Map, Value};

use crate::schema::{Field, Struct};

/// What is to be done with a map, or with the list that it stands in.
const DIRECTIVE: &str = "$patch";
/// The values that leave a list of strings or numbers.
const DELETE_PREFIX: &str = "$deleteFromPrimitiveList/";
/// The order that the elements of a merged list come in.
const ORDER_PREFIX: &str = "$setElementOrder/";
/// The keys that stay in a map.
const RETAIN: &str = "$retainKeys";

/// Merges a patch into a map that is described by this struct (`None`: its lists are replaced).
pub fn merge(
    original: &mut Map<String, Value>,
    mut patch: Map<String, Value>,
    about: Option<&'static Struct>,
) -> Result<(), ApiError> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        match directive.as_str() {
            Some("replace") => *original = clean_map(patch)?,
            Some("delete") => original.clear(),
            _ => return Err(unfit(format!("unknown patch type found: {directive}"))),
        }
        return Ok(());
    }
    retain(original, &mut patch)?;
    order::merge_ordered(original, &mut patch, about)?;
    for (key, value) in patch {
        if let Some(name) = key.strip_prefix(DELETE_PREFIX) {
            list::delete_values(original.get_mut(name), name, &value)?;
            continue;
        }
        let field = about.and_then(|a| a.field(&key));
        match (original.get_mut(&key), value) {
            (_, Value::Null) => drop(original.remove(&key)),
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new, inner(field))?,
            (Some(Value::Array(old)), Value::Array(new)) => list::merge(old, new, field)?,
            (_, value) => {
                let value = clean(value)?;
                original.insert(key, value);
            }
        }
    }
    Ok(())
}

/// What describes the values of a field.
fn inner(field: Option<&'static Field>) -> Option<&'static Struct> {
    field?.target()
}

/// Keeps those keys of the original that the patch names.
fn retain(original: &mut Map<String, Value>, patch: &mut Map<String, Value>) -> Result<(), ApiError> {
    let Some(keys) = patch.remove(RETAIN) else { return Ok(()) };
    let keys = keys.as_array().ok_or_else(|| unfit(format!("{RETAIN} is no list")))?;
    let kept = |name: &str| keys.iter().any(|k| k == name);
    if let Some(stray) = patch.iter().find(|(k, v)| !k.starts_with('$') && !v.is_null() && !kept(k)) {
        return Err(unfit(format!("{RETAIN} does not name {:?}, which the patch sets", stray.0)));
    }
    original.retain(|key, _| kept(key));
    Ok(())
}

/// A value of a patch where there was nothing before: without nulls and directives.
fn clean(value: Value) -> Result<Value, ApiError> {
    Ok(match value {
        Value::Object(map) => Value::Object(clean_map(map)?),
        Value::Array(list) => Value::Array(list::clean(list)?),
        other => other,
    })
}

fn clean_map(map: Map<String, Value>) -> Result<Map<String, Value>, ApiError> {
    if map.get(DIRECTIVE).is_some_and(|d| d == "delete") {
        return Ok(Map::new());
    }
    let own = |(key, value): &(String, Value)| !value.is_null() && !is_directive(key);
    map.into_iter().filter(own).map(|(key, value)| Ok((key, clean(value)?))).collect()
}

fn is_directive(key: &str) -> bool {
    key == DIRECTIVE || key == RETAIN || key.starts_with(DELETE_PREFIX) || key.starts_with(ORDER_PREFIX)
}

fn unfit(why: impl std::fmt::Display) -> ApiError {
    ApiError::new(Reason::Invalid, format!("the strategic merge patch does not fit: {why}"))
}

#[cfg(test)]
mod tests;
