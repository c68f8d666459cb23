//! The part that does not depend on services: sets, chains and rules.

mod classes;
mod services;
mod source;
mod tunnel;

use super::{
    batch::{Batch, Element, Hook, MapSpec},
    expr::{
        Expressions, R, clamp_mss, cmp, constant, daddr, dport, drop_packet, expr, fib_local, from_net,
        from_pod, goto, invalid, jump, l4proto, lookup, mark, masquerade, meant_for_net, not_from_lo,
        notrack, numbers, random, reject, saddr, snat, sport, tcp_syn, to_net, to_pod, translated,
    },
    family::{Addresses, octets},
};
use crate::{
    plan::{Family, Key},
    sys::netlink::u32be,
};
pub(super) use classes::class_chain;

/// Types of fields, as `nft` numbers them.
const IPV6: u32 = 8;
const PROTO: u32 = 12;
const PORT: u32 = 13;
/// Values that are numbers of this machine; the others travel in network order.
pub(super) const MARK: u32 = 19;
pub(super) const MAC: u32 = 9;
pub(super) const ZONE: u32 = 4;

/// The mark of a packet that is looking for its endpoint: a service port's id above, its class, then its endpoint below.
pub(super) const ID_SHIFT: u32 = 12;
const LOW: u32 = (1 << ID_SHIFT) - 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS: u16 = 53;
/// Clients with affinity that one node remembers; more are served without.
const MOST_CLIENTS: u32 = 1 << 18;

/// Sets, base chains and the chains of the fixed classes.
pub(super) fn write(batch: &mut Batch, fixed: &Addresses) {
    let addr = batch.layout().address_type;
    for map in ["svc", "svc_outside"] {
        batch.map(map, &MapSpec::data(&[addr, PROTO, PORT], &[MARK]));
    }
    for map in ["np", "np_outside"] {
        batch.map(map, &MapSpec::data(&[PROTO, PORT], &[MARK]));
    }
    batch.map("guarded", &MapSpec::set(&[addr, PROTO, PORT]));
    ranges_of_sources(batch);
    batch.map("ep", &MapSpec::data(&[MARK, MARK], &[addr, PORT]));
    batch.map("choice", &MapSpec::data(&[MARK, MARK], &[MARK]));
    batch.map("sticky_ep", &MapSpec::data(&[MARK], &[addr, PORT]));
    batch.map("clients", &MapSpec::dynamic(&[MARK, addr], &[MARK], MOST_CLIENTS));
    batch.map("class", &MapSpec::data(&[MARK], &[]));
    batch.map("cluster_ips", &MapSpec::set(&[addr]));
    batch.map("nodes", &MapSpec::set(&[addr]));
    batch.map("direct", &MapSpec::set(&[addr]));
    source::maps(batch);
    batch.map("hairpin", &MapSpec::set(&[addr, addr]));
    // Every address a pod of ours may have: no service change ever touches this set.
    let twice = |ip| [octets(ip), octets(ip)].concat();
    let own: Vec<_> = fixed.pods.iter().map(|ip| Element::new(twice(*ip), Vec::new())).collect();
    for some in own.chunks(super::batch::ELEMENTS_PER_MESSAGE) {
        batch.elements(12, 0x400, "hairpin", "fill hairpin".into(), some);
    }
    classes::write(batch);
    services::write(batch, fixed);
    untracked(batch, fixed);
    strays(batch, fixed);
    source::remembering(batch, fixed);
    tunnel::carrying(batch, fixed);
    sources(batch, fixed);
}

