//! What the controllers see: every object but events, and the ways from one to those that it concerns. Pure: changes come in,
//! look-ups go out, and no look-up walks the whole cluster.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use minisvc_proto::{
    Object, ObjectKey, Resource, Revision,
    resource::{ENDPOINT_SLICES, EVENTS, NODES, PODS, SERVICES, by_kind},
};
use serde_json::Value;

use super::{
    claim,
    index::{LabelIndex, SelectorIndex},
    pod,
    slices::SERVICE_NAME,
};

/// One object's step from one state to the next.
#[derive(Clone, Debug)]
pub struct Changed {
    /// Which object.
    pub key: ObjectKey,
    /// When.
    pub revision: Revision,
    /// The state before; `None` if there was none.
    pub old: Option<Arc<Object>>,
    /// The state now; `None` if it is gone.
    pub new: Option<Arc<Object>>,
}

/// See the module.
#[derive(Default)]
pub struct Picture {
    objects: HashMap<ObjectKey, Arc<Object>>,
    uids: HashMap<String, ObjectKey>,
    dependents: HashMap<String, BTreeSet<ObjectKey>>,
    /// Pods and ReplicaSets without a controller, by kind and namespace.
    unowned: HashMap<(&'static str, String), BTreeSet<ObjectKey>>,
    /// Deployments and ReplicaSets, by kind and namespace.
    adopters: HashMap<(&'static str, String), BTreeSet<ObjectKey>>,
    pods_on: HashMap<String, BTreeSet<ObjectKey>>,
    pod_labels: LabelIndex,
    service_selectors: SelectorIndex,
    slices: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    nodes: BTreeMap<String, ObjectKey>,
    gone_nodes: HashSet<String>,
}

fn add<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<ObjectKey>>, at: K, key: &ObjectKey) {
    index.entry(at).or_default().insert(key.clone());
}

fn remove<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<ObjectKey>>, at: &K, key: &ObjectKey) {
    if let Some(set) = index.get_mut(at) {
        set.remove(key);
        if set.is_empty() {
            index.remove(at);
        }
    }
}

/// The key of the service that a slice belongs to by its label.
pub fn service_of(slice: &Object) -> Option<ObjectKey> {
    let name = slice.label(SERVICE_NAME).filter(|n| !n.is_empty())?;
    Some(ObjectKey::namespaced(&SERVICES, slice.namespace().unwrap_or("default"), name))
}

fn service_selector(service: &Object) -> Option<BTreeMap<String, String>> {
    let map = service.pointer("/spec/selector")?.as_object()?;
    let external = service.str_at("/spec/type") == Some("ExternalName");
    let map: BTreeMap<_, _> =
        map.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
    (!external && !map.is_empty()).then_some(map)
}

impl Picture {
    /// Takes a new state of one object. `None` for kinds that no controller follows.
    pub fn apply(&mut self, key: ObjectKey, revision: Revision, new: Option<Arc<Object>>) -> Option<Changed> {
        if key.resource == &EVENTS {
            return None;
        }
        let old = match &new {
            Some(new) => self.objects.insert(key.clone(), new.clone()),
            None => self.objects.remove(&key),
        };
        if let Some(old) = &old {
            self.forget(&key, old);
        }
        if let Some(new) = &new {
            self.learn(&key, new);
        }
        let labels = |o: &Option<Arc<Object>>| o.as_ref().map(|o| o.labels()).unwrap_or_default();
        if key.resource == &PODS {
            self.pod_labels.set(&key, &labels(&old), &labels(&new));
        } else if key.resource == &SERVICES {
            self.service_selectors.set(&key, new.as_deref().and_then(service_selector));
        } else if key.resource == &NODES {
            if new.is_some() {
                self.gone_nodes.remove(&key.name);
            } else {
                self.gone_nodes.insert(key.name.clone());
            }
        }
        Some(Changed { key, revision, old, new })
    }

