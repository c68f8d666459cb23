//! Which families of addresses this node has, of those of its cluster, and the Node's condition `DualStack` that says so.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;
use minisvc_proto::{NodeName, client::Client, join::ClusterInfo};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::condition;
use crate::net::{Family6, NetError, address6};

/// The condition's type. A cluster of one family has it not.
pub const CONDITION: &str = "DualStack";

/// What a node has of the second family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Second {
    /// The cluster has none.
    None,
    /// This address.
    Address(Ipv6Addr),
    /// Nothing, for this reason: its pods are of IPv4 alone.
    Lacking(NetError),
}

impl Second {
    /// Looks for the node's second address, if the cluster has a second family. A machine that has none is a node of one family; one that
    /// was told which to use is none without it.
    pub async fn look(
        cluster: &ClusterInfo,
        node_ip: Ipv4Addr,
        asked: Option<Ipv6Addr>,
    ) -> Result<Self, NetError> {
        if cluster.pod_cidr6.is_none() {
            return Ok(Second::None);
        }
        match address6(node_ip, asked).await {
            Ok(ip) => Ok(Second::Address(ip)),
            Err(error) if asked.is_some() => Err(error),
            Err(error) => {
                tracing::warn!(%error, "pods of this node have no IPv6 addresses");
                Ok(Second::Lacking(error))
            }
        }
    }

    /// The node's second address.
    pub fn address(&self) -> Option<Ipv6Addr> {
        if let Second::Address(ip) = self { Some(*ip) } else { None }
    }

    /// What the node's network is told, once the server has given it a part of the pod range.
    pub fn family(&self, cluster: &ClusterInfo, local_pod_cidr: Option<Ipv6Net>) -> Option<Family6> {
        Some(Family6 {
            node_ip: self.address()?,
            local_pod_cidr: local_pod_cidr?,
            pod_cidr: cluster.pod_cidr6?,
            service_cidr: cluster.service_cidr6?,
            dns_ip: cluster.dns_ip6()?,
        })
    }

    fn condition(&self) -> Option<Value> {
        let (status, reason, message) = match self {
            Second::None => return None,
            Second::Address(ip) => {
                ("True", "BothFamilies", format!("pods have IPv4 and IPv6, the node {ip}"))
            }
            Second::Lacking(error) => {
                ("False", "NoIPv6", format!("pods of this node have IPv4 addresses alone: {error}"))
            }
        };
        Some(json!({"type": CONDITION, "status": status, "reason": reason, "message": message}))
    }

    /// Writes the condition, and tries again until it is written.
    pub async fn tell(self, client: Client, node: NodeName, shutdown: CancellationToken) {
        let Some(condition) = self.condition() else { return };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = condition::tell(&client, &node, &condition) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster(both: bool) -> ClusterInfo {
        ClusterInfo {
            pod_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            pod_cidr6: both.then(|| "fd00:1::/48".parse().unwrap()),
            service_cidr6: both.then(|| "fd00:2::/112".parse().unwrap()),
            node_port_range: (30000, 32767),
            vxlan_port: 8473,
            cluster_domain: "cluster.local".into(),
        }
    }

    #[tokio::test]
    async fn a_cluster_of_one_family_asks_for_nothing() {
        let second = Second::look(&cluster(false), Ipv4Addr::LOCALHOST, None).await.unwrap();
        assert_eq!((second.condition(), second.address()), (None, None));
        assert_eq!(second.family(&cluster(false), None), None);
    }

    #[test]
    fn a_node_without_ipv6_says_why() {
        let lacking = Second::Lacking(NetError::NoAddress6("eth0".into()));
        let condition = lacking.condition().unwrap();
        assert_eq!((&condition["status"], &condition["reason"]), (&"False".into(), &"NoIPv6".into()));
        let message = condition["message"].as_str().unwrap();
        assert!(
            message.contains("the link eth0 has no IPv6 address") && message.contains("--node-ip"),
            "{message}"
        );
        assert_eq!(lacking.family(&cluster(true), Some("fd00:1::/64".parse().unwrap())), None);
        let has = Second::Address("fd00::1".parse().unwrap());
        assert_eq!(has.condition().unwrap()["status"], "True");
        let family = has.family(&cluster(true), Some("fd00:1::/64".parse().unwrap())).unwrap();
        assert_eq!(family.dns_ip.to_string(), "fd00:2::a");
    }
}
