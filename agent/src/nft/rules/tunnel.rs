//! The tunnel to nodes on other networks. Its link is known by its group: these rules stand whether it is there or not.

use super::{
    super::{
        batch::Batch,
        expr::{
            Expressions, R, clamp_mss, cmp, daddr, dport, drop_packet, fib_local, from_net, from_pod,
            from_tunnel, goto, jump, l4proto, lookup, meant_for_net, saddr, snat, tcp_syn, to_tunnel,
            translated,
        },
        family::{Addresses, octets},
    },
    UDP,
};

/// What comes out of the tunnel, before connection tracking.
pub(super) fn incoming(batch: &mut Batch, fixed: &Addresses) {
    // The tunnel brings what other nodes' pods, and other nodes by their addresses inside, have for this node's pods (`entering`), and
    // what pods and their nodes answer to clients who came in here (`entry`).
    batch.chain("tunnelled-in", None);
    batch.rule("tunnelled-in", |v| {
        from_net(v, fixed.pod_cidr, false);
        saddr(v, R);
        lookup(v, "nodes", R, None, true);
        drop_packet(v);
    });
    batch.rule("outside", |v| {
        from_tunnel(v);
        jump(v, "tunnelled-in");
    });
}

/// What carries the tunnel, and how large what goes through it may be.
pub(super) fn carrying(batch: &mut Batch, fixed: &Addresses) {
    if let Some(port) = fixed.vxlan_port {
        outer(batch, fixed, port);
    }
    // Pods' links take larger packets than the tunnel. Without this a connection's first large segment is lost, and the sender told.
    for side in [from_tunnel, to_tunnel] {
        batch.rule("forward", |v| {
            side(v);
            tcp_syn(v);
            clamp_mss(v);
        });
    }
}

/// Who may send and get the tunnel's own packets.
fn outer(batch: &mut Batch, fixed: &Addresses, port: u16) {
    let carries = |v: &mut Expressions| {
        l4proto(v, R);
        cmp(v, R, true, &[UDP]);
        dport(v, R);
        cmp(v, R, true, &port.to_be_bytes());
    };
    // Whoever may send this puts packets into the network of pods. A node does it by its own address, and never to itself.
    batch.rule("input", |v| {
        carries(v);
        saddr(v, R);
        lookup(v, "nodes", R, None, true);
        drop_packet(v);
    });
    batch.rule("input", |v| {
        carries(v);
        saddr(v, R);
        cmp(v, R, true, &octets(fixed.node_ip));
        drop_packet(v);
    });
    // A pod's packet would get the node's address on its way to a node on another network.
    batch.rule("forward", |v| {
        from_pod(v, true);
        carries(v);
        daddr(v, R);
        lookup(v, "nodes", R, None, false);
        drop_packet(v);
    });
}

/// Which source the other end sees.
pub(super) fn outgoing(batch: &mut Batch, fixed: &Addresses) {
    // Answers must come back through the tunnel: the other side knows this node by its address inside.
    batch.chain("tunnelled-out", None);
    batch.rule("tunnelled-out", |v| {
        translated(v);
        meant_for_net(v, fixed.service_cidr, false);
        fib_local(v, 1, false);
        goto(v, "entered");
    });
    batch.rule("tunnelled-out", |v| {
        from_net(v, fixed.pod_cidr, false);
        snat(v, fixed.inside);
    });
    batch.rule("postrouting", |v| {
        to_tunnel(v);
        goto(v, "tunnelled-out");
    });
}
