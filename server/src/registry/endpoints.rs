//! Endpoints: defaults and rules. [pkg/apis/core/validation/validation.go, ValidateEndpoints]

use std::net::IpAddr;

use minisvc_proto::{
    Cause, Object,
    names::{check_dns_label, check_dns_subdomain},
    selector::is_label_key,
};
use serde_json::Value;

use super::{field::Field, pod::set_default, slice::special_address};

/// Fills what the user left out.
pub fn set_defaults(endpoints: &mut Object) {
    let subsets = endpoints.0.get_mut("subsets").and_then(Value::as_array_mut);
    for subset in subsets.into_iter().flatten() {
        for port in subset.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(port) = port.as_object_mut() {
                set_default(port, "protocol", "TCP".into());
            }
        }
    }
}

/// Every fault of defaulted Endpoints.
pub fn validate(endpoints: &Object) -> Vec<Cause> {
    let mut faults = Vec::new();
    for subset in Field::of(endpoints, "subsets").items() {
        let lists = ["addresses", "notReadyAddresses"].map(|list| subset.child(list));
        if lists.iter().all(|list| !list.is_set()) {
            faults.push(subset.required("must specify `addresses` or `notReadyAddresses`"));
        }
        faults.extend(lists.iter().flat_map(Field::items).flat_map(|address| address_faults(&address)));
        let ports: Vec<_> = subset.child("ports").items().collect();
        faults.extend(ports.iter().flat_map(|port| port_faults(port, ports.len() > 1)));
    }
    faults
}

fn address_faults(address: &Field<'_>) -> Vec<Cause> {
    let mut faults = Vec::new();
    let (ip, host, node) = (address.child("ip"), address.child("hostname"), address.child("nodeName"));
    match ip.text().parse::<IpAddr>() {
        Ok(parsed) => faults.extend(special_address(parsed).map(|why| ip.invalid(why))),
        Err(_) => faults.push(ip.invalid("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")),
    }
    if host.is_set() {
        faults.extend(check_dns_label(host.text()).err().map(|rule| host.invalid(rule.0)));
    }
    if node.value.is_some() {
        faults.extend(check_dns_subdomain(node.text()).err().map(|rule| node.invalid(rule.0)));
    }
    faults
}

fn port_faults(port: &Field<'_>, named: bool) -> Vec<Cause> {
    let mut faults = Vec::new();
    let (name, number, app) = (port.child("name"), port.child("port"), port.child("appProtocol"));
    if name.is_set() {
        faults.extend(check_dns_label(name.text()).err().map(|rule| name.invalid(rule.0)));
    } else if named {
        faults.push(name.required(""));
    }
    if !number.number().is_some_and(|n| (1..=65535).contains(&n)) {
        faults.push(number.invalid("must be between 1 and 65535, inclusive"));
    }
    faults.extend(port.child("protocol").one_of(&["SCTP", "TCP", "UDP"]));
    if app.is_set() && !is_label_key(app.text()) {
        faults.push(app.invalid("must be a name such as http or example.com/proto"));
    }
    faults
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::ENDPOINTS;
    use serde_json::json;

    use super::*;

    fn endpoints(subset: &Value) -> Object {
        let mut e = Object::new(&ENDPOINTS, Some("default"), "db");
        e.0.insert("subsets".into(), json!([subset]));
        set_defaults(&mut e);
        e
    }

    #[test]
    fn each_fault_names_its_field_and_the_rule() {
        let address = |address: Value| json!({"addresses": [address], "ports": [{"port": 5432}]});
        let port = |port: Value| json!({"notReadyAddresses": [{"ip": "10.0.0.1"}], "ports": port});
        let good = endpoints(&address(json!({"ip": "10.0.0.1"})));
        assert_eq!(good.pointer("/subsets/0/ports/0"), Some(&json!({"port": 5432, "protocol": "TCP"})));
        for (subset, expected) in [
            (address(json!({"ip": "fd00::1", "hostname": "a", "nodeName": "n-1"})), ""),
            (port(json!([])), ""),
            (
                json!({"ports": [{"port": 80}]}),
                "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`",
            ),
            (
                address(json!({"ip": "db.example"})),
                "subsets[0].addresses[0].ip: Invalid value: \"db.example\": must be a valid IP address",
            ),
            (address(json!({})), "subsets[0].addresses[0].ip: Invalid value: null: must be a valid IP"),
            (
                address(json!({"ip": "0.0.0.0"})),
                "subsets[0].addresses[0].ip: Invalid value: \"0.0.0.0\": may not be unspec",
            ),
            (
                address(json!({"ip": "::1"})),
                "subsets[0].addresses[0].ip: Invalid value: \"::1\": may not be in the loopback",
            ),
            (
                address(json!({"ip": "169.254.169.254"})),
                "subsets[0].addresses[0].ip: Invalid value: \"169.254.169.254\": may not be in the link-local",
            ),
            (
                address(json!({"ip": "ff02::1"})),
                "subsets[0].addresses[0].ip: Invalid value: \"ff02::1\": may not be in the multicast",
            ),
            (
                address(json!({"ip": "10.0.0.1", "hostname": "a.b"})),
                "subsets[0].addresses[0].hostname: Invalid value: \"a.b\"",
            ),
            (
                address(json!({"ip": "10.0.0.1", "nodeName": "N"})),
                "subsets[0].addresses[0].nodeName: Invalid value: \"N\"",
            ),
            (
                port(json!([{"port": 0}])),
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535",
            ),
            (port(json!([{"port": 65536}])), "subsets[0].ports[0].port: Invalid value: 65536"),
            (port(json!([{"name": "A", "port": 1}])), "subsets[0].ports[0].name: Invalid value: \"A\""),
            (
                port(json!([{"name": "a", "port": 1}, {"port": 2}])),
                "subsets[0].ports[1].name: Required value",
            ),
            (
                port(json!([{"port": 1, "protocol": "ICMP"}])),
                "subsets[0].ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ),
            (
                port(json!([{"port": 1, "appProtocol": "a b"}])),
                "subsets[0].ports[0].appProtocol: Invalid value: \"a b\"",
            ),
        ] {
            let found: Vec<_> = validate(&endpoints(&subset)).iter().map(ToString::to_string).collect();
            let right = if expected.is_empty() {
                found.is_empty()
            } else {
                found.len() == 1 && found[0].starts_with(expected)
            };
            assert!(right, "{subset}: {found:#?}");
        }
    }
}
