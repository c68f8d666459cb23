//! Rulesets of others from the kernel, and our rules in them. Numbers are those of `linux/netfilter/nf_tables.h`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use nix::errno::Errno;

use super::{
    remedy::{COMMENT, Pass, Remedy},
    ruleset::{Base, Chain, Element, Expr, Family, Hook, Rule, Ruleset, Set, Table, Verdict},
};
use crate::{
    nft::{NftError, TABLE},
    sys::netlink::{DUMP, NetfilterSocket, attr, attributes, find, message, nest, read_text, text, u32be},
};

const SUBSYSTEM: u16 = 10 << 8;
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
const NEW_SET: u16 = 9;
const GET_SET: u16 = 10;
const NEW_ELEMENT: u16 = 12;
const GET_ELEMENT: u16 = 13;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
/// `NLM_F_CREATE` without `NLM_F_APPEND`: at the head of the chain.
const INSERT: u16 = 0x400;
const DORMANT: u32 = 1;
/// Attempts at what somebody's change cuts through.
const ATTEMPTS: usize = 10;
/// Type of a rule's user data that is its comment.
const USER_COMMENT: u8 = 0;
const LEGACY: &str = "/proc/thread-self/net/ip_tables_names";

/// The connection to the rules of others.
#[derive(Debug)]
pub struct Foreign {
    socket: NetfilterSocket,
    seq: u32,
}

impl Foreign {
    /// Opens it in the thread's network namespace.
    pub fn open() -> Result<Self, NftError> {
        let socket = NetfilterSocket::open()
            .map_err(|errno| NftError { what: "open the netlink socket".into(), errno })?;
        Ok(Foreign { socket, seq: 1 })
    }

    /// Everything that others have in the families that see IPv4. Changes nothing.
    pub fn read(&mut self) -> Result<Ruleset, NftError> {
        let mut torn = None;
        for _ in 0..ATTEMPTS {
            match self.read_once() {
                // A table or chain was removed, or a rule came, while we read.
                Err(e) if matches!(e.errno, Errno::EINTR | Errno::ENOENT) => torn = Some(e),
                other => return other,
            }
        }
        torn.map_or_else(|| Ok(Ruleset::default()), Err)
    }

    fn read_once(&mut self) -> Result<Ruleset, NftError> {
        let legacy = fs::read_to_string(LEGACY).unwrap_or_default();
        let mut rules = Ruleset { legacy: legacy.lines().map(str::to_owned).collect(), tables: Vec::new() };
        for family in [Family::Ip, Family::Inet] {
            let mut names = Vec::new();
            self.ask(
                "list tables",
                (GET_TABLE, NEW_TABLE),
                family,
                |_| {},
                |body| {
                    let flags = long(find(body, 2));
                    let name = read_text(find(body, 1).unwrap_or_default()).to_owned();
                    if name != TABLE && flags & DORMANT == 0 {
                        names.push(name);
                    }
                },
            )?;
            for name in names {
                rules.tables.push(self.table(family, name)?);
            }
        }
        Ok(rules)
    }

    fn table(&mut self, family: Family, name: String) -> Result<Table, NftError> {
        let mut chains: Vec<Chain> = Vec::new();
        self.ask(
            "list chains",
            (GET_CHAIN, NEW_CHAIN),
            family,
            |_| {},
            |body| {
                if find(body, 1).map(read_text) == Some(&name) {
                    chains.push(chain(body));
                }
            },
        )?;
        let of_table = |v: &mut Vec<u8>| text(v, 1, &name);
        self.ask("list rules", (GET_RULE, NEW_RULE), family, of_table, |body| {
            let of = find(body, 2).map(read_text).unwrap_or_default();
            if find(body, 1).map(read_text) == Some(&name)
                && let Some(chain) = chains.iter_mut().find(|c| c.name == of)
            {
                chain.rules.push(rule(body));
            }
        })?;
        let wanted: BTreeSet<&str> = chains
            .iter()
            .flat_map(|c| &c.rules)
            .flat_map(|r| &r.expressions)
            .filter_map(|e| if let Expr::Lookup { set, .. } = e { Some(set.as_str()) } else { None })
            .collect();
        let mut table = Table { family, name: name.clone(), chains: Vec::new(), sets: BTreeMap::new() };
        if !wanted.is_empty() {
            self.ask("list sets", (GET_SET, NEW_SET), family, of_table, |body| {
                let set = read_text(find(body, 2).unwrap_or_default());
                if wanted.contains(set) {
                    let flags = long(find(body, 3));
                    let (is_interval, fields) = (flags & 4 != 0, flags & 0x80 != 0);
                    let found = Set { is_interval, is_opaque: is_interval && fields, elements: Vec::new() };
                    table.sets.insert(set.to_owned(), found);
                }
            })?;
            for (set, found) in &mut table.sets {
                let of_set = |v: &mut Vec<u8>| {
                    text(v, 1, &name);
                    text(v, 2, set);
                };
                self.ask("list elements", (GET_ELEMENT, NEW_ELEMENT), family, of_set, |body| {
                    found.elements.extend(elements(body));
                })?;
            }
        }
        drop(wanted);
        table.chains = chains;
        Ok(table)
    }

