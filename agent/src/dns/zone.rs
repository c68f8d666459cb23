//! The cluster's names as a value. A service's names are made from the service and its slices alone; putting them into the zone
//! costs what changed, whatever else is in it.

mod names;
mod reverse;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use ipnet::IpNet;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

pub use self::names::ServiceNames;
use self::reverse::{Reverse, Tree};
use super::name::{Asked, count, encode};
use crate::plan::ServiceKey;

/// Seconds that clients may keep an answer, or the lack of one.
pub(super) const TTL: u32 = 5;
/// The schema that the records follow (kubernetes/dns, docs/specification.md).
const SCHEMA: &str = "1.1.0";

/// What a zone is told at its start.
#[derive(Clone, Debug, Default)]
pub struct ZoneConfig {
    /// `cluster.local`.
    pub domain: String,
    /// Where the zone's server listens.
    pub servers: Vec<IpAddr>,
    /// Services and pods have addresses from here: what nobody has is no name, instead of somebody else's.
    pub ranges: Vec<IpNet>,
    /// Names that stand for the same addresses all the time, wherever they lie: `host.example.internal`.
    pub fixed: BTreeMap<String, Vec<IpAddr>>,
}

/// All names of the zone and what they stand for.
#[derive(Debug, Default)]
pub struct Zone {
    /// The zone's name on the wire.
    origin: Vec<u8>,
    origin_labels: usize,
    /// Data of the SOA record.
    authority: Vec<u8>,
    /// Name of the zone's server.
    server: Vec<u8>,
    servers: Addresses,
    /// By whole name.
    fixed: HashMap<Vec<u8>, Addresses>,
    /// By namespace.
    services: HashMap<Box<[u8]>, Namespace>,
    reverse: Reverse,
}

/// Services by name.
type Namespace = HashMap<Box<[u8]>, Arc<ServiceNames>>;

/// Addresses of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// For A.
    pub v4: Box<[Ipv4Addr]>,
    /// For AAAA.
    pub v6: Box<[Ipv6Addr]>,
}

/// Where a service port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    /// The number.
    pub(super) port: u16,
    /// Which of the service's names has the addresses.
    pub(super) host: u32,
}

/// What a zone says about a name.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lookup<'z> {
    /// Somebody else's name.
    Outside,
    /// The zone begins at this label of the name, and has this under the name; `None` if there is no such name, and none below.
    Within(usize, Option<Data<'z>>),
}

