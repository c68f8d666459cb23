//! The document of `/openapi/v2` in protobuf, which kubectl before 1.29 asks for and does not do without. Pure.
//! [github.com/google/gnostic-models, openapiv2/OpenAPIv2.proto]

use serde_json::{Map, Value};

/// A field of bytes: text or a message.
fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    varint(out, u64::from(number << 3 | 2));
    varint(out, content.len() as u64);
    out.extend(content);
}

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// A text at a key of an object, if it has one.
fn text(out: &mut Vec<u8>, number: u32, of: &Value, key: &str) {
    if let Some(text) = of[key].as_str() {
        bytes(out, number, text.as_bytes());
    }
}

/// A repeated field of names with messages.
fn named(out: &mut Vec<u8>, number: u32, map: &Value, write: fn(&Value) -> Vec<u8>) {
    for (name, value) in map.as_object().into_iter().flatten() {
        bytes(out, number, &pair(name, &write(value)));
    }
}

fn pair(name: &str, message: &[u8]) -> Vec<u8> {
    let mut pair = Vec::new();
    bytes(&mut pair, 1, name.as_bytes());
    bytes(&mut pair, 2, message);
    pair
}

/// The document, which is that of [`super::second`].
pub fn write(document: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    text(&mut out, 1, document, "swagger");
    let mut info = Vec::new();
    text(&mut info, 1, &document["info"], "title");
    text(&mut info, 2, &document["info"], "version");
    bytes(&mut out, 2, &info);
    let mut paths = Vec::new();
    named(&mut paths, 2, &document["paths"], path);
    bytes(&mut out, 8, &paths);
    let mut definitions = Vec::new();
    named(&mut definitions, 1, &document["definitions"], schema);
    bytes(&mut out, 9, &definitions);
    out
}

fn path(item: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    bytes(&mut out, 8, &operation(&item["patch"]));
    out
}

fn operation(operation: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let mut query = Vec::new();
        for (number, key) in [(2, "in"), (4, "name"), (6, "type")] {
            text(&mut query, number, parameter, key);
        }
        // A parameter of the query is one of four kinds that are no body, which is one of two that are no reference.
        for number in [2, 2, 1] {
            let mut outer = Vec::new();
            bytes(&mut outer, number, &query);
            query = outer;
        }
        bytes(&mut out, 8, &query);
    }
    let mut responses = Vec::new();
    named(&mut responses, 1, &operation["responses"], |response| {
        let (mut inner, mut out) = (Vec::new(), Vec::new());
        text(&mut inner, 1, response, "description");
        bytes(&mut out, 1, &inner);
        out
    });
    bytes(&mut out, 9, &responses);
    extensions(&mut out, 13, operation.as_object());
    out
}

fn schema(schema: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    text(&mut out, 1, schema, "$ref");
    text(&mut out, 2, schema, "format");
    if let Some(values) = schema.get("additionalProperties") {
        let mut item = Vec::new();
        bytes(&mut item, 1, &self::schema(values));
        bytes(&mut out, 21, &item);
    }
    if let Some(kind) = schema["type"].as_str() {
        let mut item = Vec::new();
        bytes(&mut item, 1, kind.as_bytes());
        bytes(&mut out, 22, &item);
    }
    if let Some(items) = schema.get("items") {
        let mut item = Vec::new();
        bytes(&mut item, 1, &self::schema(items));
        bytes(&mut out, 23, &item);
    }
    if let Some(properties) = schema.get("properties") {
        let mut all = Vec::new();
        named(&mut all, 1, properties, self::schema);
        bytes(&mut out, 25, &all);
    }
    extensions(&mut out, 31, schema.as_object());
    out
}

/// Kubernetes' own marks: names with YAML, which JSON is.
fn extensions(out: &mut Vec<u8>, number: u32, object: Option<&Map<String, Value>>) {
    for (name, value) in object.into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        let mut any = Vec::new();
        bytes(&mut any, 2, value.to_string().as_bytes());
        bytes(out, number, &pair(name, &any));
    }
}
