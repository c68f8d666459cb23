//! The order of merged lists: what the patch names comes as the patch has it, and what it does not name keeps its place among it.

use minisvc_proto::ApiError;
use serde_json::{Map, Value};

use super::{ORDER_PREFIX, list, unfit};
use crate::schema::{Merge, Struct};

/// Merges those lists whose order the patch gives, and takes them out of the patch.
pub fn merge_ordered(
    original: &mut Map<String, Value>,
    patch: &mut Map<String, Value>,
    about: Option<&'static Struct>,
) -> Result<(), ApiError> {
    let names: Vec<String> =
        patch.keys().filter_map(|k| k.strip_prefix(ORDER_PREFIX)).map(str::to_owned).collect();
    for name in names {
        let Some(Value::Array(order)) = patch.remove(&format!("{ORDER_PREFIX}{name}")) else {
            return Err(unfit(format!("{ORDER_PREFIX}{name} is no list")));
        };
        let field = about.and_then(|a| a.field(&name));
        let by = field.and_then(|f| f.merge);
        let key = match by {
            Some(Merge::Key(key)) => Some(key),
            Some(Merge::Value) => None,
            None => {
                return Err(unfit(format!("{name:?} is no list that is merged, and has no order to set")));
            }
        };
        let new = match patch.remove(&name) {
            None => None,
            Some(Value::Array(new)) => Some(new),
            // Null, or another type: no list to order.
            Some(other) => {
                patch.insert(name, other);
                continue;
            }
        };
        for element in new.iter().flatten().filter(|e| e.get("$patch").is_none()) {
            if !order.iter().any(|o| same(o, element, key)) {
                return Err(unfit(format!("{ORDER_PREFIX}{name} does not name {element}")));
            }
        }
        let mut merged = match original.get(&name) {
            Some(Value::Array(old)) => old.clone(),
            _ if new.is_none() => continue,
            _ => Vec::new(),
        };
        let before = merged.clone();
        if let Some(delete) = patch.remove(&format!("{}{name}", super::DELETE_PREFIX)) {
            let mut value = Value::Array(std::mem::take(&mut merged));
            list::delete_values(Some(&mut value), &name, &delete)?;
            merged = match value {
                Value::Array(list) => list,
                _ => Vec::new(),
            };
        }
        list::merge(&mut merged, new.unwrap_or_default(), field)?;
        arrange(&mut merged, &order, &before, key);
        original.insert(name, Value::Array(merged));
    }
    Ok(())
}

/// Puts a merged list in order: elements that `wanted` names come as there; others stay before or after them as they did.
pub fn arrange(merged: &mut Vec<Value>, wanted: &[Value], before: &[Value], key: Option<&str>) {
    let place = |list: &[Value], element: &Value| list.iter().position(|e| same(e, element, key));
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        std::mem::take(merged).into_iter().partition(|e| place(wanted, e).is_some());
    named.sort_by_key(|e| place(wanted, e));
    others.sort_by_key(|e| place(before, e));
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let other_first = match (named.peek(), others.peek()) {
            (Some(n), Some(o)) => place(before, o).zip(place(before, n)).is_some_and(|(o, n)| o < n),
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (None, None) => return,
        };
        merged.extend(if other_first { others.next() } else { named.next() });
    }
}

fn same(a: &Value, b: &Value, key: Option<&str>) -> bool {
    match key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    }
}
