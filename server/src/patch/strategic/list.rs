//! Lists of a strategic merge patch.

use minisvc_proto::ApiError;
use serde_json::{Map, Value};

use super::{DIRECTIVE, inner, order, unfit};
use crate::schema::{Field, Merge};

/// Merges a list as its field says; one that is not merged is replaced.
pub fn merge(old: &mut Vec<Value>, new: Vec<Value>, field: Option<&'static Field>) -> Result<(), ApiError> {
    match field.and_then(|f| f.merge) {
        Some(Merge::Key(key)) => by_key(old, new, key, field),
        Some(Merge::Value) => {
            let before = old.clone();
            for value in &new {
                if !old.contains(value) {
                    old.push(value.clone());
                }
            }
            order::arrange(old, &new, &before, None);
            Ok(())
        }
        None => {
            *old = clean(new)?;
            Ok(())
        }
    }
}

fn by_key(
    old: &mut Vec<Value>,
    new: Vec<Value>,
    key: &'static str,
    field: Option<&'static Field>,
) -> Result<(), ApiError> {
    let mut elements = Vec::with_capacity(new.len());
    let (mut deleted, mut replaces) = (Vec::new(), false);
    for element in new {
        let Value::Object(mut map) = element else {
            return Err(unfit(format!("{element} is no map, but the list is merged by {key:?}")));
        };
        let directive = map.remove(DIRECTIVE);
        match directive.as_ref().map(Value::as_str) {
            Some(Some("replace")) => {
                replaces = true;
                if !map.is_empty() {
                    elements.push(map);
                }
            }
            Some(Some("delete")) => deleted.push(value_of(&map, key)?.clone()),
            None | Some(Some("merge")) => elements.push(map),
            Some(_) => return Err(unfit(format!("unknown patch type found: {}", Value::from(directive)))),
        }
    }
    if replaces {
        *old = clean(elements.into_iter().map(Value::Object).collect())?;
        return Ok(());
    }
    let before = old.clone();
    old.retain(|e| !deleted.iter().any(|d| e.get(key) == Some(d)));
    let mut named = Vec::with_capacity(elements.len());
    for map in elements {
        let value = value_of(&map, key)?.clone();
        named.push(Value::Object(Map::from_iter([(key.to_owned(), value.clone())])));
        match old.iter_mut().find(|e| e.get(key) == Some(&value)) {
            Some(Value::Object(there)) => super::merge(there, map, inner(field))?,
            _ => old.push(super::clean(Value::Object(map))?),
        }
    }
    order::arrange(old, &named, &before, Some(key));
    Ok(())
}

fn value_of<'a>(map: &'a Map<String, Value>, key: &str) -> Result<&'a Value, ApiError> {
    let absent = || unfit(format!("map: {map:?} does not contain declared merge key: {key}"));
    map.get(key).filter(|v| !v.is_null()).ok_or_else(absent)
}

/// Takes values out of a list of strings or numbers.
pub fn delete_values(list: Option<&mut Value>, name: &str, values: &Value) -> Result<(), ApiError> {
    let values = values.as_array().ok_or_else(|| unfit(format!("what leaves {name:?} is no list")))?;
    if let Some(Value::Array(list)) = list {
        list.retain(|v| !values.contains(v));
    }
    Ok(())
}

/// A list of a patch where there was none: without elements that only say what goes.
pub fn clean(list: Vec<Value>) -> Result<Vec<Value>, ApiError> {
    let stays = |v: &Value| match v.get(DIRECTIVE).and_then(Value::as_str) {
        Some("delete") => false,
        Some("replace") => v.as_object().is_some_and(|m| m.len() > 1),
        _ => true,
    };
    list.into_iter().filter(stays).map(super::clean).collect()
}
