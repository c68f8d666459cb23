//! Service: defaults, validation and the values that are reserved with it.
//! Rules from Kubernetes: pkg/apis/core/v1/defaults.go, pkg/apis/core/validation/validation.go, pkg/registry/core/service.

use std::{collections::BTreeSet, net::IpAddr};

use minisvc_proto::{
    Cause, Object,
    names::{check_dns_label, check_dns_subdomain},
    selector::is_label_key,
};
use serde_json::{Map, Value, json};

use super::{field::Field, meta};
use crate::alloc::{NodePortRange, ServiceRange};

const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
const PROTOCOLS: [&str; 2] = ["TCP", "UDP"];
const DEFAULT_AFFINITY_SECONDS: u64 = 10800;

fn text<'a>(map: &'a Map<String, Value>, field: &str) -> &'a str {
    map.get(field).and_then(Value::as_str).unwrap_or("")
}

fn spec(service: &Object) -> Option<&Map<String, Value>> {
    service.0.get("spec").and_then(Value::as_object)
}

fn service_type(service: &Object) -> &str {
    service.str_at("/spec/type").unwrap_or("ClusterIP")
}

fn has_node_ports(service: &Object) -> bool {
    matches!(service_type(service), "NodePort" | "LoadBalancer")
}

fn set_default(map: &mut Map<String, Value>, field: &str, value: Value) {
    if map.get(field).is_none_or(|v| v.is_null() || v.as_str() == Some("")) {
        map.insert(field.to_owned(), value);
    }
}

/// Fills what the user left out.
pub fn set_defaults(service: &mut Object) {
    let spec = service.spec_mut();
    set_default(spec, "type", "ClusterIP".into());
    set_default(spec, "sessionAffinity", "None".into());
    let kind = text(spec, "type").to_owned();
    match text(spec, "sessionAffinity") {
        "None" => drop(spec.remove("sessionAffinityConfig")),
        "ClientIP" => {
            let seconds =
                spec.get("sessionAffinityConfig").and_then(|c| c.pointer("/clientIP/timeoutSeconds"));
            if seconds.is_none_or(Value::is_null) {
                let config = json!({"clientIP": {"timeoutSeconds": DEFAULT_AFFINITY_SECONDS}});
                spec.insert("sessionAffinityConfig".into(), config);
            }
        }
        _ => {}
    }
    if kind != "ExternalName" {
        set_default(spec, "internalTrafficPolicy", "Cluster".into());
        set_default(spec, "ipFamilyPolicy", "SingleStack".into());
        set_default(spec, "ipFamilies", json!(["IPv4"]));
    }
    let reachable = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || spec.get("externalIPs").and_then(Value::as_array).is_some_and(|a| !a.is_empty());
    if reachable {
        set_default(spec, "externalTrafficPolicy", "Cluster".into());
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        set_default(port, "protocol", "TCP".into());
        if port.get("targetPort").is_none_or(|t| t.is_null() || *t == json!(0) || *t == json!(""))
            && let Some(number) = port.get("port").cloned()
        {
            port.insert("targetPort".into(), number);
        }
    }
}

