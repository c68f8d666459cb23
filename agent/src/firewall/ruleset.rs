//! Rulesets of others as values: what of nf_tables decides whether a packet passes. Numbers are those of `linux/netfilter/nf_tables.h`.

use std::collections::BTreeMap;

/// All tables that may meet our packets, ours excluded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    /// In the kernel's order.
    pub tables: Vec<Table>,
    /// Tables of iptables-legacy, which nf_tables does not show.
    pub legacy: Vec<String>,
}

/// Which packets a table sees; both see all of IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4 alone.
    Ip,
    /// IPv4 and IPv6.
    Inet,
}

impl Family {
    /// As the kernel numbers it.
    pub fn number(self) -> u8 {
        match self {
            Family::Ip => 2,
            Family::Inet => 1,
        }
    }

    /// As `nft` writes it.
    pub fn name(self) -> &'static str {
        match self {
            Family::Ip => "ip",
            Family::Inet => "inet",
        }
    }
}

/// A table of somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Its chains.
    pub chains: Vec<Chain>,
    /// The sets and maps that its rules look into.
    pub sets: BTreeMap<String, Set>,
}

impl Table {
    /// The chain of this name.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        self.chains.iter().find(|c| c.name == name)
    }
}

/// Where packets meet a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Whatever comes in.
    Prerouting,
    /// What is for this machine.
    Input,
    /// What goes through.
    Forward,
    /// What this machine sends.
    Output,
    /// Whatever goes out.
    Postrouting,
}

impl Hook {
    /// By the kernel's number.
    pub fn of(number: u32) -> Option<Self> {
        [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting]
            .get(number as usize)
            .copied()
    }

    /// iptables' chain at this hook.
    pub fn builtin(self) -> &'static str {
        match self {
            Hook::Prerouting => "PREROUTING",
            Hook::Input => "INPUT",
            Hook::Forward => "FORWARD",
            Hook::Output => "OUTPUT",
            Hook::Postrouting => "POSTROUTING",
        }
    }
}

/// How a base chain is reached, and what becomes of what no rule judges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// Where.
    pub hook: Hook,
    /// Policy drop.
    pub drops: bool,
    /// Type nat: sees the first packet of a connection alone.
    pub is_nat: bool,
}

/// A chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// `None`: others jump here.
    pub base: Option<Base>,
    /// In order.
    pub rules: Vec<Rule>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// By which the kernel knows it.
    pub handle: u64,
    /// What `nft` and iptables show as its comment.
    pub comment: String,
    /// In order: what must be so, then what happens.
    pub expressions: Vec<Expr>,
}

/// What a verdict says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done with this base chain.
    Accept,
    /// Done for good.
    Drop,
    /// On with the next rule.
    Continue,
    /// Back to where the jump came from.
    Return,
    /// There, and back.
    Jump(String),
    /// There, and back to where this chain was called from.
    Goto(String),
    /// Somebody in user space decides, or a code that we do not know.
    Unknown,
}

/// One expression of a rule. Registers are offsets into sixteen words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Loads what the kernel knows of the packet.
    Meta { key: u32, to: usize },
    /// Writes the mark.
    SetMark,
    /// Loads bytes of the packet.
    Payload { base: u32, offset: usize, len: usize, to: usize },
    /// Loads what connection tracking knows.
    Ct { key: u32, to: usize },
    /// Looks an address up in the routes.
    Fib { result: u32, flags: u32, to: usize },
    /// A constant.
    Constant { data: Vec<u8>, to: usize },
    /// Equal 0, not equal 1, less 2, less or equal 3, greater 4, greater or equal 5.
    Cmp { from: usize, op: u32, data: Vec<u8> },
    /// Within two values, or not.
    Range { from: usize, not: bool, least: Vec<u8>, most: Vec<u8> },
    /// Mask, then exclusive or.
    Bitwise { from: usize, to: usize, mask: Vec<u8>, xor: Vec<u8> },
    /// Turns numbers of this many bytes around.
    Swap { from: usize, to: usize, len: usize, size: usize },
    /// Is in a set, or not; or the verdict of a map.
    Lookup { set: String, from: usize, to: Option<usize>, not: bool, verdict: bool },
    /// What happens.
    Verdict(Verdict),
    /// A match of xtables.
    Match { name: String, revision: u32, info: Vec<u8> },
    /// A target of xtables.
    Target { name: String },
    /// Goes on below a rate; `over`: above it.
    Limit { over: bool },
    /// Counts, logs, remembers: never decides.
    Passive,
    /// Anything else: it may go on or not, and may load anything.
    Unknown,
}

/// A set or map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// Elements are bounds of intervals.
    pub is_interval: bool,
    /// Fields of intervals: not understood.
    pub is_opaque: bool,
    /// What is inside.
    pub elements: Vec<Element>,
}

/// An element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Element {
    /// The key; empty for the element that stands for all others.
    pub key: Vec<u8>,
    /// With intervals: the first key behind one.
    pub is_end: bool,
    /// Of verdict maps.
    pub verdict: Option<Verdict>,
    /// Of other maps.
    pub data: Vec<u8>,
}

impl Set {
    /// The element that holds a key.
    pub fn find(&self, key: &[u8]) -> Option<&Element> {
        let all_others = || self.elements.iter().find(|e| e.key.is_empty());
        let found = if self.is_interval {
            let below = self.elements.iter().filter(|e| !e.key.is_empty() && e.key.as_slice() <= key);
            // Where one interval ends and the next begins, the beginning counts.
            below.max_by(|a, b| a.key.cmp(&b.key).then(b.is_end.cmp(&a.is_end))).filter(|e| !e.is_end)
        } else {
            self.elements.iter().find(|e| e.key == key)
        };
        found.or_else(all_others)
    }
}
