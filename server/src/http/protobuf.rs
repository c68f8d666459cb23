//! Bodies in protobuf, read into the JSON that they stand for. kubectl's typed clients write them, and do not try again with JSON. Pure.
//! [apimachinery/pkg/runtime/serializer/protobuf; generated.proto]

use jiff::Timestamp;
use minisvc_proto::ApiError;
use serde_json::{Map, Number, Value};

use crate::schema::{self, Field, Shape, Struct};

/// What such a body begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Reads an object: 400 for what is cut short, or of no known kind.
pub fn read(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let envelope =
        body.strip_prefix(MAGIC).ok_or_else(|| bad("it does not begin as Kubernetes' objects do"))?;
    let (mut kind, mut api_version, mut raw) = (String::new(), String::new(), &[][..]);
    for (number, wire) in Fields(envelope).collect::<Result<Vec<_>, _>>()? {
        match (number, wire) {
            (1, Wire::Bytes(meta)) => {
                for (number, wire) in Fields(meta).collect::<Result<Vec<_>, _>>()? {
                    match (number, wire) {
                        (1, Wire::Bytes(text)) => api_version = string(text)?,
                        (2, Wire::Bytes(text)) => kind = string(text)?,
                        _ => {}
                    }
                }
            }
            (2, Wire::Bytes(bytes)) => raw = bytes,
            _ => {}
        }
    }
    let about = schema::of_kind(&api_version, &kind)
        .ok_or_else(|| bad(&format!("no kind {kind:?} is registered for version {api_version:?}")))?;
    let mut object = Map::new();
    object.insert("apiVersion".into(), api_version.into());
    object.insert("kind".into(), kind.into());
    fill(&mut object, raw, about)?;
    Ok(object)
}

fn bad(why: &str) -> ApiError {
    ApiError::bad_request(format!("the body is no protobuf that is known here: {why}"))
}

/// Adds what a message holds to the object that it stands for.
fn fill(object: &mut Map<String, Value>, message: &[u8], about: &'static Struct) -> Result<(), ApiError> {
    for found in Fields(message) {
        let (number, wire) = found?;
        let Some(field) = about.numbered(number) else { continue };
        match (field.shape, &wire) {
            (Shape::One, Wire::Bytes(bytes)) if field.inline => {
                if let Some(target) = field.target() {
                    fill(object, bytes, target)?;
                }
            }
            (Shape::One, _) => {
                let value = value(field, &wire)?;
                if field.pointer || !is_zero(&value) {
                    object.insert(field.name.into(), value);
                }
            }
            (Shape::List, _) => {
                let value = value(field, &wire)?;
                if let Value::Array(list) =
                    object.entry(field.name).or_insert_with(|| Value::Array(Vec::new()))
                {
                    list.push(value);
                }
            }
            (Shape::Map, Wire::Bytes(entry)) => {
                let (mut key, mut named) = (String::new(), None);
                for found in Fields(entry) {
                    match found? {
                        (1, Wire::Bytes(text)) => key = string(text)?,
                        (2, wire) => named = Some(value(field, &wire)?),
                        _ => {}
                    }
                }
                if let Value::Object(map) =
                    object.entry(field.name).or_insert_with(|| Value::Object(Map::new()))
                {
                    map.insert(key, named.unwrap_or_else(|| "".into()));
                }
            }
            (Shape::Map, _) => return Err(bad(&format!("{} is no map", field.name))),
        }
    }
    Ok(())
}

/// What Go leaves out of JSON (`omitempty`), but writes into protobuf.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Bool(true) => false,
    }
}

fn value(field: &'static Field, wire: &Wire<'_>) -> Result<Value, ApiError> {
    let numbers = |message: &[u8]| -> Result<[i64; 3], ApiError> {
        let mut numbers = [0; 3];
        for found in Fields(message) {
            if let (number @ 1..=3, Wire::Number(value)) = found? {
                numbers[number as usize - 1] = value.cast_signed();
            }
        }
        Ok(numbers)
    };
    let inner = |message: &[u8], wanted: u32| -> Result<String, ApiError> {
        for found in Fields(message) {
            if let (number, Wire::Bytes(text)) = found?
                && number == wanted
            {
                return string(text);
            }
        }
        Ok(String::new())
    };
    Ok(match (field.kind, wire) {
        ("string", Wire::Bytes(text)) => string(text)?.into(),
        ("bool", Wire::Number(number)) => (*number != 0).into(),
        // Negative numbers have ten bytes, whatever their type.
        ("int32" | "int64", Wire::Number(number)) => number.cast_signed().into(),
        ("double", Wire::Number(bits)) => {
            Number::from_f64(f64::from_bits(*bits)).map_or(Value::Null, Value::Number)
        }
        ("quantity", Wire::Bytes(message)) => inner(message, 1)?.into(),
        ("intstr", Wire::Bytes(message)) => match numbers(message)? {
            [0, number, _] => number.into(),
            _ => inner(message, 3)?.into(),
        },
        ("time" | "microtime", Wire::Bytes([])) => Value::Null,
        ("time" | "microtime", Wire::Bytes(message)) => {
            let [seconds, nanos, _] = numbers(message)?;
            let time = i32::try_from(nanos).ok().and_then(|nanos| Timestamp::new(seconds, nanos).ok());
            let format = if field.kind == "time" { "%Y-%m-%dT%H:%M:%SZ" } else { "%Y-%m-%dT%H:%M:%S.%6fZ" };
            time.ok_or_else(|| bad("a time does not fit"))?.strftime(format).to_string().into()
        }
        ("fields", Wire::Bytes(message)) => {
            serde_json::from_str(&inner(message, 1)?).map_err(|e| bad(&format!("{}: {e}", field.name)))?
        }
        (_, Wire::Bytes(message)) if field.target().is_some() => {
            let mut map = Map::new();
            if let Some(target) = field.target() {
                fill(&mut map, message, target)?;
            }
            Value::Object(map)
        }
        _ => return Err(bad(&format!("{} is of another type", field.name))),
    })
}

fn string(bytes: &[u8]) -> Result<String, ApiError> {
    String::from_utf8(bytes.to_vec()).map_err(|_| bad("a text is not UTF-8"))
}

/// A value as it lies on the wire.
enum Wire<'a> {
    /// A varint, or the bits of a fixed number.
    Number(u64),
    /// Text, bytes or a message.
    Bytes(&'a [u8]),
}

/// The fields of a message, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, length: u64) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(usize::try_from(length).ok()?)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u32, Wire<'a>)> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok()?;
        let wire = match tag & 7 {
            0 => Wire::Number(self.varint()?),
            1 => Wire::Number(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = self.varint()?;
                Wire::Bytes(self.take(length)?)
            }
            5 => Wire::Number(u32::from_le_bytes(self.take(4)?.try_into().ok()?).into()),
            _ => return None,
        };
        Some((number, wire))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Wire<'a>), ApiError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or_else(|| bad("it was cut short")))
    }
}

#[cfg(test)]
mod tests;
