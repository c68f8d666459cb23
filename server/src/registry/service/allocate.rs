//! Addresses and ports: what a service holds, and what it is given.

use std::{collections::BTreeSet, net::IpAddr};

use minisvc_proto::{Cause, Object};
use serde_json::{Value, json};

use super::{
    NONE, has_cluster_ip, has_health_check, has_node_ports, is_headless, node_ports, port_number, ports_mut,
    spec, texts,
};
use crate::{
    alloc::{Family, Full},
    registry::Ranges,
};

const ADDRESSES: &str = "/reserved/clusterips/";
const PORTS: &str = "/reserved/nodeports/";

/// A range that has nothing left, in the words that clients know: `failed to allocate a nodePort: range is full`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to allocate {what}: {full}")]
pub struct Exhausted {
    what: &'static str,
    full: Full,
}

fn address_key(ip: IpAddr) -> String {
    format!("{ADDRESSES}{ip}")
}

fn port_key(port: u16) -> String {
    format!("{PORTS}{port}")
}

/// The addresses and ports that a service holds, as keys of the store: the cluster IPs of both families, the node ports, and
/// the health check's port, which is of the same pool.
pub fn reservations(service: &Object) -> BTreeSet<String> {
    let one = spec(service, "clusterIP").text();
    let health = port_number(spec(service, "healthCheckNodePort").value);
    texts(service, "clusterIPs")
        .into_iter()
        .chain([one])
        .filter_map(|ip| ip.parse().ok())
        .map(address_key)
        .chain(node_ports(service).chain(health).map(port_key))
        .collect()
}

/// The fault of naming an address or port of another service.
pub fn already_taken(service: &Object, reservation: &str) -> Cause {
    const TAKEN: &str = "provided port is already allocated";
    if let Some(ip) = reservation.strip_prefix(ADDRESSES) {
        let all = spec(service, "clusterIPs").value.cloned().unwrap_or_else(|| json!([ip]));
        let why = format!("failed to allocate IP {ip}: provided IP is already allocated");
        return Cause::invalid("spec.clusterIPs", all, &why);
    }
    let port: Option<u16> = reservation.strip_prefix(PORTS).and_then(|port| port.parse().ok());
    let all: Vec<_> = spec(service, "ports").items().map(|p| p.child("nodePort")).collect();
    let named = all.iter().find(|p| port_number(p.value) == port);
    named.map_or_else(|| spec(service, "healthCheckNodePort").invalid(TAKEN), |p| p.invalid(TAKEN))
}

/// Gives a valid service the addresses and node ports that it needs and does not name. `taken` knows the reservations of
/// others; `random` is a fresh number. Entries with one port number and different protocols share one nodePort (KEP-3668).
pub fn allocate(
    service: &mut Object,
    ranges: &Ranges,
    mut random: impl FnMut() -> u64,
    taken: impl Fn(&str) -> bool,
) -> Result<(), Exhausted> {
    if has_cluster_ip(service) {
        cluster_ips(service, ranges, &mut random, &taken)
            .map_err(|full| Exhausted { what: "a serviceIP", full })?;
    }
    if !has_node_ports(service) {
        return Ok(());
    }
    // A service of type NodePort has nothing else; a load balancer may do without.
    if spec(service, "allocateLoadBalancerNodePorts").value != Some(&Value::Bool(false)) {
        give_node_ports(service, ranges, &mut random, &taken)
            .map_err(|full| Exhausted { what: "a nodePort", full })?;
    }
    if has_health_check(service) && !spec(service, "healthCheckNodePort").is_set() {
        let mine: BTreeSet<u16> = node_ports(service).collect();
        let port = ranges
            .node_ports
            .pick(random(), |n| mine.contains(&n) || taken(&port_key(n)))
            .map_err(|full| Exhausted { what: "a HealthCheck NodePort", full })?;
        service.spec_mut().insert("healthCheckNodePort".into(), port.into());
    }
    Ok(())
}

/// An address for each family that has none.
fn cluster_ips(
    service: &mut Object,
    ranges: &Ranges,
    random: &mut impl FnMut() -> u64,
    taken: &impl Fn(&str) -> bool,
) -> Result<(), Full> {
    let mut ips: Vec<String> = texts(service, "clusterIPs").into_iter().map(str::to_owned).collect();
    if is_headless(service) {
        ips = vec![NONE.to_owned()];
    } else {
        let families: Vec<Family> =
            texts(service, "ipFamilies").into_iter().filter_map(Family::named).collect();
        for range in families.iter().skip(ips.len()).filter_map(|family| ranges.services_of(*family)) {
            ips.push(range.pick(random(), |ip| taken(&address_key(ip)))?.to_string());
        }
    }
    if let Some(first) = ips.first() {
        service.spec_mut().insert("clusterIP".into(), first.as_str().into());
        service.spec_mut().insert("clusterIPs".into(), json!(ips));
    }
    Ok(())
}

fn give_node_ports(
    service: &mut Object,
    ranges: &Ranges,
    random: &mut impl FnMut() -> u64,
    taken: &impl Fn(&str) -> bool,
) -> Result<(), Full> {
    let health = port_number(spec(service, "healthCheckNodePort").value);
    // What the service has so far: protocol, port, node port.
    let mut mine: Vec<(String, u16, u16)> = spec(service, "ports")
        .items()
        .filter_map(|p| {
            let number = |field: &str| port_number(p.child(field).value);
            Some((p.child("protocol").text().to_owned(), number("port")?, number("nodePort")?))
        })
        .collect();
    let mut numbers: BTreeSet<u16> = node_ports(service).chain(health).collect();
    for port in ports_mut(service) {
        let (None, Some(number)) = (port_number(port.get("nodePort")), port_number(port.get("port"))) else {
            continue;
        };
        let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("").to_owned();
        let is_free = |n: u16| !mine.iter().any(|(p, _, m)| (p, *m) == (&protocol, n));
        let shared = mine.iter().find(|(_, p, n)| *p == number && is_free(*n)).map(|(_, _, n)| *n);
        let node_port = match shared {
            Some(n) => n,
            None => ranges.node_ports.pick(random(), |n| numbers.contains(&n) || taken(&port_key(n)))?,
        };
        numbers.insert(node_port);
        mine.push((protocol, number, node_port));
        port.insert("nodePort".into(), node_port.into());
    }
    Ok(())
}
