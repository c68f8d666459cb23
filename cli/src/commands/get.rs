//! `get`

use anyhow::{Context as _, bail};
use futures::StreamExt;
use minisvc_proto::{
    Object, Resource, Revision,
    client::{ClientError, ListParams},
    path::Target,
    table::Table,
};
use serde_json::{Value, json};

use super::{DONE, Outcome, Session, complain, selection};
use crate::{
    args::{Format, Get},
    output::{self, TablePrinter, TableStyle},
};

/// Between a watch that the server ended and the next one.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(100);

pub(super) async fn run(session: &Session, args: Get) -> Outcome {
    let items = selection::parse(&args.what)?;
    let named = items.iter().any(|i| i.name.is_some());
    if named && args.all_namespaces {
        bail!("a resource cannot be retrieved by name across all namespaces: leave the name or -A out");
    }
    if named && (args.selector.is_some() || args.field_selector.is_some()) {
        bail!("a name and a selector cannot be given together");
    }
    if args.watch {
        return watch(session, &args, &items).await;
    }
    match args.output {
        None | Some(Format::Wide) => tables(session, &args, &items).await,
        Some(format) => objects(session, &args, &items, format).await,
    }
}

fn params(args: &Get) -> ListParams {
    ListParams { label_selector: args.selector.clone(), field_selector: args.field_selector.clone() }
}

fn target(session: &Session, args: &Get, item: &selection::Item) -> Target {
    match &item.name {
        Some(name) => Target::object(&session.key(item.resource, name)),
        None => session.collection(item.resource, args.all_namespaces),
    }
}

fn style(args: &Get, resource: &Resource, kinds: bool) -> TableStyle {
    TableStyle {
        wide: args.output == Some(Format::Wide),
        namespaces: args.all_namespaces && resource.is_namespaced(),
        kinds,
        labels: args.show_labels,
        headless: args.no_headers,
    }
}

/// An object that is not there is passed over where that was asked for.
fn skip(args: &Get, e: &ClientError) -> bool {
    args.ignore_not_found && e.is_not_found()
}

async fn tables(session: &Session, args: &Get, items: &[selection::Item]) -> Outcome {
    let mut code = DONE;
    let mut tables: Vec<(&'static Resource, Table)> = Vec::new();
    for item in items {
        match session.client.table(&target(session, args, item), &params(args)).await {
            Ok(table) => match tables.last_mut() {
                // Several objects of a kind are rows of one table.
                Some((resource, last))
                    if *resource == item.resource && last.column_definitions == table.column_definitions =>
                {
                    last.rows.extend(table.rows);
                }
                _ => tables.push((item.resource, table)),
            },
            Err(e) if skip(args, &e) => {}
            Err(e @ ClientError::Api(_)) => code = complain(e),
            Err(e) => return Err(e.into()),
        }
    }
    let kinds = items.iter().any(|i| i.resource != items[0].resource) || args.what[0] == "all";
    tables.retain(|(_, t)| !t.rows.is_empty());
    if tables.is_empty() && code == DONE && !args.ignore_not_found {
        let namespaced = items.iter().any(|i| i.resource.is_namespaced());
        output::note(&if namespaced && !args.all_namespaces {
            format!("No resources found in {} namespace.", session.namespace)
        } else {
            "No resources found".to_owned()
        });
    }
    let text: Vec<String> = tables
        .iter()
        .map(|(resource, table)| TablePrinter::new(style(args, resource, kinds)).render(table))
        .collect();
    output::bytes(text.join("\n").as_bytes())?;
    Ok(code)
}

async fn objects(session: &Session, args: &Get, items: &[selection::Item], format: Format) -> Outcome {
    let mut code = DONE;
    let mut found = Vec::new();
    for item in items {
        let target = target(session, args, item);
        let answer = match item.name {
            Some(_) => session.client.get(&target).await.map(|o| vec![o]),
            None => session.client.list(&target, &params(args)).await.map(|(_, list)| list),
        };
        match answer {
            Ok(objects) => found.extend(objects),
            Err(e) if skip(args, &e) => {}
            Err(e @ ClientError::Api(_)) => code = complain(e),
            Err(e) => return Err(e.into()),
        }
    }
    if format == Format::Name {
        for object in &found {
            output::line(&qualified(object))?;
        }
        return Ok(code);
    }
    let one = items.len() == 1 && items[0].name.is_some();
    if one && found.is_empty() {
        return Ok(code);
    }
    let mut values: Vec<Value> = found.into_iter().map(|o| Value::Object(o.0)).collect();
    let value = match values.pop() {
        Some(value) if one => value,
        last => {
            values.extend(last);
            json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": values})
        }
    };
    print(&value, format)?;
    Ok(code)
}

fn qualified(object: &Object) -> String {
    match object.resource() {
        Some(resource) => format!("{}/{}", resource.qualified_singular(), object.name()),
        None => object.name().to_owned(),
    }
}

fn print(value: &Value, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Yaml => output::bytes(output::to_yaml(value).as_bytes())?,
        _ => output::line(&output::to_json(value))?,
    }
    Ok(())
}

