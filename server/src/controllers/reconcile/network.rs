//! What the controllers of a service's network do with it: slices, Endpoints and the addresses of load balancers.

use std::collections::BTreeMap;

use minisvc_proto::{Object, ObjectKey};

use super::{Reconciled, gone};
use crate::{
    conditions,
    controllers::{
        action::Action, endpoints, endpointslice, events::Severity, load_balancer, mirroring, pod,
        queue::Outcome, slices, world::World,
    },
    registry::Part,
};

/// The slices of a service.
pub async fn service(world: &World, key: ObjectKey) -> Reconciled {
    let (service, pods, slices, zones) = {
        let sight = world.sight();
        let picture = &sight.picture;
        let service = picture.get(&key).cloned();
        let pods = service.as_ref().map(|s| picture.pods_of(s)).unwrap_or_default();
        let nodes = pods.iter().filter_map(|p| pod::node(p));
        let zones: BTreeMap<String, String> =
            nodes.filter_map(|n| Some((n.to_owned(), picture.zone(n)?.to_owned()))).collect();
        (service, pods, picture.slices_of(&key), zones)
    };
    let zone = |node: &str| zones.get(node).map(String::as_str);
    let actions = match &service {
        Some(service) => endpointslice::reconcile(service, &pods, &slices, zone),
        // What we made for it goes with it.
        None => slices::remove(&slices, endpointslice::MANAGER),
    };
    world.carry_out(actions).await
}

/// The Endpoints of a service with a selector; the mirrored slices of one without.
pub async fn endpoints(world: &World, key: ObjectKey) -> Reconciled {
    let (service, ended, pods, own, slices) = {
        let mut sight = world.sight();
        let ended = sight.ended_services.remove(&key);
        let picture = &sight.picture;
        let service = picture.get(&key).cloned();
        let pods = service.as_ref().map(|s| picture.pods_of(s)).unwrap_or_default();
        (service, ended, pods, picture.get(&endpoints::key(&key)).cloned(), picture.slices_of(&key))
    };
    let own = own.as_deref();
    let mirrored = mirroring::reconcile(service.as_deref(), own, &slices);
    if let Some(own) = own.filter(|_| !mirrored.actions.is_empty()) {
        for (count, reason, message) in mirrored.complaints() {
            world.recorder.tell(own, Severity::Warning, reason, format!("{count} {message}"));
        }
    }
    let mut actions = mirrored.actions;
    actions.extend(match &service {
        Some(service) => endpoints::reconcile(service, &pods, own),
        // Those that a user made go with the service that they were made for, as they do elsewhere, but do not wait for it.
        None => own
            .filter(|e| endpoints::is_ours(e) || (ended && !mirroring::is_lock(e)))
            .and_then(Action::delete),
    });
    world.carry_out(actions).await
}

/// The addresses of a load balancer.
pub async fn load_balancer(world: &World, key: ObjectKey) -> Reconciled {
    let (service, verdict) = {
        let sight = world.sight();
        let picture = &sight.picture;
        let Some(service) = picture.get(&key).cloned() else { return Ok(Outcome::Done) };
        let verdict = load_balancer::is_managed(&service).then(|| {
            let rival = sight.balancers.rival(&key);
            let slices = if load_balancer::is_local(&service) { picture.slices_of(&key) } else { Vec::new() };
            load_balancer::decide(&service, rival, picture.nodes(), &slices)
        });
        (service, verdict)
    };
    // Decided of this service as it was seen: as another one it comes again.
    let is_same = |s: &Object| s.uid() == service.uid() && load_balancer::is_managed(s) == verdict.is_some();
    let write = |s: &mut Object| {
        Ok(is_same(s)
            && match &verdict {
                Some(verdict) => load_balancer::apply(s, verdict, &conditions::now()),
                None => load_balancer::withdraw(s),
            })
    };
    let written = world.registry.modify(&key, Part::Status, write).await;
    if let Some(condition) = verdict.as_ref().map(|v| &v.condition).filter(|c| c.status == "False")
        && written.is_ok()
        && conditions::get(&service, condition.kind)
            .is_none_or(|c| c["message"] != condition.message.as_str())
    {
        let message = condition.message.as_str();
        world.recorder.tell(&service, Severity::Warning, condition.reason, message);
    }
    gone(written)?;
    world.caught_up().await;
    Ok(Outcome::Done)
}
