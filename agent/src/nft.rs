//! The kernel's side of services: one private table, static chains, and elements of data maps.

mod rules;

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use nix::errno::Errno;

use crate::{
    plan::{Elements, Key, Op, Value},
    sys::netlink::{NetfilterSocket, attr, message, nest, text, u32be},
};

/// Name of the table that is ours.
pub const TABLE: &str = "minisvc";

/// Exact endpoint counts that have a chain from the start; others get theirs when first needed.
const STATIC_CLASSES: u32 = 64;
/// Elements per message: their nest must stay below 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 400;

/// What of the ruleset does not depend on services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Static {
    /// ClusterIPs are from here.
    pub service_cidr: Ipv4Net,
    /// All pods of the cluster are from here.
    pub pod_cidr: Ipv4Net,
    /// Pods of this node are from here.
    pub local_pod_cidr: Ipv4Net,
    /// Every node of the cluster.
    pub node_ips: BTreeSet<Ipv4Addr>,
}

/// A change that the kernel refused; nothing of its batch was done.
#[derive(Debug, thiserror::Error)]
#[error("nftables: {what}: {errno}")]
pub struct NftError {
    /// The refused operation.
    pub what: String,
    /// The kernel's reason.
    pub errno: Errno,
}

/// A transaction being written.
pub(crate) struct Batch {
    bytes: Vec<u8>,
    names: Vec<String>,
    first: u32,
}

impl Batch {
    fn new(first: u32) -> Self {
        let mut batch = Batch { bytes: Vec::new(), names: Vec::new(), first };
        message(&mut batch.bytes, 0x10, 1, first, |v| v.extend([0, 0, 0, 10]));
        batch
    }

    /// One nf_tables message: number, extra flags, and for error messages what it is.
    pub(crate) fn push(&mut self, kind: u16, flags: u16, what: String, fill: impl FnOnce(&mut Vec<u8>)) {
        self.names.push(what);
        let seq = self.first + self.names.len() as u32;
        // Every message asks for its acknowledgement; only the last one's is waited for.
        let flags = flags | 1;
        message(&mut self.bytes, (10 << 8) | kind, flags, seq, |v| {
            v.extend([2, 0, 0, 0]); // AF_INET, version 0, no resource id
            fill(v);
        });
    }
}

/// The connection to nf_tables.
#[derive(Debug)]
pub struct Nft {
    socket: NetfilterSocket,
    seq: u32,
    classes: BTreeSet<u32>,
}

impl Nft {
    /// Opens it in the thread's network namespace.
    pub fn open() -> Result<Self, NftError> {
        let socket = NetfilterSocket::open()
            .map_err(|errno| NftError { what: "open the netlink socket".into(), errno })?;
        Ok(Nft { socket, seq: 1, classes: BTreeSet::new() })
    }

    /// Replaces our table, elements included, in one transaction.
    pub fn install(&mut self, fixed: &Static, elements: &Elements) -> Result<(), NftError> {
        let mut batch = Batch::new(self.seq);
        let name = |v: &mut Vec<u8>| text(v, 1, TABLE);
        // Add before delete: the delete then works whether or not the table was there.
        batch.push(0, 0x400, "add table".into(), name);
        batch.push(2, 0, "delete the old table".into(), name);
        batch.push(0, 0x400, "add table".into(), name);
        rules::write(&mut batch, fixed);
        let mut classes = BTreeSet::new();
        add_classes(&mut batch, &mut classes, 1..=STATIC_CLASSES);
        let ops: Vec<Op> = elements.iter().map(|(k, v)| Op::Add(k.clone(), *v)).collect();
        write_ops(&mut batch, &mut classes, &ops);
        self.commit(batch)?;
        self.classes = classes;
        Ok(())
    }

    /// Does all of `ops` in one transaction, or nothing.
    pub fn apply(&mut self, ops: &[Op]) -> Result<(), NftError> {
        if ops.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new(self.seq);
        let mut classes = self.classes.clone();
        write_ops(&mut batch, &mut classes, ops);
        self.commit(batch)?;
        self.classes = classes;
        Ok(())
    }

    fn commit(&mut self, mut batch: Batch) -> Result<(), NftError> {
        let (first, last) = (batch.first, batch.first + batch.names.len() as u32);
        // Mark the last message as the one to be acknowledged.
        let mut at = 0;
        let mut start = 0;
        while at < batch.bytes.len() {
            start = at;
            let b = &batch.bytes[at..at + 4];
            at += (u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as usize).next_multiple_of(4);
        }
        batch.bytes[start + 6] |= 4;
        message(&mut batch.bytes, 0x11, 1, last + 1, |v| v.extend([0, 0, 0, 10]));
        self.seq = last + 2;
        self.socket
            .send(&batch.bytes)
            .map_err(|errno| NftError { what: format!("send {} bytes", batch.bytes.len()), errno })?;
        self.socket.acknowledged(first, last).map_err(|(seq, errno)| NftError {
            what: (seq.checked_sub(first + 1))
                .and_then(|i| batch.names.get(i as usize).cloned())
                .unwrap_or_else(|| "the transaction".into()),
            errno,
        })
    }
}

