//! What a node's kernel does with a connection, read from what the program `nft` lists: ids, slots and classes have no meaning of their
//! own.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::Context;
use serde_json::Value;

use super::{super::cluster::Cluster, model::Outcome};

/// What a key of a map leads to, with the seconds of session affinity. Keys are written as `nft` does, after the map's name.
pub type Meaning = BTreeMap<String, (Outcome, Option<u32>)>;

/// Spells out that what comes from outside meets what everybody does where nothing is said for it.
pub fn spelled_out(mut meaning: Meaning) -> Meaning {
    for (key, value) in meaning.clone() {
        if let Some((map, rest)) = key.split_once(' ').filter(|(map, _)| !map.ends_with("_outside")) {
            meaning.entry(format!("{map}_outside {rest}")).or_insert(value);
        }
    }
    meaning
}

/// The maps of a table by name, their elements as keys and values.
type Maps = BTreeMap<String, Vec<(Value, Value)>>;

fn maps(listing: &Value) -> anyhow::Result<Maps> {
    let mut maps = Maps::new();
    for entry in listing["nftables"].as_array().context("a listing")? {
        let Some(map) = entry.get("map").or_else(|| entry.get("set")) else { continue };
        let name = map["name"].as_str().context("a name")?.to_owned();
        let elements = map["elem"].as_array().into_iter().flatten();
        let pair = |element: &Value| match element {
            Value::Array(pair) if pair.len() == 2 => (pair[0].clone(), pair[1].clone()),
            key => (key.clone(), Value::Null),
        };
        maps.insert(name, elements.map(pair).collect());
    }
    Ok(maps)
}

/// `a . b` of a key or value.
fn text(value: &Value) -> String {
    let one = |v: &Value| match v {
        Value::String(s) => s.clone(),
        other => other.to_string(),
    };
    match value.get("concat").and_then(Value::as_array) {
        Some(parts) => parts.iter().map(one).collect::<Vec<_>>().join(" . "),
        None => one(value),
    }
}

/// What the table of a node means.
pub fn meaning(cluster: &Cluster, node: u8) -> anyhow::Result<Meaning> {
    let listed = cluster.node(node).run("nft", &["-j", "list", "table", "ip", "minisvc"])?;
    let maps = maps(&serde_json::from_str(&listed)?)?;
    let map = |name: &str| maps.get(name).with_context(|| format!("no map {name}"));
    let lookup = |name: &str| -> anyhow::Result<BTreeMap<String, String>> {
        Ok(map(name)?.iter().map(|(k, v)| (text(k), text(v))).collect())
    };
    let (slots, choices, sticky) = (lookup("ep")?, lookup("choice")?, lookup("sticky_ep")?);
    let classes: BTreeMap<u64, String> = (map("class")?.iter())
        .filter_map(|(k, v)| Some((k.as_u64()?, v["goto"]["target"].as_str()?.to_owned())))
        .collect();
    let mut meaning = Meaning::new();
    for name in ["svc", "np", "svc_outside", "np_outside"] {
        for (key, value) in map(name)? {
            let mark = value.as_u64().context("a mark")?;
            let (id, class) = (mark & !0xfff, classes.get(&(mark & 0xfff)).context("a class")?);
            let rest = class.strip_prefix('c').unwrap_or_default();
            let (count, affinity) = match rest.split_once("-sticky-") {
                Some((count, seconds)) => (count, Some(seconds.trim_end_matches('s').parse()?)),
                None => (rest, None),
            };
            let outcome = match class.as_str() {
                "reject" => Outcome::Refused,
                "drop" => Outcome::Dropped,
                _ => {
                    let mut pods = BTreeSet::new();
                    for slot in 0..count.parse::<u64>().with_context(|| class.clone())? {
                        let at = format!("{id} . {slot}");
                        let pod = match affinity {
                            None => slots.get(&at),
                            Some(_) => choices.get(&at).and_then(|choice| sticky.get(choice)),
                        };
                        let pod = pod.with_context(|| {
                            format!("{name} {} leads to nothing at slot {slot}", text(key))
                        })?;
                        pods.insert(pod.split_once(" . ").context("a pod")?.0.parse::<Ipv4Addr>()?);
                    }
                    Outcome::Served(pods)
                }
            };
            meaning.insert(format!("{name} {}", text(key)), (outcome, affinity));
        }
    }
    // Nothing is left of what was taken away.
    let ids: BTreeSet<u64> = (["svc", "np", "svc_outside", "np_outside"].iter())
        .flat_map(|name| &maps[*name])
        .filter_map(|(_, value)| value.as_u64().map(|mark| mark & !0xfff))
        .collect();
    for key in slots.keys().chain(choices.keys()).chain(sticky.keys()) {
        let id: u64 = key.split(" . ").next().context("a key")?.parse()?;
        anyhow::ensure!(ids.contains(&(id & !0xfff)), "an element {key} of a service that is not there");
    }
    Ok(meaning)
}
