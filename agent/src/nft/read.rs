//! What is in the kernel: adopted at a start, compared after somebody else's change.

use nix::errno::Errno;

use super::{
    ATTEMPTS, Batch, Client, Nft, NftError, TABLE,
    class::{Class, Classes},
    family::Layout,
    rules::planned,
    wire,
};
use crate::{
    plan::{Elements, Family},
    sys::netlink::{DUMP, attr, attributes, find, message, nest, read_text, text},
};

const SUBSYSTEM: u16 = 10 << 8;
pub(super) const GET_TABLE: u16 = 1;
pub(super) const GET_RULE: u16 = 7;
const GET_ELEMENT: u16 = 13;
pub(super) const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_GENERATION: u16 = 16;
/// The table's comment before the layout's mark.
const COMMENT: &str = "minisvc's own, do not edit; maps 1, layout ";

/// Our table as found.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    /// The mark of its static part.
    pub(super) layout: String,
    pub(super) rules: usize,
    pub(super) classes: Classes,
    pub(super) elements: Elements,
    pub(super) clients: Vec<Client>,
    /// Every set is there and every element is one that we could have written.
    pub(super) is_whole: bool,
}

impl Kernel {
    /// The mark of its static part, and how many rules that has.
    pub(super) fn made_from(&self) -> (String, usize) {
        let made: usize = self.classes.made().map(|(class, _)| class.rules()).sum();
        (self.layout.clone(), self.rules.saturating_sub(made))
    }
}

/// User data of the table that `nft` shows as its comment.
pub(super) fn comment(layout: &str) -> Vec<u8> {
    let text = format!("{COMMENT}{layout}\0");
    [&[0, text.len() as u8], text.as_bytes()].concat()
}

/// The layout's mark in a table's comment; empty if it is none of ours.
pub(super) fn layout_in(table: &[u8]) -> String {
    let data = find(table, 6).and_then(|d| d.get(2..)).unwrap_or_default();
    read_text(data).strip_prefix(COMMENT).unwrap_or_default().to_owned()
}

pub(super) fn write_clients(batch: &mut Batch, clients: &[Client]) {
    batch.push(12, 0x400, "keep clients with affinity".into(), |v| {
        text(v, 2, "clients");
        nest(v, 3, |v| {
            for client in clients {
                nest(v, 1, |v| {
                    nest(v, 1, |v| attr(v, 1, &client.key()));
                    nest(v, 2, |v| attr(v, 1, &client.data()));
                    attr(v, 4, &client.timeout.to_be_bytes());
                    attr(v, 5, &client.left.to_be_bytes());
                });
            }
        });
    });
}

fn number(data: Option<&[u8]>) -> u64 {
    data.and_then(|d| d.try_into().ok()).map_or(0, u64::from_be_bytes)
}

/// One element: its key, its data attribute, and its attributes for the rest.
fn for_each_element(message: &[u8], mut each: impl FnMut(&[u8], &[u8], &[u8])) {
    for (_, element) in attributes(find(message, 3).unwrap_or_default()) {
        let key = find(element, 1).and_then(|k| find(k, 1)).unwrap_or_default();
        each(key, find(element, 2).unwrap_or_default(), element);
    }
}

impl Nft {
    /// Counts the changes of all rulesets in this namespace, ours and others'.
    pub fn generation(&mut self) -> Result<u32, NftError> {
        let mut generation = 0;
        self.ask(
            Family::V4,
            "read the generation",
            GET_GENERATION,
            0,
            |_| {},
            |_, body| {
                let id = find(body, 1).and_then(|d| d.try_into().ok());
                generation = id.map_or(0, u32::from_be_bytes);
            },
        )?;
        Ok(generation)
    }

    /// Our table of a family, if there is one.
    pub(super) fn read(&mut self, family: Family) -> Result<Option<Kernel>, NftError> {
        let mut torn = None;
        for _ in 0..ATTEMPTS {
            match self.read_once(family) {
                Err(e) if e.errno == Errno::EINTR => torn = Some(e),
                other => return other,
            }
        }
        torn.map_or(Ok(None), Err)
    }

