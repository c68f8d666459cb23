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
    let cache = Cache::open(store).unwrap();
    let ranges = Ranges {
        services: ServiceRange::new("10.96.0.0/16".parse::<IpNet>().unwrap()).unwrap(),
        services6: None,
        node_ports: NodePortRange::new(30000..=32767).unwrap(),
        pods: PodRange::new("10.244.0.0/16".parse().unwrap()).unwrap(),
    };
    Registry::new(cache, ranges)
}
