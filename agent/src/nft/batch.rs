//! Transactions: lists of messages, and how sets, chains and rules are written as messages.

use super::{
    NftError, TABLE,
    expr::Expressions,
    family::Layout,
    rules::{MARK, ZONE, size},
};
use crate::{
    plan::Family,
    sys::netlink::{NetfilterSocket, attr, message, nest, text, u32be},
};

/// Elements per message: their nest must stay below 64 KiB.
pub(super) const ELEMENTS_PER_MESSAGE: usize = 400;

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const BEGIN: u16 = 0x10;
const END: u16 = 0x11;
/// Room for the messages around.
const FRAME: usize = 64;
/// `nfgenmsg` of the messages around: the subsystem they are for.
const SUBSYSTEM: [u8; 4] = [0, 0, 0, 10];
/// `NFPROTO_NETDEV`: packets of a link, whatever they are.
pub(super) const NETDEV: u8 = 5;

struct Message {
    kind: u16,
    flags: u16,
    what: String,
    body: Vec<u8>,
}

/// A transaction being written.
pub(super) struct Batch {
    /// Of the messages that come next.
    layout: &'static Layout,
    /// `NFPROTO_*` where the table is of no family of addresses.
    netdev: bool,
    table: &'static str,
    messages: Vec<Message>,
    /// Rules written so far.
    pub(super) rules: usize,
}

/// Where a base chain hooks in.
#[derive(Clone, Copy)]
pub(super) struct Hook<'d> {
    pub(super) number: u32,
    pub(super) priority: i32,
    pub(super) kind: &'static str,
    /// For hooks of a link.
    pub(super) device: Option<&'d str>,
}

impl Hook<'static> {
    pub(super) fn new(number: u32, priority: i32, kind: &'static str) -> Self {
        Hook { number, priority, kind, device: None }
    }
}

impl Hook<'_> {
    pub(super) const PREROUTING: u32 = 0;
    pub(super) const INPUT: u32 = 1;
    pub(super) const FORWARD: u32 = 2;
    pub(super) const OUTPUT: u32 = 3;
    pub(super) const POSTROUTING: u32 = 4;
    /// Of a link.
    pub(super) const EGRESS: u32 = 1;
}

/// Shape of a set or map.
pub(super) struct MapSpec<'s> {
    key: &'s [u32],
    /// Empty: verdicts.
    data: Option<&'s [u32]>,
    most: Option<u32>,
    ranges: bool,
    /// What `nft` shows of types that have no name: user data of the set.
    shown: &'s [u8],
}

impl<'s> MapSpec<'s> {
    pub(super) fn set(key: &'s [u32]) -> Self {
        MapSpec { key, data: None, most: None, ranges: false, shown: &[] }
    }
    /// A set of ranges, from one key to another.
    pub(super) fn ranges(key: &'s [u32]) -> Self {
        MapSpec { ranges: true, ..Self::set(key) }
    }
    pub(super) fn data(key: &'s [u32], data: &'s [u32]) -> Self {
        MapSpec { data: Some(data), ..Self::set(key) }
    }
    pub(super) fn shown(self, shown: &'s [u8]) -> Self {
        MapSpec { shown, ..self }
    }
    /// Rules add elements, each with its time.
    pub(super) fn dynamic(key: &'s [u32], data: &'s [u32], most: u32) -> Self {
        MapSpec { most: Some(most), ..Self::data(key, data) }
    }
}

/// An element: its key, and where it is a range the last key of it; then its data, which is empty for sets and deletions.
pub(super) struct Element {
    pub(super) key: Vec<u8>,
    pub(super) last: Option<Vec<u8>>,
    pub(super) data: Vec<u8>,
}

impl Element {
    pub(super) fn new(key: Vec<u8>, data: Vec<u8>) -> Self {
        Element { key, last: None, data }
    }
}

impl Batch {
    /// For our table of IPv4, and where it is told so, of another family.
    pub(super) fn new() -> Self {
        Self::on(TABLE)
    }

