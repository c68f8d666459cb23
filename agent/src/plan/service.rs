//! A Service and its slices, as a node should serve them.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use k8s_openapi::api::{
    core::v1::{Service, ServiceSpec},
    discovery::v1::EndpointSlice,
};

use super::{
    Family, Proto, Scope, ServicePlan, ServicePort, Viewpoint,
    endpoints::{Port, backends},
};

/// Somebody else serves a service with this label, whatever its value. [KEP-2447]
const PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Nobody serves a service with this label.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Plans one service from its slices, as a node should serve it: a port for each of its own and family. [pkg/proxy/serviceport.go]
pub fn plan_service(service: &Service, slices: &[&EndpointSlice], here: &Viewpoint) -> ServicePlan {
    let mut plan = ServicePlan::default();
    let Some(spec) = &service.spec else { return plan };
    if spec.type_.as_deref() == Some("ExternalName") || is_given_away(service) {
        return plan;
    }
    let since = service.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|c| c.client_ip.as_ref());
        config.and_then(|c| c.timeout_seconds).and_then(|s| u32::try_from(s).ok()).unwrap_or(10_800)
    });
    let external_ips: BTreeSet<IpAddr> =
        spec.external_ips.iter().flatten().filter_map(|ip| address(ip)).collect();
    let balanced = load_balancer_ips(service, here);
    for cluster_ip in cluster_ips(spec) {
        let family = Family::of(cluster_ip);
        let of_family = |ips: &BTreeSet<IpAddr>| -> BTreeSet<IpAddr> {
            ips.iter().filter(|ip| Family::of(**ip) == family).copied().collect()
        };
        for port in spec.ports.iter().flatten() {
            let (Some(proto), Ok(number)) =
                (Proto::parse(port.protocol.as_deref()), u16::try_from(port.port))
            else {
                continue;
            };
            let name = port.name.as_deref().unwrap_or("");
            let target = port.target_port.as_ref();
            let (cluster, local) = backends(slices, &Port { family, name, proto, target, number }, here);
            plan.ports.push(ServicePort {
                since,
                node_port: port.node_port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0),
                external_ips: of_family(&external_ips),
                load_balancer_ips: of_family(&balanced),
                source_ranges: source_ranges(spec, family),
                affinity,
                internal: Scope::parse(spec.internal_traffic_policy.as_deref()),
                external: Scope::parse(spec.external_traffic_policy.as_deref()),
                cluster,
                local,
                ..ServicePort::new(cluster_ip, proto, number)
            });
        }
    }
    plan
}

fn is_given_away(service: &Service) -> bool {
    let labels = service.metadata.labels.as_ref();
    labels.is_some_and(|labels| [PROXY_NAME, HEADLESS].iter().any(|label| labels.contains_key(*label)))
}

/// Whether a change between the two says nothing to the plan.
pub fn are_planned_alike(a: &Service, b: &Service) -> bool {
    let ingress = |s: &Service| s.status.as_ref().and_then(|s| s.load_balancer.clone()).unwrap_or_default();
    a.spec == b.spec
        && is_given_away(a) == is_given_away(b)
        && a.metadata.creation_timestamp == b.metadata.creation_timestamp
        && ingress(a) == ingress(b)
}

/// Whether endpoints of a slice say to whom they are near.
pub fn has_hints(slice: &EndpointSlice) -> bool {
    slice.endpoints.iter().any(|endpoint| endpoint.hints.is_some())
}

/// One of each family at most. A headless service has "None".
fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    let mut out: Vec<IpAddr> = Vec::new();
    for ip in all.filter_map(|ip| ip.parse().ok()) {
        if !out.iter().any(|other| Family::of(*other) == Family::of(ip)) {
            out.push(ip);
        }
    }
    out
}

/// The addresses of the load balancer at which this node answers: its own, if it is listed, and such as no node has.
fn load_balancer_ips(service: &Service, here: &Viewpoint) -> BTreeSet<IpAddr> {
    let all = balanced_addresses(service);
    all.filter(|ip| here.addresses.contains(ip) || !here.others.contains(ip)).collect()
}

/// The addresses of a load balancer, whosever they are. [KEP-1860]
pub fn balanced_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let is_balanced = service.spec.as_ref().is_some_and(|s| s.type_.as_deref() == Some("LoadBalancer"));
    let status = service.status.as_ref().and_then(|s| s.load_balancer.as_ref()).filter(|_| is_balanced);
    let ingress = status.and_then(|s| s.ingress.as_ref()).into_iter().flatten();
    // A proxy in between wants to see every packet, the node's own ones, too.
    let direct = ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy"));
    direct.filter_map(|i| address(i.ip.as_deref()?))
}

/// An address at which packets may be taken; those that mean the node to itself are left to it, whoever wrote them.
fn address(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.parse().ok()?;
    let is_strange =
        ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || ip == Ipv4Addr::BROADCAST;
    (!is_strange).then_some(ip)
}

/// Who may use the load balancer's addresses in a family. Where there are ranges, but none of this family, nobody may: an address that
/// was meant for some is not open to all.
fn source_ranges(spec: &ServiceSpec, family: Family) -> Option<BTreeSet<IpNet>> {
    let all: Vec<IpNet> = (spec.load_balancer_source_ranges.iter().flatten())
        .filter_map(|range| Some(range.trim().parse::<IpNet>().ok()?.trunc()))
        .collect();
    let of_family: BTreeSet<IpNet> =
        all.iter().filter(|range| Family::of(range.addr()) == family).copied().collect();
    let is_open = all.is_empty() || of_family.iter().any(|range| range.prefix_len() == 0);
    (!is_open).then_some(of_family)
}
