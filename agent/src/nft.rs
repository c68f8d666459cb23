//! The kernel's side of services: one private table, static chains, and elements of data maps.

mod batch;
mod class;
mod egress;
mod expr;
mod family;
mod gateway;
mod read;
mod rules;
mod wire;

use std::{collections::BTreeSet, net::Ipv4Addr};

use ipnet::Ipv4Net;
use nix::errno::Errno;
use sha2::{Digest, Sha256};

use crate::{
    net::Family6,
    plan::{Elements, Families, Family, Id, Key, Op, Value, diff},
    sys::netlink::{NetfilterSocket, attr, text},
};
use batch::{Batch, ELEMENTS_PER_MESSAGE, Element, MapSpec};
use class::{Class, Classes};
pub use egress::{Entries, Links};
use family::Addresses;
use wire::Client;

pub use gateway::Gateway;

/// Name of the tables that are ours: `ip` of it, and in a dual-stack cluster `ip6`.
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

/// How tables that were there have become ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// They were exactly as wanted.
    AsWanted,
    /// They were ours, and so many elements were put right.
    Corrected(usize),
    /// One was absent, of another version or damaged: written anew in one transaction, clients with affinity kept.
    Replaced,
}

/// What one transaction does to one family's table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// In this order.
    pub ops: Vec<Op>,
    /// Endpoints with affinity whose clients' entries go along.
    pub forgotten: BTreeSet<(Id, u16)>,
}

/// The connection to nf_tables.
#[derive(Debug)]
pub struct Nft {
    socket: NetfilterSocket,
    seq: u32,
    commits: u32,
    classes: Families<Classes>,
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
        Ok(Nft { socket, seq: 1, commits: 0, classes: Families::default() })
    }

    /// Asks the kernel for everything that the rules of a family need; the error names what is missing. Changes nothing.
    pub fn probe(&mut self, family: Family) -> Result<(), NftError> {
        let mut batch = Batch::on("minisvc-probe");
        batch.turn_to(family);
        batch.push(
            0,
            0x400,
            format!(
                "make a table of {} (is nf_tables there, and are we allowed to use it?)",
                batch.layout().name
            ),
            |_| {},
        );
        let who = match family {
            Family::V4 => "minisvc needs Linux 5.14 or later with it",
            Family::V6 => "a cluster with IPv6 needs it, one without does not",
        };
        let lacking =
            |feature: &str, module: &str| format!("use {feature}: this kernel lacks {module}; {who}");
        batch.map("probe", &MapSpec::dynamic(&[19], &[19], 16));
        rules::ranges_of_sources(&mut batch);
        batch.explain(lacking("ranges of sources", "nf_tables' sets of concatenated ranges"));
        for (chain, hook) in rules::PROBED {
            batch.chain(chain, Some(hook));
            batch.explain(lacking("translation", "nft_chain_nat"));
        }
        for (chain, feature, module, fill) in rules::features(family) {
            batch.rule(chain, fill);
            batch.explain(lacking(feature, module));
        }
        batch.rehearse(&self.socket, &mut self.seq)
    }

    /// What is in the kernel, to plan from; nothing for a family without a table that we understand.
    pub fn planned(&mut self) -> Result<Families<Elements>, NftError> {
        let mut known = |family| {
            let kernel = self.read(family)?.filter(|kernel| !kernel.layout.is_empty());
            Ok(kernel.map(|kernel| kernel.elements))
        };
        Ok(Families { v4: known(Family::V4)?.unwrap_or_default(), v6: known(Family::V6)? })
    }

    /// Makes the tables what they should be, with as little change as it takes and in one transaction. Where the second family is not
    /// wanted, a table of ours that an earlier agent left goes.
    pub fn settle(&mut self, fixed: &Static, wanted: &Families<Elements>) -> Result<Settled, NftError> {
        let addresses = fixed.addresses();
        let nothing = Elements::new();
        let mut known = addresses.map(|_, _| Classes::fixed());
        let mut forgotten = addresses.map(|_, _| BTreeSet::new());
        let mut steps = Vec::new();
        let (mut corrected, mut replaced) = (0, false);
        for (family, addresses) in addresses.iter() {
            let wanted = wanted.get(family).unwrap_or(&nothing);
            let kernel = self.read(family)?;
            let is_wanted = |c: &Client| wanted.contains_key(&Key::Endpoint(c.id, c.endpoint));
            match kernel {
                Some(kernel) if kernel.is_whole && layout(family, addresses) == kernel.made_from() => {
                    let ops = diff(&kernel.elements, wanted);
                    corrected += ops.len();
                    steps.push((family, Step::Correct(ops)));
                    let gone = kernel.clients.iter().filter(|c| !is_wanted(c)).map(|c| (c.id, c.endpoint));
                    forgotten.get_mut(family).into_iter().for_each(|f| f.extend(gone.clone()));
                    if let Some(known) = known.get_mut(family) {
                        *known = kernel.classes;
                    }
                }
                kernel => {
                    replaced = true;
                    let mut clients = kernel.filter(|k| !k.layout.is_empty()).map_or(vec![], |k| k.clients);
                    clients.retain(is_wanted);
                    steps.push((family, Step::Install(addresses, wanted, clients)));
                }
            }
        }
        if addresses.v6.is_none() && self.read(Family::V6)?.is_some_and(|k| !k.layout.is_empty()) {
            replaced = true;
            steps.push((Family::V6, Step::Remove));
        }
        self.classes = known;
        self.transact(&forgotten, |batch, classes| {
            for (family, step) in &steps {
                batch.turn_to(*family);
                let classes = classes.get_mut(*family);
                match (step, classes) {
                    (Step::Correct(ops), Some(classes)) => write_ops(batch, classes, ops)?,
                    (Step::Install(addresses, elements, clients), Some(classes)) => {
                        install(batch, addresses, classes, elements, clients)?;
                    }
                    _ => batch.push(2, 0, "delete the table of a family that is not wanted".into(), |_| {}),
                }
            }
            Ok(())
        })?;
        Ok(match corrected {
            _ if replaced => Settled::Replaced,
            0 => Settled::AsWanted,
            n => Settled::Corrected(n),
        })
    }

    /// Does all of a change in one transaction, or nothing.
    pub fn apply(&mut self, changes: &Families<Change>) -> Result<(), NftError> {
        self.transact(&changes.map(|_, change| change.forgotten.clone()), |batch, classes| {
            for (family, change) in changes.iter() {
                batch.turn_to(family);
                if let Some(classes) = classes.get_mut(family) {
                    write_ops(batch, classes, &change.ops)?;
                }
            }
            Ok(())
        })
    }

    /// Commits what `write` writes; the entries of clients that stay with a forgotten endpoint go along.
    fn transact(
        &mut self,
        forgotten: &Families<BTreeSet<(Id, u16)>>,
        write: impl Fn(&mut Batch, &mut Families<Classes>) -> Result<(), NftError>,
    ) -> Result<(), NftError> {
        for attempt in 1..=ATTEMPTS {
            let mut batch = Batch::new();
            let mut classes = self.classes.clone();
            write(&mut batch, &mut classes)?;
            // The packet path forgets a client whose endpoint is gone by itself: if entries expire under our hands again
            // and again, that is enough.
            let mut with_clients = false;
            for (family, forgotten) in forgotten.iter().filter(|(_, f)| !f.is_empty() && attempt < ATTEMPTS) {
                with_clients = true;
                batch.turn_to(family);
                let clients: Vec<_> = self
                    .clients(family)?
                    .into_iter()
                    .filter(|c| forgotten.contains(&(c.id, c.endpoint)))
                    .map(|c| Element::new(c.key(), Vec::new()))
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
        self.classes.iter().any(|(_, classes)| classes.made().count() > class::KEPT)
    }

    /// Removes the chains for affinity that no service port uses; `used` are counts of slots and seconds.
    pub fn collect(&mut self, used: &Families<BTreeSet<(u32, u32)>>) -> Result<(), NftError> {
        let mut batch = Batch::new();
        let mut kept = self.classes.clone();
        for (family, classes) in self.classes.iter() {
            batch.turn_to(family);
            let used = used.get(family);
            for (class, number) in classes.made() {
                if let Class::Sticky(slots, seconds) = class
                    && !used.is_some_and(|used| used.contains(&(slots, seconds)))
                {
                    let chain = class.chain();
                    let element = [Element::new(number.to_ne_bytes().to_vec(), Vec::new())];
                    batch.elements(14, 0, "class", format!("delete class {number}"), &element);
                    batch.push(8, 0, format!("empty chain {chain}"), |v| text(v, 2, &chain));
                    batch.push(5, 0, format!("delete chain {chain}"), |v| text(v, 3, &chain));
                    kept.get_mut(family).into_iter().for_each(|kept| kept.remove(class));
                }
            }
        }
        if !batch.is_empty() {
            self.commit(&batch)?;
            self.classes = kept;
        }
        Ok(())
    }
}

/// What makes one family's table what it should be.
enum Step<'s> {
    Correct(Vec<Op>),
    Install(&'s Addresses, &'s Elements, Vec<Client>),
    Remove,
}

