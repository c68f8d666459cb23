//! Services and EndpointSlices.

use std::collections::BTreeSet;

use jiff::Timestamp;
use minisvc_proto::{Object, selector::LabelSelector};
use serde_json::{Value, json};

use super::{NONE, Printer, age, first_few, items, or_none};

pub const SERVICE: Printer = Printer {
    columns: &[
        ("Name", "string", 0),
        ("Type", "string", 0),
        ("Cluster-IP", "string", 0),
        ("External-IP", "string", 0),
        ("Port(s)", "string", 0),
        ("Age", "string", 0),
        ("Selector", "string", 1),
    ],
    cells: service,
};

fn service(o: &Object, now: Timestamp) -> Vec<Value> {
    let kind = o.str_at("/spec/type").unwrap_or("ClusterIP");
    let selector = json!({"matchLabels": o.pointer("/spec/selector").cloned().unwrap_or_default()});
    let selector = LabelSelector::from_object(&selector).unwrap_or_default().to_string();
    vec![
        o.name().into(),
        kind.into(),
        o.str_at("/spec/clusterIP").filter(|ip| !ip.is_empty()).unwrap_or(NONE).into(),
        external_ip(o, kind),
        or_none(items(o, "/spec/ports").map(port).collect::<Vec<_>>().join(",")),
        age::of(o, now).into(),
        or_none(selector),
    ]
}

/// Where the outside finds it. [pkg/printers/internalversion, getServiceExternalIP]
fn external_ip(o: &Object, kind: &str) -> Value {
    let external = items(o, "/spec/externalIPs").filter_map(Value::as_str);
    match kind {
        "ExternalName" => or_none(o.str_at("/spec/externalName").unwrap_or("").to_owned()),
        "LoadBalancer" => {
            let given = items(o, "/status/loadBalancer/ingress");
            let given: BTreeSet<&str> = given
                .filter_map(|i| {
                    [&i["ip"], &i["hostname"]].into_iter().filter_map(Value::as_str).find(|t| !t.is_empty())
                })
                .collect();
            let all: Vec<&str> = given.into_iter().chain(external).collect();
            if all.is_empty() { "<pending>".into() } else { all.join(",").into() }
        }
        _ => or_none(external.collect::<Vec<_>>().join(",")),
    }
}

/// `80/TCP`, `80:31234/TCP`.
fn port(p: &Value) -> String {
    let (port, protocol) = (p["port"].as_u64().unwrap_or(0), p["protocol"].as_str().unwrap_or("TCP"));
    match p["nodePort"].as_u64().filter(|n| *n > 0) {
        Some(node_port) => format!("{port}:{node_port}/{protocol}"),
        None => format!("{port}/{protocol}"),
    }
}

pub const ENDPOINT_SLICE: Printer = Printer {
    columns: &[
        ("Name", "string", 0),
        ("AddressType", "string", 0),
        ("Ports", "string", 0),
        ("Endpoints", "string", 0),
        ("Age", "string", 0),
    ],
    cells: |o, now| {
        let ports: Vec<String> = items(o, "/ports")
            .map(|p| match (&p["port"], &p["name"]) {
                (Value::Number(n), _) => n.to_string(),
                (_, Value::String(name)) if !name.is_empty() => name.clone(),
                _ => "*".into(),
            })
            .collect();
        let addresses: Vec<String> = items(o, "/endpoints")
            .filter_map(|e| e["addresses"].as_array())
            .flatten()
            .filter_map(|a| a.as_str().map(str::to_owned))
            .collect();
        vec![
            o.name().into(),
            o.0.get("addressType").cloned().unwrap_or_default(),
            first_few(&ports),
            first_few(&addresses),
            age::of(o, now).into(),
        ]
    },
};

pub const ENDPOINTS: Printer = Printer {
    columns: &[("Name", "string", 0), ("Endpoints", "string", 0), ("Age", "string", 0)],
    cells: |o, now| vec![o.name().into(), addresses(o), age::of(o, now).into()],
};

/// `10.0.0.1:80,10.0.0.2:80 + 2 more...`: the ready ones.
fn addresses(o: &Object) -> Value {
    let mut all = Vec::new();
    for subset in items(o, "/subsets") {
        let list = |field: &str| subset[field].as_array().into_iter().flatten();
        let ips: Vec<&str> = list("addresses").filter_map(|a| a["ip"].as_str()).collect();
        if list("ports").next().is_none() {
            all.extend(ips.iter().map(|ip| (*ip).to_owned()));
        }
        for port in list("ports").filter_map(|p| p["port"].as_u64()) {
            all.extend(
                ips.iter().map(|ip| {
                    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
                }),
            );
        }
    }
    if all.is_empty() { NONE.into() } else { first_few(&all) }
}
