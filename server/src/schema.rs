//! What fields the kinds have: one table, read once, that says how patches merge, how bodies in protobuf are read and what the
//! published schemas hold.

pub mod unknown;

use std::{collections::BTreeMap, sync::LazyLock};

/// A struct of the API.
#[derive(Debug, Default)]
pub struct Struct {
    /// `core.ServiceSpec`.
    pub name: &'static str,
    /// Its fields, by number.
    pub fields: Vec<Field>,
}

/// How often a field has a value of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Once.
    One,
    /// A list.
    List,
    /// A map from strings.
    Map,
}

/// How a strategic merge patch of a list finds what belongs together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merge {
    /// Elements with the same value of this field.
    Key(&'static str),
    /// Elements that are the same.
    Value,
}

/// A field of a [`Struct`].
#[derive(Debug)]
pub struct Field {
    /// Its number in protobuf.
    pub number: u32,
    /// Its name in JSON.
    pub name: &'static str,
    /// Once, list or map.
    pub shape: Shape,
    /// `string`, `int32` and so on, or the name of a [`Struct`].
    pub kind: &'static str,
    /// How lists are merged; without it a patch replaces the list.
    pub merge: Option<Merge>,
    /// A patch says which fields stay (`$retainKeys`).
    pub retain: bool,
    /// Its fields stand in the struct around it in JSON.
    pub inline: bool,
    /// Nothing and zero (or "") are not the same.
    pub pointer: bool,
}

impl Struct {
    /// The field with this name in JSON.
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        let own = named(self.name)?;
        own.fields
            .iter()
            .find(|f| f.name == name && !f.inline)
            .or_else(|| own.fields.iter().filter(|f| f.inline).find_map(|f| f.target()?.field(name)))
    }

    /// The field with this number in protobuf.
    pub fn numbered(&self, number: u32) -> Option<&Field> {
        self.fields.iter().find(|f| f.number == number)
    }
}

impl Field {
    /// The struct that the field's values are, if they are structs.
    pub fn target(&self) -> Option<&'static Struct> {
        named(self.kind)
    }
}

static STRUCTS: LazyLock<BTreeMap<&'static str, Struct>> =
    LazyLock::new(|| read(include_str!("schema/kinds.txt")));

/// The struct with this name.
pub fn named(name: &str) -> Option<&'static Struct> {
    STRUCTS.get(name)
}

/// The struct of a kind; `None` for a kind that is minisvc's own.
pub fn of_kind(api_version: &str, kind: &str) -> Option<&'static Struct> {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let package = match group {
        "" if kind == "DeleteOptions" => "meta",
        "" => "core",
        group => group.split('.').next()?,
    };
    named(&format!("{package}.{kind}"))
}

fn read(text: &'static str) -> BTreeMap<&'static str, Struct> {
    let mut structs: BTreeMap<&str, Struct> = BTreeMap::new();
    let mut current = "";
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let mut words = line.split_ascii_whitespace();
        if !line.starts_with(' ') {
            current = words.next().unwrap_or("");
            structs.insert(current, Struct { name: current, fields: Vec::new() });
        } else if let (Some(fields), Some(field)) = (structs.get_mut(current), field(line)) {
            fields.fields.push(field);
        }
    }
    structs
}

fn field(line: &'static str) -> Option<Field> {
    let mut words = line.split_ascii_whitespace();
    let (number, name, kind) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
    let (shape, kind) = match (kind.strip_prefix("[]"), kind.strip_prefix("map:")) {
        (Some(kind), _) => (Shape::List, kind),
        (_, Some(kind)) => (Shape::Map, kind),
        _ => (Shape::One, kind),
    };
    let mut field =
        Field { number, name, shape, kind, merge: None, retain: false, inline: false, pointer: false };
    for word in words {
        match word.split_once('=') {
            Some(("merge", key)) => field.merge = Some(Merge::Key(key)),
            None if word == "merge" => field.merge = Some(Merge::Value),
            None if word == "inline" => field.inline = true,
            None if word == "retain" => field.retain = true,
            None if word == "ptr" => field.pointer = true,
            _ => {}
        }
    }
    Some(field)
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::RESOURCES;

    use super::*;

    const SIMPLE: &[&str] = &[
        "string",
        "int32",
        "int64",
        "bool",
        "double",
        "bytes",
        "intstr",
        "quantity",
        "time",
        "microtime",
        "fields",
        "[]string",
    ];

    #[test]
    fn every_line_is_read_and_every_type_is_there() {
        let text = include_str!("schema/kinds.txt");
        let lines = text.lines().filter(|l| !l.starts_with('#')).count();
        let read: usize = STRUCTS.values().map(|s| 1 + s.fields.len()).sum();
        assert_eq!(read, lines);
        for (name, fields) in STRUCTS.iter() {
            for field in &fields.fields {
                let known = SIMPLE.contains(&field.kind) || field.target().is_some();
                assert!(known, "{name}.{}: {}", field.name, field.kind);
                if let (Some(Merge::Key(key)), Some(target)) = (field.merge, field.target()) {
                    assert!(target.field(key).is_some(), "{name}.{}: {key}", field.name);
                }
            }
        }
        for resource in RESOURCES.iter().filter(|r| r.group != "minisvc.io") {
            assert!(of_kind(&resource.api_version(), resource.kind).is_some(), "{}", resource.kind);
        }
    }

    #[test]
    fn fields_of_inlined_structs_are_the_outer_ones() {
        let volume = named("core.Volume").unwrap();
        assert!(volume.field("emptyDir").is_some() && volume.field("volumeSource").is_none());
        assert_eq!(volume.numbered(2).unwrap().name, "volumeSource");
    }
}