    /// Puts our rules at the head of their chains, in one transaction for all. Older ones of ours in the same chains go: they stand
    /// where they no longer help.
    pub fn insert(&mut self, rules: &Ruleset, remedies: &[Remedy]) -> Result<(), NftError> {
        let mut messages = removals(rules, |table, chain| {
            remedies
                .iter()
                .any(|r| (r.family, &r.table, &r.chain) == (table.family, &table.name, &chain.name))
        });
        for remedy in remedies {
            for pass in &remedy.passes {
                let mut body = vec![remedy.family.number(), 0, 0, 0];
                text(&mut body, 1, &remedy.table);
                text(&mut body, 2, &remedy.chain);
                nest(&mut body, 4, |v| write(v, pass, remedy.family));
                let comment = [&[USER_COMMENT, COMMENT.len() as u8 + 1], COMMENT.as_bytes(), &[0]].concat();
                attr(&mut body, 7, &comment);
                messages.push((NEW_RULE, INSERT, body));
            }
        }
        self.commit("let our traffic through the rules of others", &messages)
    }

    /// Removes our rules from tables of others; `Ok(0)`: there were none.
    pub fn remove(&mut self, rules: &Ruleset) -> Result<usize, NftError> {
        let messages = removals(rules, |_, _| true);
        self.commit("remove our rules from tables of others", &messages)?;
        Ok(messages.len())
    }

    fn commit(&mut self, what: &str, messages: &[Message]) -> Result<(), NftError> {
        if messages.is_empty() {
            return Ok(());
        }
        let (first, last) = (self.seq, self.seq + messages.len() as u32);
        self.seq = last + 2;
        let frame = |v: &mut Vec<u8>| v.extend([0, 0, 0, 10]);
        let mut bytes = Vec::new();
        message(&mut bytes, BATCH_BEGIN, REQUEST, first, frame);
        for (n, (kind, flags, body)) in (first + 1..).zip(messages) {
            let acknowledge = if n == last { ACKNOWLEDGE } else { 0 };
            message(&mut bytes, SUBSYSTEM | kind, REQUEST | flags | acknowledge, n, |v| v.extend(body));
        }
        message(&mut bytes, BATCH_END, REQUEST, last + 1, frame);
        let failed = |errno| NftError { what: what.into(), errno };
        self.socket.send(&bytes).map_err(failed)?;
        self.socket.acknowledged(first, last).map_err(|(_, errno)| failed(errno))
    }

    fn ask(
        &mut self,
        what: &str,
        (request, answer): (u16, u16),
        family: Family,
        fill: impl FnOnce(&mut Vec<u8>),
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), NftError> {
        let seq = self.seq;
        self.seq += 1;
        let mut bytes = Vec::new();
        message(&mut bytes, SUBSYSTEM | request, DUMP | REQUEST, seq, |v| {
            v.extend([family.number(), 0, 0, 0]);
            fill(v);
        });
        let result = self.socket.ask(&bytes, seq, |kind, body| {
            if kind == SUBSYSTEM | answer {
                each(body);
            }
        });
        result.map_err(|errno| NftError { what: format!("{what} of others"), errno })
    }
}

/// Whether a rule in a table of others was put there by us.
pub fn is_ours(rule: &Rule) -> bool {
    rule.comment == COMMENT
}

/// A message's number, its flags and its contents.
type Message = (u16, u16, Vec<u8>);

