//! Lines of a page: fields whose values stand below each other, headings, tables.

/// A page under construction. Fields that follow each other share a column; whatever else comes ends the column.
#[derive(Debug, Default)]
pub struct Page {
    out: String,
    fields: Vec<(usize, String, String)>,
}

impl Page {
    /// `Key:   value` at the left edge; more lines of the value stand below its first.
    pub fn field(&mut self, key: &str, value: &str) {
        self.indented_field(0, key, value);
    }

    /// The same within a section.
    pub fn indented_field(&mut self, indent: usize, key: &str, value: &str) {
        self.fields.push((indent, format!("{key}:"), value.to_owned()));
    }

    /// `Key:`, with lines of its own below it.
    pub fn heading(&mut self, key: &str) {
        self.indented_heading(0, key);
    }

    /// The same within a section.
    pub fn indented_heading(&mut self, indent: usize, key: &str) {
        self.flush();
        self.line(indent, &format!("{key}:"));
    }

    /// A line as it is.
    pub fn line(&mut self, indent: usize, text: &str) {
        self.flush();
        let text = printable(text);
        self.out.push_str(format!("{}{text}", " ".repeat(indent)).trim_end());
        self.out.push('\n');
    }

    /// Lines as they are.
    pub fn text(&mut self, text: &str) {
        for line in text.lines() {
            self.line(0, line);
        }
    }

    /// Columns with two spaces between them.
    pub fn table(&mut self, indent: usize, head: &[&str], rows: &[Vec<String>]) {
        let head = head.iter().map(|h| (*h).to_owned()).collect();
        self.rows(indent, std::iter::once(head).chain(rows.iter().cloned()).collect());
    }

    /// The same, with a line under the head.
    pub fn underlined_table(&mut self, indent: usize, head: &[&str], rows: &[Vec<String>]) {
        let line = head.iter().map(|h| "-".repeat(h.len())).collect();
        let rows: Vec<_> = std::iter::once(line).chain(rows.iter().cloned()).collect();
        self.table(indent, head, &rows);
    }

    fn rows(&mut self, indent: usize, rows: Vec<Vec<String>>) {
        let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
        let width =
            |i: usize| rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in rows {
            let cells =
                row.iter().zip(&widths).map(|(c, w)| format!("{c}{}", " ".repeat(w + 2 - c.chars().count())));
            self.line(indent, &cells.collect::<String>());
        }
    }

    fn flush(&mut self) {
        let fields = std::mem::take(&mut self.fields);
        let column =
            fields.iter().map(|(indent, key, _)| indent + key.chars().count()).max().unwrap_or(0) + 2;
        for (indent, key, value) in fields {
            let mut start = format!("{}{key}", " ".repeat(indent));
            for line in value.split('\n') {
                let padding = " ".repeat(column.saturating_sub(start.chars().count()));
                self.out.push_str(format!("{start}{padding}{}", printable(line)).trim_end());
                self.out.push('\n');
                start.clear();
            }
        }
    }

    /// The page.
    pub fn finish(mut self) -> String {
        self.flush();
        self.out
    }
}

/// What others wrote does not speak to the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
