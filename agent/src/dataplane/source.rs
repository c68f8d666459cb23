//! What the rules know of other nodes so that clients' addresses stay: see [`crate::source`].

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::{State, Worker};
use crate::{
    net::{TUNNEL, link_of},
    nft::{self, Links, Nft, NftError, Settled},
    plan::{Elements, Family, Key, diff},
    source::{Entry, Keep, entry_elements, keep_elements, unambiguous},
};

/// Whether answers can be sent back through other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Returns {
    /// Yes.
    Yes,
    /// The kernel has no egress hook.
    NoHook,
    /// No link has the node's address.
    NoLink,
}

/// The nodes through which answers go.
#[derive(Debug)]
pub(super) struct Entries {
    /// Name of the node's link. `None`: answers cannot be sent back.
    uplink: Option<String>,
    /// In the table of links' packets. `None`: nobody has told yet, those of an earlier agent stay.
    macs: Option<nft::Entries>,
    /// In our table. As `macs`.
    pub(super) elements: Option<Elements>,
    /// The tunnel's link when it was last looked at.
    tunnel: Option<u32>,
}

impl Entries {
    pub(super) fn new(nft: &mut Nft, node_ip: Ipv4Addr) -> Result<(Self, Returns), NftError> {
        let uplink = link_of(node_ip).map(|(name, _)| name);
        let returns = match &uplink {
            None => Returns::NoLink,
            Some(_) if !nft.has_egress()? => Returns::NoHook,
            Some(_) => Returns::Yes,
        };
        let uplink = uplink.filter(|_| returns == Returns::Yes);
        Ok((Entries { uplink, macs: None, elements: None, tunnel: None }, returns))
    }
}

fn tunnel() -> Option<u32> {
    nix::net::if_::if_nametoindex(TUNNEL).ok()
}

impl Worker {
    pub(super) fn adopt_source(&mut self, kernel: &Elements) {
        let some = |is: fn(&Key) -> bool| {
            kernel.iter().filter(move |(key, _)| is(key)).map(|(key, value)| (key.clone(), *value)).collect()
        };
        let is_entry = |key: &Key| matches!(key, Key::AtHome(..) | Key::EntryZone(_) | Key::EntryMark(_));
        self.entries.elements.get_or_insert_with(|| some(is_entry));
        self.kept.get_or_insert_with(|| some(|key| matches!(key, Key::Kept(_) | Key::Returning(..))));
    }

    /// First where answers go, then what sends them there.
    pub(super) fn set_entries(&mut self, entries: &BTreeSet<Entry>) -> Result<(), NftError> {
        let none = BTreeSet::new();
        let entries = if self.entries.uplink.is_some() { entries } else { &none };
        self.entries.macs =
            Some(unambiguous(entries).map(|entry| (entry.packet_mark(), entry.mac)).collect());
        if self.state != State::New {
            self.settle_egress()?;
        }
        let wanted = entry_elements(entries, self.fixed.local_pod_cidr.prefix_len());
        let before = self.entries.elements.replace(wanted.clone()).unwrap_or_default();
        self.change(|family| if family == Family::V4 { diff(&before, &wanted) } else { Vec::new() })
    }

    pub(super) fn set_kept(&mut self, nodes: &BTreeSet<Keep>) -> Result<(), NftError> {
        let wanted = keep_elements(nodes, self.fixed.local_pod_cidr.prefix_len());
        let before = self.kept.replace(wanted.clone()).unwrap_or_default();
        self.change(|family| if family == Family::V4 { diff(&before, &wanted) } else { Vec::new() })
    }

    /// Makes the table of links' packets what it should be.
    pub(super) fn settle_egress(&mut self) -> Result<Settled, NftError> {
        let Some(macs) = &self.entries.macs else { return Ok(Settled::AsWanted) };
        let Some(uplink) = &self.entries.uplink else {
            self.nft.remove_egress()?;
            return Ok(Settled::AsWanted);
        };
        let tunnel = tunnel();
        let links = Links { uplink: uplink.clone(), tunnel: tunnel.map(|_| TUNNEL) };
        let how = self.nft.settle_egress(&links, macs)?;
        // A chain comes and goes with its link: that is nobody's harm.
        let before = std::mem::replace(&mut self.entries.tunnel, tunnel);
        Ok(if before == tunnel { how } else { Settled::AsWanted })
    }

    /// A new tunnel needs a chain of its own.
    pub(super) fn follow_tunnel(&mut self) -> Result<(), NftError> {
        if self.entries.macs.is_some() && tunnel() != self.entries.tunnel {
            self.settle_egress()?;
        }
        Ok(())
    }
}
