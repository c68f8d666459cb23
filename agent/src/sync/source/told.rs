//! What a node tells of clients' addresses on the others: a condition in words, and the nodes by what their pods see. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::{config::ExternalSource, net::reverse_path::Hindrance};

/// The condition's type.
const CONDITION: &str = "ExternalSourceKept";
/// The field of the status with the nodes' names: `kept` and `masqueraded`.
pub(super) const FIELD: &str = "externalSources";
/// Names of nodes in a message.
const MOST_NAMED: usize = 16;
/// So many names are told for each way; beyond that `counts` says how many there are.
const MOST_NAMES: usize = 64;

/// For the own Node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Told {
    pub(super) condition: Value,
    /// The value of [`FIELD`].
    pub(super) nodes: Value,
}

/// For nodes whose pods see clients' addresses, and the others with the reasons; and what keeps pods here from seeing those of clients
/// that call other nodes.
pub(super) fn of(
    mode: ExternalSource,
    kept: &BTreeSet<&str>,
    others: &BTreeMap<&str, String>,
    hindrance: Option<Hindrance>,
) -> Told {
    Told { condition: condition(mode, kept, others, hindrance), nodes: nodes(kept, others) }
}

fn nodes(kept: &BTreeSet<&str>, others: &BTreeMap<&str, String>) -> Value {
    let names: Vec<&str> = kept.iter().copied().take(MOST_NAMES).collect();
    let hidden: Vec<&str> = others.keys().copied().take(MOST_NAMES).collect();
    let mut told = json!({"kept": names, "masqueraded": hidden});
    if kept.len().max(others.len()) > MOST_NAMES {
        told["counts"] = json!({"kept": kept.len(), "masqueraded": others.len()});
    }
    told
}

fn condition(
    mode: ExternalSource,
    kept: &BTreeSet<&str>,
    others: &BTreeMap<&str, String>,
    hindrance: Option<Hindrance>,
) -> Value {
    let list = |names: &[&str]| {
        let more = names.len().saturating_sub(MOST_NAMED);
        let shown = names[..names.len() - more].join(", ");
        if more > 0 { format!("{shown} and {more} more") } else { shown }
    };
    let (status, reason) = match mode {
        _ if others.is_empty() && kept.is_empty() => ("True", "NoOtherNodes"),
        ExternalSource::Masquerade => ("False", "Masquerade"),
        _ if hindrance.is_some() => ("False", "ReversePathFilter"),
        _ if others.is_empty() => ("True", "Kept"),
        _ => ("False", "MasqueradedTowardsSome"),
    };
    let mut parts = Vec::new();
    if !kept.is_empty() {
        let names: Vec<&str> = kept.iter().copied().collect();
        parts.push(format!("Clients that call this node are seen by their own address on {}", list(&names)));
    }
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, why) in others {
        by_reason.entry(why).or_default().push(name);
    }
    for (why, names) in by_reason {
        parts.push(format!("Pods on {} see this node instead: {why}", list(&names)));
    }
    if parts.is_empty() {
        parts.push("There is no other node".to_owned());
    } else if let Some(why) = hindrance {
        parts.push(format!("Pods here see other nodes in the place of clients: {why}"));
    }
    json!({"type": CONDITION, "status": status, "reason": reason, "message": parts.join(". ")})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::reverse_path::{ReversePath, Setting},
        source::probe::Failure,
    };

    #[test]
    fn the_condition_names_nodes_and_reasons() {
        let told = |mode, kept: &[&str], others: &[(&str, Failure)]| {
            let others = others.iter().map(|(name, why)| (*name, why.to_string())).collect();
            let c = condition(mode, &kept.iter().copied().collect(), &others, None);
            let text = |field: &str| c[field].as_str().unwrap().to_owned();
            (text("status"), text("reason"), text("message"))
        };
        let (auto, silent) = (ExternalSource::Auto, Failure::Silent);
        assert_eq!(told(auto, &[], &[]).0, "True");
        let (status, reason, message) = told(auto, &["b", "c"], &[]);
        assert_eq!((status.as_str(), reason.as_str()), ("True", "Kept"));
        assert!(message.ends_with("on b, c"), "{message}");
        let (status, reason, message) = told(auto, &["b"], &[("c", silent), ("d", silent)]);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "MasqueradedTowardsSome"));
        assert!(message.contains("on b. Pods on c, d see this node instead: a datagram"), "{message}");
        assert_eq!(told(ExternalSource::Masquerade, &[], &[("c", silent)]).1, "Masquerade");
        let names: Vec<String> = (0..1000).map(|n| format!("node-{n:04}")).collect();
        let many: Vec<&str> = names.iter().map(String::as_str).collect();
        let message = told(auto, &many, &[]).2;
        assert!(message.contains("and 984 more") && message.len() < 400, "{message}");
    }

    #[test]
    fn a_setting_that_is_in_the_way_is_named_once_there_are_other_nodes() {
        let on = Setting { all: 1, default: 1 };
        let hindrance = ReversePath { rp_filter: on, src_valid_mark: on }.hindrance();
        let alone = condition(ExternalSource::Auto, &BTreeSet::new(), &BTreeMap::new(), hindrance);
        assert_eq!(alone["reason"], "NoOtherNodes");
        let told = condition(ExternalSource::Auto, &["b"].into(), &BTreeMap::new(), hindrance);
        assert_eq!((&told["status"], &told["reason"]), (&json!("False"), &json!("ReversePathFilter")));
        let message = told["message"].as_str().unwrap();
        assert!(message.ends_with("set net.ipv4.conf.all.src_valid_mark=0"), "{message}");
    }

    #[test]
    fn of_many_nodes_some_are_named_and_all_are_counted() {
        let names: Vec<String> = (0..100).map(|n| format!("node-{n:02}")).collect();
        let kept: BTreeSet<&str> = names[..98].iter().map(String::as_str).collect();
        let others = names[98..].iter().map(|name| (name.as_str(), String::new())).collect();
        let told = nodes(&kept, &others);
        assert_eq!(told["kept"].as_array().unwrap().len(), MOST_NAMES);
        assert_eq!(told["masqueraded"], json!(["node-98", "node-99"]));
        assert_eq!(told["counts"], json!({"kept": 98, "masqueraded": 2}));
        let few = nodes(&["a"].into(), &BTreeMap::new());
        assert_eq!(few, json!({"kept": ["a"], "masqueraded": []}));
    }
}
