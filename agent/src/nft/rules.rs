//! The part that does not depend on services: sets, chains and rules.

mod tunnel;

use super::{
    Static,
    batch::{Batch, Hook, MapSpec},
    class::Class,
    expr::{
        Expressions, R, clear_mark, cmp, constant, daddr, dnat, dport, drop_packet, dynamic, expr, fib_local,
        from_net, from_pod, goto, invalid, jump, l4proto, lookup, mark, mask, masquerade, meant_for_net,
        not_from_lo, notrack, numbers, random, reject, saddr, set_mark, snat, sport, to_net, to_pod,
        translated,
    },
};
use crate::{plan::Key, sys::netlink::u32be};

const ADDR: u32 = 7;
const PROTO: u32 = 12;
const PORT: u32 = 13;
/// Values that are numbers of this machine; the others travel in network order.
pub(super) const MARK: u32 = 19;

/// The mark of a packet that is looking for its endpoint: a service port's id above, its class, then its endpoint below.
pub(super) const ID_SHIFT: u32 = 12;
const LOW: u32 = (1 << ID_SHIFT) - 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS: u16 = 53;
/// Clients with affinity that one node remembers; more are served without.
const MOST_CLIENTS: u32 = 1 << 18;

/// Leaves the id in the mark.
fn id_only(v: &mut Expressions, reg: u32) {
    mark(v, reg);
    mask(v, reg, (!LOW).to_ne_bytes());
}

/// The chain for a class, and its way into the verdict map.
pub(super) fn class_chain(batch: &mut Batch, class: Class) {
    let name = class.chain();
    batch.chain(&name, None);
    match class {
        Class::Reject => {
            batch.rule(&name, clear_mark);
            batch.rule(&name, |v| {
                l4proto(v, R);
                cmp(v, R, true, &[TCP]);
                reject(v, true);
            });
            batch.rule(&name, |v| reject(v, false));
        }
        Class::Drop => batch.rule(&name, lost),
        Class::Plain(slots) => {
            batch.rule(&name, |v| {
                id_only(v, R);
                random(v, R + 1, slots);
                dnat(v, "ep");
            });
            batch.rule(&name, lost);
        }
        Class::Sticky(slots, seconds) => {
            batch.rule(&name, |v| {
                id_only(v, R);
                set_mark(v, R);
            });
            // A known client: its time starts anew. An element that is there keeps its value whatever the data says.
            batch.rule(&name, |v| {
                mark(v, R);
                saddr(v, R + 1);
                lookup(v, "clients", R, Some(R + 2), false);
                mark(v, R + 4);
                dynamic(v, 1, "clients", R, R + 4, seconds);
                set_mark(v, R + 2);
                jump(v, "sticky");
            });
            batch.rule(&name, |v| {
                mark(v, R);
                random(v, R + 1, slots);
                lookup(v, "choice", R, Some(R + 2), false);
                set_mark(v, R + 2);
            });
            batch.rule(&name, |v| {
                id_only(v, R);
                saddr(v, R + 1);
                mark(v, R + 2);
                dynamic(v, 1, "clients", R, R + 2, seconds);
            });
            batch.rule(&name, |v| {
                mark(v, R);
                dnat(v, "sticky_ep");
            });
            batch.rule(&name, lost);
        }
    }
    if let Some(number) = class.fixed_number() {
        batch.class_element(number, &name);
    }
}

/// A slot without an endpoint: never, while every batch is whole.
fn lost(v: &mut Expressions) {
    clear_mark(v);
    drop_packet(v);
}

