//! Which source a pod sees of what enters on another node, and how its answer finds back: see [`crate::source`].

use ipnet::IpNet;

use super::{
    super::{
        batch::{Batch, Hook, MapSpec},
        expr::{
            Expressions, R, accept, answer, below, cmp, ct_mark, daddr, dport, drop_packet, ether_saddr,
            fib_local, from_net, from_pod, from_tunnel, goto, jump, l4proto, lookup, mask, masquerade, new,
            saddr, set_ct_mark, set_mark, set_original_zone, snat, sport, tcp_of_unknown, to_net, to_tunnel,
            unasked, untranslated,
        },
        family::{Addresses, octets},
    },
    MAC, MARK, UDP, ZONE,
};
use crate::{
    plan::Family,
    source::{
        NUMBER, REMEMBERED, TUNNEL, UPLINK,
        socket::{FOREIGN, PORT},
    },
};

/// User data by which `nft` shows the map as `typeof ether saddr : ct zone`: a zone has no type of its own.
const SHOWN_AS_ZONE: [u8; 44] = [
    3, 20, 0, 4, 7, 0, 0, 0, 1, 12, 0, 4, 17, 0, 0, 0, 1, 4, 2, 0, 0,
    0, // key: payload, Ethernet, source
    4, 20, 0, 4, 12, 0, 0, 0, 1, 12, 0, 4, 17, 0, 0, 0, 1, 4, 255, 255, 255,
    255, // data: ct, zone, no direction
];
/// After other programs' mangle chains, which may give packets their connection's mark; before translation.
const AFTER_MANGLE: i32 = -140;
/// What pods answer from; clients' own ports are above.
const FIRST_CLIENT_PORT: u16 = 32_768;

/// Their elements are told by the dataplane.
pub(super) const MAPS: [&str; 5] = ["at_home", "entry_zone", "entry_mark", "returning", "kept"];

fn keeps(batch: &Batch) -> bool {
    batch.layout().family == Family::V4
}

pub(super) fn maps(batch: &mut Batch) {
    if !keeps(batch) {
        return;
    }
    let addr = batch.layout().address_type;
    batch.map("at_home", &MapSpec::set(&[MAC, addr]));
    batch.map("entry_zone", &MapSpec::data(&[MAC], &[ZONE]).shown(&SHOWN_AS_ZONE));
    batch.map("entry_mark", &MapSpec::data(&[MAC], &[MARK]));
    batch.map("returning", &MapSpec::set(&[addr, addr]));
    batch.map("kept", &MapSpec::set(&[addr]));
}

/// What comes from other machines for pods of this node, before connection tracking.
pub(super) fn incoming(batch: &mut Batch, fixed: &Addresses) {
    batch.chain("entering", None);
    if keeps(batch) {
        // What nobody but that node sends is mixed up with nothing, whether the node lets sources stay or not; a zone that came while a
        // connection is open would tear it.
        batch.rule("entering", |v| {
            ether_saddr(v, R);
            saddr(v, R + 2);
            lookup(v, "at_home", R, None, false);
            accept(v);
        });
        batch.rule("entering", |v| {
            ether_saddr(v, R);
            part(v, R + 2, saddr, fixed.local_pod_cidr);
            lookup(v, "at_home", R, None, false);
            accept(v);
        });
        // A node that lets sources stay: whatever the source is. The same client may have used the same port for another node, too: the
        // zone keeps both connections apart.
        batch.rule("entering", |v| {
            ether_saddr(v, R);
            lookup(v, "entry_zone", R, Some(R + 4), false);
            set_original_zone(v, R + 4);
            accept(v);
        });
    }
    batch.rule("entering", |v| {
        from_net(v, fixed.pod_cidr, true);
        accept(v);
    });
    batch.rule("entering", |v| {
        from_tunnel(v);
        drop_packet(v);
    });
    batch.rule("entering", |v| {
        saddr(v, R);
        lookup(v, "nodes", R, None, true);
        drop_packet(v);
    });
    batch.rule("outside", |v| {
        from_pod(v, false);
        to_net(v, fixed.local_pod_cidr, true);
        goto(v, "entering");
    });
}

/// Goes on with the packet's mark made of the connection's, if that is one of ours.
fn remembered(v: &mut Expressions) {
    answer(v);
    ct_mark(v, R);
    mask(v, R, &(!(UPLINK | TUNNEL | NUMBER)).to_ne_bytes());
    cmp(v, R, true, &REMEMBERED.to_ne_bytes());
    ct_mark(v, R);
    mask(v, R, &(UPLINK | TUNNEL | NUMBER).to_ne_bytes());
    set_mark(v, R);
}