fn removals(rules: &Ruleset, of: impl Fn(&Table, &Chain) -> bool) -> Vec<Message> {
    let mut messages = Vec::new();
    for table in &rules.tables {
        for chain in table.chains.iter().filter(|chain| of(table, chain)) {
            for rule in chain.rules.iter().filter(|r| is_ours(r)) {
                let mut body = vec![table.family.number(), 0, 0, 0];
                text(&mut body, 1, &table.name);
                text(&mut body, 2, &chain.name);
                attr(&mut body, 3, &rule.handle.to_be_bytes());
                messages.push((DELETE_RULE, 0, body));
            }
        }
    }
    messages
}

fn long(data: Option<&[u8]>) -> u32 {
    data.and_then(|d| d.try_into().ok()).map_or(0, u32::from_be_bytes)
}

fn chain(body: &[u8]) -> Chain {
    let name = read_text(find(body, 3).unwrap_or_default()).to_owned();
    let base = find(body, 4).and_then(|hook| {
        Some(Base {
            hook: Hook::of(long(find(hook, 1)))?,
            drops: find(body, 5).is_some_and(|policy| long(Some(policy)) == 0),
            is_nat: find(body, 7).map(read_text) == Some("nat"),
        })
    });
    Chain { name, base, rules: Vec::new() }
}

fn rule(body: &[u8]) -> Rule {
    let handle = find(body, 3).and_then(|d| d.try_into().ok()).map_or(0, u64::from_be_bytes);
    let list = find(body, 4).unwrap_or_default();
    let expressions: Vec<Expr> = attributes(list).map(|(_, one)| expression(one)).collect();
    Rule { handle, comment: comment(body), expressions }
}

/// The comment in the user data, or in a match of xtables.
fn comment(body: &[u8]) -> String {
    let mut data = find(body, 7).unwrap_or_default();
    while let [kind, len, rest @ ..] = data {
        let (value, rest) = rest.split_at_checked(usize::from(*len)).unwrap_or((rest, &[]));
        if *kind == USER_COMMENT {
            return read_text(value).to_owned();
        }
        data = rest;
    }
    let list = find(body, 4).unwrap_or_default();
    let matches = attributes(list).filter(|(_, e)| find(e, 1).map(read_text) == Some("match"));
    let mut infos = matches.filter_map(|(_, e)| {
        let data = find(e, 2)?;
        (read_text(find(data, 1)?) == "comment").then(|| find(data, 3))?
    });
    let info = infos.next().unwrap_or_default();
    let end = info.iter().position(|b| *b == 0).unwrap_or(info.len());
    String::from_utf8_lossy(&info[..end]).into_owned()
}

fn elements(body: &[u8]) -> Vec<Element> {
    let list = attributes(find(body, 3).unwrap_or_default());
    let read = |(_, element): (u16, &[u8])| Element {
        key: find(element, 1).and_then(|k| find(k, 1)).unwrap_or_default().to_vec(),
        is_end: long(find(element, 3)) & 1 != 0,
        verdict: find(element, 2).and_then(|d| find(d, 2)).map(verdict),
        data: find(element, 2).and_then(|d| find(d, 1)).unwrap_or_default().to_vec(),
    };
    list.map(read).collect()
}

fn verdict(data: &[u8]) -> Verdict {
    let chain = || read_text(find(data, 2).unwrap_or_default()).to_owned();
    match long(find(data, 1)).cast_signed() {
        0 => Verdict::Drop,
        1 => Verdict::Accept,
        -1 => Verdict::Continue,
        -3 => Verdict::Jump(chain()),
        -4 => Verdict::Goto(chain()),
        -5 => Verdict::Return,
        _ => Verdict::Unknown,
    }
}

/// Offset of a register: 1 to 4 are the old ones of sixteen bytes, from 8 on come words.
fn register(data: Option<&[u8]>) -> usize {
    match long(data) as usize {
        n @ 1..=4 => (n - 1) * 16,
        n @ 8..=23 => (n - 8) * 4,
        _ => usize::MAX / 2,
    }
}

