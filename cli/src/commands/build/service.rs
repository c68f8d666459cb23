//! Services from flags.

use minisvc_proto::{Object, resource::SERVICES};
use serde_json::{Map, Value, json};

use super::map;
use crate::args::{
    CreateService, ExternalNameFlags, LoadBalancerFlags, NodePortFlags, ServiceFlags, Traffic,
    values::{ClusterIp, PortPair, TargetPort},
};

/// Selects app=NAME, unless something else or nothing is selected.
pub fn service(what: &CreateService, namespace: Option<&str>) -> Result<Object, String> {
    match what {
        CreateService::Clusterip(flags) => build("ClusterIP", flags, None, namespace),
        CreateService::Nodeport(NodePortFlags { service, node_port }) => {
            build("NodePort", service, *node_port, namespace)
        }
        CreateService::Loadbalancer(flags) => load_balancer(flags, namespace),
        CreateService::Externalname(flags) => Ok(external_name(flags, namespace)),
    }
}

/// A node port goes to the first port, and to ports of other protocols with the same number.
fn build(
    kind: &str,
    flags: &ServiceFlags,
    node_port: Option<u16>,
    namespace: Option<&str>,
) -> Result<Object, String> {
    let ports = ports([("TCP", &flags.tcp[..]), ("UDP", &flags.udp), ("SCTP", &flags.sctp)], node_port);
    if ports.is_empty() && flags.clusterip != Some(ClusterIp::None) {
        return Err("--tcp, --udp or --sctp: only a service with --clusterip=None may have no port".into());
    }
    let labels = json!({"app": flags.name});
    let mut object = Object::new(&SERVICES, namespace, &flags.name);
    object.metadata_mut().insert("labels".into(), labels.clone());
    let spec = object.spec_mut();
    spec.insert("type".into(), kind.into());
    if !flags.no_selector {
        let selector = if flags.selector.is_empty() { labels } else { map(&flags.selector) };
        spec.insert("selector".into(), selector);
    }
    if !ports.is_empty() {
        spec.insert("ports".into(), ports.into());
    }
    if let Some(ip) = flags.clusterip {
        spec.insert("clusterIP".into(), ip.to_string().into());
    }
    traffic(spec, &flags.traffic);
    Ok(object)
}

fn load_balancer(flags: &LoadBalancerFlags, namespace: Option<&str>) -> Result<Object, String> {
    let mut object = build("LoadBalancer", &flags.service, flags.node_port, namespace)?;
    let spec = object.spec_mut();
    if flags.no_node_ports {
        spec.insert("allocateLoadBalancerNodePorts".into(), false.into());
    }
    if !flags.load_balancer_source_range.is_empty() {
        let ranges = flags.load_balancer_source_range.iter().map(ToString::to_string);
        spec.insert("loadBalancerSourceRanges".into(), ranges.collect());
    }
    if let Some(class) = &flags.load_balancer_class {
        spec.insert("loadBalancerClass".into(), class.clone().into());
    }
    Ok(object)
}

fn external_name(flags: &ExternalNameFlags, namespace: Option<&str>) -> Object {
    let labels = json!({"app": flags.name});
    let mut object = Object::new(&SERVICES, namespace, &flags.name);
    object.metadata_mut().insert("labels".into(), labels.clone());
    let spec = object.spec_mut();
    spec.insert("type".into(), "ExternalName".into());
    spec.insert("externalName".into(), flags.external_name.clone().into());
    spec.insert("selector".into(), labels);
    let ports = ports([("TCP", &flags.tcp[..])], None);
    if !ports.is_empty() {
        spec.insert("ports".into(), ports.into());
    }
    object
}

fn ports<'a>(
    all: impl IntoIterator<Item = (&'static str, &'a [PortPair])>,
    node_port: Option<u16>,
) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    let mut first = None;
    for (protocol, pairs) in all {
        for (i, pair) in pairs.iter().enumerate() {
            let first = *first.get_or_insert(pair.port);
            let mut name = pair.port.to_string();
            if pair.target != TargetPort::Number(pair.port) {
                name = format!("{name}-{}", pair.target);
            }
            if protocol != "TCP" {
                name = format!("{name}-{}", protocol.to_lowercase());
            }
            let target = pair.target.to_value();
            let mut value =
                json!({"name": name, "protocol": protocol, "port": pair.port, "targetPort": target});
            let earlier = pairs[..i].iter().any(|p| p.port == pair.port);
            if let Some(node_port) = node_port.filter(|_| !earlier && pair.port == first) {
                value["nodePort"] = node_port.into();
            }
            out.push(value);
        }
    }
    out
}

/// What was said of the traffic, into the spec.
pub fn traffic(spec: &mut Map<String, Value>, traffic: &Traffic) {
    for (field, said) in [
        ("sessionAffinity", &traffic.session_affinity),
        ("externalTrafficPolicy", &traffic.external_traffic_policy),
        ("internalTrafficPolicy", &traffic.internal_traffic_policy),
        ("trafficDistribution", &traffic.traffic_distribution),
        ("ipFamilyPolicy", &traffic.ip_family_policy),
    ] {
        if let Some(said) = said {
            spec.insert(field.into(), said.clone().into());
        }
    }
    if let Some(timeout) = traffic.session_affinity_timeout {
        // Who says how long means that it is so.
        spec.entry("sessionAffinity").or_insert_with(|| "ClientIP".into());
        let config = json!({"clientIP": {"timeoutSeconds": timeout.as_secs()}});
        spec.insert("sessionAffinityConfig".into(), config);
    }
    if !traffic.ip_families.is_empty() {
        spec.insert("ipFamilies".into(), json!(traffic.ip_families));
        if traffic.ip_families.len() > 1 {
            spec.entry("ipFamilyPolicy").or_insert_with(|| "RequireDualStack".into());
        }
    }
    if !traffic.external_ip.is_empty() {
        spec.insert("externalIPs".into(), traffic.external_ip.iter().map(ToString::to_string).collect());
    }
    if traffic.publish_not_ready_addresses {
        spec.insert("publishNotReadyAddresses".into(), true.into());
    }
}