/// On an update, what the user left out keeps its stored value, so that applying the original manifest again succeeds; a
/// change to a type that has no such values drops them. [pkg/registry/core/service/strategy.go]
pub fn inherit(old: &Object, new: &mut Object) {
    drop_sent_back(old, new);
    if service_type(new) == "ExternalName" {
        for field in ["clusterIP", "clusterIPs"] {
            new.spec_mut().remove(field);
        }
        return;
    }
    let sent = |o: &Object, field: &str| spec(o).and_then(|s| s.get(field)).cloned();
    if sent(new, "clusterIP") != sent(old, "clusterIP") && sent(new, "clusterIPs") == sent(old, "clusterIPs")
    {
        // The older of the two fields was edited: the other follows it. [NormalizeClusterIPs]
        new.spec_mut().remove("clusterIPs");
        if let Some(ip) = sent(new, "clusterIP").filter(|ip| ip.as_str().is_some_and(|ip| !ip.is_empty())) {
            new.spec_mut().insert("clusterIPs".into(), json!([ip]));
        }
    }
    if service_type(old) != "ExternalName" {
        for field in ["clusterIP", "clusterIPs"] {
            if let Some(value) = spec(old).and_then(|s| s.get(field)) {
                let value = value.clone();
                set_default(new.spec_mut(), field, value);
            }
        }
    }
    let keep = has_node_ports(new) && has_node_ports(old);
    let stored: Vec<Value> =
        old.pointer("/spec/ports").and_then(Value::as_array).cloned().unwrap_or_default();
    let dropped = !has_node_ports(new) && has_node_ports(old);
    for port in new.spec_mut().get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(port) = port.as_object_mut() else { continue };
        let same = |o: &&Value| {
            o.get("name").and_then(Value::as_str).unwrap_or("") == text(port, "name")
                && o.get("protocol") == port.get("protocol")
        };
        let before = stored.iter().find(same).and_then(|o| o.get("nodePort")).cloned();
        let unset = port.get("nodePort").is_none_or(|n| n.is_null() || *n == json!(0));
        match before {
            Some(number) if keep && unset => drop(port.insert("nodePort".into(), number)),
            // The user sent back what the server had filled in: not a wish.
            Some(number) if dropped && port.get("nodePort") == Some(&number) => drop(port.remove("nodePort")),
            _ => {}
        }
    }
}

/// What a former type had and the new one has not goes, where the user only sent back what stood there.
/// [pkg/registry/core/service/strategy.go, dropTypeDependentFields]
fn drop_sent_back(old: &Object, new: &mut Object) {
    let external = service_type(new) == "ExternalName";
    let left = |had: bool, has: bool| had && !has;
    let reachable = left(has_node_ports(old), has_node_ports(new));
    let inner = left(service_type(old) != "ExternalName", !external);
    for (field, gone) in [
        ("externalTrafficPolicy", reachable),
        ("internalTrafficPolicy", inner),
        ("ipFamilies", inner),
        ("ipFamilyPolicy", inner),
    ] {
        if gone && spec(old).and_then(|s| s.get(field)) == spec(new).and_then(|s| s.get(field)) {
            new.spec_mut().remove(field);
        }
    }
    if left(service_type(old) == "LoadBalancer", service_type(new) == "LoadBalancer")
        && let Some(status) = new.0.get_mut("status").and_then(Value::as_object_mut)
    {
        status.remove("loadBalancer");
    }
}

fn port_number(value: Option<&Value>) -> Option<u16> {
    value.and_then(Value::as_u64).and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)
}

const PORT_RULE: &str = "must be between 1 and 65535, inclusive";

/// Every fault of a defaulted Service, each with its field.
pub fn validate(
    old: Option<&Object>,
    service: &Object,
    ips: &ServiceRange,
    ports: &NodePortRange,
) -> Vec<Cause> {
    let Some(spec) = spec(service) else { return vec![Cause::required("spec", "")] };
    let mut faults: Vec<Cause> = old.and_then(|old| changed_address(old, service)).into_iter().collect();
    meta::labels(&Field::of(service, "spec").child("selector"), &mut faults);
    let kind = text(spec, "type");
    if !TYPES.contains(&kind) {
        faults.push(Cause::not_supported("spec.type", kind, &TYPES));
    }
    let affinity = text(spec, "sessionAffinity");
    if !["ClientIP", "None"].contains(&affinity) {
        faults.push(Cause::not_supported("spec.sessionAffinity", affinity, &["ClientIP", "None"]));
    }
    if affinity == "ClientIP" {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        let value = service
            .pointer("/spec/sessionAffinityConfig/clientIP/timeoutSeconds")
            .cloned()
            .unwrap_or_default();
        if !value.as_u64().is_some_and(|s| (1..=86400).contains(&s)) {
            faults.push(Cause::invalid(field, value, "must be greater than 0 and less than 86400"));
        }
    }
    validate_reach(service, &mut faults);
    let headless = text(spec, "clusterIP") == "None";
    validate_cluster_ip(spec, kind, ips, &mut faults);
    let empty = Vec::new();
    let list = spec.get("ports").and_then(Value::as_array).unwrap_or(&empty);
    if list.is_empty() && !headless && kind != "ExternalName" {
        faults.push(Cause::required("spec.ports", ""));
    }
    validate_ports(list, kind, ports, &mut faults);
    faults
}

