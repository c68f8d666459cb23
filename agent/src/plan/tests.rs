mod golden;
mod order;
mod ruleset;
mod service;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

use super::*;

fn apply(state: &mut Elements, ops: &[Op]) {
    for op in ops {
        match op {
            Op::Delete(k) => assert!(state.remove(k).is_some(), "delete of an absent element {k:?}"),
            Op::Add(k, v) => assert!(state.insert(k.clone(), *v).is_none(), "add of a present element {k:?}"),
        }
    }
}

fn pod(n: u8) -> Pod {
    (Ipv4Addr::new(10, 244, 0, n).into(), 8080)
}

fn pods(list: &[u8]) -> BTreeSet<Pod> {
    list.iter().map(|n| pod(*n)).collect()
}

fn key(service: u8) -> ServiceKey {
    ServiceKey { namespace: "default".into(), name: format!("s{service}") }
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// One of these gets it, each with its share of slots.
    Served(BTreeMap<Pod, u32>, Option<u32>),
    Rejected,
    Dropped,
    /// No service has the address.
    Unknown,
}

/// A connection's first packet.
#[derive(Clone, Copy, Debug)]
struct Packet {
    from: IpAddr,
    is_from_outside: bool,
    /// `None`: the node's own address.
    to: Option<IpAddr>,
    proto: Proto,
    port: u16,
}

/// What the rules do to a packet, as docs/dataplane.md tells it.
fn fate(elements: &Elements, packet: Packet) -> Fate {
    let Packet { proto, port, .. } = packet;
    let key = |outside: bool| match (packet.to, outside) {
        (Some(ip), true) => Key::OutsideService(ip, proto, port),
        (Some(ip), false) => Key::Service(ip, proto, port),
        (None, true) => Key::OutsideNodePort(proto, port),
        (None, false) => Key::NodePort(proto, port),
    };
    if let Some(ip) = packet.to
        && elements.contains_key(&Key::Guarded(ip, proto, port))
    {
        let lets_in = |key: &Key| {
            matches!(key, Key::Allowed(to, p, n, range)
            if (*to, *p, *n) == (ip, proto, port) && range.contains(&packet.from))
        };
        if !elements.keys().any(lets_in) {
            return Fate::Dropped;
        }
    }
    let outside = packet.is_from_outside.then(|| elements.get(&key(true))).flatten();
    match outside.or_else(|| elements.get(&key(false))) {
        None => Fate::Unknown,
        Some(Value::Drop) => Fate::Dropped,
        Some(Value::Port { slots: 0, .. }) => Fate::Rejected,
        Some(Value::Port { id, slots, affinity }) => {
            let mut shares = BTreeMap::new();
            for slot in 0..*slots {
                let at = match elements.get(&Key::Choice(*id, slot)) {
                    Some(Value::Number(n)) => Key::Endpoint(*id, *n),
                    _ => Key::Slot(*id, slot),
                };
                let Some(Value::Pod(ip, port)) = elements.get(&at) else {
                    panic!("slot {slot} of {packet:?} leads nowhere")
                };
                *shares.entry((*ip, *port)).or_default() += 1;
            }
            Fate::Served(shares, *affinity)
        }
        Some(other) => panic!("{packet:?} leads to {other:?}"),
    }
}

fn range(text: &str) -> IpNet {
    text.parse().unwrap()
}
