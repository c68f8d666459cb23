//! Objects in files: YAML or JSON, one or more in each.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use minisvc_proto::{Object, Resource};
use serde_json::Value;

/// An object of a file.
#[derive(Debug, PartialEq)]
pub struct Document {
    /// For messages: `"a.yaml" line 3`.
    pub place: String,
    pub resource: &'static Resource,
    pub object: Object,
}

/// Reads files, "-" is standard input. An asked-for namespace must be that of the objects.
pub fn read(files: &[PathBuf], namespace: Option<&str>) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for file in files {
        let (name, text) = if file == Path::new("-") {
            ("standard input".to_owned(), io::read_to_string(io::stdin()))
        } else {
            (file.display().to_string(), fs::read_to_string(file))
        };
        let text = text.with_context(|| format!("cannot read {name}"))?;
        let before = documents.len();
        for (line, value) in values(&text).map_err(|e| anyhow::anyhow!("{name}: {e}"))? {
            let place = format!("\"{name}\" line {line}");
            collect(&mut documents, &place, value, namespace)?;
        }
        if documents.len() == before {
            bail!("{name}: there is no object in it");
        }
    }
    Ok(documents)
}

/// The documents with the lines at which they start; empty ones are left out.
fn values(text: &str) -> Result<Vec<(usize, Value)>, String> {
    let mut found = Vec::new();
    for (start, part) in split(text) {
        // Lines before it are kept as empty ones, so that faults are counted from the start of the file.
        let padded = format!("{}{part}", "\n".repeat(start));
        let options = serde_saphyr::options! { legacy_octal_numbers: true };
        let value: Value = serde_saphyr::from_str_with_options(&padded, options).map_err(|e| {
            let what = e.without_snippet().to_string();
            let what = what.lines().next().unwrap_or("not YAML").to_owned();
            match e.location().filter(|_| !what.contains("line ")) {
                Some(at) => format!("line {} column {}: {what}", at.line(), at.column()),
                None => what,
            }
        })?;
        if !value.is_null() {
            let empty =
                |l: &&str| l.trim().is_empty() || l.trim_start().starts_with('#') || l.trim_end() == "---";
            found.push((start + part.lines().take_while(empty).count() + 1, value));
        }
    }
    Ok(found)
}

/// Cuts at the lines that begin a document; each part comes with the number of lines before it.
fn split(text: &str) -> Vec<(usize, String)> {
    let mut parts = vec![(0, String::new())];
    for (n, line) in text.lines().enumerate() {
        let begins = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r']));
        if begins {
            parts.push((n, String::new()));
        }
        if let Some((_, part)) = parts.last_mut() {
            part.push_str(line);
            part.push('\n');
        }
    }
    parts
}

fn collect(
    documents: &mut Vec<Document>,
    place: &str,
    value: Value,
    namespace: Option<&str>,
) -> anyhow::Result<()> {
    let Value::Object(map) = value else {
        bail!("{place}: this is no object: it has no apiVersion and kind")
    };
    let mut object = Object(map);
    if object.kind() == "List" && object.api_version() == "v1" {
        let Some(Value::Array(items)) = object.0.remove("items") else {
            bail!("{place}: items: a List has an array of objects here");
        };
        for (i, item) in items.into_iter().enumerate() {
            collect(documents, &format!("{place} items[{i}]"), item, namespace)?;
        }
        return Ok(());
    }
    for field in ["apiVersion", "kind"] {
        if object.0.get(field).and_then(Value::as_str).is_none_or(str::is_empty) {
            bail!("{place}: {field}: required, as in apiVersion: v1, kind: Service");
        }
    }
    let Some(resource) = object.resource() else {
        bail!("{place}: no matches for kind \"{}\" in version \"{}\"", object.kind(), object.api_version());
    };
    if resource.is_namespaced() {
        match (object.namespace(), namespace) {
            (Some(own), Some(asked)) if own != asked => bail!(
                "{place}: metadata.namespace: \"{own}\" does not match --namespace={asked}: leave one of them out"
            ),
            (None, Some(asked)) => {
                object.metadata_mut().insert("namespace".into(), asked.into());
            }
            _ => {}
        }
    }
    documents.push(Document { place: place.to_owned(), resource, object });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str, namespace: Option<&str>) -> Result<Vec<String>, String> {
        let file = tempfile::NamedTempFile::with_suffix("x.yaml").unwrap();
        fs::write(file.path(), text).unwrap();
        let documents = read(&[file.path().to_owned()], namespace);
        let name = file.path().display().to_string();
        let plain = |s: String| s.replace(&name, "F");
        documents
            .map(|d| {
                d.iter()
                    .map(|d| {
                        plain(format!(
                            "{} {} {}",
                            d.place,
                            d.object.kind(),
                            d.object.namespace().unwrap_or("-")
                        ))
                    })
                    .collect()
            })
            .map_err(|e| plain(format!("{e:#}")))
    }

    const TWO: &str = "# two\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\n---\n\n---\n# b\napiVersion: v1\nkind: Service\nmetadata:\n  name: b\n";

    #[test]
    fn documents_and_lists_are_read_with_their_lines() {
        assert_eq!(
            read_text(TWO, None),
            Ok(vec!["\"F\" line 2 Pod -".into(), "\"F\" line 9 Service -".into()])
        );
        assert_eq!(read_text(TWO, Some("blue")).unwrap()[0], "\"F\" line 2 Pod blue");
        let list = r#"{"apiVersion": "v1", "kind": "List", "items": [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}]}"#;
        assert_eq!(read_text(list, None), Ok(vec!["\"F\" line 1 items[0] Pod -".into()]));
    }

    #[test]
    fn faults_name_file_and_line() {
        for (text, says) in [
            ("apiVersion: v1\nkind: [Pod\n", " line "),
            ("apiVersion: v1\nkind: Pod\n---\nkind: x\n  y: z\n", " line 5"),
            ("{\"apiVersion\": \"v1\",\n \"kind\" \"Pod\"}", " line 2"),
            ("apiVersion: v1\nkind: Pod\nkind: Pod\n", " line 3"),
            ("- a\n", "\"F\" line 1: this is no object"),
            ("a: b\n", "\"F\" line 1: apiVersion: required"),
            (
                "apiVersion: v1\nkind: Widget\n",
                "\"F\" line 1: no matches for kind \"Widget\" in version \"v1\"",
            ),
            ("# nothing\n", "F: there is no object in it"),
        ] {
            let got = read_text(text, None);
            assert!(
                got.as_ref()
                    .is_err_and(|e| e.contains(says) && (e.starts_with("F: ") || e.starts_with("\"F\" "))),
                "{text:?}: {got:?}"
            );
        }
        let other =
            read_text("apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: red}\n", Some("blue"));
        assert!(
            other.is_err_and(|e| e.contains("metadata.namespace: \"red\" does not match --namespace=blue"))
        );
    }

    #[test]
    fn octal_numbers_are_those_of_yaml_1_1() {
        assert_eq!(values("mode: 0644\n").unwrap()[0].1, serde_json::json!({"mode": 420}));
    }
}
