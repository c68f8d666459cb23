//! The kernel's side of services: one private table, static chains, and elements of data maps.

mod batch;
mod class;
mod expr;
mod read;
mod rules;
mod wire;

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use nix::errno::Errno;
use sha2::{Digest, Sha256};

use crate::{
    net::Family6,
    plan::{Elements, Id, Key, Op, Value, diff},
    sys::netlink::{NetfilterSocket, attr, nest, text},
};
use batch::{Batch, ELEMENTS_PER_MESSAGE, Hook, MapSpec};
use class::{Class, Classes};
use wire::Client;

/// Name of the table that is ours.
pub const TABLE: &str = "minisvc";

/// Attempts at what somebody else's change, or the time that passes, may cut through.
const ATTEMPTS: usize = 5;

/// What of the ruleset does not depend on services or nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Static {
    /// Address of this node.
    pub node_ip: Ipv4Addr,
    /// Where this node's DNS listens.
    pub dns_ip: Ipv4Addr,
    /// ClusterIPs are from here.
    pub service_cidr: Ipv4Net,
    /// All pods of the cluster are from here.
    pub pod_cidr: Ipv4Net,
    /// Pods of this node are from here.
    pub local_pod_cidr: Ipv4Net,
    /// UDP port of VXLAN between nodes.
    pub vxlan_port: u16,
    /// In a dual-stack cluster, the same of IPv6.
    pub family6: Option<Family6>,
}

/// A change that the kernel refused; nothing of its batch was done.
#[derive(Debug, thiserror::Error)]
#[error("nftables: cannot {what}: {errno}")]
pub struct NftError {
    /// The refused operation.
    pub what: String,
    /// The kernel's reason.
    pub errno: Errno,
}

/// How a table that was there has become ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It was exactly as wanted.
    AsWanted,
    /// It was ours, and so many elements were put right.
    Corrected(usize),
    /// It was absent, of another version or damaged: written anew in one transaction, clients with affinity kept.
    Replaced,
}

/// The connection to nf_tables.
#[derive(Debug)]
pub struct Nft {
    socket: NetfilterSocket,
    seq: u32,
    commits: u32,
    classes: Classes,
}

impl Nft {
    /// How many transactions of ours the kernel has taken: each moves its generation by one.
    pub fn commits(&self) -> u32 {
        self.commits
    }

    /// Opens it in the thread's network namespace.
    pub fn open() -> Result<Self, NftError> {
        let socket = NetfilterSocket::open()
            .map_err(|errno| NftError { what: "open the netlink socket".into(), errno })?;
        Ok(Nft { socket, seq: 1, commits: 0, classes: Classes::default() })
    }

    /// Asks the kernel for everything the rules need; the error names what is missing. Changes nothing.
    pub fn probe(&mut self) -> Result<(), NftError> {
        let mut batch = Batch::on("minisvc-probe");
        batch.push(
            0,
            0x400,
            "make a table (is nf_tables there, and are we allowed to use it?)".into(),
            |_| {},
        );
        batch.map("probe", &MapSpec::dynamic(&[19], &[19], 16));
        let hook = Hook { number: Hook::PREROUTING, priority: -100, kind: "nat" };
        batch.chain("probe", Some(hook));
        for (feature, module, fill) in rules::features() {
            let what = format!(
                "use {feature}: this kernel lacks {module}; minisvc needs Linux 5.14 or later with it"
            );
            batch.push(6, 0xC00, what, |v| {
                text(v, 2, "probe");
                nest(v, 4, fill);
            });
        }
        batch.rehearse(&self.socket, &mut self.seq)
    }

    /// What is in the kernel, to plan from; nothing if there is no table that we understand.
    pub fn planned(&mut self) -> Result<Elements, NftError> {
        let known = self.read()?.filter(|kernel| !kernel.layout.is_empty());
        Ok(known.map(|kernel| kernel.elements).unwrap_or_default())
    }

    /// Makes the table what it should be, with as little change as it takes.
    pub fn settle(&mut self, fixed: &Static, wanted: &Elements) -> Result<Settled, NftError> {
        let kernel = self.read()?;
        let (layout, rules) = layout(fixed);
        let mut clients = Vec::new();
        if let Some(kernel) = kernel {
            let made: usize = kernel.classes.made().map(|(class, _)| class.rules()).sum();
            if kernel.is_whole && kernel.layout == layout && kernel.rules == rules + made {
                self.classes = kernel.classes;
                let ops = diff(&kernel.elements, wanted);
                let gone = |c: &Client| !wanted.contains_key(&Key::Endpoint(c.id, c.endpoint));
                let forgotten: BTreeSet<_> =
                    kernel.clients.iter().filter(|c| gone(c)).map(|c| (c.id, c.endpoint)).collect();
                self.apply(&ops, &forgotten)?;
                return Ok(if ops.is_empty() { Settled::AsWanted } else { Settled::Corrected(ops.len()) });
            }
            if !kernel.layout.is_empty() {
                clients = kernel.clients;
            }
        }
        clients.retain(|c| wanted.contains_key(&Key::Endpoint(c.id, c.endpoint)));
        self.install(fixed, wanted, &clients)?;
        Ok(Settled::Replaced)
    }