/// Before connection tracking: what must not come in at all, and the DNS, which is answered on this node and by nobody else. Every
/// packet passes here, so what is rare stands in chains of its own: a packet from a pod meets four rules.
fn untracked(batch: &mut Batch, fixed: &Addresses) {
    type Load<T> = fn(&mut Expressions, u32) -> T;
    let port_of_dns = |v: &mut Expressions, proto, port: Load<()>| {
        l4proto(v, R);
        cmp(v, R, true, &[proto]);
        port(v, R);
        cmp(v, R, true, &DNS.to_be_bytes());
        notrack(v);
    };
    for (chain, port) in [("to-dns", dport as Load<()>), ("from-dns", sport)] {
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
    batch.chain("outside", Some(Hook::new(Hook::PREROUTING, -300, "filter")));
    batch.chain("untracked", Some(Hook::new(Hook::OUTPUT, -300, "filter")));
    for chain in ["outside", "untracked"] {
        for (address, to) in [(daddr as Load<u32>, "to-dns"), (saddr, "from-dns")] {
            batch.rule(chain, |v| {
                address(v, R);
                cmp(v, R, true, &octets(fixed.dns_ip));
                jump(v, to);
            });
        }
    }
    source::incoming(batch, fixed);
    batch.rule("outside", |v| {
        from_net(v, fixed.pod_cidr, false);
        jump(v, "strangers");
    });
    tunnel::incoming(batch, fixed);
}

/// Packets that connection tracking cannot place go untranslated: the other side would answer them with a reset.
fn strays(batch: &mut Batch, fixed: &Addresses) {
    batch.chain("strays", None);
    for side in [from_pod, to_pod] {
        batch.rule("strays", |v| {
            side(v, true);
            drop_packet(v);
        });
    }
    batch.chain("forward", Some(Hook::new(Hook::FORWARD, 0, "filter")));
    batch.rule("forward", |v| {
        invalid(v);
        jump(v, "strays");
    });
    batch.chain("input", Some(Hook::new(Hook::INPUT, 0, "filter")));
    batch.rule("input", |v| {
        invalid(v);
        from_net(v, fixed.pod_cidr, true);
        drop_packet(v);
    });
}

/// Which source the other side sees.
fn sources(batch: &mut Batch, fixed: &Addresses) {
    batch.chain("postrouting", Some(Hook::new(Hook::POSTROUTING, 100, "nat")));
    source::outgoing(batch, fixed);
    tunnel::outgoing(batch, fixed);
    // A pod that reaches itself through its service.
    batch.rule("postrouting", |v| {
        translated(v);
        let next = saddr(v, R);
        daddr(v, next);
        lookup(v, "hairpin", R, None, false);
        snat(v, fixed.node_ip);
    });
    // Traffic to any other address than a ClusterIP: the answer must come back through here.
    batch.rule("postrouting", |v| {
        translated(v);
        meant_for_net(v, fixed.service_cidr, false);
        saddr(v, R);
        cmp(v, R, false, &octets(fixed.node_ip));
        goto(v, "entered");
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
        Key::AtHome(..) => "at_home",
        Key::EntryZone(..) => "entry_zone",
        Key::EntryMark(..) => "entry_mark",
        Key::Returning(..) => "returning",
        Key::Kept(..) => "kept",
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
pub(super) fn planned(family: Family) -> impl Iterator<Item = &'static str> {
    let both = ["nodes", "direct", "ep", "sticky_ep", "choice", "cluster_ips", "svc", "np"];
    let policies = ["svc_outside", "np_outside", "allowed", "guarded"];
    let v4: &[_] = if family == Family::V4 { &source::MAPS } else { &[] };
    both.into_iter().chain(policies).chain(v4.iter().copied())
}

/// Size of a field by its type.
pub(super) fn size(kind: u32) -> u32 {
    match kind {
        PROTO => 1,
        PORT | ZONE => 2,
        MAC => 6,
        IPV6 => 16,
        _ => 4,
    }
}

/// A chain that takes it, what it is, the kernel's module or option, and a rule that needs it.
pub(super) type Feature = (&'static str, &'static str, &'static str, fn(&mut Expressions));

/// The chains in which features are tried.
pub(super) const PROBED: [(&str, Hook<'static>); 3] = [
    ("probe-in", Hook { number: Hook::PREROUTING, priority: -100, kind: "nat", device: None }),
    ("probe-through", Hook { number: Hook::FORWARD, priority: 0, kind: "filter", device: None }),
    ("probe-out", Hook { number: Hook::POSTROUTING, priority: 100, kind: "nat", device: None }),
];

/// The set of who may use a load balancer.
pub(super) fn ranges_of_sources(batch: &mut Batch) {
    let addr = batch.layout().address_type;
    batch.map("allowed", &MapSpec::ranges(&[addr, PROTO, PORT, addr]));
}

/// What the kernel may lack.
pub(super) fn features(family: Family) -> Vec<Feature> {
    let (fib, rejecting) = match family {
        Family::V4 => ("nft_fib_ipv4", "nft_reject_ipv4"),
        Family::V6 => ("nft_fib_ipv6", "nft_reject_ipv6"),
    };
    vec![
        ("probe-in", "destination translation", "nft_chain_nat and nft_nat", |v| {
            constant(v, R, &vec![1; v.layout.length as usize]);
            let family = v.layout.number;
            numbers(v, "nat", &[(1, 1), (2, family), (3, R)]);
        }),
        ("probe-out", "masquerading", "nft_masq", masquerade),
        ("probe-in", "random choice", "nft_numgen", |v| random(v, R, 2)),
        ("probe-in", "route lookup", fib, |v| fib_local(v, 2, true)),
        ("probe-in", "connection state", "nft_ct", translated),
        ("probe-in", "reject", rejecting, |v| reject(v, true)),
        ("probe-in", "link groups", "nf_tables with meta iifgroup", |v| from_pod(v, true)),
        ("probe-through", "segment sizes", "nf_tables with rt and tcp options", |v| {
            tcp_syn(v);
            clamp_mss(v);
        }),
        ("probe-in", "elements that rules add", "nft_dynset of nf_tables", |v| {
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