const FORGET: &str = "forget clients of endpoints that are gone";

/// The mark by which a later agent knows that the static part is the one it would write, and how many rules that has.
fn layout(family: Family, fixed: &Addresses) -> (String, usize) {
    let mut batch = Batch::new();
    batch.turn_to(family);
    rules::write(&mut batch, fixed);
    let mut hash = Sha256::new();
    batch.contents().for_each(|body| hash.update(body));
    let digest = hash.finalize();
    let number = digest[..8].iter().fold(0u64, |n, byte| (n << 8) | u64::from(*byte));
    (format!("{number:016x}"), batch.rules)
}

/// Writes a table anew, with everything in it.
fn install(
    batch: &mut Batch,
    fixed: &Addresses,
    classes: &mut Classes,
    elements: &Elements,
    clients: &[Client],
) -> Result<(), NftError> {
    let (layout, _) = layout(batch.layout().family, fixed);
    // Add before delete: the delete then works whether or not the table was there.
    batch.push(0, 0x400, "add the table".into(), |_| {});
    batch.push(2, 0, "delete the old table".into(), |_| {});
    batch.push(0, 0x400, "add the table".into(), |v| attr(v, 6, &read::comment(&layout)));
    rules::write(batch, fixed);
    let ops: Vec<Op> = elements.iter().map(|(k, v)| Op::Add(k.clone(), *v)).collect();
    write_ops(batch, classes, &ops)?;
    for some in clients.chunks(ELEMENTS_PER_MESSAGE) {
        read::write_clients(batch, some);
    }
    Ok(())
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
            let elements: Vec<_> = chunk
                .iter()
                .map(|op| match op {
                    Op::Add(k, v) => wire::element(k, *v, classes),
                    Op::Delete(k) => wire::named(k),
                })
                .collect();
            batch.elements(kind, flags, set, what, &elements);
        }
    }
    Ok(())
}
