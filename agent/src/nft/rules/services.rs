//! Where a new connection goes: the hooks of translation, which a connection's first packet alone meets.

use super::super::{
    batch::{Batch, Hook},
    class::Class,
    expr::{
        Expressions, R, called, cmp, daddr, dport, drop_packet, fib_local, from_net, from_pod, goto, jump,
        l4proto, lookup, mask, saddr, set_mark, to_net,
    },
    family::Addresses,
};
use crate::plan::Family;

/// Goes to the endpoints of the address and port in a map.
fn at_address(v: &mut Expressions, map: &str) {
    let next = called(v);
    lookup(v, map, R, Some(next), false);
    set_mark(v, next);
    goto(v, "dispatch");
}

/// Goes to the endpoints of the nodePort in a map, at any address of the node that others can have.
fn at_node(v: &mut Expressions, map: &str) {
    fib_local(v, 2, true);
    daddr(v, R);
    match v.layout.family {
        Family::V4 => {
            mask(v, R, &[255, 0, 0, 0]);
            cmp(v, R, false, &[127, 0, 0, 0]);
        }
        Family::V6 => {
            let mut loopback = [0; 16];
            loopback[15] = 1;
            cmp(v, R, false, &loopback);
            let (mut first_ten_bits, mut link_local) = ([0; 16], [0; 16]);
            first_ten_bits[..2].copy_from_slice(&[0xff, 0xc0]);
            link_local[..2].copy_from_slice(&[0xfe, 0x80]);
            mask(v, R, &first_ten_bits);
            cmp(v, R, false, &link_local);
        }
    }
    l4proto(v, R);
    dport(v, R + 1);
    lookup(v, map, R, Some(R + 2), false);
    set_mark(v, R + 2);
    goto(v, "dispatch");
}

pub(super) fn write(batch: &mut Batch, fixed: &Addresses) {
    batch.chain("services", None);
    batch.rule("services", |v| at_address(v, "svc"));
    batch.rule("services", |v| at_node(v, "np"));
    batch.rule("services", |v| {
        daddr(v, R);
        lookup(v, "cluster_ips", R, None, false);
        goto(v, &Class::Reject.chain());
    });
    batch.rule("services", |v| {
        to_net(v, fixed.service_cidr, true);
        drop_packet(v);
    });
    // What a policy holds to this node's endpoints when it comes from outside.
    batch.chain("outsiders", None);
    batch.rule("outsiders", |v| at_address(v, "svc_outside"));
    batch.rule("outsiders", |v| at_node(v, "np_outside"));

    batch.chain("prerouting", Some(Hook::new(Hook::PREROUTING, -100, "nat")));
    // The sources that a load balancer is for. A process of this node, which does not come by here, is always one.
    batch.rule("prerouting", |v| {
        let next = called(v);
        lookup(v, "guarded", R, None, false);
        saddr(v, next);
        lookup(v, "allowed", R, None, true);
        drop_packet(v);
    });
    batch.rule("prerouting", |v| {
        from_pod(v, false);
        from_net(v, fixed.pod_cidr, false);
        saddr(v, R);
        lookup(v, "nodes", R, None, true);
        jump(v, "outsiders");
    });
    batch.rule("prerouting", |v| jump(v, "services"));
    batch.chain("output", Some(Hook::new(Hook::OUTPUT, -100, "nat")));
    batch.rule("output", |v| jump(v, "services"));
}