/// Sets, base chains and the chains of the fixed classes.
pub(super) fn write(batch: &mut Batch, fixed: &Static) {
    batch.map("svc", &MapSpec::data(&[ADDR, PROTO, PORT], &[MARK]));
    batch.map("np", &MapSpec::data(&[PROTO, PORT], &[MARK]));
    batch.map("ep", &MapSpec::data(&[MARK, MARK], &[ADDR, PORT]));
    batch.map("choice", &MapSpec::data(&[MARK, MARK], &[MARK]));
    batch.map("sticky_ep", &MapSpec::data(&[MARK], &[ADDR, PORT]));
    batch.map("clients", &MapSpec::dynamic(&[MARK, ADDR], &[MARK], MOST_CLIENTS));
    batch.map("class", &MapSpec::data(&[MARK], &[]));
    batch.map("cluster_ips", &MapSpec::set(&[ADDR]));
    batch.map("nodes", &MapSpec::set(&[ADDR]));
    batch.map("direct", &MapSpec::set(&[ADDR]));
    batch.map("hairpin", &MapSpec::set(&[ADDR, ADDR]));
    // Every address a pod of ours may have: no service change ever touches this set.
    let own: Vec<_> =
        fixed.local_pod_cidr.hosts().map(|ip| ([ip.octets(), ip.octets()].concat(), vec![])).collect();
    for some in own.chunks(super::batch::ELEMENTS_PER_MESSAGE) {
        batch.elements(12, 0x400, "hairpin", "fill hairpin".into(), some);
    }
    batch.chain("sticky", None);
    batch.rule("sticky", |v| {
        mark(v, R);
        dnat(v, "sticky_ep");
    });
    // The client's endpoint is gone: forget it, and go back for a fresh choice.
    batch.rule("sticky", |v| {
        id_only(v, R);
        set_mark(v, R);
    });
    batch.rule("sticky", |v| {
        mark(v, R);
        saddr(v, R + 1);
        mark(v, R + 2);
        dynamic(v, 2, "clients", R, R + 2, 0);
    });
    for class in Class::fixed() {
        class_chain(batch, class);
    }

    batch.chain("dispatch", None);
    batch.rule("dispatch", |v| {
        mark(v, R);
        mask(v, R, LOW.to_ne_bytes());
        lookup(v, "class", R, Some(0), false);
    });
    batch.rule("dispatch", lost);
    services(batch, fixed);
    untracked(batch, fixed);
    strays(batch, fixed);
    tunnel::carrying(batch, fixed);
    sources(batch, fixed);
}

/// Where a new connection goes.
fn services(batch: &mut Batch, fixed: &Static) {
    batch.chain("services", None);
    batch.rule("services", |v| {
        daddr(v, R);
        l4proto(v, R + 1);
        dport(v, R + 2);
        lookup(v, "svc", R, Some(R + 4), false);
        set_mark(v, R + 4);
        goto(v, "dispatch");
    });
    batch.rule("services", |v| {
        fib_local(v, 2, true);
        daddr(v, R);
        mask(v, R, [255, 0, 0, 0]);
        cmp(v, R, false, &[127, 0, 0, 0]);
        l4proto(v, R);
        dport(v, R + 1);
        lookup(v, "np", R, Some(R + 4), false);
        set_mark(v, R + 4);
        goto(v, "dispatch");
    });
    batch.rule("services", |v| {
        daddr(v, R);
        lookup(v, "cluster_ips", R, None, false);
        goto(v, &Class::Reject.chain());
    });
    batch.rule("services", |v| {
        to_net(v, fixed.service_cidr, true);
        drop_packet(v);
    });
    for (name, hook) in [("prerouting", Hook::PREROUTING), ("output", Hook::OUTPUT)] {
        batch.chain(name, Some(Hook { number: hook, priority: -100, kind: "nat" }));
        batch.rule(name, |v| jump(v, "services"));
    }
}

/// Before connection tracking: what must not come in at all, and the DNS, which is answered on this node and by nobody else. Every
/// packet passes here, so what is rare stands in chains of its own: a packet from a pod meets four rules.
fn untracked(batch: &mut Batch, fixed: &Static) {
    let port_of_dns = |v: &mut Expressions, proto, port: fn(&mut Expressions, u32)| {
        l4proto(v, R);
        cmp(v, R, true, &[proto]);
        port(v, R);
        cmp(v, R, true, &DNS.to_be_bytes());
        notrack(v);
    };
    for (chain, port) in
        [("to-dns", dport as fn(&mut Expressions, u32)), ("from-dns", sport as fn(&mut Expressions, u32))]
    {
        batch.chain(chain, None);
        for proto in [UDP, TCP] {
            batch.rule(chain, |v| port_of_dns(v, proto, port));
        }
    }
    batch.chain("strangers", None);
    let foreign = |v: &mut Expressions| {
        from_pod(v, false);
        not_from_lo(v);
    };
    batch.rule("strangers", |v| {
        foreign(v);
        to_net(v, fixed.service_cidr, true);
        drop_packet(v);
    });
    batch.rule("strangers", |v| {
        foreign(v);
        to_net(v, fixed.pod_cidr, true);
        saddr(v, R);
        lookup(v, "nodes", R, None, true);
        drop_packet(v);
    });
    batch.chain("outside", Some(Hook { number: Hook::PREROUTING, priority: -300, kind: "filter" }));
    batch.chain("untracked", Some(Hook { number: Hook::OUTPUT, priority: -300, kind: "filter" }));
    for chain in ["outside", "untracked"] {
        for (address, to) in [(daddr as fn(&mut Expressions, u32), "to-dns"), (saddr, "from-dns")] {
            batch.rule(chain, |v| {
                address(v, R);
                cmp(v, R, true, &fixed.dns_ip.octets());
                jump(v, to);
            });
        }
    }
    batch.rule("outside", |v| {
        from_net(v, fixed.pod_cidr, false);
        jump(v, "strangers");
    });
    tunnel::incoming(batch, fixed);
}

