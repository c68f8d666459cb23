//! What the agent knows of the cluster, and which services an event touches. Pure: the loops around it do the I/O.

mod local;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use minisvc_proto::{NodeName, Object, Revision, watch::EventType};

use self::local::LocalPods;
use super::parallel;
use crate::plan::{
    ServiceKey, ServicePlan, Viewpoint, are_planned_alike, balanced_addresses, has_hints, plan_service,
};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// A slice's namespace and name.
type SliceId = (String, String);

/// Services and their slices, with what changed since the last [`World::take_dirty`].
#[derive(Debug, Default)]
pub struct World {
    services: BTreeMap<ServiceKey, Service>,
    slices: BTreeMap<ServiceKey, BTreeMap<String, EndpointSlice>>,
    /// Which service a slice belonged to, so that a slice that moves or goes touches the right one.
    slice_owner: BTreeMap<SliceId, ServiceKey>,
    /// Those that a load balancer leads to: other nodes' addresses matter to them.
    balanced: BTreeSet<ServiceKey>,
    local: LocalPods,
    here: Option<Viewpoint>,
    dirty: BTreeSet<ServiceKey>,
    /// Every Service change up to here is in this picture.
    pub services_seen: Revision,
    /// Every EndpointSlice change up to here is in this picture.
    pub slices_seen: Revision,
    /// Whether both lists have arrived once: before that an absent service says nothing.
    listed: (bool, bool),
}

fn slice_id(object: &Object) -> SliceId {
    (object.namespace().unwrap_or("default").to_owned(), object.name().to_owned())
}

fn service_key(object: &Object) -> ServiceKey {
    let (namespace, name) = slice_id(object);
    ServiceKey { namespace, name }
}

/// An EndpointSlice as it came, with what it is filed under.
struct NamedSlice {
    id: SliceId,
    /// The name of its service, if a label says it.
    service: Option<String>,
    slice: serde_json::Result<EndpointSlice>,
}

impl NamedSlice {
    fn of(object: &Object) -> Self {
        let service = object.label(SERVICE_LABEL).map(str::to_owned);
        NamedSlice { id: slice_id(object), service, slice: object.typed() }
    }
}

impl World {
    /// As it is seen by the node of this name.
    pub fn of(node: &NodeName) -> Self {
        World { local: LocalPods::of(node.as_str()), ..World::default() }
    }

    /// These pods of this node, by uid, do not serve, whatever their slices say: touches their services.
    pub fn set_down(&mut self, down: BTreeSet<String>) {
        self.dirty.append(&mut self.local.set_down(down));
    }

    /// Whether a slice names this pod of this node.
    pub fn names(&self, uid: &str) -> bool {
        self.local.is_named(uid)
    }

    /// Both kinds have been listed: what is absent here does not exist.
    pub fn is_complete(&self) -> bool {
        self.listed.0 && self.listed.1
    }

    /// The whole list of services: what is not in it is gone.
    pub fn reset_services(&mut self, revision: Revision, objects: Vec<Arc<Object>>) {
        let gone: Vec<ServiceKey> = {
            let now: BTreeSet<ServiceKey> = objects.iter().map(|o| service_key(o)).collect();
            self.services.keys().filter(|k| !now.contains(*k)).cloned().collect()
        };
        for key in gone {
            self.drop_service(key);
        }
        for (key, service) in parallel::map(objects, |o| (service_key(&o), o.typed())) {
            self.put_service(key, service);
        }
        self.services_seen = revision;
        self.listed.0 = true;
    }

    /// One change of a service; a bookmark moves the revision only.
    pub fn service_event(&mut self, kind: EventType, object: &Object) {
        match kind {
            EventType::Added | EventType::Modified => self.put_service(service_key(object), object.typed()),
            EventType::Deleted => self.drop_service(service_key(object)),
            EventType::Bookmark | EventType::Error => {}
        }
        self.services_seen = object.revision().unwrap_or(self.services_seen).max(self.services_seen);
    }

    fn put_service(&mut self, key: ServiceKey, service: serde_json::Result<Service>) {
        // An object of a shape that we cannot read is left out, loudly, rather than programmed wrongly.
        match service {
            Ok(service) => {
                // Conditions and the like touch no rule.
                if self.services.get(&key).is_none_or(|old| !are_planned_alike(old, &service)) {
                    self.dirty.insert(key.clone());
                }
                if balanced_addresses(&service).next().is_some() {
                    self.balanced.insert(key.clone());
                } else {
                    self.balanced.remove(&key);
                }
                self.services.insert(key, service);
            }
            Err(error) => tracing::error!(service = ?key, %error, "unreadable Service ignored"),
        }
    }

    fn drop_service(&mut self, key: ServiceKey) {
        self.balanced.remove(&key);
        if self.services.remove(&key).is_some() {
            self.dirty.insert(key);
        }
    }

