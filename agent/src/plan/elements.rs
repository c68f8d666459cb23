//! The elements of the kernel's maps, as values.

use std::{collections::BTreeMap, net::Ipv4Addr};

use super::Proto;

/// Stands for a service port inside the kernel: 1 to [`Id::MAX`]. It stays while the port's address, protocol and number do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u32);

impl Id {
    /// An id has 20 bits; the other 12 of a mark are for the class or the endpoint.
    pub const MAX: u32 = (1 << 20) - 1;
}

/// Key of an element. The order is that in which elements may be added while packets flow: what a lookup leads to comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `nodes`: address of a node, outside or inside of the tunnel.
    Node(Ipv4Addr),
    /// `direct`: address of a node that is reached without a router.
    Direct(Ipv4Addr),
    /// `ep`: id, slot. For services without affinity.
    Slot(Id, u32),
    /// `sticky`: id, number of an endpoint. For services with affinity.
    Endpoint(Id, u16),
    /// `choice`: id, slot. For services with affinity.
    Choice(Id, u32),
    /// `cluster_ips`.
    ClusterIp(Ipv4Addr),
    /// `svc`: address, protocol, port.
    Service(Ipv4Addr, Proto, u16),
    /// `np`: protocol, nodePort.
    NodePort(Proto, u16),
}

/// What an element maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A service port: how many slots it has (0 rejects), and for how many seconds clients stay with their endpoint.
    Port {
        /// Which.
        id: Id,
        /// Endpoints are drawn from so many slots.
        slots: u32,
        /// Session affinity.
        affinity: Option<u32>,
    },
    /// A pod's address and port.
    Pod(Ipv4Addr, u16),
    /// Number of an endpoint.
    Number(u16),
    /// Sets map to nothing.
    Present,
}

/// The elements of one or more services.
pub type Elements = BTreeMap<Key, Value>;

/// One change of one element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The element is not there: put it.
    Add(Key, Value),
    /// The element is there: take it away.
    Delete(Key),
}

impl Op {
    /// Which element it changes.
    pub fn key(&self) -> &Key {
        match self {
            Op::Add(key, _) | Op::Delete(key) => key,
        }
    }
}

/// What makes `to` of `from`. Deletes come first, so that a key that changes hands is free when it is added; what leads to
/// others goes first and comes last.
pub fn diff(from: &Elements, to: &Elements) -> Vec<Op> {
    let gone = from.iter().rev().filter(|(k, v)| to.get(*k) != Some(*v));
    let new = to.iter().filter(|(k, v)| from.get(*k) != Some(*v));
    gone.map(|(k, _)| Op::Delete(k.clone())).chain(new.map(|(k, v)| Op::Add(k.clone(), *v))).collect()
}
