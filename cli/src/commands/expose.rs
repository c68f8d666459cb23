//! `expose`

use anyhow::{anyhow, bail};
use minisvc_proto::{
    path::Target,
    resource::{DEPLOYMENTS, PODS, REPLICA_SETS, SERVICES},
};

use super::{DONE, Outcome, Session, build, create, programmed, selection};
use crate::args::{DryRun, Expose};

pub(super) async fn run(session: &Session, args: Expose) -> Outcome {
    let (resource, name) = selection::one(&args.kind, args.target.as_deref(), None)?;
    if ![&DEPLOYMENTS, &REPLICA_SETS, &PODS, &SERVICES].contains(&resource) {
        bail!("{} cannot be exposed; deployments, replicasets, pods and services can", resource.plural);
    }
    let of = session.client.get(&Target::object(&session.key(resource, &name))).await?;
    let namespace = session.enforced.then_some(session.namespace.as_str());
    let object = build::exposed(&of, &args, namespace).map_err(|e| anyhow!(e))?;
    if args.produce.dry_run == DryRun::Client {
        create::report(&SERVICES, &object, "exposed", args.produce)?;
        return Ok(DONE);
    }
    let made = create::send(session, &SERVICES, object, args.produce, "exposed").await?;
    if args.produce.dry_run == DryRun::None {
        programmed::wait(session, &made, args.wait).await?;
    }
    Ok(DONE)
}