    /// Where this node stands; `None`: not known yet.
    pub fn here(&self) -> Option<&Viewpoint> {
        self.here.as_ref()
    }

    /// This node has moved, or others came and went: touches the services that look different from here.
    pub fn look_from(&mut self, here: Viewpoint) {
        let Some(before) = self.here.replace(here) else { return };
        let Some(here) = &self.here else { return };
        if before.zone != here.zone {
            let hinted = self.slices.iter().filter(|(_, slices)| slices.values().any(has_hints));
            self.dirty.extend(hinted.map(|(key, _)| key.clone()));
        }
        let own = before.addresses.symmetric_difference(&here.addresses);
        let moved: BTreeSet<&IpAddr> = own.chain(before.others.symmetric_difference(&here.others)).collect();
        if moved.is_empty() {
            return;
        }
        let is_concerned = |service: &Service| balanced_addresses(service).any(|ip| moved.contains(&ip));
        let concerned = self.balanced.iter().filter(|key| self.services.get(*key).is_some_and(is_concerned));
        self.dirty.extend(concerned.cloned());
    }

    /// The whole list of slices.
    pub fn reset_slices(&mut self, revision: Revision, objects: Vec<Arc<Object>>) {
        let now: BTreeSet<SliceId> = objects.iter().map(|o| slice_id(o)).collect();
        let gone: Vec<_> = self.slice_owner.keys().filter(|k| !now.contains(*k)).cloned().collect();
        for key in gone {
            self.drop_slice(&key);
        }
        for slice in parallel::map(objects, |o| NamedSlice::of(&o)) {
            self.put_slice(slice);
        }
        self.slices_seen = revision;
        self.listed.1 = true;
    }

    /// One change of a slice; a bookmark moves the revision only.
    pub fn slice_event(&mut self, kind: EventType, object: &Object) {
        match kind {
            EventType::Added | EventType::Modified => self.put_slice(NamedSlice::of(object)),
            EventType::Deleted => self.drop_slice(&slice_id(object)),
            EventType::Bookmark | EventType::Error => {}
        }
        self.slices_seen = object.revision().unwrap_or(self.slices_seen).max(self.slices_seen);
    }

    fn put_slice(&mut self, NamedSlice { id, service, slice }: NamedSlice) {
        let Some(name) = service else {
            self.drop_slice(&id);
            return;
        };
        let owner = ServiceKey { namespace: id.0.clone(), name };
        if self.slice_owner.get(&id).is_some_and(|old| *old != owner) {
            self.drop_slice(&id);
        }
        match slice {
            Ok(slice) => {
                self.slice_owner.insert(id.clone(), owner.clone());
                let slices = self.slices.entry(owner.clone()).or_default();
                let old = slices.get(&id.1);
                // Labels, annotations and the like touch no rule.
                let same = old.is_some_and(|old| {
                    (&old.address_type, &old.endpoints, &old.ports)
                        == (&slice.address_type, &slice.endpoints, &slice.ports)
                });
                if !same {
                    self.local.put(&owner, &id.1, old, Some(&slice));
                    self.dirty.insert(owner);
                }
                slices.insert(id.1, slice);
            }
            Err(error) => tracing::error!(slice = ?id, %error, "unreadable EndpointSlice ignored"),
        }
    }

    fn drop_slice(&mut self, id: &SliceId) {
        let Some(owner) = self.slice_owner.remove(id) else { return };
        if let Some(slices) = self.slices.get_mut(&owner) {
            let old = slices.remove(&id.1);
            self.local.put(&owner, &id.1, old.as_ref(), None);
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        self.dirty.insert(owner);
    }

    /// What a node should serve of each of these services; nothing of one that does not exist.
    pub fn plans(
        &self,
        keys: &BTreeSet<ServiceKey>,
        here: &Viewpoint,
    ) -> Vec<(ServiceKey, Option<ServicePlan>)> {
        parallel::map(keys.iter().collect(), |key| {
            let found = self.service(key);
            (key.clone(), found.map(|(service, slices)| plan_service(service, &by_reference(&slices), here)))
        })
    }

    /// A service with its slices, as they are from here, or `None` if there is no such service.
    pub fn service(&self, key: &ServiceKey) -> Option<(&Service, Vec<Cow<'_, EndpointSlice>>)> {
        let service = self.services.get(key)?;
        let slices = self.slices.get(key).into_iter().flatten();
        Some((service, slices.map(|(name, slice)| self.local.correct(service, key, name, slice)).collect()))
    }

    /// The services touched since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.dirty)
    }
}

/// Slices as [`World::service`] answers them, for those who take them as they are.
pub fn by_reference<'s>(slices: &'s [Cow<'_, EndpointSlice>]) -> Vec<&'s EndpointSlice> {
    slices.iter().map(|slice| &**slice).collect()
}

#[cfg(test)]
mod tests;
