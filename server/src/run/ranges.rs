//! The ranges that a cluster gives addresses and ports from: of one family, IPv4, or of both.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use minisvc_proto::{
    ApiError, Object,
    join::ClusterInfo,
    resource::{NODES, SERVICES},
};
use serde_json::Value;

use super::{CLUSTER_DOMAIN, ServerConfig, ServerError};
use crate::{
    alloc::{NodePortRange, PodRange, ServiceRange},
    registry::{Part, Ranges, Registry, nodes},
};

const SERVICES_FLAG: &str = "--service-cidr";
const PODS_FLAG: &str = "--pod-cidr";

/// A range of IPv4, and in a dual-stack cluster one of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidrs {
    /// The first family.
    pub v4: Ipv4Net,
    /// The second one.
    pub v6: Option<Ipv6Net>,
}

/// As flags take them: `10.244.0.0/16`, or `10.244.0.0/16,fd69:6d69:6e6a::/48`.
impl std::str::FromStr for Cidrs {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, second) = match text.split_once(',') {
            Some((first, second)) => (first, Some(second)),
            None => (text, None),
        };
        let v4 = first.trim().parse().map_err(|_| match first.trim().parse::<Ipv6Net>() {
            Ok(_) => format!("\"{text}\" has no IPv4 range in the first place, which every cluster needs"),
            Err(_) => format!("\"{}\" is no range of IPv4 addresses", first.trim()),
        })?;
        let v6 = second.map(|second| {
            let no_range =
                |_| format!("\"{}\" is no range of IPv6 addresses, the second one is", second.trim());
            second.trim().parse().map_err(no_range)
        });
        Ok(Cidrs { v4, v6: v6.transpose()? })
    }
}

impl From<Ipv4Net> for Cidrs {
    fn from(v4: Ipv4Net) -> Self {
        Cidrs { v4, v6: None }
    }
}

/// What nodes must agree on.
pub(super) fn cluster_info(config: &ServerConfig) -> ClusterInfo {
    ClusterInfo {
        pod_cidr: config.pod_cidr.v4,
        service_cidr: config.service_cidr.v4,
        pod_cidr6: config.pod_cidr.v6,
        service_cidr6: config.service_cidr.v6,
        node_port_range: config.node_port_range,
        vxlan_port: config.vxlan_port,
        cluster_domain: CLUSTER_DOMAIN.into(),
    }
}

fn wrong(flag: &'static str, why: impl ToString) -> ServerError {
    ServerError::Config { flag, why: why.to_string() }
}

/// What the cluster may give out, of settings that go together.
pub(super) fn ranges(config: &ServerConfig) -> Result<Ranges, ServerError> {
    let (pods, services) = (config.pod_cidr, config.service_cidr);
    match (pods.v6, services.v6) {
        (Some(_), None) => {
            return Err(wrong(
                SERVICES_FLAG,
                "a cluster with an IPv6 range of pods needs one of services, too",
            ));
        }
        (None, Some(_)) => {
            return Err(wrong(PODS_FLAG, "a cluster with an IPv6 range of services needs one of pods, too"));
        }
        _ => {}
    }
    let second = services.v6.zip(pods.v6).map(|(services, pods)| (IpNet::V6(services), IpNet::V6(pods)));
    for (services, pods) in [Some((IpNet::V4(services.v4), IpNet::V4(pods.v4))), second].into_iter().flatten()
    {
        if services.contains(&pods.network()) || pods.contains(&services.network()) {
            return Err(wrong(PODS_FLAG, format!("{pods} overlaps the range of services, {services}")));
        }
    }
    let service_range = |net: IpNet| ServiceRange::new(net).map_err(|e| wrong(SERVICES_FLAG, e));
    let pod_range = |net: IpNet| PodRange::new(net).map_err(|e| wrong(PODS_FLAG, e));
    let (first, last) = config.node_port_range;
    Ok(Ranges {
        services: service_range(services.v4.into())?,
        services6: services.v6.map(|net| service_range(net.into())).transpose()?,
        pods: pod_range(pods.v4.into())?,
        pods6: pods.v6.map(|net| pod_range(net.into())).transpose()?,
        node_ports: NodePortRange::new(first..=last).ok_or_else(|| {
            wrong("--node-port-range", format!("{first}-{last} is no range; 30000-32767 would be right"))
        })?,
    })
}

/// Refuses ranges that leave out what is in use: nodes and services keep their addresses for good.
pub(super) fn check_in_use(registry: &Registry) -> Result<(), ServerError> {
    let ranges = registry.ranges();
    let keeps = "a cluster keeps its ranges; start it with the one of before";
    for node in registry.list(&NODES, None).1 {
        if let Some(cidr) = nodes::stranger(&node, ranges.pods()) {
            let why = format!("node {} has {cidr}, which is in no range given here: {keeps}", node.name());
            return Err(wrong(PODS_FLAG, why));
        }
    }
    let all = [Some(&ranges.services), ranges.services6.as_ref()];
    for service in registry.list(&SERVICES, None).1 {
        let is_given = |ip: &IpAddr| all.into_iter().flatten().any(|range| range.contains(*ip));
        if let Some(ip) = cluster_ips(&service).find(|ip| !is_given(ip)) {
            let (namespace, name) = (service.namespace().unwrap_or_default(), service.name());
            let why =
                format!("service {namespace}/{name} has {ip}, which is in no range given here: {keeps}");
            return Err(wrong(SERVICES_FLAG, why));
        }
    }
    Ok(())
}

fn cluster_ips(service: &Object) -> impl Iterator<Item = IpAddr> {
    let list = service.pointer("/spec/clusterIPs").and_then(Value::as_array);
    let first = service.str_at("/spec/clusterIP");
    list.into_iter().flatten().filter_map(Value::as_str).chain(first).filter_map(|ip| ip.parse().ok())
}

/// Gives the nodes of a cluster that has got its second family their part of it.
pub(super) async fn complete_nodes(registry: &Registry) -> Result<(), ApiError> {
    for node in registry.list(&NODES, None).1 {
        if let (true, Some(key)) = (nodes::lacks(&node, registry.ranges().pods()), node.key()) {
            // What is missing is given with any write.
            registry.modify(&key, Part::Main, |_| Ok(true)).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_or_one_of_each_family() {
        let v4 = "10.244.0.0/16".parse().unwrap();
        assert_eq!("10.244.0.0/16".parse(), Ok(Cidrs { v4, v6: None }));
        let v6 = Some("fd00::/48".parse().unwrap());
        for text in ["10.244.0.0/16,fd00::/48", "10.244.0.0/16, fd00::/48"] {
            assert_eq!(text.parse(), Ok(Cidrs { v4, v6 }), "{text}");
        }
        for (text, why) in [
            ("10.244.0.0", "is no range of IPv4"),
            ("", "is no range of IPv4"),
            ("fd00::/48", "no IPv4 range in the first place"),
            ("fd00::/48,10.244.0.0/16", "no IPv4 range in the first place"),
            ("10.244.0.0/16,10.0.0.0/16", "\"10.0.0.0/16\" is no range of IPv6"),
            ("10.244.0.0/16,", "\"\" is no range of IPv6"),
            ("10.244.0.0/16,fd00::/48,fd01::/48", "is no range of IPv6"),
        ] {
            let said = text.parse::<Cidrs>().unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
    }
}