fn add_classes(batch: &mut Batch, have: &mut BTreeSet<u32>, wanted: impl IntoIterator<Item = u32>) {
    for k in wanted {
        if k != 0 && have.insert(k) {
            rules::class_chain(batch, k);
        }
    }
}

fn write_ops(batch: &mut Batch, classes: &mut BTreeSet<u32>, ops: &[Op]) {
    let needed = ops.iter().filter_map(|op| match op {
        Op::Add(_, Value::Class(k)) => Some(*k),
        _ => None,
    });
    add_classes(batch, classes, needed.collect::<Vec<_>>());
    let place = |op: &Op| {
        let (key, add) = match op {
            Op::Add(k, _) => (k, true),
            Op::Delete(k) => (k, false),
        };
        (set_of(key), add)
    };
    for run in ops.chunk_by(|a, b| place(a) == place(b)) {
        let (set, add) = place(&run[0]);
        for chunk in run.chunks(ELEMENTS_PER_MESSAGE) {
            let (kind, flags, verb) = if add { (12, 0x600, "add") } else { (14, 0, "delete") };
            let what = format!("{verb} {} elements of {set}, first {:?}", chunk.len(), chunk[0]);
            let pairs: Vec<_> = chunk.iter().map(encode).collect();
            elements(batch, kind, flags, set, what, &pairs);
        }
    }
}

/// Writes one element message; the data, if any, is a plain value.
pub(crate) fn elements(
    batch: &mut Batch,
    kind: u16,
    flags: u16,
    set: &str,
    what: String,
    pairs: &[(Vec<u8>, Vec<u8>)],
) {
    batch.push(kind, flags, what, |v| {
        text(v, 1, TABLE);
        text(v, 2, set);
        nest(v, 3, |v| {
            for (key, data) in pairs {
                nest(v, 1, |v| {
                    nest(v, 1, |v| attr(v, 1, key));
                    if !data.is_empty() {
                        nest(v, 2, |v| attr(v, 1, data));
                    }
                });
            }
        });
    });
}

/// Adds `class -> goto chain` to the verdict map.
pub(crate) fn class_element(batch: &mut Batch, class: u32, chain: &str) {
    batch.push(12, 0x400, format!("add class {class}"), |v| {
        text(v, 1, TABLE);
        text(v, 2, "class");
        nest(v, 3, |v| {
            nest(v, 1, |v| {
                nest(v, 1, |v| attr(v, 1, &class.to_ne_bytes()));
                nest(v, 2, |v| {
                    nest(v, 2, |v| {
                        u32be(v, 1, (-4i32).cast_unsigned());
                        text(v, 2, chain);
                    });
                });
            });
        });
    });
}

fn set_of(key: &Key) -> &'static str {
    match key {
        Key::Service(..) => "svc",
        Key::NodePort(..) => "np",
        Key::Endpoint(..) => "ep",
        Key::NodePortEndpoint(..) => "npep",
        Key::ClusterIp(..) => "cluster_ips",
    }
}

fn encode(op: &Op) -> (Vec<u8>, Vec<u8>) {
    let (key, value) = match op {
        Op::Add(k, v) => (k, Some(*v)),
        Op::Delete(k) => (k, None),
    };
    let mut k = Vec::new();
    let short = |k: &mut Vec<u8>, proto: crate::plan::Proto, port: u16| {
        k.extend([proto.number(), 0, 0, 0]);
        k.extend(port.to_be_bytes());
        k.extend([0, 0]);
    };
    match key {
        Key::Service(ip, proto, port) => {
            k.extend(ip.octets());
            short(&mut k, *proto, *port);
        }
        Key::NodePort(proto, port) => short(&mut k, *proto, *port),
        Key::Endpoint(ip, proto, port, slot) => {
            k.extend(ip.octets());
            short(&mut k, *proto, *port);
            k.extend(slot.to_ne_bytes());
        }
        Key::NodePortEndpoint(proto, port, slot) => {
            short(&mut k, *proto, *port);
            k.extend(slot.to_ne_bytes());
        }
        Key::ClusterIp(ip) => k.extend(ip.octets()),
    }
    let data = match value {
        Some(Value::Class(n)) => n.to_ne_bytes().to_vec(),
        Some(Value::Pod(ip, port)) => {
            let mut d = ip.octets().to_vec();
            d.extend(port.to_be_bytes());
            d.extend([0, 0]);
            d
        }
        Some(Value::Present) | None => Vec::new(),
    };
    (k, data)
}
