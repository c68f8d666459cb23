//! `get`

use anyhow::bail;
use minisvc_proto::{ObjectKey, client::ListParams, path::Target};
use serde_json::{Value, json};

use super::{Session, resource, session};
use crate::{
    args::{Format, Get},
    output,
};

pub(super) async fn run(session: &Session, args: Get) -> anyhow::Result<()> {
    let params = ListParams { label_selector: args.selector, field_selector: args.field_selector };
    let namespace = (!args.all_namespaces).then_some(session.namespace.as_str());
    let mut targets = Vec::new();
    for word in args.kinds.split(',') {
        targets.push(if word.contains('/') || args.name.is_some() {
            Target::object(&session.key(word, args.name.as_deref())?)
        } else {
            Target::collection(resource(word)?, namespace)
        });
    }
    let one = targets.len() == 1 && targets[0].name.is_some();
    if one && args.all_namespaces {
        bail!("-A: an object cannot be fetched by name across all namespaces; leave the name or -A out");
    }
    match args.output {
        None | Some(Format::Wide) => {
            let mut first = true;
            for target in &targets {
                let table = session.client.table(target, &params).await?;
                if table.rows.is_empty() {
                    output::note(&format!("No resources found in {} namespace.", session.namespace));
                    continue;
                }
                if !std::mem::take(&mut first) {
                    output::line("")?;
                }
                let namespaces = args.all_namespaces && target.resource.is_namespaced();
                output::bytes(output::table(&table, args.output.is_some(), namespaces).as_bytes())?;
            }
            Ok(())
        }
        Some(format) => {
            let mut items = Vec::new();
            for target in &targets {
                if target.name.is_some() {
                    items.push(session.client.get(target).await?);
                } else {
                    items.extend(session.client.list(target, &params).await?.1);
                }
            }
            if format == Format::Name {
                for key in items.iter().filter_map(minisvc_proto::Object::key) {
                    let ObjectKey { resource, name, .. } = key;
                    output::line(&format!("{}/{name}", session::kind(resource)))?;
                }
                return Ok(());
            }
            let mut items: Vec<Value> = items.into_iter().map(|o| Value::Object(o.0)).collect();
            let value = match items.pop() {
                Some(item) if one => item,
                last => {
                    items.extend(last);
                    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items})
                }
            };
            let text = match format {
                Format::Yaml => serde_saphyr::to_string(&value)?,
                _ => serde_json::to_string_pretty(&value)?,
            };
            Ok(output::line(text.trim_end())?)
        }
    }
}