/// IP families, traffic policies and addresses of the outside: what the dataplane has, and refusals of what it has not.
fn validate_reach(service: &Object, faults: &mut Vec<Cause>) {
    let spec = Field::of(service, "spec");
    let external = spec.child("type").text() == "ExternalName";
    let policy = spec.child("ipFamilyPolicy");
    faults.extend(policy.one_of(&["SingleStack", "PreferDualStack", "RequireDualStack"]));
    if policy.text() == "RequireDualStack" {
        faults.push(policy.invalid("this cluster is not configured for dual-stack services"));
    }
    for family in spec.child("ipFamilies").items() {
        if !["IPv4", "IPv6"].contains(&family.text()) {
            faults.extend(family.one_of(&["IPv4", "IPv6"]));
        } else if family.text() != "IPv4" {
            faults.push(family.invalid("not configured on this cluster"));
        }
    }
    for (i, ip) in spec.child("clusterIPs").items().enumerate() {
        if i > 0 {
            faults.push(ip.invalid("this cluster has one IP family, so a service has one address"));
        } else if ip.text() != spec.child("clusterIP").text() && !external {
            faults.push(ip.invalid("first value must match `clusterIP`"));
        }
    }
    let policies = ["internalTrafficPolicy", "externalTrafficPolicy"].map(|f| spec.child(f));
    for policy in policies.iter().filter(|p| p.is_set()) {
        if policy.text() == "Local" {
            faults.push(
                policy.invalid("only Cluster can be had: every node forwards to the pods of all nodes"),
            );
        } else {
            faults.extend(policy.one_of(&["Cluster", "Local"]));
        }
    }
    let addresses = spec.child("externalIPs");
    let reachable = matches!(spec.child("type").text(), "NodePort" | "LoadBalancer") || addresses.is_set();
    if policies[1].is_set() && !reachable {
        let why = "may only be set for externally-accessible services";
        faults.push(policies[1].invalid(why));
    }
    let health = spec.child("healthCheckNodePort");
    if health.is_set() {
        faults.push(health.forbidden(
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ));
    }
    if addresses.is_set() {
        faults.push(
            addresses.forbidden("addresses that are not the nodes' own are not supported: use type NodePort"),
        );
    }
}

fn validate_cluster_ip(spec: &Map<String, Value>, kind: &str, ips: &ServiceRange, faults: &mut Vec<Cause>) {
    let ip = text(spec, "clusterIP");
    if kind == "ExternalName" {
        let name = text(spec, "externalName");
        if name.is_empty() {
            faults.push(Cause::required("spec.externalName", ""));
        } else if let Err(rule) = check_dns_subdomain(name.strip_suffix('.').unwrap_or(name)) {
            faults.push(Cause::invalid("spec.externalName", name, rule.0));
        }
        if !ip.is_empty() {
            faults.push(Cause::forbidden("spec.clusterIPs", "may not be set for ExternalName services"));
        }
        return;
    }
    match ip {
        "None" if matches!(kind, "NodePort" | "LoadBalancer") => {
            let why = format!("may not be set to 'None' for {kind} services");
            faults.push(Cause::invalid("spec.clusterIPs[0]", ip, &why));
        }
        "" | "None" => {}
        ip => match ip.parse::<IpAddr>() {
            Err(_) => faults.push(Cause::invalid(
                "spec.clusterIPs[0]",
                ip,
                "must be a valid IP address, (e.g. 10.9.8.7)",
            )),
            Ok(addr) if !ips.contains(addr) => {
                let why = format!(
                    "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range \
                     of valid IPs is {}",
                    ips.net()
                );
                faults.push(Cause::invalid("spec.clusterIPs", json!([ip]), &why));
            }
            Ok(addr) if addr == ips.dns() => {
                let why = format!("failed to allocate IP {ip}: it is the address of the cluster's DNS");
                faults.push(Cause::invalid("spec.clusterIPs", json!([ip]), &why));
            }
            Ok(_) => {}
        },
    }
}

