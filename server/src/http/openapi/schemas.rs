//! The schemas of the kinds that are served, and of what they are made of; of nothing else. Pure.

use std::collections::BTreeSet;

use minisvc_proto::{Resource, resource::RESOURCES};
use serde_json::{Map, Value, json};

use crate::schema::{self, Field, Merge, Shape, Struct};

/// Which edition of OpenAPI is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edition {
    /// Swagger 2.0: `/openapi/v2`.
    Two,
    /// OpenAPI 3.0: `/openapi/v3`.
    Three,
}

/// The schemas of these kinds, by their names.
pub fn of<'a>(kinds: impl Iterator<Item = &'a Resource>, edition: Edition) -> Map<String, Value> {
    let (mut schemas, mut seen, mut open) = (Map::new(), BTreeSet::new(), Vec::new());
    for kind in kinds {
        let mark = json!([{"group": kind.group, "version": kind.version, "kind": kind.kind}]);
        let (name, mut schema) = if let Some(about) = schema::of_kind(&kind.api_version(), kind.kind) {
            seen.insert(about.name);
            (full_name(about.name), write(about, edition, &mut open))
        } else {
            // minisvc's own kinds: their fields are in docs/api.md.
            let object = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
            let metadata = reference("meta.ObjectMeta", edition);
            open.extend(schema::named("meta.ObjectMeta"));
            let properties = json!({"metadata": metadata, "spec": object, "status": object});
            (
                format!("io.minisvc.{}.{}", kind.version, kind.kind),
                json!({"type": "object", "properties": properties}),
            )
        };
        for field in ["apiVersion", "kind"] {
            schema["properties"][field] = json!({"type": "string"});
        }
        schema["x-kubernetes-group-version-kind"] = mark;
        schemas.insert(name, schema);
    }
    while let Some(about) = open.pop() {
        if seen.insert(about.name) {
            let schema = write(about, edition, &mut open);
            schemas.insert(full_name(about.name), schema);
        }
    }
    schemas
}

/// The schemas of all kinds that are served.
pub fn all(edition: Edition) -> Map<String, Value> {
    of(RESOURCES.iter().copied(), edition)
}

/// `core.Service` as Kubernetes publishes it.
fn full_name(name: &str) -> String {
    let (package, name) = name.split_once('.').unwrap_or(("core", name));
    match package {
        "meta" => format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"),
        package => format!("io.k8s.api.{package}.v1.{name}"),
    }
}

fn reference(name: &str, edition: Edition) -> Value {
    let place = match edition {
        Edition::Two => "#/definitions",
        Edition::Three => "#/components/schemas",
    };
    json!({"$ref": format!("{place}/{}", full_name(name))})
}

fn write(about: &'static Struct, edition: Edition, open: &mut Vec<&'static Struct>) -> Value {
    let mut properties = Map::new();
    write_fields(about, edition, open, &mut properties);
    json!({"type": "object", "properties": properties})
}

fn write_fields(
    about: &'static Struct,
    edition: Edition,
    open: &mut Vec<&'static Struct>,
    properties: &mut Map<String, Value>,
) {
    for field in &about.fields {
        let target = field.target();
        match target {
            Some(target) if field.inline => {
                write_fields(target, edition, open, properties);
                continue;
            }
            _ => open.extend(target),
        }
        let one = value(field, edition);
        let mut property = match field.shape {
            Shape::One => one,
            Shape::List => json!({"type": "array", "items": one}),
            Shape::Map => json!({"type": "object", "additionalProperties": one}),
        };
        if field.shape == Shape::List
            && let Some(merge) = field.merge
        {
            property["x-kubernetes-patch-strategy"] =
                if field.retain { "merge,retainKeys" } else { "merge" }.into();
            if let Merge::Key(key) = merge {
                property["x-kubernetes-patch-merge-key"] = key.into();
            }
        } else if field.retain {
            property["x-kubernetes-patch-strategy"] = "retainKeys".into();
        }
        properties.insert(field.name.into(), property);
    }
}

/// The schema of one value of a field.
fn value(field: &Field, edition: Edition) -> Value {
    match field.kind {
        "int32" | "int64" => json!({"type": "integer", "format": field.kind}),
        "bool" => json!({"type": "boolean"}),
        "double" => json!({"type": "number", "format": "double"}),
        "bytes" => json!({"type": "string", "format": "byte"}),
        "intstr" if edition == Edition::Three => {
            json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
        }
        "intstr" => json!({"type": "string", "format": "int-or-string"}),
        "time" | "microtime" => json!({"type": "string", "format": "date-time"}),
        "fields" => json!({"type": "object"}),
        "[]string" => json!({"type": "array", "items": {"type": "string"}}),
        name if field.target().is_some() => reference(name, edition),
        _ => json!({"type": "string"}),
    }
}
