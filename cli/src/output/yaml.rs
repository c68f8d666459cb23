//! YAML as kubectl writes it, which is sigs.k8s.io/yaml: block style, sorted keys, lists not indented, strings plain where they read
//! back as the same string, else in double quotes (`"80"`, `"true"`, timestamps) or single ones (`'*'`, `'a: b'`), text of
//! several lines as a literal block. The rules are those of its encoder (`stringv`) and emitter (`analyze_scalar`).

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// One document, with a line break at its end.
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => mapping(&mut out, map, 0),
        Value::Array(list) if !list.is_empty() => sequence(&mut out, list, 0),
        other => {
            scalar(&mut out, other, 0);
            out.push('\n');
        }
    }
    out
}

fn mapping(out: &mut String, map: &Map<String, Value>, indent: usize) {
    let mut first = true;
    for (key, value) in map {
        // The first entry of a map in a list stands on the line of its dash.
        if !std::mem::take(&mut first) || out.is_empty() || out.ends_with('\n') {
            out.push_str(&" ".repeat(indent));
        }
        out.push_str(&text(key));
        out.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                mapping(out, map, indent + 2);
            }
            Value::Array(list) if !list.is_empty() => {
                out.push('\n');
                sequence(out, list, indent);
            }
            other => {
                out.push(' ');
                scalar(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn sequence(out: &mut String, list: &[Value], indent: usize) {
    for (i, value) in list.iter().enumerate() {
        // Likewise for a list in a list.
        if i > 0 || out.is_empty() || out.ends_with('\n') {
            out.push_str(&" ".repeat(indent));
        }
        out.push_str("- ");
        match value {
            Value::Object(map) if !map.is_empty() => mapping(out, map, indent + 2),
            Value::Array(list) if !list.is_empty() => sequence(out, list, indent + 2),
            other => {
                scalar(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(s) if is_literal(s) => {
            out.push_str(if s.ends_with("\n\n") || s == "\n" {
                "|+"
            } else if s.ends_with('\n') {
                "|"
            } else {
                "|-"
            });
            for line in s.strip_suffix('\n').unwrap_or(s).split('\n') {
                out.push('\n');
                if !line.is_empty() {
                    out.push_str(&" ".repeat(indent));
                    out.push_str(line);
                }
            }
        }
        Value::String(s) => out.push_str(&text(s)),
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

/// Whether a block can hold the text: several lines, of visible characters, without blanks at a line's end or at the start.
fn is_literal(s: &str) -> bool {
    s.contains('\n')
        && !s.starts_with([' ', '\t', '\n'])
        && s.chars().all(|c| c == '\n' || is_printable(c))
        && !s.split('\n').any(|line| line.ends_with([' ', '\t']))
}

fn is_printable(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

/// A string on one line.
fn text(s: &str) -> String {
    if reads_as_something_else(s) || !s.chars().all(is_printable) {
        double_quoted(s)
    } else if is_plain(s) {
        s.to_owned()
    } else {
        format!("'{}'", s.replace('\'', "''"))
    }
}

fn is_plain(s: &str) -> bool {
    let Some(first) = s.chars().next() else { return false };
    let second = s.chars().nth(1);
    let indicator = ",[]{}#&*!|>'\"%@`".contains(first)
        || ("-?:".contains(first) && second.is_none_or(|c| c == ' '))
        || s.starts_with("---")
        || s.starts_with("...");
    let inside = s.contains(": ") || s.ends_with(':') || s.contains(" #");
    !indicator && !inside && !s.starts_with(' ') && !s.ends_with(' ')
}

/// Whether YAML 1.1 or 1.2 would take the plain text for no string: a boolean, null, a number, a time.
fn reads_as_something_else(s: &str) -> bool {
    const WORDS: [&str; 12] = ["", "~", "null", "true", "false", "yes", "no", "on", "off", "y", "n", "<<"];
    if WORDS.contains(&s.to_ascii_lowercase().as_str()) {
        return true;
    }
    let unsigned = s.strip_prefix(['+', '-']).unwrap_or(s);
    let digits = unsigned.replace('_', "");
    let radix = |prefix: &str, radix| {
        digits.strip_prefix(prefix).is_some_and(|d| !d.is_empty() && d.chars().all(|c| c.is_digit(radix)))
    };
    let numeric = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.chars().any(|c| c.is_ascii_digit())
        && digits.parse::<f64>().is_ok();
    let special = matches!(digits.to_ascii_lowercase().as_str(), ".inf" | ".nan");
    // 12:30 was a number of base 60 once.
    let sexagesimal = unsigned.contains(':')
        && unsigned
            .split(':')
            .all(|p| !p.is_empty() && p.chars().all(|c| c.is_ascii_digit() || c == '.' || c == '_'));
    numeric || special || sexagesimal || radix("0x", 16) || radix("0o", 8) || radix("0b", 2) || is_time(s)
}

/// `2026-11-25`, with or without a time after it.
fn is_time(s: &str) -> bool {
    let date = s.get(..s.find(['T', 't', ' ']).unwrap_or(s.len())).unwrap_or_default();
    let parts: Vec<&str> = date.split('-').collect();
    let number = |s: &str, len: std::ops::RangeInclusive<usize>| {
        len.contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit())
    };
    matches!(parts.as_slice(), [y, m, d] if number(y, 4..=4) && number(m, 1..=2) && number(d, 1..=2))
}

fn double_quoted(s: &str) -> String {
    let mut out = String::from("\"");
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_printable(c) => out.push(c),
            c if u32::from(c) <= 0xff => {
                let _ = write!(out, "\\x{:02X}", u32::from(c));
            }
            c => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_reads_as_from_kubectl() {
        let value = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"creationTimestamp": "2026-11-25T07:12:00Z", "name": "hello", "labels": {}, "resourceVersion": "17",
                "annotations": {"a/b": "true", "note": "line one\nline two\n", "star": "*", "colon": "a: b"}},
            "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "publish": false,
                "ports": [{"name": "80-8080", "port": 80, "targetPort": 8080}, {"name": "443", "port": 443}]},
            "status": {"loadBalancer": {}, "none": null, "empty": []},
        });
        assert_eq!(
            to_yaml(&value),
            "apiVersion: v1
kind: Service
metadata:
  annotations:
    a/b: \"true\"
    colon: 'a: b'
    note: |
      line one
      line two
    star: '*'
  creationTimestamp: \"2026-11-25T07:12:00Z\"
  labels: {}
  name: hello
  resourceVersion: \"17\"
spec:
  clusterIP: 10.96.0.7
  clusterIPs:
  - 10.96.0.7
  ports:
  - name: 80-8080
    port: 80
    targetPort: 8080
  - name: \"443\"
    port: 443
  publish: false
status:
  empty: []
  loadBalancer: {}
  none: null
"
        );
    }

    #[test]
    fn every_string_reads_back_as_the_same_string() {
        let strings = [
            "",
            " ",
            "a",
            "true",
            "No",
            "~",
            "null",
            "0",
            "017",
            "0x1f",
            "1e3",
            "1_000",
            ".5",
            ".inf",
            "-.NaN",
            "12:30",
            "1.2.3.4",
            "2026-11-25",
            "2026-11-25 07:00:00",
            "- a",
            "-",
            "-a",
            "?",
            ": a",
            ":a",
            "a:",
            "a: b",
            "a #b",
            "#a",
            "a#b",
            "'",
            "\"",
            "it's",
            "*",
            "&a",
            "!x",
            "%x",
            "@x",
            "`x",
            "|",
            ">",
            "[a]",
            "{a}",
            "a, b",
            "---",
            "--- a",
            "...",
            "a\nb",
            "a\nb\n",
            "a\n\n",
            "\n",
            "\na",
            " a\nb",
            "a \nb",
            "a\tb",
            "\ta",
            "a\u{7}b",
            "ü",
            "日本",
            "\u{2028}",
            "\u{1f600}",
            "a\r\nb",
            "a\n  b\nc",
            "a\n#b",
            "<<",
            "=",
            "\\",
            "\u{85}",
            "\u{feff}a",
            "a ",
        ];
        for s in strings {
            for value in [json!({"k": s}), json!([s]), json!([[s, s]]), json!({s: {"x": [{"y": s, "z": s}]}})]
            {
                let yaml = to_yaml(&value);
                let back: Value =
                    serde_saphyr::from_str(&yaml).unwrap_or_else(|e| panic!("{s:?}: {e}\n{yaml}"));
                assert_eq!(back, value, "{s:?}:\n{yaml}");
            }
        }
    }
}