    /// For another table than ours.
    pub(super) fn on(table: &'static str) -> Self {
        Batch { layout: Layout::of(Family::V4), netdev: false, table, messages: Vec::new(), rules: 0 }
    }

    /// For the table of links' packets.
    pub(super) fn netdev(table: &'static str) -> Self {
        Batch { netdev: true, ..Self::on(table) }
    }

    /// What comes next is for this family's table.
    pub(super) fn turn_to(&mut self, family: Family) {
        self.layout = Layout::of(family);
    }

    /// The family whose table is written.
    pub(super) fn layout(&self) -> &'static Layout {
        self.layout
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// One nf_tables message: number, extra flags, what it is for error messages, and the attributes behind the table's name.
    pub(super) fn push(&mut self, kind: u16, flags: u16, what: String, fill: impl FnOnce(&mut Vec<u8>)) {
        let family = if self.netdev { NETDEV } else { self.layout.number as u8 };
        let mut body = vec![family, 0, 0, 0];
        text(&mut body, 1, self.table);
        fill(&mut body);
        self.messages.push(Message { kind: (10 << 8) | kind, flags: flags | REQUEST, what, body });
    }

    /// Says in other words what the last message is for.
    pub(super) fn explain(&mut self, what: String) {
        if let Some(last) = self.messages.last_mut() {
            last.what = what;
        }
    }

    pub(super) fn rule(&mut self, chain: &str, fill: impl FnOnce(&mut Expressions)) {
        self.rules += 1;
        let mut rule = Expressions::of(self.layout.family);
        fill(&mut rule);
        self.push(6, 0xC00, format!("add a rule to {chain} of {}", self.layout.name), |v| {
            text(v, 2, chain);
            nest(v, 4, |v| v.extend(&rule.bytes));
        });
    }

    pub(super) fn chain(&mut self, name: &str, hook: Option<Hook<'_>>) {
        self.push(3, 0x400, format!("add chain {name}"), |v| {
            text(v, 3, name);
            if let Some(hook) = hook {
                nest(v, 4, |v| {
                    u32be(v, 1, hook.number);
                    u32be(v, 2, hook.priority.cast_unsigned());
                    if let Some(device) = hook.device {
                        text(v, 3, device);
                    }
                });
                text(v, 7, hook.kind);
            }
        });
    }

    pub(super) fn map(&mut self, name: &str, spec: &MapSpec<'_>) {
        let type_of = |fields: &[u32]| fields.iter().fold(0, |id, f| (id << 6) | f);
        let set_id = self.messages.len() as u32;
        self.push(9, 0x400, format!("add map {name}"), |v| {
            text(v, 2, name);
            let concat = spec.key.len() > 1;
            let dynamic = spec.most.is_some();
            let flags = [(spec.data.is_some(), 8), (concat, 0x80), (dynamic, 0x30), (spec.ranges, 4)];
            let length =
                |fields: &[u32]| -> u32 { fields.iter().map(|f| size(*f).next_multiple_of(4)).sum() };
            u32be(v, 3, flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum());
            u32be(v, 4, type_of(spec.key));
            u32be(v, 5, if concat { length(spec.key) } else { size(spec.key[0]) });
            match spec.data {
                Some([]) => u32be(v, 6, 0xffff_ff00),
                Some(fields) => {
                    u32be(v, 6, type_of(fields));
                    u32be(v, 7, if let [field] = fields { size(*field) } else { length(fields) });
                }
                None => {}
            }
            if concat || dynamic {
                nest(v, 9, |v| {
                    if let Some(most) = spec.most {
                        u32be(v, 1, most);
                    }
                    if concat {
                        nest(v, 2, |v| spec.key.iter().for_each(|f| nest(v, 1, |v| u32be(v, 1, size(*f)))));
                    }
                });
            }
            u32be(v, 10, set_id);
            // `nft` shows marks as numbers of this machine only if it is told to.
            let order = |what: u8, kind: u32| {
                let host_endian = if [MARK, ZONE].contains(&kind) { 1u32 } else { 2 };
                [&[what, 4][..], &host_endian.to_ne_bytes()].concat()
            };
            let mut user_data = order(0, spec.key[0]);
            user_data.extend(spec.data.and_then(|d| d.first()).map(|d| order(1, *d)).unwrap_or_default());
            user_data.extend(spec.shown);
            attr(v, 13, &user_data);
        });
    }