fn validate_ports(list: &[Value], kind: &str, range: &NodePortRange, faults: &mut Vec<Cause>) {
    let (mut names, mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (i, port) in list.iter().enumerate() {
        let at = |field: &str| format!("spec.ports[{i}].{field}");
        let Some(port) = port.as_object() else {
            faults.push(Cause::invalid(format!("spec.ports[{i}]"), port.clone(), "must be an object"));
            continue;
        };
        let name = text(port, "name");
        if name.is_empty() {
            if list.len() > 1 {
                faults.push(Cause::required(at("name"), ""));
            }
        } else if let Err(rule) = check_dns_label(name) {
            faults.push(Cause::invalid(at("name"), name, rule.0));
        } else if !names.insert(name) {
            faults.push(Cause::duplicate(at("name"), name));
        }
        let protocol = text(port, "protocol");
        if !PROTOCOLS.contains(&protocol) {
            faults.push(Cause::not_supported(at("protocol"), protocol, &PROTOCOLS));
        }
        let app = text(port, "appProtocol");
        if !app.is_empty() && !is_label_key(app) {
            faults.push(Cause::invalid(
                at("appProtocol"),
                app,
                "must be a name such as http or example.com/proto",
            ));
        }
        match port_number(port.get("port")) {
            None => {
                let value = port.get("port").cloned().unwrap_or_default();
                faults.push(Cause::invalid(at("port"), value, PORT_RULE));
            }
            Some(number) if !numbers.insert((protocol, number)) => {
                faults.push(Cause::duplicate(
                    format!("spec.ports[{i}]"),
                    json!({"port": number, "protocol": protocol}),
                ));
            }
            Some(_) => {}
        }
        match port.get("targetPort") {
            Some(Value::String(name)) if !is_port_name(name) => {
                let rule = "must be an IANA service name: at most 15 characters of a-z, 0-9 and '-', with a letter in it";
                faults.push(Cause::invalid(at("targetPort"), name.as_str(), rule));
            }
            Some(value @ Value::Number(_)) if port_number(Some(value)).is_none() => {
                faults.push(Cause::invalid(at("targetPort"), value.clone(), PORT_RULE));
            }
            _ => {}
        }
        let Some(wanted) = port.get("nodePort").filter(|n| !n.is_null() && **n != json!(0)) else { continue };
        if !matches!(kind, "NodePort" | "LoadBalancer") {
            faults.push(Cause::forbidden(at("nodePort"), "may not be used when `type` is 'ClusterIP'"));
            continue;
        }
        match port_number(Some(wanted)).filter(|n| range.contains(*n)) {
            None => {
                let why =
                    format!("provided port is not in the valid range. The range of valid ports is {range}");
                faults.push(Cause::invalid(at("nodePort"), wanted.clone(), &why));
            }
            Some(number) if !node_ports.insert((protocol, number)) => {
                faults.push(Cause::duplicate(at("nodePort"), number));
            }
            Some(_) => {}
        }
    }
}

/// validation.IsValidPortName.
pub fn is_port_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && name.contains(|c: char| c.is_ascii_lowercase())
        && !name.starts_with('-')
        && !name.ends_with('-')
        && !name.contains("--")
}