async fn watch(session: &Session, args: &Get, items: &[selection::Item]) -> Outcome {
    let [item] = items else { bail!("-w: one kind, or one object, can be watched") };
    let mut params = params(args);
    if let Some(name) = &item.name {
        // An object that is not there is an error, as without -w.
        session.client.get(&target(session, args, item)).await?;
        params = ListParams::fields(format!("metadata.name={name}"));
    }
    let target = session.collection(item.resource, args.all_namespaces);
    match args.output {
        None | Some(Format::Wide) => watch_tables(session, args, &target, &params).await,
        Some(format) => watch_objects(session, &target, &params, format).await,
    }
}

/// Rows as they come, without end. A watch that the server ends is taken up again where it was.
async fn watch_tables(session: &Session, args: &Get, target: &Target, params: &ListParams) -> Outcome {
    let mut printer = TablePrinter::new(style(args, target.resource, false));
    loop {
        let first = session.client.table(target, params).await?;
        let revision =
            first.metadata.get("resourceVersion").and_then(Value::as_str).and_then(|r| r.parse().ok());
        let mut since: Revision = revision.context("the server's table has no metadata.resourceVersion")?;
        output::bytes(printer.render(&first).as_bytes())?;
        let columns = first.column_definitions;
        'again: loop {
            let mut events = match session.client.watch_table(target, params, since).await {
                // The history is gone: everything is shown again.
                Err(e) if e.is_expired() => break 'again,
                other => other?,
            };
            while let Some(event) = events.next().await {
                let (revision, mut table) = match event {
                    Err(e) if e.is_expired() => break 'again,
                    other => other?,
                };
                since = revision;
                if table.column_definitions.is_empty() {
                    table.column_definitions.clone_from(&columns);
                }
                output::bytes(printer.render(&table).as_bytes())?;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn watch_objects(session: &Session, target: &Target, params: &ListParams, format: Format) -> Outcome {
    let show = |object: Object| -> anyhow::Result<()> {
        if format == Format::Name {
            return Ok(output::line(&qualified(&object))?);
        }
        if format == Format::Yaml {
            output::line("---")?;
        }
        print(&Value::Object(object.0), format)
    };
    loop {
        let (mut since, objects) = session.client.list(target, params).await?;
        for object in objects {
            show(object)?;
        }
        'again: loop {
            let mut events = match session.client.watch(target, params, since).await {
                Err(e) if e.is_expired() => break 'again,
                other => other?,
            };
            while let Some(event) = events.next().await {
                let event = match event {
                    Err(e) if e.is_expired() => break 'again,
                    other => other?,
                };
                since = event.object.revision().unwrap_or(since).max(since);
                if event.kind != minisvc_proto::watch::EventType::Bookmark {
                    show(event.object)?;
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}
