//! The elements of the kernel's maps, as values.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;

use super::Proto;

/// Stands for the endpoints of one scope of a service port inside the kernel: 1 to [`Id::MAX`]. It stays while the port's address,
/// protocol and number do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub u32);

impl Id {
    /// An id has 20 bits; the other 12 of a mark are for the class or the endpoint.
    pub const MAX: u32 = (1 << 20) - 1;
}

/// Key of an element, in one family's table. The order is that in which elements may be added while packets flow: what a lookup leads to
/// comes first, then what shuts an address to some, then the address itself. They go in the opposite order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// `nodes`: address of a node, outside or inside of the tunnel.
    Node(IpAddr),
    /// `direct`: address of a node that is reached without a router.
    Direct(IpAddr),
    /// `at_home`: link address of such a node, and what comes from nobody else by it: the node's own address, or the network of its pods.
    AtHome([u8; 6], Ipv4Addr),
    /// `entry_zone`: link address of a node whose connections are to be answered through it.
    EntryZone([u8; 6]),
    /// `entry_mark`: the same.
    EntryMark([u8; 6]),
    /// `returning`: a source, and the network of the pods that must not see it, for its answers would not come back: a node and its own
    /// pods, or pods and pods of the same node.
    Returning(Ipv4Addr, Ipv4Addr),
    /// `kept`: network of the pods that see the source of what enters here.
    Kept(Ipv4Addr),
    /// `ep`: id, slot. For services without affinity.
    Slot(Id, u32),
    /// `sticky`: id, number of an endpoint. For services with affinity.
    Endpoint(Id, u16),
    /// `choice`: id, slot. For services with affinity.
    Choice(Id, u32),
    /// `cluster_ips`.
    ClusterIp(IpAddr),
    /// `allowed`: address, protocol and port of a load balancer, and a range of sources that may use it. Ranges of one address do not overlap.
    Allowed(IpAddr, Proto, u16, IpNet),
    /// `guarded`: address, protocol and port of a load balancer that only those in `allowed` may use.
    Guarded(IpAddr, Proto, u16),
    /// `svc_outside`: as `svc`, for what comes from outside under policy Local; it is asked first.
    OutsideService(IpAddr, Proto, u16),
    /// `np_outside`: as `np`, in the same way.
    OutsideNodePort(Proto, u16),
    /// `svc`: address, protocol, port. ClusterIPs, and every other address of a service.
    Service(IpAddr, Proto, u16),
    /// `np`: protocol, nodePort.
    NodePort(Proto, u16),
}

/// What an element maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A service port: how many slots it has (0 rejects, and has no affinity), and for how many seconds clients stay with their endpoint.
    Port {
        /// Which.
        id: Id,
        /// Endpoints are drawn from so many slots.
        slots: u32,
        /// Session affinity.
        affinity: Option<u32>,
    },
    /// Drops what comes: there are endpoints, but none that the policy Local allows.
    Drop,
    /// A pod's address and port.
    Pod(IpAddr, u16),
    /// Number of an endpoint.
    Number(u16),
    /// A connection tracking zone.
    Zone(u16),
    /// A mark.
    Mark(u32),
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
