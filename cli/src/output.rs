//! All that is printed.

use std::io::{self, Write};

use minisvc_proto::table::Table;
use serde_json::Value;

/// One line on stderr, whatever the error's causes hold.
pub fn error(e: &anyhow::Error) {
    let text = format!("{e:#}").replace('\n', " ");
    let _ = writeln!(io::stderr(), "error: {text}");
}

/// A note on stderr.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// A line on stdout.
pub fn line(text: &str) -> io::Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Bytes on stdout, at once.
pub fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Rows with three spaces between columns and an upper-case head, as kubectl prints them.
pub fn table(table: &Table, wide: bool, namespaces: bool) -> String {
    let columns: Vec<usize> = (0..table.column_definitions.len())
        .filter(|i| wide || table.column_definitions[*i].priority == 0)
        .collect();
    let mut rows = Vec::with_capacity(table.rows.len() + 1);
    let mut head: Vec<String> =
        columns.iter().map(|i| table.column_definitions[*i].name.to_uppercase()).collect();
    if namespaces {
        head.insert(0, "NAMESPACE".into());
    }
    rows.push(head);
    for row in &table.rows {
        let mut cells: Vec<String> = columns.iter().map(|i| cell(row.cells.get(*i))).collect();
        if namespaces {
            cells.insert(0, row.object.as_ref().and_then(|o| o.namespace()).unwrap_or("").to_owned());
        }
        rows.push(cells);
    }
    let width = |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        for (i, text) in row.iter().enumerate() {
            out.push_str(text);
            if i + 1 < row.len() {
                out.push_str(&" ".repeat(widths[i] + 3 - text.chars().count()));
            }
        }
        out.push('\n');
    }
    out
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "<none>".into(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use minisvc_proto::table::{Column, Row};

    use super::*;

    #[test]
    fn a_table_looks_as_kubectl_prints_it() {
        let column = |name: &str, priority| Column { name: name.into(), priority, ..Column::default() };
        let mut t = Table::new(vec![column("Name", 0), column("Cluster-IP", 0), column("Selector", 1)]);
        t.rows.push(Row { cells: vec!["hello".into(), "10.96.0.7".into(), Value::Null], object: None });
        assert_eq!(table(&t, false, false), "NAME    CLUSTER-IP\nhello   10.96.0.7\n");
        assert_eq!(table(&t, true, false), "NAME    CLUSTER-IP   SELECTOR\nhello   10.96.0.7    <none>\n");
    }
}
