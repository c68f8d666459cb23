//! The table of what leaves by the links to other nodes: it gives answers their way back. See [`crate::source`].
//!
//! A marked packet is routed to a gateway that does not exist, so that one policy rule does for all nodes; here it gets the link
//! address of the node that it is to go back through. The mark ends here: VXLAN would look up its outer route by it.

use std::collections::BTreeMap;

use nix::errno::Errno;
use sha2::{Digest, Sha256};

use super::{
    Nft, NftError, Settled, TABLE,
    batch::{Batch, ELEMENTS_PER_MESSAGE, Element, Hook, MapSpec, NETDEV},
    expr::{
        Expressions, R, accept, clear_mark, cmp, drop_packet, ethernet, lookup, mark, mask, set_ether_daddr,
    },
    read::{self, GET_RULE, GET_TABLE, NEW_RULE},
    rules::{MAC, MARK},
};
use crate::{
    source::{Mac, NUMBER, Way},
    sys::netlink::{DUMP, attr, find, text},
};

const MAP: &str = "entry_mac";

/// Which links have the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Links {
    /// Name of the link with the node's address.
    pub uplink: String,
    /// Name of the tunnel, while there is one.
    pub tunnel: Option<&'static str>,
}

/// Link addresses of nodes by the marks of packets that go back through them.
pub type Entries = BTreeMap<u32, Mac>;

fn marked(v: &mut Expressions, way: Way) {
    mark(v, R);
    mask(v, R, &(!NUMBER).to_ne_bytes());
    cmp(v, R, true, &way.bit().to_ne_bytes());
}

fn write(batch: &mut Batch, links: &Links) {
    batch.map(MAP, &MapSpec::data(&[MARK], &[MAC]));
    let chains =
        [("uplink", Some(links.uplink.as_str()), Way::Uplink), ("tunnel", links.tunnel, Way::Tunnel)];
    for (chain, device, way) in chains {
        let Some(device) = device else { continue };
        batch.chain(chain, Some(Hook { device: Some(device), ..Hook::new(Hook::EGRESS, 0, "filter") }));
        batch.rule(chain, |v| {
            marked(v, way);
            ethernet(v, R);
            mark(v, R);
            lookup(v, MAP, R, Some(R + 4), false);
            set_ether_daddr(v, R + 4);
            clear_mark(v);
            accept(v);
        });
        // The node is gone, and its connections with it.
        batch.rule(chain, |v| {
            marked(v, way);
            drop_packet(v);
        });
    }
}

/// The mark of the static part, and how many rules it has.
fn layout(links: &Links) -> (String, usize) {
    let mut batch = Batch::netdev(TABLE);
    write(&mut batch, links);
    let mut hash = Sha256::new();
    batch.contents().for_each(|body| hash.update(body));
    let digest = hash.finalize();
    let number = digest[..8].iter().fold(0u64, |n, byte| (n << 8) | u64::from(*byte));
    (format!("{number:016x}"), batch.rules)
}

fn key(mark: u32) -> Vec<u8> {
    mark.to_ne_bytes().to_vec()
}

fn add(batch: &mut Batch, entries: &[Element]) {
    for some in entries.chunks(ELEMENTS_PER_MESSAGE) {
        batch.elements(12, 0x600, MAP, format!("add {} elements of {MAP}", some.len()), some);
    }
}

#[derive(Default)]
struct Found {
    layout: String,
    rules: usize,
    entries: Option<Entries>,
}

impl Nft {
    /// Whether the kernel has egress hooks (Linux 5.16). Changes nothing.
    pub fn has_egress(&mut self) -> Result<bool, NftError> {
        let mut batch = Batch::netdev("minisvc-probe");
        batch.push(0, 0x400, "make a table of links' packets".into(), |_| {});
        batch.chain("probe", Some(Hook { device: Some("lo"), ..Hook::new(Hook::EGRESS, 0, "filter") }));
        match batch.rehearse(&self.socket, &mut self.seq) {
            Ok(()) => Ok(true),
            Err(e)
                if [Errno::EOPNOTSUPP, Errno::ENOENT, Errno::EINVAL, Errno::EAFNOSUPPORT]
                    .contains(&e.errno) =>
            {
                Ok(false)
            }
            Err(e) => Err(e),
        }
    }

