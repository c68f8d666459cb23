//! What the agent knows of the cluster, and which services an event touches. Pure: the loops around it do the I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use minisvc_proto::{Object, Revision, watch::EventType};

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
                // Labels, annotations and the like touch no rule.
                let is_same = slices.get(&id.1).is_some_and(|old| {
                    (&old.address_type, &old.endpoints, &old.ports)
                        == (&slice.address_type, &slice.endpoints, &slice.ports)
                });
                slices.insert(id.1, slice);
                if !is_same {
                    self.dirty.insert(owner);
                }
            }
            Err(error) => tracing::error!(slice = ?id, %error, "unreadable EndpointSlice ignored"),
        }
    }

    fn drop_slice(&mut self, id: &SliceId) {
        let Some(owner) = self.slice_owner.remove(id) else { return };
        if let Some(slices) = self.slices.get_mut(&owner) {
            slices.remove(&id.1);
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
            (key.clone(), found.map(|(service, slices)| plan_service(service, &slices, here)))
        })
    }

    /// A service with its slices, or `None` if there is no such service.
    pub fn service(&self, key: &ServiceKey) -> Option<(&Service, Vec<&EndpointSlice>)> {
        let service = self.services.get(key)?;
        Some((service, self.slices.get(key).into_iter().flat_map(BTreeMap::values).collect()))
    }

    /// The services touched since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<ServiceKey> {
        std::mem::take(&mut self.dirty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: serde_json::Value) -> Arc<Object> {
        Arc::new(serde_json::from_value(json).unwrap())
    }

    fn service(name: &str, port: u16, rev: u64) -> Arc<Object> {
        object(serde_json::json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "default", "resourceVersion": rev.to_string()},
            "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": port}]}, "status": {"seen": rev}}))
    }

    fn slice(name: &str, service: &str) -> Arc<Object> {
        object(
            serde_json::json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "default", "resourceVersion": "9", "labels": {SERVICE_LABEL: service}},
            "endpoints": []}),
        )
    }

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "default".into(), name: name.into() }
    }

    #[test]
    fn a_status_change_moves_the_revision_and_touches_nothing() {
        let mut world = World::default();
        world.reset_services(Revision(3), vec![service("web", 80, 3)]);
        assert_eq!(world.take_dirty(), BTreeSet::from([key("web")]));
        world.service_event(EventType::Modified, &service("web", 80, 4));
        assert_eq!((world.take_dirty().len(), world.services_seen), (0, Revision(4)));
        world.service_event(EventType::Modified, &service("web", 81, 5));
        assert_eq!(world.take_dirty(), BTreeSet::from([key("web")]));
    }

    fn balanced(ingress: &serde_json::Value) -> Arc<Object> {
        object(serde_json::json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": "lb", "namespace": "default", "resourceVersion": "5"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.8", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": ingress}}}))
    }

    #[test]
    fn a_load_balancers_status_and_the_label_that_gives_a_service_away_touch_it() {
        let mut world = World::default();
        let one = serde_json::json!([{"ip": "192.0.2.1"}]);
        for (ingress, touched) in [(&serde_json::json!([]), 1), (&one, 1), (&one, 0)] {
            world.service_event(EventType::Modified, &balanced(ingress));
            assert_eq!(world.take_dirty().len(), touched, "{ingress}");
        }
        let mut given_away = (*balanced(&one)).clone();
        let labels = serde_json::json!({"service.kubernetes.io/service-proxy-name": "mine"});
        given_away.metadata_mut().insert("labels".into(), labels);
        world.service_event(EventType::Modified, &given_away);
        assert_eq!(world.take_dirty(), BTreeSet::from([key("lb")]));
    }

    #[test]
    fn a_node_that_moves_touches_what_looks_different_from_there_and_no_more() {
        let ips = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect::<BTreeSet<IpAddr>>();
        let at = |zone: &str, others: &[&str]| Viewpoint {
            node: "here".into(),
            zone: Some(zone.into()),
            addresses: ips(&["192.0.2.1"]),
            others: ips(others),
        };
        let mut world = World::default();
        let hinted = object(
            serde_json::json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "api-1", "namespace": "default", "labels": {SERVICE_LABEL: "api"}},
            "endpoints": [{"addresses": ["10.244.1.2"], "hints": {"forZones": [{"name": "z"}]}}]}),
        );
        world.reset_slices(Revision(1), vec![slice("web-1", "web"), hinted]);
        let lb = balanced(&serde_json::json!([{"ip": "192.0.2.2"}]));
        world.reset_services(Revision(1), vec![service("web", 80, 1), service("api", 80, 1), lb]);
        world.look_from(at("z", &[]));
        world.take_dirty();
        world.look_from(at("y", &[]));
        assert_eq!(world.take_dirty(), BTreeSet::from([key("api")]));
        world.look_from(at("y", &["192.0.2.3"]));
        assert_eq!(world.take_dirty(), BTreeSet::new());
        world.look_from(at("y", &["192.0.2.2", "192.0.2.3"]));
        assert_eq!(world.take_dirty(), BTreeSet::from([key("lb")]));
    }

    #[test]
    fn a_slice_that_moves_or_goes_touches_both_services() {
        let mut world = World::default();
        world.reset_slices(Revision(1), vec![slice("web-1", "web")]);
        world.take_dirty();
        world.slice_event(EventType::Modified, &slice("web-1", "api"));
        assert_eq!(world.take_dirty(), BTreeSet::from([key("api"), key("web")]));
        world.reset_slices(Revision(20), vec![]);
        assert_eq!(world.take_dirty(), BTreeSet::from([key("api")]));
    }

    #[test]
    fn a_new_list_drops_what_it_lacks() {
        let mut world = World::default();
        assert!(!world.is_complete());
        world.reset_services(Revision(1), vec![service("web", 80, 1), service("api", 80, 1)]);
        world.reset_slices(Revision(1), vec![]);
        assert!(world.is_complete());
        world.take_dirty();
        world.reset_services(Revision(8), vec![service("web", 80, 1)]);
        assert_eq!(world.take_dirty(), BTreeSet::from([key("api")]));
        assert!(world.service(&key("api")).is_none());
    }
}