    /// Takes the state of everything, and answers what is different.
    pub fn replace(&mut self, revision: Revision, all: Vec<(ObjectKey, Arc<Object>)>) -> Vec<Changed> {
        let mut gone: HashSet<ObjectKey> = self.objects.keys().cloned().collect();
        let mut out = Vec::new();
        for (key, object) in all {
            gone.remove(&key);
            if self.objects.get(&key).is_none_or(|o| o.revision() != object.revision()) {
                let at = object.revision().unwrap_or(revision);
                out.extend(self.apply(key, at, Some(object)));
            }
        }
        for key in gone {
            out.extend(self.apply(key, revision, None));
        }
        out
    }

    fn unowned_at(key: &ObjectKey, object: &Object) -> Option<(&'static str, String)> {
        let adoptable = matches!(key.resource.kind, "Pod" | "ReplicaSet");
        (adoptable && object.controller_uid().is_none())
            .then(|| (key.resource.kind, key.namespace.clone().unwrap_or_default()))
    }

    fn adopter_at(key: &ObjectKey) -> Option<(&'static str, String)> {
        let adopts = matches!(key.resource.kind, "Deployment" | "ReplicaSet");
        adopts.then(|| (key.resource.kind, key.namespace.clone().unwrap_or_default()))
    }

    fn forget(&mut self, key: &ObjectKey, old: &Object) {
        if let Some(at) = Self::adopter_at(key) {
            remove(&mut self.adopters, &at, key);
        }
        self.uids.remove(old.uid());
        for owner in old.owner_uids() {
            remove(&mut self.dependents, &owner.to_owned(), key);
        }
        if let Some(at) = Self::unowned_at(key, old) {
            remove(&mut self.unowned, &at, key);
        }
        if key.resource == &PODS
            && let Some(node) = pod::node(old)
        {
            remove(&mut self.pods_on, &node.to_owned(), key);
        } else if key.resource == &ENDPOINT_SLICES
            && let Some(service) = service_of(old)
        {
            remove(&mut self.slices, &service, key);
        } else if key.resource == &NODES {
            self.nodes.remove(&key.name);
        }
    }

    fn learn(&mut self, key: &ObjectKey, new: &Object) {
        if let Some(at) = Self::adopter_at(key) {
            add(&mut self.adopters, at, key);
        }
        self.uids.insert(new.uid().to_owned(), key.clone());
        for owner in new.owner_uids() {
            add(&mut self.dependents, owner.to_owned(), key);
        }
        if let Some(at) = Self::unowned_at(key, new) {
            add(&mut self.unowned, at, key);
        }
        if key.resource == &PODS
            && let Some(node) = pod::node(new)
        {
            add(&mut self.pods_on, node.to_owned(), key);
        } else if key.resource == &ENDPOINT_SLICES
            && let Some(service) = service_of(new)
        {
            add(&mut self.slices, service, key);
        } else if key.resource == &NODES {
            self.nodes.insert(key.name.clone(), key.clone());
        }
    }

