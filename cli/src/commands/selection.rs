//! Which objects a command line means, as kubectl reads it: `KIND[,KIND…] [NAME…]`, `all`, or `KIND/NAME…`.

use anyhow::{Context as _, bail};
use minisvc_proto::{
    ObjectKey, Resource,
    client::ListParams,
    resource::{RESOURCES, by_user_name},
};

use super::Session;

/// A kind, or one object of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    pub resource: &'static Resource,
    pub name: Option<String>,
}

/// Reads the words in the order in which they stand.
pub fn parse(words: &[String]) -> anyhow::Result<Vec<Item>> {
    let [first, names @ ..] = words else {
        bail!("which kind? pods, services or deployments would be right")
    };
    if first.contains('/') {
        return words
            .iter()
            .map(|word| {
                let Some((kind, name)) = word.split_once('/') else {
                    bail!("\"{word}\": after KIND/NAME there is only KIND/NAME");
                };
                Ok(Item { resource: kind_of(kind)?, name: Some(valid(name)?) })
            })
            .collect();
    }
    let mut items = Vec::new();
    for kind in first.split(',') {
        for resource in kinds(kind)? {
            if names.is_empty() {
                items.push(Item { resource, name: None });
            }
            for name in names {
                if name.contains('/') {
                    bail!("\"{name}\": there is no need for a kind before KIND/NAME: leave \"{first}\" out");
                }
                items.push(Item { resource, name: Some(valid(name)?) });
            }
        }
    }
    Ok(items)
}

/// One object, from `KIND NAME` or `KIND/NAME`; a bare word is an object of `bare`.
pub fn one(
    word: &str,
    name: Option<&str>,
    bare: Option<&'static Resource>,
) -> anyhow::Result<(&'static Resource, String)> {
    match (word.split_once('/'), name, bare) {
        (Some((kind, name)), None, _) => Ok((kind_of(kind)?, valid(name)?)),
        (None, Some(name), None) => Ok((kind_of(word)?, valid(name)?)),
        (None, None, Some(resource)) => Ok((resource, valid(word)?)),
        _ => bail!("\"{word}\": one object would be right, KIND NAME or KIND/NAME"),
    }
}

fn kinds(word: &str) -> anyhow::Result<Vec<&'static Resource>> {
    if word == "all" {
        return Ok(RESOURCES.iter().copied().filter(|r| r.categories.contains(&"all")).collect());
    }
    Ok(vec![kind_of(word)?])
}

fn kind_of(word: &str) -> anyhow::Result<&'static Resource> {
    by_user_name(word).with_context(|| {
        let known: Vec<&str> = RESOURCES.iter().map(|r| r.plural).collect();
        format!("the server doesn't have a resource type \"{word}\"; it has {}", known.join(", "))
    })
}

/// It becomes part of a path.
fn valid(name: &str) -> anyhow::Result<String> {
    minisvc_proto::names::check_dns_subdomain(name).map_err(|e| anyhow::anyhow!("name \"{name}\": {e}"))?;
    Ok(name.to_owned())
}

/// Objects by their names, or all of a kind that `-l` matches or `--all` means: never all because nothing was said, for which
/// `warning` may give a reason.
pub async fn keys(
    session: &Session,
    words: &[String],
    selector: Option<&str>,
    all: bool,
    warning: &str,
) -> anyhow::Result<Vec<ObjectKey>> {
    let by_query = all || selector.is_some();
    let mut keys = Vec::new();
    for item in parse(words)? {
        match item.name {
            Some(_) if by_query => bail!("a name, or one of -l and --all: not both"),
            Some(name) => keys.push(session.key(item.resource, &name)),
            None if !by_query => {
                bail!("which of the {}? Give names, -l LABELS or --all{warning}", item.resource.plural)
            }
            None => {
                let params = ListParams { label_selector: selector.map(str::to_owned), field_selector: None };
                let target = session.collection(item.resource, false);
                let (_, objects) = session.client.list(&target, &params).await?;
                keys.extend(objects.iter().map(|o| session.key(item.resource, o.name())));
            }
        }
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Vec<String>, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let items = parse(&words).map_err(|e| e.to_string())?;
        Ok(items
            .into_iter()
            .map(|i| i.name.map_or(i.resource.plural.to_owned(), |n| format!("{}/{n}", i.resource.plural)))
            .collect())
    }

    #[test]
    fn objects_are_meant_as_with_kubectl() {
        for (line, expected) in [
            ("pods", "pods"),
            ("po,svc,deploy", "pods services deployments"),
            ("all", "pods services deployments replicasets"),
            ("pod a b", "pods/a pods/b"),
            ("pod,svc a", "pods/a services/a"),
            ("pod/a svc/b deployments.apps/c", "pods/a services/b deployments/c"),
        ] {
            assert_eq!(read(line).map(|v| v.join(" ")), Ok(expected.to_owned()), "{line}");
        }
        for (line, says) in [
            ("widgets", "the server doesn't have a resource type \"widgets\"; it has namespaces,"),
            ("pod/a b", "\"b\": after KIND/NAME"),
            ("pod svc/a", "leave \"pod\" out"),
            ("pod/", "name \"\""),
            ("pod ../x", "\"../x\""),
            ("pod A", "name \"A\""),
            ("", "which kind?"),
        ] {
            assert!(read(line).is_err_and(|e| e.contains(says)), "{line}: {:?}", read(line));
        }
    }
}
