//! Expressions of rules. Numbers are those of `linux/netfilter/nf_tables.h`.

use std::net::IpAddr;

use ipnet::IpNet;

use super::family::{Layout, octets};
use crate::{
    plan::Family,
    sys::netlink::{attr, nest, text, u32be},
};

/// Encoded expressions of one rule, for packets of one family.
pub(super) struct Expressions {
    pub(super) layout: &'static Layout,
    pub(super) bytes: Vec<u8>,
}

/// First 32-bit register of sixteen. Keys are loaded from here on.
pub(super) const R: u32 = 8;
/// Where lookups put an address and a port; behind all keys that lead there.
const RESULT: u32 = R + 8;
/// For constants.
const CONSTANT: u32 = R + 15;
const META_MARK: u32 = 3;
const CT_MARK: u32 = 3;
const CT_ZONE: u32 = 17;
/// States of packets that belong to a connection: established and related.
const KNOWN_STATES: u32 = 0x06;
const NEW_STATE: u32 = 0x08;
const UNTRACKED_STATE: u32 = 0x40;
const DNAT_STATUS: u32 = 0x20;
const INVALID_STATE: u32 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`: two connections that are translated at the same moment do not try for the same port.
const RANDOM_FULLY: u32 = 0x10;

impl Expressions {
    pub(super) fn of(family: Family) -> Self {
        Expressions { layout: Layout::of(family), bytes: Vec::new() }
    }
}

pub(super) fn expr(v: &mut Expressions, name: &str, fill: impl FnOnce(&mut Vec<u8>)) {
    nest(&mut v.bytes, 1, |v| {
        text(v, 1, name);
        nest(v, 2, fill);
    });
}
pub(super) fn numbers(v: &mut Expressions, name: &str, pairs: &[(u16, u32)]) {
    expr(v, name, |v| pairs.iter().for_each(|(k, n)| u32be(v, *k, *n)));
}
fn payload(v: &mut Expressions, base: u32, offset: u32, len: u32, reg: u32) {
    numbers(v, "payload", &[(1, reg), (2, base), (3, offset), (4, len)]);
}
/// Loads it, and returns the first register behind.
pub(super) fn saddr(v: &mut Expressions, reg: u32) -> u32 {
    address(v, v.layout.source, reg)
}
/// Loads it, and returns the first register behind.
pub(super) fn daddr(v: &mut Expressions, reg: u32) -> u32 {
    address(v, v.layout.destination, reg)
}
fn address(v: &mut Expressions, offset: u32, reg: u32) -> u32 {
    let layout = v.layout;
    payload(v, 1, offset, layout.length, reg);
    reg + layout.registers()
}
/// Loads the key of a service's address and port: destination, protocol, destination port. Returns the first register behind.
pub(super) fn called(v: &mut Expressions) -> u32 {
    let reg = daddr(v, R);
    l4proto(v, reg);
    dport(v, reg + 1);
    reg + 2
}
pub(super) fn sport(v: &mut Expressions, reg: u32) {
    payload(v, 2, 0, 2, reg);
}
pub(super) fn dport(v: &mut Expressions, reg: u32) {
    payload(v, 2, 2, 2, reg);
}
pub(super) fn l4proto(v: &mut Expressions, reg: u32) {
    meta(v, 16, reg);
}
/// The address a connection was made to, before any translation.
fn original_daddr(v: &mut Expressions, reg: u32) -> u32 {
    let layout = v.layout;
    expr(v, "ct", |v| {
        u32be(v, 1, reg);
        u32be(v, 2, layout.tracked_destination);
        attr(v, 3, &[0]); // original direction
    });
    reg + layout.registers()
}
pub(super) fn meta(v: &mut Expressions, key: u32, reg: u32) {
    numbers(v, "meta", &[(1, reg), (2, key)]);
}
pub(super) fn mark(v: &mut Expressions, reg: u32) {
    meta(v, META_MARK, reg);
}
pub(super) fn set_mark(v: &mut Expressions, reg: u32) {
    numbers(v, "meta", &[(3, reg), (2, META_MARK)]);
}
pub(super) fn clear_mark(v: &mut Expressions) {
    constant(v, CONSTANT, &[0; 4]);
    set_mark(v, CONSTANT);
}
/// A random number below `n`.
pub(super) fn random(v: &mut Expressions, reg: u32, n: u32) {
    numbers(v, "numgen", &[(1, reg), (2, n), (3, 1), (4, 0)]);
}
pub(super) fn constant(v: &mut Expressions, reg: u32, data: &[u8]) {
    expr(v, "immediate", |v| {
        u32be(v, 1, reg);
        nest(v, 2, |v| attr(v, 1, data));
    });
}
/// Goes on only if the register, as a number in network order, is below.
pub(super) fn below(v: &mut Expressions, reg: u32, number: u16) {
    expr(v, "cmp", |v| {
        u32be(v, 1, reg);
        u32be(v, 2, 2);
        nest(v, 3, |v| attr(v, 1, &number.to_be_bytes()));
    });
}
/// Goes on only if the register equals (or not) the data.
pub(super) fn cmp(v: &mut Expressions, reg: u32, equal: bool, data: &[u8]) {
    expr(v, "cmp", |v| {
        u32be(v, 1, reg);
        u32be(v, 2, u32::from(!equal));
        nest(v, 3, |v| attr(v, 1, data));
    });
}
pub(super) fn mask(v: &mut Expressions, reg: u32, mask: &[u8]) {
    expr(v, "bitwise", |v| {
        u32be(v, 1, reg);
        u32be(v, 2, reg);
        u32be(v, 3, mask.len() as u32);
        nest(v, 4, |v| attr(v, 1, mask));
        nest(v, 5, |v| attr(v, 1, &vec![0; mask.len()]));
    });
}
fn in_net(v: &mut Expressions, load: fn(&mut Expressions, u32) -> u32, net: IpNet, inside: bool) {
    load(v, R);
    mask(v, R, &octets(net.netmask()));
    cmp(v, R, inside, &octets(net.network()));
}
pub(super) fn from_net(v: &mut Expressions, net: IpNet, inside: bool) {
    in_net(v, saddr, net, inside);
}
pub(super) fn to_net(v: &mut Expressions, net: IpNet, inside: bool) {
    in_net(v, daddr, net, inside);
}
pub(super) fn meant_for_net(v: &mut Expressions, net: IpNet, inside: bool) {
    in_net(v, original_daddr, net, inside);
}
/// Whether the packet came in by a link of a pod.
pub(super) fn from_pod(v: &mut Expressions, yes: bool) {
    from_group(v, crate::net::LINK_GROUP, yes);
}
/// Whether the packet goes out by a link of a pod.
pub(super) fn to_pod(v: &mut Expressions, yes: bool) {
    to_group(v, crate::net::LINK_GROUP, yes);
}
/// Goes on only if the packet came out of the tunnel.
pub(super) fn from_tunnel(v: &mut Expressions) {
    from_group(v, crate::net::TUNNEL_GROUP, true);
}
/// Goes on only if the packet goes into the tunnel.
pub(super) fn to_tunnel(v: &mut Expressions) {
    to_group(v, crate::net::TUNNEL_GROUP, true);
}
fn from_group(v: &mut Expressions, group: u32, yes: bool) {
    meta(v, 21, R);
    cmp(v, R, yes, &group.to_ne_bytes());
}
fn to_group(v: &mut Expressions, group: u32, yes: bool) {
    meta(v, 22, R);
    cmp(v, R, yes, &group.to_ne_bytes());
}
/// Goes on only for the first packet of either side of a TCP connection.
pub(super) fn tcp_syn(v: &mut Expressions) {
    const FIN_SYN_RST: u8 = 0x07;
    tcp_flags(v, FIN_SYN_RST, SYN);
}
/// Goes on only for the packet that asks for a TCP connection.
pub(super) fn tcp_opening(v: &mut Expressions) {
    const FIN_SYN_RST_ACK: u8 = 0x17;
    tcp_flags(v, FIN_SYN_RST_ACK, SYN);
}
const SYN: u8 = 0x02;
fn tcp_flags(v: &mut Expressions, of: u8, set: u8) {
    l4proto(v, R);
    cmp(v, R, true, &[6]);
    payload(v, 2, 13, 1, R);
    mask(v, R, &[of]);
    cmp(v, R, true, &[set]);
}
/// The type of an ICMP message.
pub(super) fn icmp_type(v: &mut Expressions, reg: u32) {
    payload(v, 2, 0, 1, reg);
}
/// Lowers the segment size that a SYN announces to what the route takes in both directions.
pub(super) fn clamp_mss(v: &mut Expressions) {
    numbers(v, "rt", &[(1, R), (2, 3)]);
    numbers(v, "byteorder", &[(1, R), (2, R), (3, 1), (4, 2), (5, 2)]);
    expr(v, "exthdr", |v| {
        u32be(v, 7, R);
        attr(v, 2, &[2]); // option: maximum segment size
        u32be(v, 3, 2);
        u32be(v, 4, 2);
        u32be(v, 6, 1); // of TCP
    });
}
pub(super) fn not_from_lo(v: &mut Expressions) {
    meta(v, 6, R);
    cmp(v, R, false, b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}
/// Whether the source (flag 1) or destination (flag 2) is an address of this machine.
pub(super) fn fib_local(v: &mut Expressions, flag: u32, local: bool) {
    numbers(v, "fib", &[(1, R), (2, 3), (3, flag)]);
    cmp(v, R, local, &2u32.to_ne_bytes());
}
/// Goes on only if the connection's destination is translated.
pub(super) fn translated(v: &mut Expressions) {
    numbers(v, "ct", &[(1, R), (2, 2)]);
    mask(v, R, &DNAT_STATUS.to_ne_bytes());
    cmp(v, R, false, &0u32.to_ne_bytes());
}
/// Goes on only if connection tracking cannot place the packet.
pub(super) fn invalid(v: &mut Expressions) {
    numbers(v, "ct", &[(1, R), (2, 0)]);
    mask(v, R, &INVALID_STATE.to_ne_bytes());
    cmp(v, R, false, &0u32.to_ne_bytes());
}
/// Goes on only if the connection's destination is not translated.
pub(super) fn untranslated(v: &mut Expressions) {
    numbers(v, "ct", &[(1, R), (2, 2)]);
    mask(v, R, &DNAT_STATUS.to_ne_bytes());
    cmp(v, R, true, &0u32.to_ne_bytes());
}
fn state(v: &mut Expressions, states: u32, any: bool) {
    numbers(v, "ct", &[(1, R), (2, 0)]);
    mask(v, R, &states.to_ne_bytes());
    cmp(v, R, !any, &0u32.to_ne_bytes());
}
/// Goes on only for the first packet that is seen of a connection.
pub(super) fn new(v: &mut Expressions) {
    state(v, NEW_STATE, true);
}
/// Goes on only if the packet belongs to no connection that is known by now.
pub(super) fn unasked(v: &mut Expressions) {
    state(v, KNOWN_STATES, false);
}
/// Goes on only for a TCP segment that does not open a connection, of one that is not known.
pub(super) fn tcp_of_unknown(v: &mut Expressions) {
    const SYN_RST: u8 = 0x06;
    state(v, INVALID_STATE | NEW_STATE | UNTRACKED_STATE, true);
    l4proto(v, R);
    cmp(v, R, true, &[6]);
    payload(v, 2, 13, 1, R);
    mask(v, R, &[SYN_RST]);
    cmp(v, R, true, &[0]);
}
/// Goes on only for answers.
pub(super) fn answer(v: &mut Expressions) {
    numbers(v, "ct", &[(1, R), (2, 1)]);
    cmp(v, R, true, &[1]);
}
/// The connection's mark.
pub(super) fn ct_mark(v: &mut Expressions, reg: u32) {
    numbers(v, "ct", &[(1, reg), (2, CT_MARK)]);
}
pub(super) fn set_ct_mark(v: &mut Expressions, reg: u32) {
    numbers(v, "ct", &[(4, reg), (2, CT_MARK)]);
}
/// The zone in which the packets of the one who opens the connection are told apart; before connection tracking.
pub(super) fn set_original_zone(v: &mut Expressions, reg: u32) {
    expr(v, "ct", |v| {
        u32be(v, 4, reg);
        u32be(v, 2, CT_ZONE);
        attr(v, 3, &[0]);
    });
}
/// The link address that the packet came from; goes on only if there is one. It takes two registers.
pub(super) fn ether_saddr(v: &mut Expressions, reg: u32) {
    ethernet(v, reg);
    payload(v, 0, 6, 6, reg);
}
/// Goes on only for a packet of an Ethernet link.
pub(super) fn ethernet(v: &mut Expressions, reg: u32) {
    const IIFTYPE: u32 = 8;
    const ETHERNET: u16 = 1;
    meta(v, IIFTYPE, reg);
    cmp(v, reg, true, &ETHERNET.to_ne_bytes());
}
/// Gives the frame another destination; [`ethernet`] comes before.
pub(super) fn set_ether_daddr(v: &mut Expressions, reg: u32) {
    numbers(v, "payload", &[(5, reg), (2, 0), (3, 0), (4, 6), (6, 0), (7, 0), (8, 0)]);
}
/// Looks a key up in a set, or with `result` in a map; goes on only if it is there (`absent`: is not).
pub(super) fn lookup(v: &mut Expressions, set: &str, from: u32, result: Option<u32>, absent: bool) {
    expr(v, "lookup", |v| {
        text(v, 1, set);
        u32be(v, 2, from);
        if let Some(to) = result {
            u32be(v, 3, to);
        }
        if absent {
            u32be(v, 5, 1);
        }
    });
}
/// Renews (operation 1) an element of a dynamic map, or deletes it (2).
pub(super) fn dynamic(v: &mut Expressions, operation: u32, set: &str, key: u32, data: u32, seconds: u32) {
    expr(v, "dynset", |v| {
        text(v, 1, set);
        u32be(v, 3, operation);
        u32be(v, 4, key);
        u32be(v, 5, data);
        if operation == 1 {
            attr(v, 6, &(u64::from(seconds) * 1000).to_be_bytes());
        }
    });
}
fn verdict(v: &mut Expressions, code: i32, chain: Option<&str>) {
    expr(v, "immediate", |v| {
        u32be(v, 1, 0);
        nest(v, 2, |v| {
            nest(v, 2, |v| {
                u32be(v, 1, code.cast_unsigned());
                if let Some(chain) = chain {
                    text(v, 2, chain);
                }
            });
        });
    });
}
pub(super) fn accept(v: &mut Expressions) {
    verdict(v, 1, None);
}
pub(super) fn drop_packet(v: &mut Expressions) {
    verdict(v, 0, None);
}
pub(super) fn jump(v: &mut Expressions, chain: &str) {
    verdict(v, -3, Some(chain));
}
pub(super) fn goto(v: &mut Expressions, chain: &str) {
    verdict(v, -4, Some(chain));
}
pub(super) fn notrack(v: &mut Expressions) {
    expr(v, "notrack", |_| ());
}
/// To the transparent socket on a port of this machine, if it is there, whatever address the packet is for (TPROXY); the packet
/// is not changed.
pub(super) fn to_program(v: &mut Expressions, port: u16) {
    constant(v, R, &port.to_be_bytes());
    numbers(v, "tproxy", &[(1, 2), (3, R)]);
}
/// Answered with "destination unreachable" of this code.
pub(super) fn refuse(v: &mut Expressions, code: u8) {
    expr(v, "reject", |v| {
        u32be(v, 1, 0);
        attr(v, 2, &[code]);
    });
}
/// TCP gets a reset, everything else ICMP port unreachable.
pub(super) fn reject(v: &mut Expressions, tcp: bool) {
    let unreachable = v.layout.port_unreachable;
    expr(v, "reject", |v| {
        u32be(v, 1, u32::from(tcp));
        attr(v, 2, &[if tcp { 0 } else { unreachable }]);
    });
}
pub(super) fn masquerade(v: &mut Expressions) {
    numbers(v, "masq", &[(1, RANDOM_FULLY)]);
}
pub(super) fn snat(v: &mut Expressions, to: IpAddr) {
    constant(v, R, &octets(to));
    let family = v.layout.number;
    numbers(v, "nat", &[(1, 0), (2, family), (3, R), (7, RANDOM_FULLY)]);
}
/// Translates the destination to what `map` has for the key at [`R`]; the mark is cleared before anybody else sees it.
pub(super) fn dnat(v: &mut Expressions, map: &str) {
    let (family, port) = (v.layout.number, RESULT + v.layout.registers());
    lookup(v, map, R, Some(RESULT), false);
    clear_mark(v);
    numbers(v, "nat", &[(1, 1), (2, family), (3, RESULT), (5, port)]);
}
