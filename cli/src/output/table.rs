//! Tables as kubectl prints them: upper-case head, three spaces between columns, no trailing blanks.

use minisvc_proto::{
    Object,
    table::{Row, Table},
};
use serde_json::Value;

/// What to show of a table.
#[derive(Clone, Copy, Debug, Default)]
pub struct TableStyle {
    /// Columns of a higher priority too.
    pub wide: bool,
    /// A first column with the namespace.
    pub namespaces: bool,
    /// Names as `kind/name`.
    pub kinds: bool,
    /// A last column with the labels.
    pub labels: bool,
    /// No head line.
    pub headless: bool,
}

/// Lines of cells, all columns as wide as they must be.
pub fn grid(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| lines.iter().filter_map(|l| Some(l.get(i)?.chars().count())).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    lines.iter().map(|line| layout(line, &widths)).collect()
}

/// Prints rows as they come: columns never get narrower than they were.
#[derive(Debug, Default)]
pub struct TablePrinter {
    style: TableStyle,
    widths: Vec<usize>,
    head: Option<Vec<String>>,
}

impl TablePrinter {
    /// For one table and the rows that follow it.
    pub fn new(style: TableStyle) -> Self {
        TablePrinter { style, ..Self::default() }
    }

    /// The lines of a table's rows, with a head before the first ones and wherever the columns change.
    pub fn render(&mut self, table: &Table) -> String {
        if table.rows.is_empty() {
            return String::new();
        }
        let columns: Vec<usize> = (0..table.column_definitions.len())
            .filter(|i| self.style.wide || table.column_definitions[*i].priority == 0)
            .collect();
        let mut lines = Vec::with_capacity(table.rows.len() + 1);
        let head = self.head(table, &columns);
        if self.head.as_ref() != Some(&head) {
            if !self.style.headless {
                lines.push(head.clone());
            }
            self.widths = vec![0; head.len()];
            self.head = Some(head);
        }
        lines.extend(table.rows.iter().map(|row| self.row(table, row, &columns)));
        for line in &lines {
            for (width, cell) in self.widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        lines.iter().map(|line| layout(line, &self.widths)).collect()
    }

    fn head(&self, table: &Table, columns: &[usize]) -> Vec<String> {
        let mut head: Vec<String> =
            columns.iter().map(|i| table.column_definitions[*i].name.to_uppercase()).collect();
        if self.style.namespaces {
            head.insert(0, "NAMESPACE".into());
        }
        if self.style.labels {
            head.push("LABELS".into());
        }
        head
    }

    fn row(&self, table: &Table, row: &Row, columns: &[usize]) -> Vec<String> {
        let object = row.object.as_ref();
        let is_name = |i: usize| {
            let column = &table.column_definitions[i];
            column.format == "name" || (i == 0 && column.name.eq_ignore_ascii_case("name"))
        };
        let mut cells: Vec<String> = columns
            .iter()
            .map(|i| {
                let text = cell(row.cells.get(*i));
                match object.and_then(Object::resource) {
                    Some(resource) if self.style.kinds && is_name(*i) => {
                        format!("{}/{text}", resource.qualified_singular())
                    }
                    _ => text,
                }
            })
            .collect();
        if self.style.namespaces {
            cells.insert(0, object.and_then(Object::namespace).unwrap_or_default().to_owned());
        }
        if self.style.labels {
            cells.push(labels(object));
        }
        cells
    }
}

fn layout(line: &[String], widths: &[usize]) -> String {
    let mut out = String::new();
    for (text, width) in line.iter().zip(widths) {
        out.push_str(text);
        out.push_str(&" ".repeat(width + 3 - text.chars().count().min(*width)));
    }
    let mut out = out.trim_end().to_owned();
    out.push('\n');
    out
}

fn labels(object: Option<&Object>) -> String {
    let labels = object.map(Object::labels).unwrap_or_default();
    if labels.is_empty() {
        return "<none>".into();
    }
    labels.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(",")
}

/// One line whatever is in it: a cell is text that others wrote.
fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "<none>".into(),
        Some(Value::String(s)) => s.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        Some(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use minisvc_proto::table::Column;
    use serde_json::json;

    use super::*;

    fn table(names: &[&str]) -> Table {
        let column = |name: &str, priority| Column { name: name.into(), priority, ..Column::default() };
        let mut t = Table::new(vec![column("Name", 0), column("Cluster-IP", 0), column("Selector", 1)]);
        for name in names {
            let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "blue",
                "labels": {"app": "hello", "tier": "web"}}});
            let object = serde_json::from_value(object).ok();
            t.rows.push(Row { cells: vec![(*name).into(), "10.96.0.7".into(), Value::Null], object });
        }
        t
    }

    fn render(style: TableStyle) -> String {
        TablePrinter::new(style).render(&table(&["hello"]))
    }

    #[test]
    fn a_table_looks_as_kubectl_prints_it() {
        let style = TableStyle::default();
        assert_eq!(render(style), "NAME    CLUSTER-IP\nhello   10.96.0.7\n");
        let wide = TableStyle { wide: true, ..style };
        assert_eq!(render(wide), "NAME    CLUSTER-IP   SELECTOR\nhello   10.96.0.7    <none>\n");
        let all = TableStyle { namespaces: true, kinds: true, labels: true, ..style };
        assert_eq!(
            render(all),
            "NAMESPACE   NAME            CLUSTER-IP   LABELS\nblue        service/hello   10.96.0.7    app=hello,tier=web\n"
        );
        assert_eq!(render(TableStyle { headless: true, ..style }), "hello   10.96.0.7\n");
    }

    #[test]
    fn later_rows_keep_the_columns_of_the_first() {
        let mut printer = TablePrinter::new(TableStyle::default());
        assert_eq!(printer.render(&table(&["hello-1"])), "NAME      CLUSTER-IP\nhello-1   10.96.0.7\n");
        assert_eq!(printer.render(&table(&["a"])), "a         10.96.0.7\n");
        assert_eq!(printer.render(&table(&["hello-world"])), "hello-world   10.96.0.7\n");
        assert_eq!(printer.render(&table(&[])), "");
    }

    #[test]
    fn a_cell_cannot_break_its_line_or_speak_to_the_terminal() {
        assert_eq!(cell(Some(&"a\nb\u{1b}[2J".into())), "a b [2J");
        assert_eq!(cell(Some(&7.into())), "7");
    }
}