    fn resolve<'a>(
        &'a self,
        keys: impl IntoIterator<Item = &'a ObjectKey> + 'a,
    ) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        keys.into_iter().filter_map(|k| self.objects.get(k))
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// The key of the object with this uid.
    pub fn by_uid(&self, uid: &str) -> Option<&ObjectKey> {
        self.uids.get(uid)
    }

    /// The keys of everything that names this uid as an owner.
    pub fn dependents(&self, uid: &str) -> impl Iterator<Item = &ObjectKey> {
        self.dependents.get(uid).into_iter().flatten()
    }

    /// The objects of a kind that name this object as their controller.
    pub fn owned(&self, owner: &Object, resource: &'static Resource) -> Vec<Arc<Object>> {
        let keys = self.dependents(owner.uid()).filter(|k| k.resource == resource);
        self.resolve(keys).filter(|o| o.controller_uid() == Some(owner.uid())).cloned().collect()
    }

    /// The objects of a kind in a namespace that have no controller.
    pub fn unowned(&self, resource: &'static Resource, namespace: &str) -> Vec<Arc<Object>> {
        let keys = self.unowned.get(&(resource.kind, namespace.to_owned()));
        self.resolve(keys.into_iter().flatten()).cloned().collect()
    }

    /// The sets of the object's namespace that select it: ReplicaSets for a pod, Deployments for a ReplicaSet.
    pub fn adopters(&self, object: &Object) -> Vec<ObjectKey> {
        let kind = match object.kind() {
            "Pod" => "ReplicaSet",
            "ReplicaSet" => "Deployment",
            _ => return Vec::new(),
        };
        let namespace = object.namespace().unwrap_or("default").to_owned();
        let labels = object.labels();
        let selects = |set: &&ObjectKey| {
            self.objects.get(*set).is_some_and(|s| claim::selector(s).is_some_and(|s| s.matches(&labels)))
        };
        self.adopters.get(&(kind, namespace)).into_iter().flatten().filter(selects).cloned().collect()
    }

    /// Whether every owner of the object is gone. Owners of kinds that this server does not keep are taken to be there.
    pub fn is_abandoned(&self, object: &Object) -> bool {
        super::gc::is_orphan(object, |owner| {
            by_kind(&owner.api_version, &owner.kind).is_none_or(|r| r == &EVENTS)
                || self.uids.contains_key(&owner.uid)
        })
    }

    /// The pods that a service selects.
    pub fn pods_of(&self, service: &Object) -> Vec<Arc<Object>> {
        let Some(selector) = service_selector(service) else { return Vec::new() };
        let keys = self.pod_labels.candidates(service.namespace().unwrap_or("default"), &selector);
        let matches = |p: &&Arc<Object>| selector.iter().all(|(k, v)| p.label(k) == Some(v));
        self.resolve(keys).filter(matches).cloned().collect()
    }

    /// The services that select a pod of this key with these labels.
    pub fn services_of(&self, pod: &ObjectKey, labels: &BTreeMap<String, String>) -> BTreeSet<ObjectKey> {
        self.service_selectors.matching(pod, labels)
    }

    /// The slices labelled with a service's name.
    pub fn slices_of(&self, service: &ObjectKey) -> Vec<Arc<Object>> {
        self.resolve(self.slices.get(service).into_iter().flatten()).cloned().collect()
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.resolve(self.nodes.values())
    }

    /// One node.
    pub fn node(&self, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(self.nodes.get(name)?)
    }

    /// Whether there was a node of this name that is no more.
    pub fn is_gone_node(&self, name: &str) -> bool {
        self.gone_nodes.contains(name)
    }

    /// The pods bound to a node of this name, be there such a node or not.
    pub fn pods_on(&self, node: &str) -> impl Iterator<Item = &Arc<Object>> {
        self.resolve(self.pods_on.get(node).into_iter().flatten())
    }

    /// The zone that a node is in.
    pub fn zone(&self, node: &str) -> Option<&str> {
        self.node(node)?.label("topology.kubernetes.io/zone")
    }
}

/// Whether two states of an object differ in nothing but status and bookkeeping.
pub fn is_status_only(old: &Object, new: &Object) -> bool {
    type Fields = serde_json::Map<String, Value>;
    fn same(a: &Fields, b: &Fields, except: &[&str]) -> bool {
        let covered = |a: &Fields, b: &Fields| {
            a.iter().all(|(k, v)| except.contains(&k.as_str()) || b.get(k) == Some(v))
        };
        covered(a, b) && covered(b, a)
    }
    let none = Fields::new();
    let (before, after) = (old.metadata().unwrap_or(&none), new.metadata().unwrap_or(&none));
    same(&old.0, &new.0, &["status", "metadata"])
        && same(before, after, &["resourceVersion", "managedFields"])
}
