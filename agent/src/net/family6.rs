//! What a node has of IPv6 in a dual-stack cluster. IPv4 is the first family of every cluster; a node without any of this never
//! asks the kernel for IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// The second family of a node: its own part of what the cluster has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family6 {
    /// Address of this node, on the link that has its IPv4 address.
    pub node_ip: Ipv6Addr,
    /// Pods of this node are from here: a /64.
    pub local_pod_cidr: Ipv6Net,
    /// All pods of the cluster are from here.
    pub pod_cidr: Ipv6Net,
    /// ClusterIPs are from here.
    pub service_cidr: Ipv6Net,
    /// The agent's DNS listens here, too.
    pub dns_ip: Ipv6Addr,
}

impl Family6 {
    /// The second address of the pod that has this address of the node's IPv4 range: the same number in the node's /64.
    pub fn pod_address(&self, first: Ipv4Addr, range: Ipv4Net) -> Ipv6Addr {
        let number = u32::from(first) & u32::from(range.hostmask());
        Ipv6Addr::from(u128::from(self.local_pod_cidr.network()) | u128::from(number))
    }
}

/// The second family of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRoute6 {
    /// Its address.
    pub ip: Ipv6Addr,
    /// Its part of the pod range.
    pub pod_cidr: Ipv6Net,
}

/// Whether an address is of one link alone.
pub(super) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local())
}

/// The address of a node in the tunnel, as source of what is not a pod's own: the first of its part of the pod range, which no pod
/// has. See [`super::tunnel_address`].
pub fn tunnel_address6(pod_cidr: Ipv6Net) -> Ipv6Addr {
    pod_cidr.network()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_addresses_have_the_same_number() {
        let family = Family6 {
            node_ip: "fd00::1".parse().unwrap(),
            local_pod_cidr: "fd00:1:0:7::/64".parse().unwrap(),
            pod_cidr: "fd00:1::/48".parse().unwrap(),
            service_cidr: "fd00:2::/112".parse().unwrap(),
            dns_ip: "fd00:2::a".parse().unwrap(),
        };
        let range = "10.244.7.0/24".parse().unwrap();
        for (first, second) in [("10.244.7.2", "fd00:1:0:7::2"), ("10.244.7.254", "fd00:1:0:7::fe")] {
            assert_eq!(
                family.pod_address(first.parse().unwrap(), range),
                second.parse::<Ipv6Addr>().unwrap()
            );
        }
        assert_eq!(tunnel_address6(family.local_pod_cidr), "fd00:1:0:7::".parse::<Ipv6Addr>().unwrap());
    }
}
