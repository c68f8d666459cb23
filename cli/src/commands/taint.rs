//! `taint`

use anyhow::bail;
use minisvc_proto::{Object, ObjectKey, resource::NODES, selector::is_label_key};
use serde_json::{Value, json};

use super::{DONE, Outcome, Session, complain, editing::edit};
use crate::{args::Taint, output};

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub(super) async fn run(session: &Session, args: Taint) -> Outcome {
    let (nodes, changes) = parse(&args.what)?;
    let mut code = DONE;
    for name in nodes {
        let key = ObjectKey::cluster(&NODES, name);
        match edit(session, &key, |node| apply(node, &changes, args.overwrite)).await {
            Ok(said) => output::line(&format!("node/{name} {said}"))?,
            Err(e) => code = complain(e),
        }
    }
    Ok(code)
}

/// What is to become of a taint.
#[derive(Debug, PartialEq, Eq)]
enum Change<'w> {
    Add {
        key: &'w str,
        value: &'w str,
        effect: &'w str,
    },
    /// Of every effect, if none is named.
    Remove {
        key: &'w str,
        effect: Option<&'w str>,
    },
}

fn parse(words: &[String]) -> anyhow::Result<(Vec<&str>, Vec<Change<'_>>)> {
    let is_change = |w: &String| w.ends_with('-') || w.contains([':', '=']);
    let (nodes, changes) = words.split_at(words.iter().position(is_change).unwrap_or(words.len()));
    let nodes = match nodes {
        [kind, rest @ ..] if ["node", "nodes", "no"].contains(&kind.as_str()) => rest,
        all => all,
    };
    if nodes.is_empty() {
        bail!("which node? `taint nodes NODE KEY=VALUE:EFFECT` would be right");
    }
    if changes.is_empty() {
        bail!("at least one taint update is required");
    }
    let changes = changes.iter().map(|w| change(w)).collect::<anyhow::Result<_>>()?;
    Ok((nodes.iter().map(|n| n.trim_start_matches("node/")).collect(), changes))
}

fn change(word: &str) -> anyhow::Result<Change<'_>> {
    let invalid =
        || anyhow::anyhow!("invalid taint spec: {word}, must be KEY[=VALUE]:EFFECT, KEY- or KEY:EFFECT-");
    let (rest, removed) = word.strip_suffix('-').map_or((word, false), |rest| (rest, true));
    let (pair, effect) = rest.rsplit_once(':').map_or((rest, None), |(pair, effect)| (pair, Some(effect)));
    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
    if !is_label_key(key) {
        return Err(invalid());
    }
    if let Some(effect) = effect.filter(|e| !EFFECTS.contains(e)) {
        bail!("invalid taint effect: {effect}, unsupported taint effect");
    }
    match (removed, effect) {
        (true, effect) => Ok(Change::Remove { key, effect }),
        (false, Some(effect)) => Ok(Change::Add { key, value, effect }),
        (false, None) => Err(invalid()),
    }
}

/// Changes the node's taints, and answers what is to be said.
fn apply(node: &mut Object, changes: &[Change<'_>], overwrite: bool) -> anyhow::Result<&'static str> {
    let name = node.name().to_owned();
    let mut taints = node.pointer("/spec/taints").and_then(Value::as_array).cloned().unwrap_or_default();
    let (mut added, mut removed) = (false, false);
    for change in changes {
        match change {
            Change::Add { key, value, effect } => {
                let same = |t: &Value| t["key"] == *key && t["effect"] == *effect;
                if taints.iter().any(same) && !overwrite {
                    bail!(
                        "node {name} already has {key} taint(s) with same effect(s) and --overwrite is false"
                    );
                }
                taints.retain(|t| !same(t));
                let mut taint = json!({"key": key, "effect": effect});
                if !value.is_empty() {
                    taint["value"] = (*value).into();
                }
                taints.push(taint);
                added = true;
            }
            Change::Remove { key, effect } => {
                let before = taints.len();
                taints.retain(|t| t["key"] != *key || effect.is_some_and(|e| t["effect"] != e));
                if taints.len() == before {
                    let effect = effect.map(|e| format!(":{e}")).unwrap_or_default();
                    bail!("taint \"{key}{effect}\" not found");
                }
                removed = true;
            }
        }
    }
    node.spec_mut().insert("taints".into(), taints.into());
    Ok(match (added, removed) {
        (true, true) => "modified",
        (false, true) => "untainted",
        _ => "tainted",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(node: &mut Object, line: &str, overwrite: bool) -> String {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let done = parse(&words).and_then(|(_, changes)| apply(node, &changes, overwrite));
        done.map_or_else(|e| e.to_string(), str::to_owned)
    }

    #[test]
    fn taints_come_change_and_go_in_kubectls_words() {
        let mut node = Object::new(&NODES, None, "n1");
        for (line, overwrite, said, after) in [
            ("nodes n1 a=b:NoSchedule", false, "tainted", &["a=b:NoSchedule"][..]),
            (
                "n1 a=c:NoSchedule",
                false,
                "node n1 already has a taint(s) with same effect(s) and --overwrite is false",
                &["a=b:NoSchedule"],
            ),
            ("n1 a=c:NoSchedule", true, "tainted", &["a=c:NoSchedule"]),
            ("n1 a:NoExecute", false, "tainted", &["a=c:NoSchedule", "a=:NoExecute"]),
            ("n1 a:NoSchedule-", false, "untainted", &["a=:NoExecute"]),
            ("n1 b:PreferNoSchedule a-", false, "modified", &["b=:PreferNoSchedule"]),
            ("n1 a:NoExecute-", false, "taint \"a:NoExecute\" not found", &["b=:PreferNoSchedule"]),
            (
                "n1 a=b:Never",
                false,
                "invalid taint effect: Never, unsupported taint effect",
                &["b=:PreferNoSchedule"],
            ),
            ("n1", false, "at least one taint update is required", &["b=:PreferNoSchedule"]),
            ("n1 b-", false, "untainted", &[]),
        ] {
            assert_eq!(run(&mut node, line, overwrite), said, "{line}");
            let text = |t: &Value, f: &str| t[f].as_str().unwrap_or("").to_owned();
            let taints: Vec<String> = node
                .pointer("/spec/taints")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(|t| format!("{}={}:{}", text(t, "key"), text(t, "value"), text(t, "effect")))
                .collect();
            assert_eq!(taints, after, "{line}");
        }
        assert!(run(&mut node, "n1 a=b", false).starts_with("invalid taint spec: a=b"));
        let words = ["node/n1", "n2", "a-"].map(str::to_owned);
        assert_eq!(parse(&words).unwrap().0, ["n1", "n2"]);
    }
}
