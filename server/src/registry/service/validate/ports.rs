//! The ports of a service. [validation.go, validateServicePort]

use std::collections::BTreeSet;

use minisvc_proto::{Cause, Object, names::check_dns_label, selector::is_label_key};
use serde_json::{Value, json};

use crate::registry::{
    Ranges,
    field::Field,
    service::{has_node_ports, node_ports, port_number, spec, type_of},
};

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];
const NUMBER: &str = "must be between 1 and 65535, inclusive";

pub fn faults(old: Option<&Object>, new: &Object, ranges: &Ranges, faults: &mut Vec<Cause>) {
    let (mut names, mut numbers, mut taken) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let held: BTreeSet<u16> = old.into_iter().flat_map(node_ports).collect();
    let list = spec(new, "ports");
    let several = list.items().count() > 1;
    for port in list.items() {
        let [name, protocol, number, target, app, node_port] =
            ["name", "protocol", "port", "targetPort", "appProtocol", "nodePort"].map(|f| port.child(f));
        if name.text().is_empty() {
            if several {
                faults.push(name.required(""));
            }
        } else if let Err(rule) = check_dns_label(name.text()) {
            faults.push(name.invalid(rule.0));
        } else if !names.insert(name.text()) {
            faults.push(Cause::duplicate(&name.path, name.text()));
        }
        faults.extend(protocol.one_of(&PROTOCOLS));
        if app.value.is_some() && !is_label_key(app.text()) {
            faults.push(app.invalid("must be a name such as http or example.com/proto"));
        }
        match port_number(number.value) {
            None => faults.push(number.invalid(NUMBER)),
            Some(n) if !numbers.insert((protocol.text(), n)) => {
                let value = json!({"port": n, "protocol": protocol.text()});
                faults.push(Cause::duplicate(&port.path, value));
            }
            Some(_) => {}
        }
        target_fault(&target, faults);
        if !node_port.is_set() {
            continue;
        }
        if !has_node_ports(new) {
            let why = format!("may not be used when `type` is '{}'", type_of(new));
            faults.push(node_port.forbidden(&why));
        } else if let Some(n) =
            port_number(node_port.value).filter(|n| ranges.node_ports.contains(*n) || held.contains(n))
        {
            if !taken.insert((protocol.text(), n)) {
                faults.push(Cause::duplicate(&node_port.path, n));
            }
        } else {
            faults.push(node_port.invalid(&not_in_range(ranges)));
        }
    }
}

/// What a port is told that is no node port here.
pub fn not_in_range(ranges: &Ranges) -> String {
    let range = &ranges.node_ports;
    format!("provided port is not in the valid range. The range of valid ports is {range}")
}

fn target_fault(target: &Field<'_>, faults: &mut Vec<Cause>) {
    match target.value {
        Some(Value::String(name)) if !is_port_name(name) => {
            faults.push(target.invalid(
                "must be an IANA service name: at most 15 characters of a-z, 0-9 and '-', with a letter in it",
            ));
        }
        Some(Value::Number(_)) if port_number(target.value).is_none() => faults.push(target.invalid(NUMBER)),
        _ => {}
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
