//! The cluster's names as a value: a new one is made when a service's names change, which its endpoints alone do not bring about
//! (but for a headless service).

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    ops::Bound,
    sync::Arc,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

use crate::plan::ServiceKey;

/// All names of the zone and what they stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// `cluster.local`: lower case, no dot at its end.
    origin: String,
    services: BTreeMap<ServiceKey, Arc<Names>>,
}

/// What stands before a service's own name: nothing, or the host name of an endpoint. A name without addresses exists all the
/// same: it has other names below it, or records of a type that is not A.
type Names = HashMap<String, Vec<Ipv4Addr>>;

/// A service that was touched, with its slices; `None` if it is gone.
pub type Touched<'a> = (&'a ServiceKey, Option<(&'a Service, Vec<&'a EndpointSlice>)>);

/// What a zone says about a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<'z> {
    /// Somebody else's name.
    Outside,
    /// The zone itself: it has an SOA record.
    Apex,
    /// No such name, and none below it.
    NoSuchName,
    /// The name exists and has no address.
    NoData,
    /// The name's addresses.
    Addresses(&'z [Ipv4Addr]),
}

impl Zone {
    /// A zone without any service.
    pub fn empty(domain: &str) -> Self {
        Zone { origin: domain.trim_end_matches('.').to_ascii_lowercase(), services: BTreeMap::new() }
    }

    /// The zone after these services changed; `None` if no name did.
    pub fn with<'a>(&self, touched: impl IntoIterator<Item = Touched<'a>>) -> Option<Self> {
        let mut new: Option<Zone> = None;
        for (key, state) in touched {
            let names = state.map(|(service, slices)| names(service, &slices));
            let old = new.as_ref().unwrap_or(self).services.get(key).map(AsRef::as_ref);
            if old == names.as_ref() {
                continue;
            }
            let services = &mut new.get_or_insert_with(|| self.clone()).services;
            match names {
                Some(names) => drop(services.insert(key.clone(), Arc::new(names))),
                None => drop(services.remove(key)),
            }
        }
        new
    }

    /// The zone's own name, without a dot at its end.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Looks a full name up, in any case, with or without a dot at its end.
    pub fn lookup(&self, name: &str) -> Lookup<'_> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let Some(below) = name.strip_suffix(self.origin.as_str()) else { return Lookup::Outside };
        if below.is_empty() {
            return Lookup::Apex;
        }
        match below.strip_suffix('.') {
            // `mycluster.local` is no name of `cluster.local`.
            None => Lookup::Outside,
            Some("svc") => Lookup::NoData,
            Some(below) => below.strip_suffix(".svc").map_or(Lookup::NoSuchName, |own| self.own(own)),
        }
    }

    /// `NAMESPACE`, `SERVICE.NAMESPACE` or `HOST.SERVICE.NAMESPACE`.
    fn own(&self, own: &str) -> Lookup<'_> {
        let mut parts = own.rsplitn(3, '.');
        let (namespace, service, host) =
            (parts.next().unwrap_or_default(), parts.next(), parts.next().unwrap_or_default());
        let key = |name: &str| ServiceKey { namespace: namespace.to_owned(), name: name.to_owned() };
        let Some(service) = service else {
            let from = Bound::Included(key(""));
            let first = self.services.range((from, Bound::Unbounded)).next();
            let known = first.is_some_and(|(k, _)| k.namespace == namespace);
            return if known { Lookup::NoData } else { Lookup::NoSuchName };
        };
        match self.services.get(&key(service)).and_then(|names| names.get(host)) {
            None => Lookup::NoSuchName,
            Some(addresses) if addresses.is_empty() => Lookup::NoData,
            Some(addresses) => Lookup::Addresses(addresses),
        }
    }
}

fn names(service: &Service, slices: &[&EndpointSlice]) -> Names {
    let one = |addresses| Names::from([(String::new(), addresses)]);
    let Some(spec) = &service.spec else { return Names::new() };
    match spec.cluster_ip.as_deref() {
        _ if spec.type_.as_deref() == Some("ExternalName") => one(Vec::new()),
        Some("None") => headless(slices),
        // An address that is no IPv4 address is of another record type; none at all is not allocated yet.
        ip => one(ip.and_then(|ip| ip.parse().ok()).into_iter().collect()),
    }
}

