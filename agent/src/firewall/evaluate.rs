//! What becomes of a packet in a ruleset, without sending it. Where an expression is not understood both ways are followed, so that
//! the answer is accepted, dropped, or cannot be told.

use super::{
    packet::Packet,
    ruleset::{Base, Chain, Expr, Rule, Table, Verdict},
    xtables,
};

/// Jumps in jumps that the kernel allows.
const DEPTH: usize = 16;

/// Three values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Yes,
    No,
    Maybe,
}

impl Answer {
    pub(super) fn of(yes: bool) -> Self {
        if yes { Answer::Yes } else { Answer::No }
    }

    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (Answer::No, _) | (_, Answer::No) => Answer::No,
            (Answer::Yes, Answer::Yes) => Answer::Yes,
            _ => Answer::Maybe,
        }
    }
}

/// Where a packet is dropped.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// By the base chain's policy.
    Policy,
    /// By a rule of this chain.
    Rule {
        /// The chain.
        chain: String,
        /// The rule's handle.
        handle: u64,
    },
}

/// What a base chain may do with a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It passes.
    Accepted,
    /// It is dropped, here.
    Dropped(Place),
    /// Either; it may be dropped here.
    Unclear(Place),
}

/// The ways that are open behind a rule or a chain.
#[derive(Default)]
struct Ways {
    accepted: bool,
    dropped: Option<Place>,
    /// On with the next rule.
    next: bool,
    /// Back to whoever called the chain.
    back: bool,
}

/// Sends a packet through a base chain. `marks`: rules of others write marks, so a packet may have any.
pub fn fate(table: &Table, chain: &Chain, base: &Base, packet: &Packet, marks: bool) -> Fate {
    let walk = Walk { table, packet, marks };
    let mut ways = walk.chain(chain, 0);
    if ways.next || ways.back {
        if base.drops {
            ways.dropped.get_or_insert(Place::Policy);
        } else {
            ways.accepted = true;
        }
    }
    match (ways.accepted, ways.dropped) {
        (_, None) => Fate::Accepted,
        (false, Some(place)) => Fate::Dropped(place),
        (true, Some(place)) => Fate::Unclear(place),
    }
}

/// Whether a rule of a table may apply to a packet.
pub(super) fn may_apply(table: &Table, rule: &Rule, packet: &Packet) -> bool {
    let walk = Walk { table, packet, marks: true };
    walk.rule(&Chain::default(), rule, DEPTH).0 != Answer::No
}

struct Walk<'a> {
    table: &'a Table,
    packet: &'a Packet,
    marks: bool,
}

/// Sixteen words whose bytes may be unknown.
type Registers = [Option<u8>; 64];

fn put(registers: &mut Registers, at: usize, data: &[Option<u8>]) {
    // A value fills its last word with zeroes.
    let padded = data.len().next_multiple_of(4);
    for (i, slot) in registers.iter_mut().skip(at).take(padded).enumerate() {
        *slot = data.get(i).copied().unwrap_or(Some(0));
    }
}

fn get(registers: &Registers, at: usize, len: usize) -> Option<Vec<u8>> {
    registers.get(at..at + len)?.iter().copied().collect()
}

