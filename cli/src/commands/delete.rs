//! `delete`

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use minisvc_proto::{ObjectKey, Resource, client::ClientError, path::Target, resource::NAMESPACES};
use serde_json::{Value, json};

use super::{DONE, Outcome, Session, complain, manifests, selection, watching};
use crate::{
    args::{Cascade, Delete},
    output,
};

pub(super) async fn run(session: &Session, args: Delete) -> Outcome {
    let options = options(&args)?;
    let mut code = DONE;
    let keys = keys(session, &args).await?;
    if keys.is_empty() {
        output::line("No resources found")?;
    }
    if args.force {
        output::note(
            "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. \
             The resource may continue to run on the cluster indefinitely.",
        );
    }
    let mut going = Vec::new();
    for key in keys {
        match session.client.delete(&Target::object(&key), &options).await {
            Ok(answer) => {
                report(&key, &args)?;
                going.push((uid(&answer), key));
            }
            Err(e) if e.is_not_found() && (args.ignore_not_found || by_query(&args)) => {}
            Err(e @ ClientError::Api(_)) => code = complain(e),
            Err(e) => return Err(e.into()),
        }
    }
    if args.wait {
        let end = args.timeout.map(|t| Instant::now() + t);
        for (uid, key) in going {
            gone(session, &key, &uid, end).await?;
        }
    }
    Ok(code)
}

fn by_query(args: &Delete) -> bool {
    args.all || args.selector.is_some()
}

/// What is deleted, in the order in which it was named.
async fn keys(session: &Session, args: &Delete) -> anyhow::Result<Vec<ObjectKey>> {
    if !args.filename.is_empty() {
        let mut keys = Vec::new();
        for document in manifests::read(&args.filename, None)? {
            let name = document.object.name();
            if name.is_empty() {
                bail!("{}: metadata.name: required", document.place);
            }
            let mut key = session.key(document.resource, name);
            if let (Some(_), Some(own)) = (&key.namespace, document.object.namespace()) {
                key.namespace = Some(own.to_owned());
            }
            keys.push(key);
        }
        // A namespace takes along what is in it: what the file names there goes first.
        keys.sort_by_key(|key| *key.resource == NAMESPACES);
        return Ok(keys);
    }
    let warning = ": nothing is deleted without one of them";
    selection::keys(session, &args.what, args.selector.as_deref(), args.all, warning).await
}

/// DeleteOptions.
fn options(args: &Delete) -> anyhow::Result<Value> {
    let policy = match args.cascade {
        Cascade::Background => "Background",
        Cascade::Foreground => "Foreground",
        Cascade::Orphan => "Orphan",
    };
    let mut options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": policy});
    let grace = match args.grace_period {
        _ if args.now => Some(1),
        // A grace of nothing is asked for by --force alone; otherwise it is the least that still waits for the node.
        0 if !args.force => Some(1),
        n if n < 0 && args.force => Some(0),
        n if n > 0 && args.force => {
            bail!("--force and a --grace-period greater than 0 cannot be given together")
        }
        n if n >= 0 => Some(n),
        _ => None,
    };
    if let Some(grace) = grace {
        options["gracePeriodSeconds"] = grace.into();
    }
    Ok(options)
}

fn report(key: &ObjectKey, args: &Delete) -> anyhow::Result<()> {
    if args.output.is_some() {
        return Ok(output::line(&format!("{}/{}", key.resource.qualified_singular(), key.name))?);
    }
    Ok(output::line(&said(key.resource, &key.name, args.force))?)
}

fn said(resource: &Resource, name: &str, force: bool) -> String {
    let how = if force { "force deleted" } else { "deleted" };
    format!("{} \"{name}\" {how}", resource.qualified_singular())
}

/// The uid in the answer: of the object itself, or of the one that a Status tells about.
fn uid(answer: &Value) -> String {
    let uid = answer.pointer("/metadata/uid").or(answer.pointer("/details/uid"));
    uid.and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Waits until the object is gone; another one of the same name is another one.
async fn gone(session: &Session, key: &ObjectKey, uid: &str, end: Option<Instant>) -> anyhow::Result<()> {
    let left: Option<Duration> = end.map(|e| e.saturating_duration_since(Instant::now()));
    let gone = watching::until(session, key, left, |object| match object {
        Some(object) if uid.is_empty() || object.uid() == uid => None,
        _ => Some(()),
    });
    gone.await?.with_context(|| format!("timed out waiting for the end of {key}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Args, ClusterCommand, Command};

    fn read(line: &str) -> Delete {
        match Args::try_parse_from(line.split(' ')).unwrap().command {
            Command::Cluster(ClusterCommand::Delete(args)) => args,
            _ => unreachable!(),
        }
    }

    #[test]
    fn grace_is_what_was_asked_for() {
        for (flags, expected) in [
            ("", Some(Value::Null)),
            ("--now", Some(1.into())),
            ("--grace-period=7", Some(7.into())),
            ("--grace-period=0", Some(1.into())),
            ("--grace-period=0 --force", Some(0.into())),
            ("--force", Some(0.into())),
            ("--force --grace-period=3", None),
        ] {
            let line = format!("minisvc delete pod x {flags}");
            let got = options(&read(line.trim_end()));
            assert_eq!(got.ok().map(|o| o["gracePeriodSeconds"].clone()), expected, "{flags}");
        }
        assert_eq!(
            options(&read("minisvc delete rs x --cascade=orphan")).unwrap()["propagationPolicy"],
            "Orphan"
        );
    }

    #[test]
    fn it_says_what_kubectl_says() {
        use minisvc_proto::resource::{DEPLOYMENTS, PODS};
        assert_eq!(said(&PODS, "x", false), "pod \"x\" deleted");
        assert_eq!(said(&DEPLOYMENTS, "x", true), "deployment.apps \"x\" force deleted");
    }
}
