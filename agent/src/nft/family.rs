//! What differs between the families in packets, rules and sets.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Static;
use crate::{
    net::{tunnel_address, tunnel_address6},
    plan::{Families, Family},
};

/// Where a family's packets have their addresses, and the kernel's numbers for it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) family: Family,
    /// `NFPROTO_*`, which is `AF_*` for these two.
    pub(super) number: u32,
    /// Bytes of an address.
    pub(super) length: u32,
    /// Offsets in the header.
    pub(super) source: u32,
    pub(super) destination: u32,
    /// `nft`'s type of an address in keys and data.
    pub(super) address_type: u32,
    /// `NFT_CT_DST_IP*`.
    pub(super) tracked_destination: u32,
    /// The code of the ICMP message.
    pub(super) port_unreachable: u8,
    /// As `nft` calls it.
    pub(super) name: &'static str,
}

const V4: Layout = Layout {
    family: Family::V4,
    number: 2,
    length: 4,
    source: 12,
    destination: 16,
    address_type: 7,
    tracked_destination: 20,
    port_unreachable: 3,
    name: "ip",
};

const V6: Layout = Layout {
    family: Family::V6,
    number: 10,
    length: 16,
    source: 8,
    destination: 24,
    address_type: 8,
    tracked_destination: 22,
    port_unreachable: 4,
    name: "ip6",
};

impl Layout {
    pub(super) fn of(family: Family) -> &'static Self {
        match family {
            Family::V4 => &V4,
            Family::V6 => &V6,
        }
    }

    /// How many 32-bit registers an address takes.
    pub(super) fn registers(&self) -> u32 {
        self.length / 4
    }
}

/// An address as it is in packets.
pub(super) fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// What the rules of one family are made from.
#[derive(Debug)]
pub(super) struct Addresses {
    pub(super) node_ip: IpAddr,
    pub(super) dns_ip: IpAddr,
    pub(super) service_cidr: IpNet,
    pub(super) pod_cidr: IpNet,
    pub(super) local_pod_cidr: IpNet,
    /// The node's address in the tunnel.
    pub(super) inside: IpAddr,
    /// Every address that a pod of this node may have.
    pub(super) pods: Vec<IpAddr>,
    /// UDP port of VXLAN, if the tunnel's own packets are of this family.
    pub(super) vxlan_port: Option<u16>,
}

impl Static {
    /// The same by family.
    pub(super) fn addresses(&self) -> Families<Addresses> {
        let v4 = Addresses {
            node_ip: self.node_ip.into(),
            dns_ip: self.dns_ip.into(),
            service_cidr: self.service_cidr.into(),
            pod_cidr: self.pod_cidr.into(),
            local_pod_cidr: self.local_pod_cidr.into(),
            inside: tunnel_address(self.local_pod_cidr).into(),
            pods: self.local_pod_cidr.hosts().map(IpAddr::V4).collect(),
            vxlan_port: Some(self.vxlan_port),
        };
        let first = u32::from(self.local_pod_cidr.network());
        let v6 = self.family6.map(|six| Addresses {
            node_ip: six.node_ip.into(),
            dns_ip: six.dns_ip.into(),
            service_cidr: six.service_cidr.into(),
            pod_cidr: six.pod_cidr.into(),
            local_pod_cidr: six.local_pod_cidr.into(),
            inside: tunnel_address6(six.local_pod_cidr).into(),
            // A pod has the same number in both ranges.
            pods: (self.local_pod_cidr.hosts())
                .map(|ip| u128::from(six.local_pod_cidr.network()) + u128::from(u32::from(ip) - first))
                .map(|bits| IpAddr::V6(bits.into()))
                .collect(),
            vxlan_port: None,
        });
        Families { v4, v6 }
    }
}
