//! EndpointSlice: defaults and rules. [pkg/apis/discovery/validation/validation.go]

use std::{collections::BTreeSet, net::IpAddr};

use minisvc_proto::{
    Cause, Object,
    names::{check_dns_label, check_dns_subdomain},
};
use serde_json::Value;

use super::{field::Field, pod::set_default};

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 100;

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
        if number.value.is_some() && !number.number().is_some_and(|n| (1..=65535).contains(&n)) {
            faults.push(number.invalid("must be between 1 and 65535, inclusive"));
        }
    }
    faults
}

fn limit(list: &Field<'_>, most: usize, faults: &mut Vec<Cause>) {
    if list.items().count() > most {
        faults.push(Cause {
            reason: "FieldValueTooMany".into(),
            message: format!("Too many: {}: must have at most {most} items", list.items().count()),
            field: list.path.clone(),
        });
    }
}

fn address_fault(address: &Field<'_>, family: &str) -> Option<Cause> {
    if family == "FQDN" {
        return check_dns_subdomain(address.text()).err().map(|rule| address.invalid(rule.0));
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
            ("IPv4", "10.0.0.1", json!({"name": "A"}), "ports[0].name: Invalid value"),
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
        let other = slice("IPv6", "fd00::1", json!({}));
        assert!(validate(Some(&other), &good)[0].to_string().ends_with("field is immutable"));
    }
}