/// The addresses and ports that a stored service holds, as keys of the store.
pub fn reservations(service: &Object) -> BTreeSet<String> {
    let ip = service.str_at("/spec/clusterIP").filter(|ip| !ip.is_empty() && *ip != "None");
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    ip.map(|ip| format!("/reserved/clusterips/{ip}"))
        .into_iter()
        .chain(
            ports.filter_map(|p| port_number(p.get("nodePort"))).map(|n| format!("/reserved/nodeports/{n}")),
        )
        .collect()
}

/// The fault of changing an address that is given for life; moving to and from ExternalName changes it.
fn changed_address(old: &Object, new: &Object) -> Option<Cause> {
    let ip = |o: &Object| o.str_at("/spec/clusterIP").unwrap_or("").to_owned();
    let is_name = |o: &Object| service_type(o) == "ExternalName";
    let changed = ip(old) != ip(new) && !ip(old).is_empty() && !is_name(old) && !is_name(new);
    changed.then(|| Cause::invalid("spec.clusterIPs[0]", ip(new), "may not change once set"))
}

/// The fault of naming an address or port of another service.
pub fn already_taken(service: &Object, reservation: &str) -> Cause {
    if let Some(ip) = reservation.strip_prefix("/reserved/clusterips/") {
        let why = format!("failed to allocate IP {ip}: provided IP is already allocated");
        return Cause::invalid("spec.clusterIPs", json!([ip]), &why);
    }
    let port: u64 = reservation.rsplit('/').next().and_then(|p| p.parse().ok()).unwrap_or(0);
    let ports =
        service.pointer("/spec/ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let at = ports.iter().position(|p| p.get("nodePort").and_then(Value::as_u64) == Some(port)).unwrap_or(0);
    Cause::invalid(format!("spec.ports[{at}].nodePort"), port, "provided port is already allocated")
}

/// Gives a valid service the address and node ports that it needs and does not name. `taken` knows the reservations of others;
/// `random` is a fresh number. TCP and UDP entries with one port number share one nodePort (KEP-3668).
pub fn allocate(
    service: &mut Object,
    ips: &ServiceRange,
    ports: &NodePortRange,
    mut random: impl FnMut() -> u64,
    taken: impl Fn(&str) -> bool,
) -> Result<(), crate::alloc::Full> {
    if service_type(service) == "ExternalName" {
        return Ok(());
    }
    let node_ports = has_node_ports(service);
    let spec = service.spec_mut();
    if text(spec, "clusterIP").is_empty() {
        let ip = ips.pick(random(), |ip| taken(&format!("/reserved/clusterips/{ip}")))?;
        spec.insert("clusterIP".into(), ip.to_string().into());
    }
    let ip = text(spec, "clusterIP").to_owned();
    spec.insert("clusterIPs".into(), json!([ip]));
    if !node_ports {
        return Ok(());
    }
    let Some(list) = spec.get_mut("ports").and_then(Value::as_array_mut) else { return Ok(()) };
    let mut mine: Vec<(u16, u16)> = list
        .iter()
        .filter_map(|p| Some((port_number(p.get("port"))?, port_number(p.get("nodePort"))?)))
        .collect();
    for port in list {
        let Some(port) = port.as_object_mut() else { continue };
        let (None, Some(number)) = (port_number(port.get("nodePort")), port_number(port.get("port"))) else {
            continue;
        };
        let shared = mine.iter().find(|(p, _)| *p == number).map(|(_, n)| *n);
        let node_port = match shared {
            Some(n) => n,
            None => ports.pick(random(), |n| {
                mine.iter().any(|(_, m)| *m == n) || taken(&format!("/reserved/nodeports/{n}"))
            })?,
        };
        mine.push((number, node_port));
        port.insert("nodePort".into(), node_port.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
