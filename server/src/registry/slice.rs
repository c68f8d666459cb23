//! EndpointSlice: defaults and rules. [pkg/apis/discovery/validation/validation.go]

use std::{collections::BTreeSet, net::IpAddr};

use minisvc_proto::{
    Cause, Object,
    names::{check_dns_label, check_dns_subdomain},
    selector::{is_label_key, is_label_value},
};
use serde_json::Value;

use super::{field::Field, meta, pod::set_default};

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 100;
const MAX_HINTS: usize = 8;
const MAX_TOPOLOGY: usize = 16;
const ZONE_RULE: &str = "must be the value of a label: at most 63 of A-Z, a-z, 0-9, '-', '_' and '.', beginning and ending with a letter or number";

/// Fills what the user left out.
pub fn set_defaults(slice: &mut Object) {
    for port in slice.0.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(port) = port.as_object_mut() {
            port.entry("name").or_insert_with(|| "".into());
            set_default(port, "protocol", "TCP".into());
        }
    }
}

/// Every fault of a slice.
pub fn validate(old: Option<&Object>, slice: &Object) -> Vec<Cause> {
    let mut faults = Vec::new();
    let family = Field::of(slice, "addressType");
    if family.is_set() {
        faults.extend(family.one_of(&["FQDN", "IPv4", "IPv6"]));
    } else {
        faults.push(family.required(""));
    }
    if let Some(old) = old
        && Field::of(old, "addressType").value != family.value
    {
        faults.push(family.invalid("field is immutable"));
    }
    let endpoints = Field::of(slice, "endpoints");
    limit(&endpoints, MAX_ENDPOINTS, &mut faults);
    for endpoint in endpoints.items() {
        let addresses = endpoint.child("addresses");
        if addresses.items().next().is_none() {
            faults.push(addresses.required("must contain at least 1 address"));
        }
        limit(&addresses, MAX_ADDRESSES, &mut faults);
        for address in addresses.items() {
            faults.extend(address_fault(&address, family.text()));
        }
        let node = endpoint.child("nodeName");
        if node.value.is_some() {
            faults.extend(check_dns_subdomain(node.text()).err().map(|rule| node.invalid(rule.0)));
        }
        let host = endpoint.child("hostname");
        if host.value.is_some() {
            faults.extend(check_dns_label(host.text()).err().map(|rule| host.invalid(rule.0)));
        }
        faults.extend(topology_faults(&endpoint.child("deprecatedTopology")));
        let node_name = |name: &str| check_dns_subdomain(name).err().map(|rule| rule.0);
        let zone_name = |name: &str| (!is_label_value(name)).then_some(ZONE_RULE);
        hint_faults(&endpoint.child("hints").child("forZones"), zone_name, &mut faults);
        hint_faults(&endpoint.child("hints").child("forNodes"), node_name, &mut faults);
    }
    let ports = Field::of(slice, "ports");
    limit(&ports, MAX_PORTS, &mut faults);
    let mut names = BTreeSet::new();
    for port in ports.items() {
        let (name, number) = (port.child("name"), port.child("port"));
        if name.is_set() {
            faults.extend(check_dns_label(name.text()).err().map(|rule| name.invalid(rule.0)));
        }
        if !names.insert(name.text()) {
            faults.push(Cause::duplicate(&name.path, name.text()));
        }
        faults.extend(port.child("protocol").one_of(&["SCTP", "TCP", "UDP"]));
        let app = port.child("appProtocol");
        if app.is_set() && !is_label_key(app.text()) {
            faults.push(app.invalid("must be a name such as http or example.com/proto"));
        }
        if number.value.is_some() && !number.number().is_some_and(|n| (1..=65535).contains(&n)) {
            faults.push(number.invalid("must be between 1 and 65535, inclusive"));
        }
    }
    faults
}

/// Zones or nodes that an endpoint is meant for: each is named once, and well.
fn hint_faults(list: &Field<'_>, broken: impl Fn(&str) -> Option<&'static str>, faults: &mut Vec<Cause>) {
    limit(list, MAX_HINTS, faults);
    let mut names = BTreeSet::new();
    for name in list.items().map(|hint| hint.child("name")) {
        if !names.insert(name.text()) {
            faults.push(Cause::duplicate(&name.path, name.text()));
        }
        faults.extend(broken(name.text()).map(|rule| name.invalid(rule)));
    }
}