fn expression(one: &[u8]) -> Expr {
    let name = read_text(find(one, 1).unwrap_or_default());
    let d = find(one, 2).unwrap_or_default();
    let n = |kind: u16| long(find(d, kind));
    let value = |kind: u16| find(d, kind).and_then(|v| find(v, 1)).unwrap_or_default().to_vec();
    match name {
        "meta" if find(d, 3).is_some() => {
            if n(2) == 3 {
                Expr::SetMark
            } else {
                Expr::Passive
            }
        }
        "meta" => Expr::Meta { key: n(2), to: register(find(d, 1)) },
        "payload" if find(d, 1).is_some() => {
            Expr::Payload { base: n(2), offset: n(3) as usize, len: n(4) as usize, to: register(find(d, 1)) }
        }
        "ct" if find(d, 1).is_some() => Expr::Ct { key: n(2), to: register(find(d, 1)) },
        "fib" => Expr::Fib { result: n(2), flags: n(3), to: register(find(d, 1)) },
        "immediate" => match find(d, 2).and_then(|v| find(v, 2)) {
            Some(code) => Expr::Verdict(verdict(code)),
            None => Expr::Constant { data: value(2), to: register(find(d, 1)) },
        },
        "cmp" => Expr::Cmp { from: register(find(d, 1)), op: n(2), data: value(3) },
        "range" => {
            Expr::Range { from: register(find(d, 1)), not: n(2) == 1, least: value(3), most: value(4) }
        }
        "bitwise" if n(6) == 0 => Expr::Bitwise {
            from: register(find(d, 1)),
            to: register(find(d, 2)),
            mask: value(4),
            xor: value(5),
        },
        "byteorder" => Expr::Swap {
            from: register(find(d, 1)),
            to: register(find(d, 2)),
            len: n(4) as usize,
            size: n(5) as usize,
        },
        "lookup" => {
            let to = find(d, 3);
            Expr::Lookup {
                set: read_text(find(d, 1).unwrap_or_default()).to_owned(),
                from: register(find(d, 2)),
                to: to.filter(|to| long(Some(to)) != 0).map(|to| register(Some(to))),
                not: n(5) & 1 != 0,
                verdict: to.is_some_and(|to| long(Some(to)) == 0),
            }
        }
        "reject" => Expr::Verdict(Verdict::Drop),
        "queue" | "synproxy" => Expr::Verdict(Verdict::Unknown),
        // Whom they translate they let through.
        "nat" | "masq" | "redir" | "tproxy" => Expr::Verdict(Verdict::Accept),
        "match" => Expr::Match {
            name: read_text(find(d, 1).unwrap_or_default()).to_owned(),
            revision: n(2),
            info: find(d, 3).unwrap_or_default().to_vec(),
        },
        "target" => Expr::Target { name: read_text(find(d, 1).unwrap_or_default()).to_owned() },
        "limit" => Expr::Limit { over: n(5) & 1 != 0 },
        "connlimit" | "quota" => Expr::Limit { over: n(2) & 1 != 0 },
        "dynset" if find(d, 7).is_some() || find(d, 10).is_some() => Expr::Unknown,
        "counter" | "log" | "notrack" | "ct" | "payload" | "dynset" | "dup" | "flow_offload" | "last" => {
            Expr::Passive
        }
        _ => Expr::Unknown,
    }
}

/// A rule of ours in the shape that iptables-nft writes and reads.
fn write(v: &mut Vec<u8>, pass: &Pass, family: Family) {
    const R: u32 = 1;
    let expr = |v: &mut Vec<u8>, name: &str, fill: &dyn Fn(&mut Vec<u8>)| {
        nest(v, 1, |v| {
            text(v, 1, name);
            nest(v, 2, |v| fill(v));
        });
    };
    let value = |v: &mut Vec<u8>, kind: u16, data: &[u8]| nest(v, kind, |v| attr(v, 1, data));
    for expression in pass.rule(family).expressions {
        match expression {
            Expr::Payload { base, offset, len, .. } => expr(v, "payload", &|v| {
                u32be(v, 1, R);
                u32be(v, 2, base);
                u32be(v, 3, offset as u32);
                u32be(v, 4, len as u32);
            }),
            Expr::Meta { key, .. } => expr(v, "meta", &|v| {
                u32be(v, 1, R);
                u32be(v, 2, key);
            }),
            Expr::Bitwise { mask, xor, .. } => expr(v, "bitwise", &|v| {
                u32be(v, 1, R);
                u32be(v, 2, R);
                u32be(v, 3, mask.len() as u32);
                value(v, 4, &mask);
                value(v, 5, &xor);
            }),
            Expr::Cmp { op, data, .. } => expr(v, "cmp", &|v| {
                u32be(v, 1, R);
                u32be(v, 2, op);
                value(v, 3, &data);
            }),
            Expr::Verdict(_) => expr(v, "immediate", &|v| {
                u32be(v, 1, 0);
                nest(v, 2, |v| nest(v, 2, |v| u32be(v, 1, 1)));
            }),
            _ => expr(v, "counter", &|_| {}),
        }
    }
}
