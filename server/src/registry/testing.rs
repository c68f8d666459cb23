//! A registry for tests, with everything in memory.

use std::sync::Arc;

use ipnet::IpNet;

use super::{Ranges, Registry};
use crate::{
    alloc::{NodePortRange, PodRange, ServiceRange},
    cache::Cache,
    store::{Store, memory::MemoryStore},
};

/// An empty one with the usual ranges.
pub fn registry() -> Registry {
    registry_over(Arc::new(MemoryStore::default()))
}

/// One over this store.
pub fn registry_over(store: Arc<dyn Store>) -> Registry {
    Registry::new(Cache::open(store).unwrap(), ranges())
}

/// An empty one that gives out these.
pub fn registry_of(ranges: Ranges) -> Registry {
    Registry::new(Cache::open(Arc::new(MemoryStore::default())).unwrap(), ranges)
}

/// The usual ranges: of IPv4 alone.
pub fn ranges() -> Ranges {
    Ranges {
        services: services("10.96.0.0/16"),
        services6: None,
        node_ports: NodePortRange::new(30000..=32767).unwrap(),
        pods: PodRange::new("10.244.0.0/16".parse::<IpNet>().unwrap()).unwrap(),
        pods6: None,
    }
}

/// The same with a second family.
pub fn dual_ranges() -> Ranges {
    let pods = PodRange::new("fd69:6d69:6e6a::/48".parse::<IpNet>().unwrap()).unwrap();
    Ranges { services6: Some(services("fd69:6d69:6e69:ffff::/112")), pods6: Some(pods), ..ranges() }
}

/// A range of cluster IPs.
pub fn services(net: &str) -> ServiceRange {
    ServiceRange::new(net.parse::<IpNet>().unwrap()).unwrap()
}