/// What stood for the node and the zone in an older version of the kind.
fn topology_faults(topology: &Field<'_>) -> Vec<Cause> {
    let mut faults = Vec::new();
    let count = topology.entries().count();
    if count > MAX_TOPOLOGY {
        faults.push(too_many(topology, count, MAX_TOPOLOGY));
    }
    meta::labels(topology, &mut faults);
    if topology.entries().any(|(key, _)| key == "kubernetes.io/hostname") {
        faults.push(topology.forbidden("hostname is not allowed: nodeName says it"));
    }
    faults
}

fn too_many(list: &Field<'_>, count: usize, most: usize) -> Cause {
    Cause {
        reason: "FieldValueTooMany".into(),
        message: format!("Too many: {count}: must have at most {most} items"),
        field: list.path.clone(),
    }
}

fn limit(list: &Field<'_>, most: usize, faults: &mut Vec<Cause>) {
    let count = list.items().count();
    if count > most {
        faults.push(too_many(list, count, most));
    }
}

fn address_fault(address: &Field<'_>, family: &str) -> Option<Cause> {
    if family == "FQDN" {
        let name = address.text().strip_suffix('.').unwrap_or(address.text());
        if !name.contains('.') {
            return Some(address.invalid("should be a domain with at least two segments separated by dots"));
        }
        return check_dns_subdomain(name).err().map(|rule| address.invalid(rule.0));
    }
    let Some(ip) = address.text().parse::<IpAddr>().ok().filter(|ip| match family {
        "IPv4" => ip.is_ipv4(),
        "IPv6" => ip.is_ipv6(),
        _ => true,
    }) else {
        return Some(address.invalid(&format!("must be a valid {family} address")));
    };
    special_address(ip).map(|why| address.invalid(why))
}

