//! The rules of a LAN's gateway that has no route to anywhere: a program beside it carries what machines send elsewhere. The
//! table is not a node's; it stands where the LAN's own address is.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{
    Nft, NftError,
    batch::{Batch, Hook},
    expr::{
        Expressions, R, accept, cmp, daddr, drop_packet, from_net, icmp_type, l4proto, mask, not_from_lo,
        refuse, reject, tcp_opening, to_net, to_program,
    },
};

/// Name of the table.
const TABLE: &str = "minisvc-lan";
const CHAIN: &str = "elsewhere";
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const UNREACHABLE: u8 = 3;
/// ICMP's code for what is not allowed.
const PROHIBITED: u8 = 13;
/// Before translation, behind what connection tracking does first.
const PRIORITY: i32 = -150;

/// Which packets go to the program, and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// The LAN: what is for it is none of the program's business.
    pub lan: Ipv4Net,
    /// The address in the LAN that is, all the same.
    pub machine: Ipv4Addr,
    /// What nobody elsewhere has: refused.
    pub nowhere: Vec<Ipv4Net>,
    /// Port of the program's sockets, TCP and UDP.
    pub port: u16,
}

impl Nft {
    /// Writes the table in the thread's network namespace, in one transaction; one that was there goes.
    pub fn write_gateway(&mut self, gateway: &Gateway) -> Result<(), NftError> {
        let mut batch = Batch::on(TABLE);
        batch.push(0, 0x400, "add the table".into(), |_| {});
        batch.push(2, 0, "delete the old table".into(), |_| {});
        batch.push(0, 0x400, "add the table".into(), |_| {});
        rules(&mut batch, gateway);
        self.commit(&batch)
    }
}

fn rules(batch: &mut Batch, gateway: &Gateway) {
    let proto = |v: &mut Expressions, number: u8| {
        l4proto(v, R);
        cmp(v, R, true, &[number]);
    };
    batch.chain(CHAIN, Some(Hook::new(Hook::PREROUTING, PRIORITY, "filter")));
    batch.rule(CHAIN, |v| {
        to_net(v, gateway.lan.into(), true);
        daddr(v, R);
        cmp(v, R, false, &gateway.machine.octets());
        accept(v);
    });
    // From machines of the LAN, and from the program, which sends what it read of them.
    batch.rule(CHAIN, |v| {
        from_net(v, gateway.lan.into(), false);
        drop_packet(v);
    });
    // Of IPv4 above 224.0.0.0 nothing is meant for one machine.
    for class in [[224, 0, 0, 0], [240, 0, 0, 0]] {
        batch.rule(CHAIN, |v| {
            daddr(v, R);
            mask(v, R, &[240, 0, 0, 0]);
            cmp(v, R, true, &class);
            drop_packet(v);
        });
    }
    for net in &gateway.nowhere {
        batch.rule(CHAIN, |v| {
            proto(v, TCP);
            to_net(v, (*net).into(), true);
            reject(v, true);
        });
        batch.rule(CHAIN, |v| {
            to_net(v, (*net).into(), true);
            reject(v, false);
        });
    }
    // The program answers an opening once it knows whether anybody is there, and sends it again itself for its own socket.
    batch.rule(CHAIN, |v| {
        not_from_lo(v);
        tcp_opening(v);
        drop_packet(v);
    });
    for number in [TCP, UDP] {
        batch.rule(CHAIN, |v| {
            proto(v, number);
            to_program(v, gateway.port);
            accept(v);
        });
    }
    // Of a connection that nobody here knows any more.
    batch.rule(CHAIN, |v| {
        proto(v, TCP);
        reject(v, true);
    });
    batch.rule(CHAIN, |v| {
        proto(v, ICMP);
        icmp_type(v, R);
        cmp(v, R, true, &[UNREACHABLE]);
        accept(v);
    });
    batch.rule(CHAIN, |v| {
        proto(v, ICMP);
        daddr(v, R);
        cmp(v, R, true, &gateway.machine.octets());
        accept(v);
    });
    batch.rule(CHAIN, |v| refuse(v, PROHIBITED));
}