/// Remembers through which node a connection came, and sends answers there.
pub(super) fn remembering(batch: &mut Batch, fixed: &Addresses) {
    batch.chain("entry", Some(Hook::new(Hook::PREROUTING, AFTER_MANGLE, "filter")));
    if keeps(batch) {
        marks(batch, fixed);
    }
    // Beyond what is for pods, the tunnel brings answers to those who came in here.
    batch.rule("entry", |v| {
        from_tunnel(v);
        to_net(v, fixed.local_pod_cidr, false);
        unasked(v);
        drop_packet(v);
    });
    // Other nodes' pods answer through here; they call the world through their own node. A machine that pretends to be a node gets
    // no pod's answer.
    batch.rule("forward", |v| {
        from_pod(v, false);
        from_net(v, fixed.pod_cidr, true);
        to_net(v, fixed.pod_cidr, false);
        unasked(v);
        untranslated(v);
        drop_packet(v);
    });
}

fn marks(batch: &mut Batch, fixed: &Addresses) {
    batch.chain("from-pods", None);
    batch.rule("from-pods", remembered);
    // Who forgets a connection of which a pod sends takes it for one that the pod opens, and sends it out with the wrong source: the client
    // would reset it. So the client must speak first. What a pod itself has opened ends as it always did.
    batch.rule("from-pods", |v| {
        tcp_of_unknown(v);
        to_net(v, fixed.pod_cidr, false);
        sport(v, R);
        below(v, R, FIRST_CLIENT_PORT);
        drop_packet(v);
    });
    batch.rule("entry", |v| {
        from_pod(v, true);
        goto(v, "from-pods");
    });
    batch.rule("entry", |v| {
        to_net(v, fixed.local_pod_cidr, true);
        new(v);
        ether_saddr(v, R);
        lookup(v, "entry_mark", R, Some(R + 4), false);
        set_ct_mark(v, R + 4);
    });
    // What this node itself answers for a pod: refusals, and that a packet is too large.
    batch.chain("answers", Some(Hook::new(Hook::OUTPUT, AFTER_MANGLE, "route")));
    batch.rule("answers", remembered);
}

fn part(v: &mut Expressions, reg: u32, load: fn(&mut Expressions, u32) -> u32, of: IpNet) {
    load(v, reg);
    mask(v, reg, &octets(of.netmask()));
}

/// Which source those see that a client outside is led to.
pub(super) fn outgoing(batch: &mut Batch, fixed: &Addresses) {
    let one = fixed.local_pod_cidr;
    if keeps(batch) {
        // What asks other nodes whether a foreign source comes back from them.
        let last = octets(one.hostmask());
        batch.rule("postrouting", |v| {
            l4proto(v, R);
            cmp(v, R, true, &[UDP]);
            dport(v, R);
            cmp(v, R, true, &PORT.to_be_bytes());
            to_net(v, fixed.pod_cidr, true);
            daddr(v, R);
            mask(v, R, &last);
            cmp(v, R, true, &last);
            fib_local(v, 1, true);
            snat(v, FOREIGN.into());
        });
    }
    batch.chain("hidden", None);
    batch.rule("hidden", |v| {
        to_tunnel(v);
        snat(v, fixed.inside);
    });
    batch.rule("hidden", |v| {
        to_net(v, fixed.pod_cidr, true);
        snat(v, fixed.node_ip);
    });
    batch.rule("hidden", masquerade);
    batch.chain("entered", None);
    // A pod of this node answers through here in any case; so does every pod that a pod of this node calls.
    batch.rule("entered", |v| {
        to_net(v, one, true);
        accept(v);
    });
    batch.rule("entered", |v| {
        from_net(v, one, true);
        to_net(v, fixed.pod_cidr, true);
        accept(v);
    });
    if keeps(batch) {
        kept(batch, one);
    }
    batch.rule("entered", |v| jump(v, "hidden"));
}

fn kept(batch: &mut Batch, one: IpNet) {
    // Its own answer would not come here: a node's to itself, a pod's to a pod of the same node.
    batch.rule("entered", |v| {
        saddr(v, R);
        part(v, R + 1, daddr, one);
        lookup(v, "returning", R, None, false);
        goto(v, "hidden");
    });
    batch.rule("entered", |v| {
        part(v, R, saddr, one);
        part(v, R + 1, daddr, one);
        lookup(v, "returning", R, None, false);
        goto(v, "hidden");
    });
    batch.rule("entered", |v| {
        part(v, R, daddr, one);
        lookup(v, "kept", R, None, false);
        accept(v);
    });
}