/// Why an address cannot be that of an endpoint: no packet can be sent to it, or it means something else on each node.
/// [`ValidateEndpointIP`, pkg/apis/core/validation]
pub fn special_address(ip: IpAddr) -> Option<&'static str> {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_unspecified() {
        Some("may not be unspecified (0.0.0.0 or ::)")
    } else if ip.is_loopback() {
        Some("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    } else if link_local {
        Some("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    } else if ip.is_multicast() {
        Some("may not be in the multicast range (224.0.0.0/4, ff00::/8)")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::ENDPOINT_SLICES;
    use serde_json::json;

    use super::*;

    fn slice(family: &str, address: &str, port: Value) -> Object {
        let mut s = Object::new(&ENDPOINT_SLICES, Some("default"), "web-1");
        s.0.insert("addressType".into(), family.into());
        s.0.insert("endpoints".into(), json!([{"addresses": [address]}]));
        s.0.insert("ports".into(), json!([port]));
        set_defaults(&mut s);
        s
    }

    #[test]
    fn each_fault_names_its_field_and_the_rule() {
        let good = slice("IPv4", "10.0.0.1", json!({"port": 80}));
        assert_eq!(good.pointer("/ports/0"), Some(&json!({"name": "", "port": 80, "protocol": "TCP"})));
        for (family, address, port, expected) in [
            ("IPv4", "10.0.0.1", json!({"port": 80}), ""),
            ("IPv6", "fd00::1", json!({"port": 80}), ""),
            ("FQDN", "a.example", json!({}), ""),
            ("", "10.0.0.1", json!({}), "addressType: Required value"),
            ("IP", "10.0.0.1", json!({}), "addressType: Unsupported value: \"IP\""),
            (
                "IPv4",
                "fd00::1",
                json!({}),
                "endpoints[0].addresses[0]: Invalid value: \"fd00::1\": must be a valid IPv4",
            ),
            (
                "IPv4",
                "127.0.0.1",
                json!({}),
                "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback",
            ),
            (
                "IPv4",
                "169.254.1.1",
                json!({}),
                "endpoints[0].addresses[0]: Invalid value: \"169.254.1.1\": may not be in the link",
            ),
            ("IPv4", "10.0.0.1", json!({"port": 0}), "ports[0].port: Invalid value: 0"),
            ("IPv4", "10.0.0.1", json!({"port": 65536}), "ports[0].port: Invalid value: 65536"),
            ("IPv4", "10.0.0.1", json!({"name": "A"}), "ports[0].name: Invalid value"),
            (
                "IPv4",
                "10.0.0.1",
                json!({"protocol": "ICMP"}),
                "ports[0].protocol: Unsupported value: \"ICMP\"",
            ),
            (
                "IPv4",
                "10.0.0.1",
                json!({"appProtocol": "a b"}),
                "ports[0].appProtocol: Invalid value: \"a b\"",
            ),
            (
                "IPv6",
                "10.0.0.1",
                json!({}),
                "endpoints[0].addresses[0]: Invalid value: \"10.0.0.1\": must be a valid IPv6",
            ),
            (
                "IPv6",
                "fe80::1",
                json!({}),
                "endpoints[0].addresses[0]: Invalid value: \"fe80::1\": may not be in the link",
            ),
            (
                "IPv6",
                "ff02::1",
                json!({}),
                "endpoints[0].addresses[0]: Invalid value: \"ff02::1\": may not be in the multi",
            ),
            (
                "IPv4",
                "0.0.0.0",
                json!({}),
                "endpoints[0].addresses[0]: Invalid value: \"0.0.0.0\": may not be unspec",
            ),
            ("FQDN", "a.example.", json!({}), ""),
            (
                "FQDN",
                "localhost",
                json!({}),
                "endpoints[0].addresses[0]: Invalid value: \"localhost\": should be a domain",
            ),
        ] {
            let found: Vec<_> = validate(None, &slice(family, address, port.clone()))
                .iter()
                .map(ToString::to_string)
                .collect();
            let right = if expected.is_empty() {
                found.is_empty()
            } else {
                found.len() == 1 && found[0].starts_with(expected)
            };
            assert!(right, "{family} {address} {port}: {found:#?}");
        }
        let endpoint = |more: Value| {
            let mut s = good.clone();
            let mut endpoint = json!({"addresses": ["10.0.0.1"]});
            endpoint.as_object_mut().unwrap().extend(more.as_object().cloned().unwrap());
            s.0.insert("endpoints".into(), json!([endpoint]));
            s
        };
        let names = |all: &[&str]| -> Value { all.iter().map(|n| json!({"name": n})).collect() };
        let nine: Vec<String> = (0..9).map(|n| format!("z{n}")).collect();
        let nine: Vec<&str> = nine.iter().map(String::as_str).collect();
        let labels: Value = (0..17).map(|n| (format!("l{n}"), Value::from("x"))).collect();
        let hundred: Vec<String> = (0..101).map(|n| format!("10.0.1.{n}")).collect();
        for (more, expected) in [
            (json!({"hostname": "a", "nodeName": "n.1", "zone": "z"}), ""),
            (json!({"hints": {"forZones": names(&["z1", "z_2"]), "forNodes": names(&["n1"])}}), ""),
            (
                json!({"addresses": []}),
                "endpoints[0].addresses: Required value: must contain at least 1 address",
            ),
            (
                json!({"addresses": hundred}),
                "endpoints[0].addresses: Too many: 101: must have at most 100 items",
            ),
            (json!({"hostname": "A"}), "endpoints[0].hostname: Invalid value: \"A\""),
            (json!({"nodeName": "N"}), "endpoints[0].nodeName: Invalid value: \"N\""),
            (
                json!({"hints": {"forZones": names(&["a b"])}}),
                "endpoints[0].hints.forZones[0].name: Invalid value: \"a b\"",
            ),
            (
                json!({"hints": {"forZones": names(&["a", "a"])}}),
                "endpoints[0].hints.forZones[1].name: Duplicate value: \"a\"",
            ),
            (
                json!({"hints": {"forZones": names(&nine)}}),
                "endpoints[0].hints.forZones: Too many: 9: must have at most 8 items",
            ),
            (
                json!({"hints": {"forNodes": names(&["N"])}}),
                "endpoints[0].hints.forNodes[0].name: Invalid value: \"N\"",
            ),
            (json!({"deprecatedTopology": labels}), "endpoints[0].deprecatedTopology: Too many: 17"),
            (
                json!({"deprecatedTopology": {"a b": "c"}}),
                "endpoints[0].deprecatedTopology: Invalid value: \"a b\"",
            ),
            (
                json!({"deprecatedTopology": {"kubernetes.io/hostname": "c"}}),
                "endpoints[0].deprecatedTopology: Forbidden: hostname",
            ),
        ] {
            let found: Vec<_> =
                validate(None, &endpoint(more.clone())).iter().map(ToString::to_string).collect();
            let right = if expected.is_empty() {
                found.is_empty()
            } else {
                found.len() == 1 && found[0].starts_with(expected)
            };
            assert!(right, "{more}: {found:#?}");
        }
        let mut twice = good.clone();
        twice.0.insert("ports".into(), json!([{"name": "a", "port": 1}, {"name": "a", "port": 2}]));
        assert_eq!(validate(None, &twice)[0].to_string(), "ports[1].name: Duplicate value: \"a\"");
        let other = slice("IPv6", "fd00::1", json!({}));
        assert!(validate(Some(&other), &good)[0].to_string().ends_with("field is immutable"));
    }
}