/// The records of a name.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Data<'z> {
    /// None of its own, as there are names below it.
    Nothing,
    /// A and AAAA.
    Addresses(&'z Addresses),
    /// SRV.
    Targets(&'z ServiceNames, &'z [Target]),
    /// CNAME.
    Alias(&'z [u8]),
    /// TXT.
    Text(&'static str),
    /// PTR.
    Pointers(&'z [Box<[u8]>]),
    /// SOA and NS.
    Apex,
}

impl Zone {
    /// A zone without any service.
    pub fn new(config: &ZoneConfig) -> Self {
        let origin = encode(&config.domain).unwrap_or_else(|| vec![0]);
        let below = |labels: &[u8]| [labels, &origin].concat();
        let server = below(b"\x02ns\x03dns");
        let mut authority = [&server[..], &below(b"\x0ahostmaster")].concat();
        // Serial, refresh, retry, expiry: nobody transfers this zone, so that they say nothing. The last is for what does not exist.
        for number in [1, 7200, 1800, 86_400, TTL] {
            authority.extend(number.to_be_bytes());
        }
        let fixed = config.fixed.iter();
        Zone {
            origin_labels: count(&origin),
            authority,
            server,
            servers: config.servers.iter().copied().collect(),
            fixed: fixed.filter_map(|(n, ips)| Some((encode(n)?, ips.iter().copied().collect()))).collect(),
            services: HashMap::new(),
            reverse: Reverse::new(config.ranges.clone()),
            origin,
        }
    }

    /// Data of the SOA record.
    pub(super) fn authority(&self) -> &[u8] {
        &self.authority
    }

    /// Data of the NS record.
    pub(super) fn server(&self) -> &[u8] {
        &self.server
    }

    /// Addresses of the server.
    pub(super) fn servers(&self) -> &Addresses {
        &self.servers
    }

    /// The names that a service has from now on; `None` if it is gone. Gives back the old ones.
    fn put(&mut self, key: &ServiceKey, names: Option<Arc<ServiceNames>>) -> Option<Arc<ServiceNames>> {
        let (namespace, name) = (key.namespace.as_bytes(), key.name.as_bytes());
        let old = self.services.get(namespace).and_then(|s| s.get(name)).cloned();
        self.reverse.replace(old.as_deref(), names.as_deref());
        if let Some(names) = names {
            self.services.entry(namespace.into()).or_default().insert(name.into(), names);
        } else if let Some(services) = self.services.get_mut(namespace) {
            services.remove(name);
            if services.is_empty() {
                self.services.remove(namespace);
            }
        }
        old
    }

    /// What the zone has under a name.
    pub(super) fn lookup(&self, name: &Asked) -> Lookup<'_> {
        if let Some(addresses) = self.fixed.get(name.from(0)) {
            return Lookup::Within(0, Some(Data::Addresses(addresses)));
        }
        if let Some(depth) = name.below(&self.origin, self.origin_labels) {
            return Lookup::Within(depth, self.own(name, depth));
        }
        match Tree::of(name) {
            Some(tree) => self.reverse.lookup(name, tree),
            None => Lookup::Outside,
        }
    }

    /// A name with `depth` labels below the zone's own.
    fn own(&self, name: &Asked, depth: usize) -> Option<Data<'_>> {
        let Some(last) = depth.checked_sub(1) else { return Some(Data::Apex) };
        match (name.label(last), depth) {
            (b"svc" | b"dns", 1) => Some(Data::Nothing),
            (b"dns-version", 1) => Some(Data::Text(SCHEMA)),
            (b"dns", 2) if name.label(0) == b"ns" => Some(Data::Addresses(&self.servers)),
            (b"svc", _) => {
                let services = self.services.get(name.label(depth - 2))?;
                match depth {
                    2 => Some(Data::Nothing),
                    _ => services.get(name.label(depth - 3))?.lookup(name.before(depth - 3)),
                }
            }
            _ => None,
        }
    }
}

impl FromIterator<IpAddr> for Addresses {
    /// In the order of the addresses, each once.
    fn from_iter<T: IntoIterator<Item = IpAddr>>(all: T) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for ip in all {
            match ip {
                IpAddr::V4(ip) => v4.push(ip),
                IpAddr::V6(ip) => v6.push(ip),
            }
        }
        v4.sort_unstable();
        v4.dedup();
        v6.sort_unstable();
        v6.dedup();
        Addresses { v4: v4.into(), v6: v6.into() }
    }
}

/// A zone that one part changes and others read. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SharedZone(Arc<RwLock<Zone>>);

impl SharedZone {
    /// Shares a zone.
    pub fn new(zone: Zone) -> Self {
        SharedZone(Arc::new(RwLock::new(zone)))
    }

    /// The zone as it is now. Changes wait meanwhile: not for long, please.
    pub(super) fn read(&self) -> RwLockReadGuard<'_, Zone> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names that a service has from now on; `None` if it is gone. Whether anything changed.
    pub fn put(&self, key: &ServiceKey, state: Option<(&Service, &[&EndpointSlice])>) -> bool {
        // Made, compared and dropped while questions are answered.
        let new = {
            let origin = self.read().origin.clone();
            state.and_then(|(service, slices)| ServiceNames::of(&origin, key, service, slices)).map(Arc::new)
        };
        let old = {
            let zone = self.read();
            let services = zone.services.get(key.namespace.as_bytes());
            services.and_then(|s| s.get(key.name.as_bytes())).cloned()
        };
        if old == new {
            return false;
        }
        let _old = self.0.write().unwrap_or_else(PoisonError::into_inner).put(key, new);
        true
    }
}

#[cfg(test)]
pub(super) mod tests;
