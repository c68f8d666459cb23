//! meta.k8s.io/v1 Table: the server says the columns, every client prints them.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::object::Object;

/// A list or an object rendered as rows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Table {
    /// Always `Table`.
    pub kind: String,
    /// Always `meta.k8s.io/v1`.
    pub api_version: String,
    /// resourceVersion and continue of the list.
    #[serde(default)]
    pub metadata: Value,
    /// What each cell means.
    #[serde(default)]
    pub column_definitions: Vec<Column>,
    /// One per object.
    #[serde(default)]
    pub rows: Vec<Row>,
}

/// A column of a [`Table`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Column {
    /// Title, in the case that the server likes (`Cluster-IP`); printers upper-case it.
    pub name: String,
    /// OpenAPI type: string, integer, date.
    #[serde(rename = "type")]
    pub kind: String,
    /// OpenAPI format: `name` marks the identifying column.
    #[serde(default)]
    pub format: String,
    /// What the cell means.
    #[serde(default)]
    pub description: String,
    /// 0 is always shown; more only with `-o wide`.
    #[serde(default)]
    pub priority: i32,
}

/// A row of a [`Table`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// One per column.
    pub cells: Vec<Value>,
    /// The object's metadata (PartialObjectMetadata), or the whole object with includeObject=Object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<Object>,
}

impl Table {
    /// An empty table with columns.
    pub fn new(columns: Vec<Column>) -> Self {
        Table {
            kind: "Table".into(),
            api_version: "meta.k8s.io/v1".into(),
            metadata: Value::Object(serde_json::Map::new()),
            column_definitions: columns,
            rows: Vec::new(),
        }
    }
}