/// Packets that connection tracking cannot place go untranslated: the other side would answer them with a reset.
fn strays(batch: &mut Batch, fixed: &Static) {
    batch.chain("strays", None);
    for side in [from_pod, to_pod] {
        batch.rule("strays", |v| {
            side(v, true);
            drop_packet(v);
        });
    }
    batch.chain("forward", Some(Hook { number: Hook::FORWARD, priority: 0, kind: "filter" }));
    batch.rule("forward", |v| {
        invalid(v);
        jump(v, "strays");
    });
    batch.chain("input", Some(Hook { number: Hook::INPUT, priority: 0, kind: "filter" }));
    batch.rule("input", |v| {
        invalid(v);
        from_net(v, fixed.pod_cidr, true);
        drop_packet(v);
    });
}

/// Which source the other side sees.
fn sources(batch: &mut Batch, fixed: &Static) {
    batch.chain("postrouting", Some(Hook { number: Hook::POSTROUTING, priority: 100, kind: "nat" }));
    tunnel::outgoing(batch, fixed);
    // A pod that reaches itself through its service.
    batch.rule("postrouting", |v| {
        translated(v);
        saddr(v, R);
        daddr(v, R + 1);
        lookup(v, "hairpin", R, None, false);
        snat(v, fixed.node_ip);
    });
    // Traffic to a nodePort, whatever node the endpoint is on: the answer must come back through here.
    batch.rule("postrouting", |v| {
        translated(v);
        meant_for_net(v, fixed.service_cidr, false);
        to_net(v, fixed.pod_cidr, true);
        fib_local(v, 1, false);
        snat(v, fixed.node_ip);
    });
    // Nobody outside of the cluster knows a pod's address, and no router on the way to a node on another network.
    batch.rule("postrouting", |v| {
        from_net(v, fixed.local_pod_cidr, true);
        to_net(v, fixed.pod_cidr, false);
        daddr(v, R);
        lookup(v, "direct", R, None, true);
        masquerade(v);
    });
}

/// Name of the set or map that a key belongs to.
pub(super) fn set_of(key: &Key) -> &'static str {
    match key {
        Key::Node(..) => "nodes",
        Key::Direct(..) => "direct",
        Key::Slot(..) => "ep",
        Key::Endpoint(..) => "sticky_ep",
        Key::Choice(..) => "choice",
        Key::ClusterIp(..) => "cluster_ips",
        Key::Service(..) => "svc",
        Key::NodePort(..) => "np",
        Key::OutsideService(..) => "svc_outside",
        Key::OutsideNodePort(..) => "np_outside",
        Key::Allowed(..) => "allowed",
        Key::Guarded(..) => "guarded",
    }
}

/// The sets whose elements are the planner's.
pub(super) const PLANNED: [&str; 8] =
    ["nodes", "direct", "ep", "sticky_ep", "choice", "cluster_ips", "svc", "np"];

/// Size of a field by its type.
pub(super) fn size(kind: u32) -> u32 {
    match kind {
        PROTO => 1,
        PORT => 2,
        _ => 4,
    }
}

/// What it is, the kernel's module or option, and a rule that needs it.
pub(super) type Feature = (&'static str, &'static str, fn(&mut Expressions));

/// What the kernel may lack.
pub(super) fn features() -> Vec<Feature> {
    vec![
        ("destination translation", "nft_chain_nat and nft_nat", |v| {
            constant(v, R, &[192, 0, 2, 1]);
            numbers(v, "nat", &[(1, 1), (2, 2), (3, R)]);
        }),
        ("random choice", "nft_numgen", |v| random(v, R, 2)),
        ("route lookup", "nft_fib_ipv4", |v| fib_local(v, 2, true)),
        ("connection state", "nft_ct", translated),
        ("reject", "nft_reject_ipv4", |v| reject(v, true)),
        ("link groups", "nf_tables with meta iifgroup", |v| from_pod(v, true)),
        ("elements that rules add", "nft_dynset of nf_tables", |v| {
            mark(v, R);
            expr(v, "dynset", |v| {
                crate::sys::netlink::text(v, 1, "probe");
                u32be(v, 3, 1);
                u32be(v, 4, R);
                u32be(v, 5, R);
            });
        }),
    ]
}
