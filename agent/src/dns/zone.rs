//! The cluster's names as a value, rebuilt from services and slices whenever one of them changes.

use std::{collections::HashMap, net::Ipv4Addr};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

/// All names of the zone and what they stand for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// `cluster.local`: lower case, no dot at its end.
    origin: String,
    /// What stands before `.svc.ORIGIN`. A name without addresses exists all the same: it has other names below it, or records
    /// of a type that is not A.
    names: HashMap<String, Vec<Ipv4Addr>>,
}

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
    /// The names of these services, each given by namespace and name, with its slices.
    pub fn build<'a>(
        domain: &str,
        services: impl IntoIterator<Item = (&'a (String, String), &'a Service, Vec<&'a EndpointSlice>)>,
    ) -> Self {
        let mut names: HashMap<String, Vec<Ipv4Addr>> = HashMap::new();
        for ((namespace, name), service, slices) in services {
            names.entry(namespace.clone()).or_default();
            let Some(spec) = &service.spec else { continue };
            let own = format!("{name}.{namespace}");
            match spec.cluster_ip.as_deref() {
                _ if spec.type_.as_deref() == Some("ExternalName") => {
                    names.insert(own, Vec::new());
                }
                Some("None") => headless(&mut names, &own, &slices),
                // An address that is no IPv4 address is of another record type; none at all is not allocated yet.
                ip => {
                    let addresses = ip.and_then(|ip| ip.parse().ok()).into_iter().collect();
                    names.insert(own, addresses);
                }
            }
        }
        Zone { origin: domain.trim_end_matches('.').to_ascii_lowercase(), names }
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
            Some(below) => match below.strip_suffix(".svc").and_then(|own| self.names.get(own)) {
                None => Lookup::NoSuchName,
                Some(addresses) if addresses.is_empty() => Lookup::NoData,
                Some(addresses) => Lookup::Addresses(addresses),
            },
        }
    }
}

/// Every ready endpoint under the service's name, and under a name of its own if it has a host name. Without any, the service
/// has no name either.
fn headless(names: &mut HashMap<String, Vec<Ipv4Addr>>, own: &str, slices: &[&EndpointSlice]) {
    for endpoint in slices.iter().filter(|s| s.address_type == "IPv4").flat_map(|s| &s.endpoints) {
        // Absent means ready, says the API.
        if endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(false) {
            continue;
        }
        for address in endpoint.addresses.iter().filter_map(|a| a.parse().ok()) {
            let host = endpoint.hostname.as_ref().map(|h| format!("{h}.{own}"));
            for name in [Some(own.to_owned()), host].into_iter().flatten() {
                let addresses = names.entry(name).or_default();
                // An endpoint may stand in two slices while it moves between them.
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
    }
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
        let key = |namespace: &str, name: &str| (namespace.to_owned(), name.to_owned());
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
        let zone = Zone::build("Cluster.Local.", services.iter().map(|(k, s, l)| (k, s, l.iter().collect())));

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
}