/// Every ready endpoint under the service's name, and under a name of its own if it has a host name. Without any, the service
/// has no name either.
fn headless(slices: &[&EndpointSlice]) -> Names {
    let mut names = Names::new();
    for endpoint in slices.iter().filter(|s| s.address_type == "IPv4").flat_map(|s| &s.endpoints) {
        // Absent means ready, says the API.
        if endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(false) {
            continue;
        }
        for address in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
            for name in [Some(String::new()), endpoint.hostname.clone()].into_iter().flatten() {
                let addresses = names.entry(name.to_ascii_lowercase()).or_default();
                // An endpoint may stand in two slices while it moves between them.
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn slice(endpoints: Value) -> EndpointSlice {
        serde_json::from_value(json!({"addressType": "IPv4", "endpoints": endpoints})).unwrap()
    }

    #[test]
    fn every_kind_of_service_has_its_names() {
        let key = |namespace: &str, name: &str| ServiceKey { namespace: namespace.into(), name: name.into() };
        let slices = [
            slice(json!([
                {"addresses": ["10.244.0.2"], "conditions": {"ready": true}, "hostname": "db-0"},
                {"addresses": ["10.244.0.3"], "conditions": {"ready": false}, "hostname": "db-1"},
            ])),
            slice(json!([{"addresses": ["10.244.1.2"]}, {"addresses": ["10.244.0.2"]}])),
        ];
        let unready = [slice(json!([{"addresses": ["10.244.0.9"], "conditions": {"ready": false}}]))];
        let services = [
            (key("default", "web"), service(json!({"clusterIP": "10.96.0.7"})), &slices[..]),
            (key("default", "db"), service(json!({"clusterIP": "None"})), &slices[..]),
            (key("default", "idle"), service(json!({"clusterIP": "None"})), &unready[..]),
            (
                key("prod", "mail"),
                service(json!({"type": "ExternalName", "externalName": "a.example"})),
                &[][..],
            ),
            (key("prod", "new"), service(json!({})), &[][..]),
        ];
        let touched = services.iter().map(|(k, s, l)| (k, Some((s, l.iter().collect()))));
        let zone = Zone::empty("Cluster.Local.").with(touched).unwrap();

        let web = [Ipv4Addr::new(10, 96, 0, 7)];
        let db = [Ipv4Addr::new(10, 244, 0, 2), Ipv4Addr::new(10, 244, 1, 2)];
        for (name, want) in [
            ("web.default.svc.cluster.local", Lookup::Addresses(&web)),
            ("WEB.Default.SVC.cluster.LOCAL.", Lookup::Addresses(&web)),
            ("db.default.svc.cluster.local", Lookup::Addresses(&db)),
            ("db-0.db.default.svc.cluster.local", Lookup::Addresses(&db[..1])),
            ("db-1.db.default.svc.cluster.local", Lookup::NoSuchName),
            ("idle.default.svc.cluster.local", Lookup::NoSuchName),
            ("mail.prod.svc.cluster.local", Lookup::NoData),
            ("new.prod.svc.cluster.local", Lookup::NoData),
            ("default.svc.cluster.local", Lookup::NoData),
            ("svc.cluster.local", Lookup::NoData),
            ("cluster.local", Lookup::Apex),
            ("web.prod.svc.cluster.local", Lookup::NoSuchName),
            ("nowhere.svc.cluster.local", Lookup::NoSuchName),
            ("web.default.cluster.local", Lookup::NoSuchName),
            ("websvc.cluster.local", Lookup::NoSuchName),
            ("web.default.svc.mycluster.local", Lookup::Outside),
            ("example.com", Lookup::Outside),
            ("local", Lookup::Outside),
            ("", Lookup::Outside),
        ] {
            assert_eq!(zone.lookup(name), want, "{name}");
        }
    }

    #[test]
    fn a_new_zone_is_made_only_when_a_name_changed() {
        let key = ServiceKey { namespace: "default".into(), name: "web".into() };
        let (web, headless) =
            (service(json!({"clusterIP": "10.96.0.7"})), service(json!({"clusterIP": "None"})));
        let one = slice(json!([{"addresses": ["10.244.0.2"]}]));
        let two = slice(json!([{"addresses": ["10.244.0.3"]}]));
        let zone = Zone::empty("cluster.local").with([(&key, Some((&web, vec![&one])))]).unwrap();
        // Endpoints of a service with an address are no business of the zone.
        assert_eq!(zone.with([(&key, Some((&web, vec![&two])))]), None);
        let zone = zone.with([(&key, Some((&headless, vec![&one])))]).unwrap();
        let moved = zone.with([(&key, Some((&headless, vec![&two])))]).unwrap();
        let want = [Ipv4Addr::new(10, 244, 0, 3)];
        assert_eq!(moved.lookup("web.default.svc.cluster.local"), Lookup::Addresses(&want));
        assert_eq!(moved.with([(&key, None)]), Some(Zone::empty("cluster.local")));
        assert_eq!(Zone::empty("cluster.local").with([(&key, None)]), None);
    }
}
