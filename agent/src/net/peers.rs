//! Which way leads to another node. Pure: the kernel's answers come in.

use std::net::IpAddr;

use super::Way;

/// What the kernel says of the way to a node's address: its gateway, if any, and its link.
pub(super) type Answer = Option<(Option<IpAddr>, u32)>;

/// Pods' packets may go to a node as they are if no router has to carry them: routers know nothing of the pod range, and many drop
/// what comes from it. While the kernel knows no way at all, as when a cable is out, it stays `before`.
pub(super) fn decide(answer: Answer, node_link: u32, before: Option<Way>) -> Way {
    match answer {
        Some((None, link)) if link == node_link => Way::Direct,
        Some(_) => Way::Vxlan,
        None => before.unwrap_or(Way::Vxlan),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn only_neighbours_on_the_nodes_own_link_are_reached_directly() {
        let router = Some(Ipv4Addr::new(192, 0, 2, 1).into());
        for (answer, before, way) in [
            (Some((None, 2)), None, Way::Direct),
            (Some((None, 2)), Some(Way::Vxlan), Way::Direct),
            (Some((router, 2)), None, Way::Vxlan),
            (Some((router, 2)), Some(Way::Direct), Way::Vxlan),
            // Another network that the machine is on, a VPN say: what is there does not know our pods.
            (Some((None, 3)), None, Way::Vxlan),
            (None, None, Way::Vxlan),
            (None, Some(Way::Direct), Way::Direct),
            (None, Some(Way::Vxlan), Way::Vxlan),
        ] {
            assert_eq!(decide(answer, 2, before), way, "{answer:?} after {before:?}");
        }
    }
}