impl Walk<'_> {
    fn chain(&self, chain: &Chain, depth: usize) -> Ways {
        let mut all = Ways::default();
        for rule in &chain.rules {
            let (applies, mut ways) = self.rule(chain, rule, depth);
            if applies == Answer::No {
                continue;
            }
            all.accepted |= ways.accepted;
            all.dropped = all.dropped.or(ways.dropped.take());
            all.back |= ways.back;
            if applies == Answer::Yes && !ways.next {
                return all;
            }
        }
        all.next = true;
        all
    }

    /// Whether a rule applies, and the ways behind it if it does.
    fn rule(&self, chain: &Chain, rule: &Rule, depth: usize) -> (Answer, Ways) {
        let mut registers: Registers = [None; 64];
        let mut applies = Answer::Yes;
        for expression in &rule.expressions {
            let place = || Place::Rule { chain: chain.name.clone(), handle: rule.handle };
            match expression {
                Expr::Verdict(verdict) => return (applies, self.verdict(verdict, place(), depth)),
                Expr::Target { name } => match xtables::target(name) {
                    Verdict::Continue => {}
                    verdict => return (applies, self.verdict(&verdict, place(), depth)),
                },
                Expr::Lookup { set, from, verdict: true, .. } => {
                    let (found, ways) = self.verdict_map(set, &registers, *from, &place(), depth);
                    return (applies.and(found), ways);
                }
                other => applies = applies.and(self.expression(other, &mut registers)),
            }
            if applies == Answer::No {
                return (Answer::No, Ways::default());
            }
        }
        (applies, Ways { next: true, ..Ways::default() })
    }

    fn verdict(&self, verdict: &Verdict, place: Place, depth: usize) -> Ways {
        match verdict {
            Verdict::Accept => Ways { accepted: true, ..Ways::default() },
            Verdict::Drop => Ways { dropped: Some(place), ..Ways::default() },
            Verdict::Continue => Ways { next: true, ..Ways::default() },
            Verdict::Return => Ways { back: true, ..Ways::default() },
            Verdict::Jump(name) | Verdict::Goto(name) => match self.table.chain(name) {
                Some(chain) if depth < DEPTH => {
                    let mut ways = self.chain(chain, depth + 1);
                    let returns = ways.next || ways.back;
                    let jumps = matches!(verdict, Verdict::Jump(_));
                    (ways.next, ways.back) = (returns && jumps, returns && !jumps);
                    ways
                }
                // It was removed while we read.
                _ => Ways { next: true, ..Ways::default() },
            },
            Verdict::Unknown => Ways { accepted: true, dropped: Some(place), next: true, back: false },
        }
    }

    fn verdict_map(
        &self,
        set: &str,
        registers: &Registers,
        from: usize,
        place: &Place,
        depth: usize,
    ) -> (Answer, Ways) {
        let Some(set) = self.table.sets.get(set).filter(|s| !s.is_opaque) else {
            return (Answer::Maybe, self.verdict(&Verdict::Unknown, place.clone(), depth));
        };
        let len = set.elements.iter().map(|e| e.key.len()).max().unwrap_or(0);
        let Some(key) = get(registers, from, len) else {
            // Any of them.
            let mut all = Ways::default();
            for verdict in set.elements.iter().filter_map(|e| e.verdict.as_ref()) {
                let ways = self.verdict(verdict, place.clone(), depth);
                all.accepted |= ways.accepted;
                all.dropped = all.dropped.or(ways.dropped);
                all.next |= ways.next;
                all.back |= ways.back;
            }
            return (Answer::Maybe, all);
        };
        match set.find(&key).and_then(|e| e.verdict.as_ref()) {
            Some(verdict) => (Answer::Yes, self.verdict(verdict, place.clone(), depth)),
            None => (Answer::No, Ways::default()),
        }
    }

    fn expression(&self, expression: &Expr, registers: &mut Registers) -> Answer {
        match expression {
            Expr::Meta { key, to } => match self.packet.meta(*key, self.marks) {
                Some(data) => put(registers, *to, &data),
                // There is no such thing, as a link that comes in has none that it leaves by.
                None => return Answer::No,
            },
            Expr::Payload { base, offset, len, to } => {
                put(registers, *to, &self.packet.payload(*base, *offset, *len));
            }
            Expr::Ct { key, to } => match self.packet.ct(*key) {
                Some(data) => put(registers, *to, &data),
                None => return Answer::No,
            },
            Expr::Fib { result, flags, to } => put(registers, *to, &self.packet.fib(*result, *flags)),
            Expr::Constant { data, to } => {
                let data: Vec<_> = data.iter().copied().map(Some).collect();
                put(registers, *to, &data);
            }
            Expr::Cmp { from, op, data } => {
                let Some(found) = get(registers, *from, data.len()) else {
                    return unequal(registers, *from, data, *op);
                };
                let (found, data) = (found.as_slice(), data.as_slice());
                return match op {
                    0 => Answer::of(found == data),
                    1 => Answer::of(found != data),
                    2 => Answer::of(found < data),
                    3 => Answer::of(found <= data),
                    4 => Answer::of(found > data),
                    5 => Answer::of(found >= data),
                    _ => Answer::Maybe,
                };
            }
            Expr::Range { from, not, least, most } => {
                return match get(registers, *from, least.len()) {
                    Some(found) => Answer::of((*least <= found && found <= *most) != *not),
                    None => Answer::Maybe,
                };
            }
            Expr::Bitwise { from, to, mask, xor } => {
                let result: Vec<_> = mask
                    .iter()
                    .zip(xor)
                    .enumerate()
                    .map(|(i, (mask, xor))| match registers.get(from + i).copied().flatten() {
                        Some(byte) => Some((byte & mask) ^ xor),
                        None if *mask == 0 => Some(*xor),
                        None => None,
                    })
                    .collect();
                put(registers, *to, &result);
            }
            Expr::Swap { from, to, len, size } => {
                let mut bytes = registers.get(*from..from + len).unwrap_or_default().to_vec();
                bytes.chunks_mut((*size).max(1)).for_each(<[_]>::reverse);
                put(registers, *to, &bytes);
            }
            Expr::Lookup { set, from, to, not, .. } => {
                let Some(set) = self.table.sets.get(set).filter(|s| !s.is_opaque) else {
                    return Answer::Maybe;
                };
                let len = set.elements.iter().map(|e| e.key.len()).max().unwrap_or(0);
                let Some(key) = get(registers, *from, len) else { return Answer::Maybe };
                let found = set.find(&key);
                if let (Some(to), Some(found)) = (to, found) {
                    let data: Vec<_> = found.data.iter().copied().map(Some).collect();
                    put(registers, *to, &data);
                }
                return Answer::of(found.is_some() != *not);
            }
            Expr::Match { name, revision, info } => {
                return xtables::matches(name, *revision, info, self.packet, self.marks);
            }
            // Nobody is stopped by a limit as long as he stays below it.
            Expr::Limit { over: true } => return Answer::No,
            Expr::Limit { over: false } => return Answer::Maybe,
            Expr::Unknown => {
                *registers = [None; 64];
                return Answer::Maybe;
            }
            Expr::SetMark | Expr::Passive | Expr::Verdict(_) | Expr::Target { .. } => {}
        }
        Answer::Yes
    }
}

/// Values of which some bytes are unknown differ if a known byte does.
fn unequal(registers: &Registers, from: usize, data: &[u8], op: u32) -> Answer {
    let known = registers.iter().skip(from).zip(data);
    let differ = known.filter_map(|(a, b)| a.map(|a| a != *b)).any(|differ| differ);
    match op {
        0 if differ => Answer::No,
        1 if differ => Answer::Yes,
        _ => Answer::Maybe,
    }
}
