//! The pods of this node among the endpoints, and those of them that do not serve, whatever their slices say so far.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use k8s_openapi::api::{
    core::v1::Service,
    discovery::v1::{Endpoint, EndpointSlice},
};

use crate::plan::ServiceKey;

/// An index of the endpoints on this node; it knows nothing of others'.
#[derive(Debug, Default)]
pub(super) struct LocalPods {
    node: String,
    /// The slices, with their services, that name a pod of this node.
    named_by: BTreeMap<String, BTreeSet<(ServiceKey, String)>>,
    down: BTreeSet<String>,
}

impl LocalPods {
    pub(super) fn of(node: &str) -> Self {
        LocalPods { node: node.to_owned(), ..LocalPods::default() }
    }

    /// Whether a slice names the pod.
    pub(super) fn is_named(&self, uid: &str) -> bool {
        self.named_by.contains_key(uid)
    }

    /// A slice has come, changed or gone.
    pub(super) fn put(
        &mut self,
        owner: &ServiceKey,
        name: &str,
        old: Option<&EndpointSlice>,
        new: Option<&EndpointSlice>,
    ) {
        let place = (owner.clone(), name.to_owned());
        for uid in old.into_iter().flat_map(|slice| uids(&self.node, slice)) {
            if let Some(places) = self.named_by.get_mut(uid) {
                places.remove(&place);
                if places.is_empty() {
                    self.named_by.remove(uid);
                }
            }
        }
        for uid in new.into_iter().flat_map(|slice| uids(&self.node, slice)) {
            self.named_by.entry(uid.to_owned()).or_default().insert(place.clone());
        }
    }

    /// These pods do not serve. Answers the services of those for which that is new, and of those that serve again.
    pub(super) fn set_down(&mut self, down: BTreeSet<String>) -> BTreeSet<ServiceKey> {
        let changed = self.down.symmetric_difference(&down);
        let places = changed.filter_map(|uid| self.named_by.get(uid)).flatten();
        let touched = places.map(|(owner, _)| owner.clone()).collect();
        self.down = down;
        touched
    }

    /// The slice as it is from here: what is known of this node's pods counts, unless those that are not ready are to be served, too.
    pub(super) fn correct<'s>(
        &self,
        service: &Service,
        owner: &ServiceKey,
        name: &str,
        slice: &'s EndpointSlice,
    ) -> Cow<'s, EndpointSlice> {
        let publishes = service.spec.as_ref().and_then(|s| s.publish_not_ready_addresses).unwrap_or(false);
        let place = (owner.clone(), name.to_owned());
        let is_in = |uid: &String| self.named_by.get(uid).is_some_and(|places| places.contains(&place));
        if publishes || !self.down.iter().any(is_in) {
            return Cow::Borrowed(slice);
        }
        let mut slice = slice.clone();
        for endpoint in &mut slice.endpoints {
            if uid_on(&self.node, endpoint).is_some_and(|uid| self.down.contains(uid)) {
                let conditions = endpoint.conditions.get_or_insert_default();
                (conditions.ready, conditions.serving) = (Some(false), Some(false));
            }
        }
        Cow::Owned(slice)
    }
}

fn uid_on<'e>(node: &str, endpoint: &'e Endpoint) -> Option<&'e str> {
    let is_here = endpoint.node_name.as_deref() == Some(node);
    endpoint.target_ref.as_ref().filter(|_| is_here)?.uid.as_deref()
}

fn uids<'s>(node: &str, slice: &'s EndpointSlice) -> impl Iterator<Item = &'s str> {
    slice.endpoints.iter().filter_map(move |endpoint| uid_on(node, endpoint))
}
