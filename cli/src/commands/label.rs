//! `label`

use anyhow::bail;
use minisvc_proto::{
    Object,
    selector::{is_label_key, is_label_value},
};

use super::{DONE, Outcome, Session, complain, editing::edit, selection};
use crate::{args::Label, output};

pub(super) async fn run(session: &Session, args: Label) -> Outcome {
    let at = args.what.iter().position(|w| is_change(w)).unwrap_or(args.what.len());
    let (what, words) = args.what.split_at(at);
    let changes = words.iter().map(|w| change(w)).collect::<anyhow::Result<Vec<_>>>()?;
    if changes.is_empty() && !args.list {
        bail!("at least one label update is required");
    }
    let mut code = DONE;
    for key in selection::keys(session, what, args.selector.as_deref(), args.all, "").await? {
        let done = edit(session, &key, |object| {
            let said = apply(object, &changes, args.overwrite)?;
            Ok((said, object.labels()))
        });
        match done.await {
            Ok((said, labels)) => {
                if !changes.is_empty() {
                    output::line(&format!("{}/{} {said}", key.resource.qualified_singular(), key.name))?;
                }
                if args.list {
                    for (key, value) in labels {
                        output::line(&format!("{key}={value}"))?;
                    }
                }
            }
            Err(e) => code = complain(e),
        }
    }
    Ok(code)
}

fn is_change(word: &str) -> bool {
    word.contains('=') || word.ends_with('-')
}

/// A label, and its value; `None` takes it away.
type Change<'w> = (&'w str, Option<&'w str>);

fn change(word: &str) -> anyhow::Result<Change<'_>> {
    let change = match (word.split_once('='), word.strip_suffix('-')) {
        (Some((key, value)), _) if is_label_value(value) => (key, Some(value)),
        (None, Some(key)) => (key, None),
        _ => bail!("invalid label spec: {word}"),
    };
    if !is_label_key(change.0) {
        bail!("invalid label spec: {word}");
    }
    Ok(change)
}

/// Changes the labels, and answers what is to be said.
fn apply(object: &mut Object, changes: &[Change<'_>], overwrite: bool) -> anyhow::Result<&'static str> {
    let before = object.labels();
    let mut labels = before.clone();
    for (key, value) in changes {
        match (value, before.get(*key)) {
            (Some(value), Some(has)) if has != value && !overwrite => {
                bail!("'{key}' already has a value ({has}), and --overwrite is false");
            }
            (Some(value), _) => drop(labels.insert((*key).to_owned(), (*value).to_owned())),
            (None, _) => drop(labels.remove(*key)),
        }
    }
    if labels == before {
        return Ok("not labeled");
    }
    object.metadata_mut().insert("labels".into(), serde_json::json!(labels));
    Ok(if changes.iter().all(|(_, value)| value.is_none()) { "unlabeled" } else { "labeled" })
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::PODS;

    use super::*;

    #[test]
    fn labels_come_change_and_go_in_kubectls_words() {
        let mut pod = Object::new(&PODS, Some("default"), "web");
        for (line, overwrite, said, after) in [
            ("a=b", false, "labeled", "a=b"),
            ("a=b", false, "not labeled", "a=b"),
            ("a=c", false, "'a' already has a value (b), and --overwrite is false", "a=b"),
            ("a=c", true, "labeled", "a=c"),
            ("b- x/y=", false, "labeled", "a=c x/y="),
            ("a- x/y-", false, "unlabeled", ""),
            ("a-", false, "not labeled", ""),
            ("a=-b", false, "invalid label spec: a=-b", ""),
            ("=b", false, "invalid label spec: =b", ""),
        ] {
            let changes = line.split(' ').map(change).collect::<anyhow::Result<Vec<_>>>();
            let done = changes.and_then(|changes| apply(&mut pod, &changes, overwrite));
            assert_eq!(done.map_or_else(|e| e.to_string(), str::to_owned), said, "{line}");
            let labels: Vec<String> = pod.labels().iter().map(|(k, v)| format!("{k}={v}")).collect();
            assert_eq!(labels.join(" "), after, "{line}");
        }
    }
}
