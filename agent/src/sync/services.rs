//! Services and slices into the kernel and the DNS zone.

use std::{collections::BTreeSet, time::Duration};

use k8s_openapi::api::core::v1::Service;
use minisvc_proto::{
    NodeName,
    client::{Client, Informer, InformerEvent, ListParams},
    path::Target,
    resource::{ENDPOINT_SLICES, SERVICES},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    health_checks::HealthChecks,
    local_health::LocalHealth,
    node_ports::Doors,
    pods::ServiceLinks,
    port_claims::{self, Claims},
    readiness::Readiness,
    world::{World, by_reference},
};
use crate::{
    dataplane::Handle,
    dns::SharedZone,
    plan::{ServiceKey, Viewpoint},
};

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// The part of [`Readiness`] that this loop answers for.
pub const PART: &str = "services";

/// What the loop writes to.
pub struct Outputs {
    /// The kernel.
    pub dataplane: Handle,
    /// The names.
    pub zone: SharedZone,
    /// The nodePorts on loopback addresses.
    pub doors: Doors,
    /// The ports of load balancers on this node's addresses.
    pub claims: Claims,
    /// The answers to load balancers' health checks.
    pub health_checks: HealthChecks,
    /// This node.
    pub node: NodeName,
    /// Its pods that do not serve, which is known here first.
    pub local_health: LocalHealth,
    /// The node they are for; nothing is programmed before it is known.
    pub here: watch::Receiver<Option<Viewpoint>>,
    /// The variables of pods.
    pub links: ServiceLinks,
    /// How far it has come.
    pub readiness: Readiness,
}

/// Follows services and slices until cancelled. Nothing is programmed before both have been listed once: what an earlier agent
/// left goes on serving until then. A kernel that refuses is asked again, with everything that was touched since.
pub async fn run(client: Client, mut outputs: Outputs, shutdown: CancellationToken) {
    let all =
        |resource| Informer::spawn(client.clone(), Target::collection(resource, None), ListParams::default());
    let (mut services, mut slices) = (all(&SERVICES), all(&ENDPOINT_SLICES));
    let mut world = World::of(&outputs.node);
    let (mut down, mut is_news) = (outputs.local_health.subscribe(), false);
    let mut pending: BTreeSet<ServiceKey> = BTreeSet::new();
    let (mut installed, mut has_moved) = (false, true);
    let mut retry = FIRST_RETRY;
    let mut due: Option<Instant> = None;
    let mut look_again: Option<Instant> = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            event = services.recv() => match event {
                Some(event) => put_service(&mut world, event),
                // Only a panic ends an informer: the process must end, or this node would stand still for ever.
                None => return,
            },
            event = slices.recv() => match event {
                Some(event) => put_slice(&mut world, event),
                None => return,
            },
            changed = outputs.here.changed() => match changed {
                Ok(()) => has_moved = true,
                Err(_) => return,
            },
            // Who told it may have ended: then nothing changes any more.
            Ok(()) = down.changed() => is_news = true,
            () = at(due) => due = None,
            () = at(look_again) => {
                look_again = None;
                pending.append(&mut outputs.claims.waiting());
            }
        }
        // One transaction for all that has come meanwhile.
        drain(&mut services, |event| put_service(&mut world, event));
        drain(&mut slices, |event| put_slice(&mut world, event));
        if std::mem::take(&mut has_moved)
            && let Some(here) = outputs.here.borrow_and_update().clone()
        {
            world.look_from(here);
        }
        if std::mem::take(&mut is_news) {
            world.set_down(down.borrow_and_update().keys().cloned().collect());
        }
        outputs.local_health.prune(|uid| world.names(uid));
        pending.append(&mut world.take_dirty());
        let Some(here) = world.here().filter(|_| world.is_complete()) else { continue };
        if due.is_some_and(|at| at > Instant::now()) {
            continue;
        }
        // What exists is told to new containers, whether or not the kernel can have it.
        for key in &pending {
            outputs.links.put(key, world.service(key).map(|(service, _)| service));
        }
        outputs.links.complete();
        let seen = (world.services_seen, world.slices_seen);
        if !installed || !pending.is_empty() {
            if let Err(error) = program(&world, here, &pending, &mut outputs).await {
                tracing::error!(%error, services = pending.len(), "the kernel refused; trying again in {retry:?}");
                outputs.readiness.fails(PART, &error);
                due = Some(Instant::now() + retry);
                retry = (retry * 2).min(LAST_RETRY);
                continue;
            }
            pending.clear();
            installed = true;
            retry = FIRST_RETRY;
            outputs.readiness.works(PART);
            if look_again.is_none() && !outputs.claims.waiting().is_empty() {
                look_again = Some(Instant::now() + port_claims::AGAIN);
            }
        }
        outputs.readiness.programmed(seen.0, seen.1);
    }
}

/// Whether the service is a load balancer that the nodes are.
fn is_ours(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer") && s.load_balancer_class.is_none())
}

/// Kernel first: a name must not lead to an address that is not served yet.
async fn program(
    world: &World,
    here: &Viewpoint,
    keys: &BTreeSet<ServiceKey>,
    outputs: &mut Outputs,
) -> Result<(), crate::nft::NftError> {
    let mut planned = world.plans(keys, here);
    // Those that are gone first: what they had is free for the others.
    planned.sort_by_key(|(_, plan)| plan.is_some());
    for (key, plan) in &mut planned {
        let service = world.service(key).map(|(service, _)| service);
        let uid = service.and_then(|service| service.metadata.uid.as_deref()).unwrap_or_default();
        let balances = service.is_some_and(is_ours);
        outputs.claims.settle(key, uid, plan.as_mut(), &here.addresses, balances);
    }
    outputs.dataplane.apply(planned.clone()).await?;
    for (key, plan) in &planned {
        let found = world.service(key);
        let found = found.as_ref().map(|(service, slices)| (*service, by_reference(slices)));
        let found = found.as_ref().map(|(service, slices)| (*service, slices.as_slice()));
        outputs.doors.put(key, found.map(|(service, _)| service).zip(plan.as_ref()));
        outputs.health_checks.put(key, found);
        outputs.zone.put(key, found);
    }
    Ok(())
}

fn drain(events: &mut mpsc::Receiver<InformerEvent>, mut put: impl FnMut(InformerEvent)) {
    // At most what is there now: a flood must not keep the kernel waiting.
    for _ in 0..events.len() {
        let Ok(event) = events.try_recv() else { return };
        put(event);
    }
}

fn put_service(world: &mut World, event: InformerEvent) {
    match event {
        InformerEvent::Reset(revision, objects) => world.reset_services(revision, objects),
        InformerEvent::Changed(event) => world.service_event(event.kind, &event.object),
    }
}

fn put_slice(world: &mut World, event: InformerEvent) {
    match event {
        InformerEvent::Reset(revision, objects) => world.reset_slices(revision, objects),
        InformerEvent::Changed(event) => world.slice_event(event.kind, &event.object),
    }
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