    /// Adds or deletes elements.
    pub(super) fn elements(&mut self, kind: u16, flags: u16, set: &str, what: String, elements: &[Element]) {
        self.push(kind, flags, what, |v| {
            text(v, 2, set);
            nest(v, 3, |v| {
                for element in elements {
                    nest(v, 1, |v| {
                        nest(v, 1, |v| attr(v, 1, &element.key));
                        if !element.data.is_empty() {
                            nest(v, 2, |v| attr(v, 1, &element.data));
                        }
                        if let Some(last) = &element.last {
                            nest(v, 10, |v| attr(v, 1, last));
                        }
                    });
                }
            });
        });
    }

    /// Adds `class -> goto chain` to the verdict map.
    pub(super) fn class_element(&mut self, class: u32, chain: &str) {
        self.push(12, 0x400, format!("add class {class}"), |v| {
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

    /// All that the messages say.
    pub(super) fn contents(&self) -> impl Iterator<Item = &[u8]> {
        self.messages.iter().map(|m| m.body.as_slice())
    }

    /// Sends it: one transaction, or several where the socket's buffer holds no more. Then each prefix is whole, for what is
    /// looked up is added before what leads to it.
    pub(super) fn commit(
        &self,
        socket: &NetfilterSocket,
        seq: &mut u32,
        commits: &mut u32,
    ) -> Result<(), NftError> {
        let limit = socket.send_limit().saturating_sub(2 * FRAME);
        let mut rest = &self.messages[..];
        while !rest.is_empty() {
            let mut room = limit;
            let fitting = rest.iter().take_while(|m| {
                let size = m.body.len() + 16;
                let fits = size <= room;
                room = room.saturating_sub(size);
                fits
            });
            let (now, later) = rest.split_at(fitting.count().max(1));
            transaction(socket, seq, now, true)?;
            *commits = commits.wrapping_add(1);
            rest = later;
        }
        Ok(())
    }

    /// Lets the kernel check it, and changes nothing.
    pub(super) fn rehearse(&self, socket: &NetfilterSocket, seq: &mut u32) -> Result<(), NftError> {
        transaction(socket, seq, &self.messages, false)
    }
}

fn transaction(
    socket: &NetfilterSocket,
    seq: &mut u32,
    messages: &[Message],
    finish: bool,
) -> Result<(), NftError> {
    let first = *seq;
    let last = first + messages.len() as u32;
    *seq = last + 2;
    let mut bytes = Vec::with_capacity(messages.iter().map(|m| m.body.len() + 16).sum::<usize>() + FRAME);
    message(&mut bytes, BEGIN, REQUEST, first, |v| v.extend(SUBSYSTEM));
    for (n, m) in (first + 1..).zip(messages) {
        // Only the last one is acknowledged; errors come for each.
        let flags = if n == last { m.flags | ACKNOWLEDGE } else { m.flags };
        message(&mut bytes, m.kind, flags, n, |v| v.extend(&m.body));
    }
    // Without an end the kernel takes everything back.
    if finish {
        message(&mut bytes, END, REQUEST, last + 1, |v| v.extend(SUBSYSTEM));
    }
    socket.send(&bytes).map_err(|errno| NftError { what: format!("send {} bytes", bytes.len()), errno })?;
    socket.acknowledged(first, last).map_err(|(seq, errno)| NftError {
        what: (seq.checked_sub(first + 1))
            .and_then(|i| messages.get(i as usize))
            .map_or_else(|| "the transaction".into(), |m| m.what.clone()),
        errno,
    })
}