    /// Makes the table what it should be, with as little change as it takes.
    pub fn settle_egress(&mut self, links: &Links, entries: &Entries) -> Result<Settled, NftError> {
        let (layout, rules) = layout(links);
        let found = self.read_egress()?;
        let mut batch = Batch::netdev(TABLE);
        let settled = match found {
            Some(Found { layout: l, rules: r, entries: Some(there) }) if l == layout && r == rules => {
                let differs = |(mark, mac): &(&u32, &Mac)| there.get(mark) != Some(mac);
                let gone = there.iter().filter(|(mark, mac)| entries.get(mark) != Some(mac));
                let gone: Vec<_> = gone.map(|(mark, _)| Element::new(key(*mark), Vec::new())).collect();
                let new: Vec<_> = entries
                    .iter()
                    .filter(differs)
                    .map(|(mark, mac)| Element::new(key(*mark), mac.to_vec()))
                    .collect();
                for some in gone.chunks(ELEMENTS_PER_MESSAGE) {
                    batch.elements(14, 0, MAP, format!("delete {} elements of {MAP}", some.len()), some);
                }
                add(&mut batch, &new);
                match gone.len().max(new.len()) {
                    0 => return Ok(Settled::AsWanted),
                    n => Settled::Corrected(n),
                }
            }
            _ => {
                batch.push(0, 0x400, "add the table of links' packets".into(), |_| {});
                batch.push(2, 0, "delete the old table of links' packets".into(), |_| {});
                batch.push(0, 0x400, "add the table of links' packets".into(), |v| {
                    attr(v, 6, &read::comment(&layout));
                });
                write(&mut batch, links);
                add(
                    &mut batch,
                    &entries
                        .iter()
                        .map(|(mark, mac)| Element::new(key(*mark), mac.to_vec()))
                        .collect::<Vec<_>>(),
                );
                Settled::Replaced
            }
        };
        self.commit(&batch)?;
        Ok(settled)
    }

    /// Takes the table away, if there is one.
    pub fn remove_egress(&mut self) -> Result<(), NftError> {
        if self.read_egress()?.is_none() {
            return Ok(());
        }
        let mut batch = Batch::netdev(TABLE);
        batch.push(2, 0, "delete the table of links' packets".into(), |_| {});
        self.commit(&batch)
    }

    fn read_egress(&mut self) -> Result<Option<Found>, NftError> {
        let mut found = Found::default();
        let name = |v: &mut Vec<u8>| text(v, 1, TABLE);
        let layout = &mut found.layout;
        match self.ask_of(NETDEV, "read the table of links' packets", GET_TABLE, 0, name, |_, body| {
            *layout = read::layout_in(body);
        }) {
            Err(e) if e.errno == Errno::ENOENT => return Ok(None),
            other => other?,
        }
        let rules = &mut found.rules;
        self.ask_of(NETDEV, "list rules", GET_RULE, DUMP, name, |kind, _| {
            *rules += usize::from(kind == NEW_RULE);
        })?;
        let (mut entries, mut strange) = (Entries::new(), false);
        let there = self.elements_in(NETDEV, MAP, |key, data, _| {
            let mac = find(data, 1).and_then(|d| Mac::try_from(d).ok());
            match (key.try_into().map(u32::from_ne_bytes), mac) {
                (Ok(mark), Some(mac)) => drop(entries.insert(mark, mac)),
                _ => strange = true,
            }
        })?;
        found.entries = (there && !strange).then_some(entries);
        Ok(Some(found))
    }
}
