//! What a node has of IPv6 in a dual-stack cluster. IPv4 is the first family of every cluster; a node without any of this never
//! asks the kernel for IPv6.

use std::net::Ipv6Addr;

use ipnet::Ipv6Net;

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

/// The second family of another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeRoute6 {
    /// Its address.
    pub ip: Ipv6Addr,
    /// Its part of the pod range.
    pub pod_cidr: Ipv6Net,
}

/// The address of a node in the tunnel, as source of what is not a pod's own: the first of its part of the pod range, which no pod
/// has. See [`super::tunnel_address`].
pub fn tunnel_address6(pod_cidr: Ipv6Net) -> Ipv6Addr {
    pod_cidr.network()
}
