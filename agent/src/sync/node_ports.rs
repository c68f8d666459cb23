//! The nodePorts of all services on this node's loopback addresses.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use minisvc_proto::{NodeName, Object, resource::SERVICES};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::events::{Recorder, Severity};
use crate::{
    plan::{ServiceKey, ServicePlan},
    relay::{DoorKey, NodeIps, Taken, keep_node_ports},
};

/// Words about ports that are taken, waiting to be recorded.
const WORDS: usize = 64;

/// A service that has nodePorts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    key: ServiceKey,
    uid: String,
    /// The service has no IPv4 address.
    only6: bool,
}

/// The doors that should be open, kept from the plans of services.
#[derive(Clone, Debug)]
pub struct Doors {
    of_service: BTreeMap<ServiceKey, Vec<DoorKey>>,
    wanted: watch::Sender<BTreeMap<DoorKey, Owner>>,
}

impl Default for Doors {
    fn default() -> Self {
        Doors { of_service: BTreeMap::new(), wanted: watch::Sender::new(BTreeMap::new()) }
    }
}

impl Doors {
    /// What is wanted, now and later.
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<DoorKey, Owner>> {
        self.wanted.subscribe()
    }

    /// A service with its plan, or gone. One whose nodePorts stay costs nothing.
    pub fn put(&mut self, key: &ServiceKey, found: Option<(&Service, &ServicePlan)>) {
        let ports = found.map(|(_, plan)| &plan.ports[..]).unwrap_or_default();
        let now: Vec<DoorKey> = ports.iter().filter_map(|p| Some((p.proto, p.node_port?))).collect();
        let before = self.of_service.get(key).map(Vec::as_slice).unwrap_or_default();
        let only6 = !ports.is_empty() && ports.iter().all(|p| p.cluster_ip.is_ipv6());
        if now == before {
            return;
        }
        let uid = found.and_then(|(service, _)| service.metadata.uid.clone()).unwrap_or_default();
        self.wanted.send_modify(|wanted| {
            wanted.retain(|_, owner| owner.key != *key);
            let owner = Owner { key: key.clone(), uid, only6 };
            wanted.extend(now.iter().map(|door| (*door, owner.clone())));
        });
        if now.is_empty() {
            self.of_service.remove(key);
        } else {
            self.of_service.insert(key.clone(), now);
        }
    }
}

/// Keeps the doors open until cancelled, and records what users should know.
pub async fn run(
    node: NodeName,
    node_ips: NodeIps,
    wanted: watch::Receiver<BTreeMap<DoorKey, Owner>>,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let (taken, mut words) = mpsc::channel(WORDS);
    let tell = async {
        while let Some(word) = words.recv().await {
            let (service, message) = taken_word(&node, &word);
            tracing::warn!("{message}");
            recorder.event(&service, Severity::Warning, "PortTaken", message);
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = keep_node_ports(node_ips, wanted, |owner: &Owner| owner.only6, taken) => shutdown.cancelled().await,
        () = tell => shutdown.cancelled().await,
    }
}

fn taken_word(node: &NodeName, word: &Taken<Owner>) -> (Object, String) {
    let Taken { proto, port, owner, cause } = word;
    let mut service = Object::new(&SERVICES, Some(&owner.key.namespace), &owner.key.name);
    service.metadata_mut().insert("uid".into(), Value::String(owner.uid.clone()));
    let message = format!(
        "{proto} port {port} of 127.0.0.1 on {node} cannot be had ({cause}): end what listens there, or give the service another nodePort"
    );
    (service, message)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::plan::{Proto, ServicePort};

    fn plan(node_ports: &[u16]) -> ServicePlan {
        let port = |n: &u16| ServicePort {
            node_port: Some(*n),
            ..ServicePort::new(Ipv4Addr::new(10, 96, 0, 1).into(), Proto::Tcp, 80)
        };
        ServicePlan { ports: node_ports.iter().map(port).collect() }
    }

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "default".into(), name: name.into() }
    }

    #[test]
    fn doors_follow_plans_and_stay_still_when_only_endpoints_change() {
        let mut doors = Doors::default();
        let mut wanted = doors.subscribe();
        let service = Service::default();
        doors.put(&key("a"), Some((&service, &plan(&[30001, 30002]))));
        doors.put(&key("b"), Some((&service, &plan(&[30003]))));
        let keys = |w: &BTreeMap<DoorKey, Owner>| w.keys().map(|k| k.1).collect::<Vec<_>>();
        assert_eq!(keys(&wanted.borrow_and_update()), [30001, 30002, 30003]);
        doors.put(&key("b"), Some((&service, &plan(&[30003]))));
        assert!(!wanted.has_changed().unwrap());
        doors.put(&key("a"), Some((&service, &plan(&[30002, 30004]))));
        assert_eq!(keys(&wanted.borrow_and_update()), [30002, 30003, 30004]);
        doors.put(&key("a"), None);
        assert_eq!(keys(&wanted.borrow_and_update()), [30003]);
    }
}
