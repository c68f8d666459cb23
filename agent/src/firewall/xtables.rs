//! Matches and targets of xtables inside nf_tables, as iptables-nft writes them where nf_tables has no expression of its own.
//! Layouts are those of `linux/netfilter/xt_*.h`.

use super::{
    evaluate::Answer,
    packet::{Packet, State},
    ruleset::Verdict,
};

fn word(info: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?))
}

fn long(info: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?))
}

/// Whether a match lets the packet on.
pub(super) fn matches(name: &str, revision: u32, info: &[u8], packet: &Packet, marks: bool) -> Answer {
    let answer = match (name, revision) {
        ("comment", _) => Some(Answer::Yes),
        ("conntrack", 2 | 3) => conntrack(info, packet),
        ("state", 0) => long(info, 0).map(|mask| Answer::of(mask & state_bit(packet, 1 << 6) != 0)),
        ("tcp", 0) => ports(info, 11, packet, true),
        ("udp", 0) => ports(info, 8, packet, false),
        ("multiport", 1) => multiport(info, packet),
        ("addrtype", 1) => addrtype(info, packet),
        ("mark", 1) if !marks => mark(info),
        ("icmp" | "icmp6" | "sctp" | "dccp" | "esp" | "ah", _) => Some(Answer::No),
        _ => None,
    };
    answer.unwrap_or(Answer::Maybe)
}

/// What a target does.
pub(super) fn target(name: &str) -> Verdict {
    match name {
        "REJECT" => Verdict::Drop,
        "LOG" | "NFLOG" | "MARK" | "CONNMARK" | "TCPMSS" | "CT" | "NOTRACK" | "CLASSIFY" | "DSCP" | "TOS"
        | "TTL" | "HL" | "SET" | "TRACE" | "CHECKSUM" | "AUDIT" | "RATEEST" | "TEE" | "SECMARK"
        | "CONNSECMARK" | "IDLETIMER" | "LED" | "TCPOPTSTRIP" => Verdict::Continue,
        "DNAT" | "SNAT" | "MASQUERADE" | "REDIRECT" | "NETMAP" => Verdict::Accept,
        _ => Verdict::Unknown,
    }
}

/// `XT_CONNTRACK_STATE_BIT`; what is untracked has a bit of its own.
fn state_bit(packet: &Packet, untracked: u32) -> u32 {
    match packet.state {
        State::Established => 2,
        State::New => 8,
        State::Untracked => untracked,
    }
}

/// `xt_conntrack_mtinfo2` and `3`: states and status alone, which is what rulesets use.
fn conntrack(info: &[u8], packet: &Packet) -> Option<Answer> {
    const STATE: u16 = 1;
    const STATUS: u16 = 1 << 6;
    let (asked, inverted) = (word(info, 146)?, word(info, 148)?);
    let (states, status) = (word(info, 150)?, word(info, 152)?);
    if asked & !(STATE | STATUS) != 0 {
        return None;
    }
    let mut answer = Answer::Yes;
    if asked & STATE != 0 {
        let translated = if packet.is_translated { 1 << 7 } else { 0 };
        let found = u32::from(states) & (state_bit(packet, 1 << 8) | translated) != 0;
        answer = answer.and(Answer::of(found != (inverted & STATE != 0)));
    }
    if asked & STATUS != 0 {
        let found = u32::from(status) & packet.status() != 0;
        answer = answer.and(Answer::of(found != (inverted & STATUS != 0)));
    }
    Some(answer)
}

/// `xt_tcp` and `xt_udp`: two ranges of ports, and which of them are inverted.
fn ports(info: &[u8], inverted_at: usize, packet: &Packet, is_tcp: bool) -> Option<Answer> {
    let inverted = *info.get(inverted_at)?;
    let within = |at: usize, port: u16, bit: u8| {
        let found = (word(info, at)?..=word(info, at + 2)?).contains(&port);
        Some(Answer::of(found != (inverted & bit != 0)))
    };
    let (sport, dport) = packet.ports;
    let mut answer = within(0, sport, 1)?.and(within(4, dport, 2)?);
    if is_tcp {
        let (option, mask, wanted) = (*info.get(8)?, *info.get(9)?, *info.get(10)?);
        if option != 0 {
            return None;
        }
        let found = packet.tcp_flags() & mask == wanted;
        answer = answer.and(Answer::of(found != (inverted & 4 != 0)));
    }
    Some(answer)
}

/// `xt_multiport_v1`: up to fifteen ports, some of them beginnings of ranges.
fn multiport(info: &[u8], packet: &Packet) -> Option<Answer> {
    let (side, count, inverted) = (*info.first()?, *info.get(1)?, *info.get(47)? != 0);
    let holds = |port: u16| -> Option<bool> {
        let mut i = 0;
        while i < usize::from(count) {
            let first = word(info, 2 + 2 * i)?;
            let mut last = first;
            if *info.get(32 + i)? != 0 {
                i += 1;
                last = word(info, 2 + 2 * i)?;
            }
            if (first..=last).contains(&port) {
                return Some(true);
            }
            i += 1;
        }
        Some(false)
    };
    let (sport, dport) = packet.ports;
    let found = match side {
        0 => holds(sport)?,
        1 => holds(dport)?,
        _ => holds(sport)? || holds(dport)?,
    };
    Some(Answer::of(found != inverted))
}

/// `xt_addrtype_info_v1`: bits by the kernel's route types.
fn addrtype(info: &[u8], packet: &Packet) -> Option<Answer> {
    let (source, dest, flags) = (word(info, 0)?, word(info, 2)?, long(info, 4)?);
    if flags & !3 != 0 {
        return None;
    }
    let one = |mask: u16, is_local: bool, inverted: bool| {
        let bit = if is_local { 1 << 2 } else { 1 << 1 };
        Answer::of(mask == 0 || (mask & bit != 0) != inverted)
    };
    Some(one(source, packet.is_from_here, flags & 1 != 0).and(one(dest, packet.is_to_here, flags & 2 != 0)))
}

/// `xt_mark_mtinfo1`; our packets carry no mark when others see them.
fn mark(info: &[u8]) -> Option<Answer> {
    Some(Answer::of((long(info, 0)? == 0) != (*info.get(8)? != 0)))
}