    fn install(&mut self, fixed: &Static, elements: &Elements, clients: &[Client]) -> Result<(), NftError> {
        let mut batch = Batch::new();
        let (layout, _) = layout(fixed);
        // Add before delete: the delete then works whether or not the table was there.
        batch.push(0, 0x400, "add the table".into(), |_| {});
        batch.push(2, 0, "delete the old table".into(), |_| {});
        batch.push(0, 0x400, "add the table".into(), |v| attr(v, 6, &read::comment(&layout)));
        rules::write(&mut batch, fixed);
        let mut classes = Classes::fixed();
        let ops: Vec<Op> = elements.iter().map(|(k, v)| Op::Add(k.clone(), *v)).collect();
        write_ops(&mut batch, &mut classes, &ops)?;
        for some in clients.chunks(ELEMENTS_PER_MESSAGE) {
            read::write_clients(&mut batch, some);
        }
        self.commit(&batch)?;
        self.classes = classes;
        Ok(())
    }

    /// Does all of `ops` in one transaction, or nothing; the entries of clients that stay with a forgotten endpoint go along.
    pub fn apply(&mut self, ops: &[Op], forgotten: &BTreeSet<(Id, u16)>) -> Result<(), NftError> {
        for attempt in 1..=ATTEMPTS {
            let mut batch = Batch::new();
            let mut classes = self.classes.clone();
            write_ops(&mut batch, &mut classes, ops)?;
            // The packet path forgets a client whose endpoint is gone by itself: if entries expire under our hands again
            // and again, that is enough.
            let with_clients = !forgotten.is_empty() && attempt < ATTEMPTS;
            if with_clients {
                let clients: Vec<_> = self
                    .clients()?
                    .into_iter()
                    .filter(|c| forgotten.contains(&(c.id, c.endpoint)))
                    .map(|c| (c.key(), Vec::new()))
                    .collect();
                for some in clients.chunks(ELEMENTS_PER_MESSAGE) {
                    batch.elements(14, 0, "clients", FORGET.into(), some);
                }
            }
            if batch.is_empty() {
                return Ok(());
            }
            match self.commit(&batch) {
                Err(e) if with_clients && e.errno == Errno::ENOENT && e.what == FORGET => {}
                other => {
                    other?;
                    self.classes = classes;
                    break;
                }
            }
        }
        Ok(())
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), NftError> {
        batch.commit(&self.socket, &mut self.seq, &mut self.commits)
    }

    /// Whether there are so many chains for affinity that [`Nft::collect`] is worth its while.
    pub fn is_cluttered(&self) -> bool {
        self.classes.made().count() > class::KEPT
    }

    /// Removes the chains for affinity that no service port uses; `used` are counts of slots and seconds.
    pub fn collect(&mut self, used: &BTreeSet<(u32, u32)>) -> Result<(), NftError> {
        let mut batch = Batch::new();
        let mut classes = self.classes.clone();
        for (class, number) in self.classes.made() {
            if let Class::Sticky(slots, seconds) = class
                && !used.contains(&(slots, seconds))
            {
                let chain = class.chain();
                let element = [(number.to_ne_bytes().to_vec(), Vec::new())];
                batch.elements(14, 0, "class", format!("delete class {number}"), &element);
                batch.push(8, 0, format!("empty chain {chain}"), |v| text(v, 2, &chain));
                batch.push(5, 0, format!("delete chain {chain}"), |v| text(v, 3, &chain));
                classes.remove(class);
            }
        }
        if !batch.is_empty() {
            self.commit(&batch)?;
            self.classes = classes;
        }
        Ok(())
    }
}

const FORGET: &str = "forget clients of endpoints that are gone";

/// The mark by which a later agent knows that the static part is the one it would write, and how many rules that has.
fn layout(fixed: &Static) -> (String, usize) {
    let mut batch = Batch::new();
    rules::write(&mut batch, fixed);
    let mut hash = Sha256::new();
    batch.contents().for_each(|body| hash.update(body));
    let digest = hash.finalize();
    let number = digest[..8].iter().fold(0u64, |n, byte| (n << 8) | u64::from(*byte));
    (format!("{number:016x}"), batch.rules)
}

fn write_ops(batch: &mut Batch, classes: &mut Classes, ops: &[Op]) -> Result<(), NftError> {
    for op in ops {
        if let Op::Add(_, Value::Port { slots, affinity, .. }) = op {
            let class = Class::of(*slots, *affinity);
            if classes.number(class).is_none() {
                let number = classes.add(class).ok_or_else(|| NftError {
                    what: "add one more combination of endpoint count and affinity timeout".into(),
                    errno: Errno::ENOSPC,
                })?;
                rules::class_chain(batch, class);
                batch.class_element(number, &class.chain());
            }
        }
    }
    let place = |op: &Op| match op {
        Op::Add(key, _) => (rules::set_of(key), true),
        Op::Delete(key) => (rules::set_of(key), false),
    };
    for run in ops.chunk_by(|a, b| place(a) == place(b)) {
        let (set, add) = place(&run[0]);
        for chunk in run.chunks(ELEMENTS_PER_MESSAGE) {
            let (kind, flags, verb) = if add { (12, 0x600, "add") } else { (14, 0, "delete") };
            let what = format!("{verb} {} elements of {set}, first {:?}", chunk.len(), chunk[0]);
            let pairs: Vec<_> = chunk
                .iter()
                .map(|op| match op {
                    Op::Add(k, v) => (wire::key(k), wire::value(k, *v, classes).unwrap_or_default()),
                    Op::Delete(k) => (wire::key(k), Vec::new()),
                })
                .collect();
            batch.elements(kind, flags, set, what, &pairs);
        }
    }
    Ok(())
}
