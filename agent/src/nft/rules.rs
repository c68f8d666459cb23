//! The static part: sets, chains and rules. Numbers are those of `linux/netfilter/nf_tables.h`.

use super::{Batch, Static, TABLE, class_element, elements};
use crate::sys::netlink::{attr, nest, text, u32be};
use ipnet::Ipv4Net;

const ADDR: u32 = 7;
const PROTO: u32 = 12;
const PORT: u32 = 13;
const MARK: u32 = 19;
/// First 32-bit register; registers 8 to 11 hold keys, 12 and 13 results.
const R: u32 = 8;
const META_MARK: u32 = 3;
const DNAT_STATUS: u32 = 0x20;

type Expressions = Vec<u8>;

fn expr(v: &mut Expressions, name: &str, fill: impl FnOnce(&mut Vec<u8>)) {
    nest(v, 1, |v| {
        text(v, 1, name);
        nest(v, 2, fill);
    });
}
fn numbers(v: &mut Expressions, name: &str, pairs: &[(u16, u32)]) {
    expr(v, name, |v| pairs.iter().for_each(|(k, n)| u32be(v, *k, *n)));
}
fn payload(v: &mut Expressions, base: u32, offset: u32, len: u32, reg: u32) {
    numbers(v, "payload", &[(1, reg), (2, base), (3, offset), (4, len)]);
}
fn saddr(v: &mut Expressions, reg: u32) {
    payload(v, 1, 12, 4, reg);
}
fn daddr(v: &mut Expressions, reg: u32) {
    payload(v, 1, 16, 4, reg);
}
fn dport(v: &mut Expressions, reg: u32) {
    payload(v, 2, 2, 2, reg);
}
fn meta(v: &mut Expressions, key: u32, reg: u32) {
    numbers(v, "meta", &[(1, reg), (2, key)]);
}
/// The class travels from the lookup to the verdict map in the packet mark: nft 1.0.6 aborts when it lists a lookup whose key
/// is another lookup's result. The class's chain clears it again, so nobody behind us sees it.
fn go_to_class(v: &mut Expressions) {
    numbers(v, "meta", &[(3, R), (2, META_MARK)]);
    meta(v, META_MARK, R);
    lookup(v, "class", R, Some(0), false);
}
fn clear_mark(v: &mut Expressions) {
    expr(v, "immediate", |v| {
        u32be(v, 1, R);
        nest(v, 2, |v| attr(v, 1, &[0; 4]));
    });
    numbers(v, "meta", &[(3, R), (2, META_MARK)]);
}
fn l4proto(v: &mut Expressions, reg: u32) {
    meta(v, 16, reg);
}
fn cmp(v: &mut Expressions, equal: bool, data: &[u8]) {
    expr(v, "cmp", |v| {
        u32be(v, 1, R);
        u32be(v, 2, u32::from(!equal));
        nest(v, 3, |v| attr(v, 1, data));
    });
}
fn mask(v: &mut Expressions, mask: &[u8]) {
    expr(v, "bitwise", |v| {
        u32be(v, 1, R);
        u32be(v, 2, R);
        u32be(v, 3, mask.len() as u32);
        nest(v, 4, |v| attr(v, 1, mask));
        nest(v, 5, |v| attr(v, 1, &vec![0; mask.len()]));
    });
}
fn within(v: &mut Expressions, load: fn(&mut Expressions, u32), net: Ipv4Net, inside: bool) {
    load(v, R);
    mask(v, &net.netmask().octets());
    cmp(v, inside, &net.network().octets());
}
fn interface(v: &mut Expressions, key: u32, name: &[u8], equal: bool) {
    meta(v, key, R);
    cmp(v, equal, name);
}
fn fib_local(v: &mut Expressions, flag: u32, local: bool) {
    numbers(v, "fib", &[(1, R), (2, 3), (3, flag)]);
    cmp(v, local, &2u32.to_ne_bytes());
}
fn dnatted(v: &mut Expressions, yes: bool) {
    numbers(v, "ct", &[(1, R), (2, 2)]);
    mask(v, &DNAT_STATUS.to_ne_bytes());
    cmp(v, !yes, &0u32.to_ne_bytes());
}
/// A set, or with `result` a map.
fn lookup(v: &mut Expressions, set: &str, from: u32, result: Option<u32>, absent: bool) {
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
fn drop_packet(v: &mut Expressions) {
    verdict(v, 0, None);
}
fn masquerade(v: &mut Expressions) {
    expr(v, "masq", |_| ());
}
fn dnat(v: &mut Expressions) {
    numbers(v, "nat", &[(1, 1), (2, 2), (3, R + 4), (5, R + 5)]);
}

fn rule(batch: &mut Batch, chain: &str, fill: impl FnOnce(&mut Expressions)) {
    batch.push(6, 0xC00, format!("add a rule to {chain}"), |v| {
        text(v, 1, TABLE);
        text(v, 2, chain);
        nest(v, 4, fill);
    });
}

fn chain(batch: &mut Batch, name: &str, hook: Option<(u32, i32, &str)>) {
    batch.push(3, 0x400, format!("add chain {name}"), |v| {
        text(v, 1, TABLE);
        text(v, 3, name);
        if let Some((number, priority, kind)) = hook {
            nest(v, 4, |v| {
                u32be(v, 1, number);
                u32be(v, 2, priority.cast_unsigned());
            });
            text(v, 7, kind);
        }
    });
}

fn size(kind: u32) -> u32 {
    match kind {
        PROTO => 1,
        PORT => 2,
        _ => 4,
    }
}

/// A set (no data) or a map; a verdict map when data is `[]`.
fn set(batch: &mut Batch, id: u32, name: &str, key: &[u32], data: Option<&[u32]>) {
    let type_of = |fields: &[u32]| fields.iter().fold(0, |id, f| (id << 6) | f);
    batch.push(9, 0x400, format!("add set {name}"), |v| {
        text(v, 1, TABLE);
        text(v, 2, name);
        let concat = key.len() > 1;
        u32be(v, 3, if data.is_some() { 8 } else { 0 } | if concat { 0x80 } else { 0 });
        u32be(v, 4, type_of(key));
        u32be(v, 5, if concat { 4 * key.len() as u32 } else { size(key[0]) });
        match data {
            Some([]) => u32be(v, 6, 0xffff_ff00),
            Some(fields) => {
                u32be(v, 6, type_of(fields));
                u32be(v, 7, 4 * fields.len() as u32);
            }
            None => {}
        }
        if concat {
            nest(v, 9, |v| {
                nest(v, 2, |v| key.iter().for_each(|f| nest(v, 1, |v| u32be(v, 1, size(*f)))));
            });
        }
        u32be(v, 10, id);
    });
}

/// The chain for services of exactly `k` endpoints, and its way into the verdict map.
pub(super) fn class_chain(batch: &mut Batch, k: u32) {
    let name = format!("c{k}");
    chain(batch, &name, None);
    rule(batch, &name, clear_mark);
    let pick = |v: &mut Expressions, reg| numbers(v, "numgen", &[(1, reg), (2, k), (3, 1), (4, 0)]);
    rule(batch, &name, |v| {
        daddr(v, R);
        l4proto(v, R + 1);
        dport(v, R + 2);
        pick(v, R + 3);
        lookup(v, "ep", R, Some(R + 4), false);
        dnat(v);
    });
    rule(batch, &name, |v| {
        l4proto(v, R);
        dport(v, R + 1);
        pick(v, R + 2);
        lookup(v, "npep", R, Some(R + 4), false);
        dnat(v);
    });
    rule(batch, &name, drop_packet);
    class_element(batch, k, &name);
}

/// Sets, base chains and the reject chain.
pub(super) fn write(batch: &mut Batch, fixed: &Static) {
    set(batch, 1, "svc", &[ADDR, PROTO, PORT], Some(&[MARK]));
    set(batch, 2, "np", &[PROTO, PORT], Some(&[MARK]));
    set(batch, 3, "ep", &[ADDR, PROTO, PORT, MARK], Some(&[ADDR, PORT]));
    set(batch, 4, "npep", &[PROTO, PORT, MARK], Some(&[ADDR, PORT]));
    set(batch, 5, "class", &[MARK], Some(&[]));
    set(batch, 6, "cluster_ips", &[ADDR], None);
    set(batch, 7, "nodes", &[ADDR], None);
    set(batch, 8, "hairpin", &[ADDR, ADDR], None);
    let nodes: Vec<_> = fixed.node_ips.iter().map(|ip| (ip.octets().to_vec(), vec![])).collect();
    // Every address a pod of ours may have: no service change ever touches this set.
    let own: Vec<_> =
        fixed.local_pod_cidr.hosts().map(|ip| ([ip.octets(), ip.octets()].concat(), vec![])).collect();
    for (name, all) in [("nodes", nodes), ("hairpin", own)] {
        for some in all.chunks(super::ELEMENTS_PER_MESSAGE) {
            elements(batch, 12, 0x400, name, format!("fill {name}"), some);
        }
    }

    chain(batch, "c0", None);
    rule(batch, "c0", clear_mark);
    rule(batch, "c0", |v| {
        l4proto(v, R);
        cmp(v, true, &[6]);
        expr(v, "reject", |v| {
            u32be(v, 1, 1);
            attr(v, 2, &[0]);
        });
    });
    rule(batch, "c0", |v| {
        expr(v, "reject", |v| {
            u32be(v, 1, 0);
            attr(v, 2, &[3]);
        });
    });
    class_element(batch, 0, "c0");

    chain(batch, "services", None);
    rule(batch, "services", |v| {
        daddr(v, R);
        l4proto(v, R + 1);
        dport(v, R + 2);
        lookup(v, "svc", R, Some(R), false);
        go_to_class(v);
    });
    rule(batch, "services", |v| {
        fib_local(v, 2, true);
        daddr(v, R);
        mask(v, &[255, 0, 0, 0]);
        cmp(v, false, &[127, 0, 0, 0]);
        l4proto(v, R);
        dport(v, R + 1);
        lookup(v, "np", R, Some(R), false);
        go_to_class(v);
    });
    rule(batch, "services", |v| {
        daddr(v, R);
        lookup(v, "cluster_ips", R, None, false);
        verdict(v, -4, Some("c0"));
    });
    rule(batch, "services", |v| {
        within(v, daddr, fixed.service_cidr, true);
        drop_packet(v);
    });
    for (name, hook) in [("prerouting", 0), ("output", 3)] {
        chain(batch, name, Some((hook, -100, "nat")));
        rule(batch, name, |v| verdict(v, -3, Some("services")));
    }

    chain(batch, "outside", Some((0, -300, "filter")));
    let foreign = |v: &mut Expressions| {
        interface(v, 6, b"vp", false);
        interface(v, 6, b"lo\0", false);
    };
    rule(batch, "outside", |v| {
        foreign(v);
        within(v, daddr, fixed.service_cidr, true);
        drop_packet(v);
    });
    rule(batch, "outside", |v| {
        foreign(v);
        within(v, daddr, fixed.pod_cidr, true);
        within(v, saddr, fixed.pod_cidr, false);
        saddr(v, R);
        lookup(v, "nodes", R, None, true);
        drop_packet(v);
    });

    chain(batch, "postrouting", Some((4, 100, "nat")));
    rule(batch, "postrouting", |v| {
        dnatted(v, false);
        within(v, saddr, fixed.local_pod_cidr, true);
        within(v, daddr, fixed.pod_cidr, false);
        daddr(v, R);
        lookup(v, "nodes", R, None, true);
        masquerade(v);
    });
    rule(batch, "postrouting", |v| {
        dnatted(v, true);
        saddr(v, R);
        daddr(v, R + 1);
        lookup(v, "hairpin", R, None, false);
        masquerade(v);
    });
    rule(batch, "postrouting", |v| {
        dnatted(v, true);
        within(v, saddr, fixed.local_pod_cidr, false);
        fib_local(v, 1, false);
        interface(v, 7, b"vp", false);
        masquerade(v);
    });
}
