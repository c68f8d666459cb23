//! `create` and `run`.

use anyhow::{Context as _, anyhow, bail};
use minisvc_proto::{Object, Resource, path::Target};
use serde_json::Value;

use super::{DONE, Outcome, Session, build, complain, manifests, programmed};
use crate::{
    args::{Create, CreateService, CreateWhat, DryRun, Global, ObjectFormat, Produce, Run},
    output,
};

pub(super) async fn run(global: &Global, args: Create) -> Outcome {
    let namespace = global.namespace.as_deref();
    let Some(what) = args.what else {
        if args.filename.is_empty() {
            bail!("nothing to create: give -f FILE, or deployment, service or namespace");
        }
        return from_files(global, &args.filename, args.produce).await;
    };
    match what {
        CreateWhat::Deployment(args) => {
            made(global, build::deployment(&args, namespace), args.produce).await?;
        }
        CreateWhat::Namespace(args) => {
            made(global, build::namespace(&args.name), args.produce).await?;
        }
        CreateWhat::Service { kind } => {
            let object = build::service(&kind, namespace).map_err(|e| anyhow!(e))?;
            let (produce, wait) = match &*kind {
                CreateService::Clusterip(flags) => (flags.produce, Some(flags.wait)),
                CreateService::Nodeport(flags) => (flags.service.produce, Some(flags.service.wait)),
                CreateService::Loadbalancer(flags) => (flags.service.produce, Some(flags.service.wait)),
                // Nothing of it goes into a kernel.
                CreateService::Externalname(flags) => (flags.produce, None),
            };
            if let (Some((session, object)), Some(wait)) = (made(global, object, produce).await?, wait) {
                programmed::wait(&session, &object, wait).await?;
            }
        }
    }
    Ok(DONE)
}

pub(super) async fn run_pod(global: &Global, args: Run) -> Outcome {
    made(global, build::pod(&args, global.namespace.as_deref()), args.produce).await?;
    Ok(DONE)
}

/// Creates the object (or only shows it); what was really made comes back, with the session that made it.
async fn made(
    global: &Global,
    object: Object,
    produce: Produce,
) -> anyhow::Result<Option<(Session, Object)>> {
    let resource = object.resource().context("an object without a kind")?;
    if produce.dry_run == DryRun::Client {
        report(resource, &object, "created", produce)?;
        return Ok(None);
    }
    let session = Session::open(global)?;
    let object = send(&session, resource, object, produce, "created").await?;
    Ok((produce.dry_run == DryRun::None).then_some((session, object)))
}

/// Sends a new object, and says what became of it.
pub(super) async fn send(
    session: &Session,
    resource: &'static Resource,
    object: Object,
    produce: Produce,
    done: &str,
) -> anyhow::Result<Object> {
    let namespace = object.namespace().unwrap_or(&session.namespace).to_owned();
    let target = Target::collection(resource, Some(&namespace));
    let made = session.client.create(&target, &object, produce.dry_run == DryRun::Server).await?;
    report(resource, &made, done, produce)?;
    Ok(made)
}

/// `service/hello created`, or the object.
pub(super) fn report(
    resource: &Resource,
    object: &Object,
    done: &str,
    produce: Produce,
) -> anyhow::Result<()> {
    let name = format!("{}/{}", resource.qualified_singular(), object.name());
    let value = || Value::Object(object.0.clone());
    match produce.output {
        Some(ObjectFormat::Name) => output::line(&name)?,
        Some(ObjectFormat::Json) => output::line(&output::to_json(&value()))?,
        Some(ObjectFormat::Yaml) => output::bytes(output::to_yaml(&value()).as_bytes())?,
        None => {
            let how = match produce.dry_run {
                DryRun::None => "",
                DryRun::Client => " (dry run)",
                DryRun::Server => " (server dry run)",
            };
            output::line(&format!("{name} {done}{how}"))?;
        }
    }
    Ok(())
}

async fn from_files(global: &Global, files: &[std::path::PathBuf], produce: Produce) -> Outcome {
    // All are read before the first is sent.
    let documents = manifests::read(files, global.namespace.as_deref())?;
    if produce.dry_run == DryRun::Client {
        for (i, document) in documents.iter().enumerate() {
            separate(i, produce)?;
            report(document.resource, &document.object, "created", produce)?;
        }
        return Ok(DONE);
    }
    let session = Session::open(global)?;
    let mut code = DONE;
    for (i, document) in documents.into_iter().enumerate() {
        separate(i, produce)?;
        let sent = send(&session, document.resource, document.object, produce, "created").await;
        match sent.with_context(|| format!("error when creating {}", document.place)) {
            Ok(_) => {}
            Err(e) if e.is::<output::PrintError>() => return Err(e),
            Err(e) => code = complain(e),
        }
    }
    Ok(code)
}

fn separate(i: usize, produce: Produce) -> anyhow::Result<()> {
    if i > 0 && produce.output == Some(ObjectFormat::Yaml) {
        output::line("---")?;
    }
    Ok(())
}
