//! A settings file: TOML in, keys and values with their places out.

use std::fmt;

use toml::de::{DeTable, DeValue};

/// One line of a file.
pub struct Entry {
    /// The flag's long name.
    pub key: String,
    /// From 1.
    pub line: usize,
    /// What stands there.
    pub value: Value,
}

/// What a flag can be set to.
#[derive(Debug, PartialEq, Eq)]
pub enum Value {
    Text(String),
    Number(String),
    Switch(bool),
    List(Vec<Value>),
    /// Of a type that no flag has, by its name.
    Other(&'static str),
}

/// What is no TOML, and where.
#[derive(Debug)]
pub struct Broken {
    line: usize,
    why: String,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: this is no TOML ({}); NAME = \"VALUE\" would be right", self.line, self.why)
    }
}

/// In the order of the file.
pub fn read(text: &str) -> Result<Vec<Entry>, Broken> {
    let line = |at: usize| text.bytes().take(at).filter(|b| *b == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|e| Broken {
        line: line(e.span().map_or(0, |s| s.start)),
        why: e.message().replace('\n', " "),
    })?;
    let mut entries: Vec<Entry> = table
        .into_inner()
        .into_iter()
        .map(|(key, value)| Entry {
            line: line(key.span().start),
            key: key.into_inner().into_owned(),
            value: of(value.into_inner()),
        })
        .collect();
    entries.sort_by_key(|e| e.line);
    Ok(entries)
}

fn of(value: DeValue) -> Value {
    match value {
        DeValue::String(s) => Value::Text(s.into_owned()),
        DeValue::Boolean(b) => Value::Switch(b),
        // Past 128 bits it is no number that a flag could take, and the flag says so.
        DeValue::Integer(n) => Value::Number(
            i128::from_str_radix(n.as_str(), n.radix()).map_or(n.as_str().to_owned(), |n| n.to_string()),
        ),
        DeValue::Array(all) => Value::List(all.into_iter().map(|v| of(v.into_inner())).collect()),
        other => Value::Other(other.type_str()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_their_lines() {
        let text =
            "# head\nport = 0x10\n\nname = 'a' # tail\nlist = [\"a\",\n 1]\n\"on\" = true\nodd = 1.5\n";
        let found: Vec<_> = read(text).unwrap().into_iter().map(|e| (e.line, e.key, e.value)).collect();
        let text = |s: &str| Value::Text(s.into());
        assert_eq!(
            found,
            [
                (2, "port".into(), Value::Number("16".into())),
                (4, "name".into(), text("a")),
                (5, "list".into(), Value::List(vec![text("a"), Value::Number("1".into())])),
                (7, "on".into(), Value::Switch(true)),
                (8, "odd".into(), Value::Other("float")),
            ]
        );
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        for (text, line) in
            [("a = 1\nb = \n", "2: "), ("a = 1\na = 2\n", "2: "), ("a\n", "1: "), ("\n\nx = \"", "3: ")]
        {
            let told = read(text).err().unwrap().to_string();
            assert!(
                told.starts_with(line) && told.contains("no TOML") && !told.contains('\n'),
                "{text:?}: {told}"
            );
        }
    }
}