    fn read_once(&mut self, family: Family) -> Result<Option<Kernel>, NftError> {
        let mut kernel = Kernel { is_whole: true, ..Kernel::default() };
        let table = self.ask(
            family,
            "read the table",
            GET_TABLE,
            0,
            |v| text(v, 1, TABLE),
            |_, body| kernel.layout = layout_in(body),
        );
        match table {
            Err(e) if e.errno == Errno::ENOENT => return Ok(None),
            other => other?,
        }
        let mut rules = 0;
        self.ask(
            family,
            "list rules",
            GET_RULE,
            DUMP,
            |v| text(v, 1, TABLE),
            |kind, _| {
                rules += usize::from(kind == NEW_RULE);
            },
        )?;
        kernel.rules = rules;
        let mut classes = Vec::new();
        kernel.is_whole &= self.elements_of(family, "class", |key, data, _| {
            let chain = find(data, 2).and_then(|v| find(v, 2)).map(read_text);
            classes.push((chain.and_then(Class::of_chain), key.try_into().ok().map(u32::from_ne_bytes)));
        })?;
        for (class, number) in classes {
            match (class, number) {
                (Some(class), Some(number)) => kernel.classes.insert(class, number),
                _ => kernel.is_whole = false,
            }
        }
        let fixed = Class::fixed().all(|c| kernel.classes.number(c) == c.fixed_number());
        kernel.is_whole &= fixed;
        for set in planned(family) {
            let mut strange = false;
            let there = self.elements_of(family, set, |key, data, all| {
                let data = find(data, 1).unwrap_or_default();
                let last = find(all, 10).and_then(|k| find(k, 1)).unwrap_or_default();
                match wire::read(family, set, (key, last), data, &kernel.classes) {
                    Some((key, value)) => drop(kernel.elements.insert(key, value)),
                    None => strange = true,
                }
            })?;
            kernel.is_whole &= there && !strange;
        }
        match self.clients(family) {
            Ok(clients) => kernel.clients = clients,
            Err(e) if e.errno == Errno::ENOENT => kernel.is_whole = false,
            Err(e) => return Err(e),
        }
        Ok(Some(kernel))
    }

    /// `false`: there is no such set.
    fn elements_of(
        &mut self,
        family: Family,
        set: &str,
        each: impl FnMut(&[u8], &[u8], &[u8]),
    ) -> Result<bool, NftError> {
        self.elements_in(Layout::of(family).number as u8, set, each)
    }

    pub(super) fn elements_in(
        &mut self,
        family: u8,
        set: &str,
        mut each: impl FnMut(&[u8], &[u8], &[u8]),
    ) -> Result<bool, NftError> {
        let name = |v: &mut Vec<u8>| {
            text(v, 1, TABLE);
            text(v, 2, set);
        };
        let result = self.ask_of(family, "list elements", GET_ELEMENT, DUMP, name, |_, body| {
            for_each_element(body, &mut each);
        });
        match result {
            Err(e) if e.errno == Errno::ENOENT => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// All clients with affinity of a family.
    pub(super) fn clients(&mut self, family: Family) -> Result<Vec<Client>, NftError> {
        let mut clients = Vec::new();
        let there = self.elements_of(family, "clients", |key, data, all| {
            let data = find(data, 1).unwrap_or_default();
            let (timeout, left) = (number(find(all, 4)), number(find(all, 5)));
            clients.extend(Client::read(family, key, data, timeout, left));
        })?;
        if there { Ok(clients) } else { Err(NftError { what: "list clients".into(), errno: Errno::ENOENT }) }
    }

    fn ask(
        &mut self,
        family: Family,
        what: &str,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Vec<u8>),
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NftError> {
        self.ask_of(Layout::of(family).number as u8, what, kind, flags, fill, each)
    }

    pub(super) fn ask_of(
        &mut self,
        family: u8,
        what: &str,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Vec<u8>),
        each: impl FnMut(u16, &[u8]),
    ) -> Result<(), NftError> {
        let seq = self.seq;
        self.seq += 1;
        let mut request = Vec::new();
        message(&mut request, SUBSYSTEM | kind, flags | 1, seq, |v| {
            v.extend([family, 0, 0, 0]);
            fill(v);
        });
        self.socket.ask(&request, seq, each).map_err(|errno| NftError { what: what.into(), errno })
    }
}
