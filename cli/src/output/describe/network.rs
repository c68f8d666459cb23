//! Services, EndpointSlices and Endpoints.

use minisvc_proto::{Object, report::ServiceProgress};
use serde_json::Value;

use super::{Page, Related, controlled_by, labels, scalar, selector};

/// So many addresses are shown before "+ N more...".
const SHOWN: usize = 3;

pub fn service(page: &mut Page, service: &Object, related: &Related) {
    labels(page, service);
    page.field("Selector", &selector(service.pointer("/spec/selector")));
    page.field("Type", service.str_at("/spec/type").unwrap_or("ClusterIP"));
    page.field("IP Family Policy", &scalar(service.pointer("/spec/ipFamilyPolicy")));
    page.field("IP Families", &joined(service.pointer("/spec/ipFamilies")));
    page.field("IP", &scalar(service.pointer("/spec/clusterIP")));
    page.field("IPs", &joined(service.pointer("/spec/clusterIPs")));
    for (key, text) in [
        ("External IPs", joined_if_any(service.pointer("/spec/externalIPs"))),
        ("LoadBalancer Class", text(service, "/spec/loadBalancerClass")),
        ("LoadBalancer Source Ranges", joined_if_any(service.pointer("/spec/loadBalancerSourceRanges"))),
        ("LoadBalancer Ingress", ingress(service)),
        ("External Name", text(service, "/spec/externalName")),
    ] {
        if let Some(text) = text {
            page.field(key, &text);
        }
    }
    for port in list(service.pointer("/spec/ports")) {
        let name = port["name"].as_str().filter(|n| !n.is_empty());
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let shown = name.unwrap_or("<unset>");
        page.field("Port", &format!("{shown}  {}/{protocol}", scalar(port.get("port"))));
        page.field("TargetPort", &format!("{}/{protocol}", scalar(port.get("targetPort"))));
        if let Some(node_port) = port["nodePort"].as_u64().filter(|n| *n > 0) {
            page.field("NodePort", &format!("{shown}  {node_port}/{protocol}"));
        }
        page.field("Endpoints", &endpoints(&related.slices, name.unwrap_or_default(), protocol));
    }
    let affinity = service.str_at("/spec/sessionAffinity").unwrap_or("None");
    let timeout = service.pointer("/spec/sessionAffinityConfig/clientIP/timeoutSeconds");
    page.field(
        "Session Affinity",
        &timeout.map_or_else(|| affinity.to_owned(), |t| format!("{affinity} ({t} s)")),
    );
    let health = service.pointer("/spec/healthCheckNodePort").and_then(Value::as_u64).filter(|n| *n > 0);
    for (key, text) in [
        ("External Traffic Policy", text(service, "/spec/externalTrafficPolicy")),
        ("Internal Traffic Policy", text(service, "/spec/internalTrafficPolicy")),
        ("HealthCheck NodePort", health.map(|n| n.to_string())),
        ("Traffic Distribution", text(service, "/spec/trafficDistribution")),
        ("Publish Not Ready Addresses", publishes(service).then(|| "true".to_owned())),
    ] {
        if let Some(text) = text {
            page.field(key, &text);
        }
    }
    if service.str_at("/spec/type") != Some("ExternalName") {
        page.field("Programmed", &programmed(service, related.progress.as_ref()));
    }
    // Programmed has its line above.
    let others = |c: &&Value| c["type"] != "Programmed";
    let rows: Vec<Vec<String>> = list(service.pointer("/status/conditions"))
        .filter(others)
        .map(|c| {
            ["type", "status", "reason", "message"].map(|f| c[f].as_str().unwrap_or("").to_owned()).to_vec()
        })
        .collect();
    if !rows.is_empty() {
        page.heading("Conditions");
        page.table(2, &["Type", "Status", "Reason", "Message"], &rows);
    }
}

fn text(object: &Object, at: &str) -> Option<String> {
    object.str_at(at).filter(|t| !t.is_empty()).map(str::to_owned)
}

fn publishes(service: &Object) -> bool {
    service.pointer("/spec/publishNotReadyAddresses") == Some(&Value::Bool(true))
}

/// `10.0.0.1 (VIP), lb.example.com`
fn ingress(service: &Object) -> Option<String> {
    let one = |i: &Value| {
        let at = i["ip"].as_str().filter(|ip| !ip.is_empty()).or_else(|| i["hostname"].as_str())?;
        Some(i["ipMode"].as_str().map_or_else(|| at.to_owned(), |mode| format!("{at} ({mode})")))
    };
    let all: Vec<String> = list(service.pointer("/status/loadBalancer/ingress")).filter_map(one).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

/// The condition, and who is late.
fn programmed(service: &Object, progress: Option<&ServiceProgress>) -> String {
    let condition = list(service.pointer("/status/conditions")).find(|c| c["type"] == "Programmed");
    let mut lines = vec![condition.map_or_else(
        || "Unknown".to_owned(),
        |c| match (scalar(c.get("status")), c["message"].as_str().filter(|m| !m.is_empty())) {
            (status, Some(message)) if status != "True" => format!("{status} ({message})"),
            (status, _) => status,
        },
    )];
    if let Some(p) = progress {
        let done = p.ready_nodes.saturating_sub(p.late_nodes.len());
        lines[0] = format!("{}, on {done} of {} ready nodes", lines[0], p.ready_nodes);
        lines.extend(p.late_nodes.iter().map(|n| format!("not yet by node {n}")));
        lines.extend(p.late_pods.iter().map(|n| format!("waits for pod {n}")));
    }
    lines.join("\n")
}

/// Ready addresses of a port: `10.244.0.2:8080,10.244.1.2:8080 + 2 more...`
fn endpoints(slices: &[Object], port: &str, protocol: &str) -> String {
    let mut all = Vec::new();
    for slice in slices {
        let same = |p: &&Value| {
            p["name"].as_str().unwrap_or_default() == port
                && p["protocol"].as_str().unwrap_or("TCP") == protocol
        };
        for number in list(slice.pointer("/ports")).filter(same).filter_map(|p| p["port"].as_u64()) {
            let ready = |e: &&Value| e.pointer("/conditions/ready") != Some(&Value::Bool(false));
            for address in
                list(slice.pointer("/endpoints")).filter(ready).flat_map(|e| list(e.get("addresses")))
            {
                let text = scalar(Some(address));
                all.push(if text.contains(':') {
                    format!("[{text}]:{number}")
                } else {
                    format!("{text}:{number}")
                });
            }
        }
    }
    all.sort();
    all.dedup();
    if all.is_empty() {
        return "<none>".into();
    }
    let more = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    let text = all.join(",");
    if more > 0 { format!("{text} + {more} more...") } else { text }
}

pub fn slice(page: &mut Page, slice: &Object) {
    labels(page, slice);
    controlled_by(page, slice);
    page.field("AddressType", &scalar(slice.pointer("/addressType")));
    let ports: Vec<Vec<String>> = list(slice.pointer("/ports"))
        .map(|p| {
            let name = p["name"].as_str().filter(|n| !n.is_empty()).unwrap_or("<unset>");
            vec![name.to_owned(), scalar(p.get("port")), p["protocol"].as_str().unwrap_or("TCP").to_owned()]
        })
        .collect();
    if ports.is_empty() {
        page.field("Ports", "<unset>");
    } else {
        page.heading("Ports");
        page.underlined_table(2, &["Name", "Port", "Protocol"], &ports);
    }
    let endpoints: Vec<&Value> = list(slice.pointer("/endpoints")).collect();
    if endpoints.is_empty() {
        page.field("Endpoints", "<none>");
        return;
    }
    page.heading("Endpoints");
    for endpoint in endpoints {
        page.indented_field(2, "- Addresses", &joined(endpoint.get("addresses")));
        for (key, at) in [
            ("Ready", "/conditions/ready"),
            ("Serving", "/conditions/serving"),
            ("Terminating", "/conditions/terminating"),
        ] {
            page.indented_field(4, key, &scalar(endpoint.pointer(at)));
        }
        if let (Some(kind), Some(name)) =
            (endpoint.pointer("/targetRef/kind"), endpoint.pointer("/targetRef/name"))
        {
            page.indented_field(4, "TargetRef", &format!("{}/{}", scalar(Some(kind)), scalar(Some(name))));
        }
        page.indented_field(4, "NodeName", &scalar(endpoint.get("nodeName")));
        for (key, field) in [("Hostname", "hostname"), ("Zone", "zone")] {
            if let Some(text) = endpoint[field].as_str() {
                page.indented_field(4, key, text);
            }
        }
        for (key, at) in [("For Zones", "/hints/forZones"), ("For Nodes", "/hints/forNodes")] {
            let names: Vec<&str> = list(endpoint.pointer(at)).filter_map(|h| h["name"].as_str()).collect();
            if !names.is_empty() {
                page.indented_field(4, key, &names.join(","));
            }
        }
    }
}

pub fn endpoints_object(page: &mut Page, endpoints: &Object) {
    labels(page, endpoints);
    let subsets: Vec<&Value> = list(endpoints.pointer("/subsets")).collect();
    if subsets.is_empty() {
        page.field("Subsets", "<none>");
        return;
    }
    page.heading("Subsets");
    for subset in subsets {
        let ips = |field: &str| -> String {
            let all: Vec<&str> = list(subset.get(field)).filter_map(|a| a["ip"].as_str()).collect();
            if all.is_empty() { "<none>".into() } else { all.join(",") }
        };
        page.indented_field(2, "Addresses", &ips("addresses"));
        page.indented_field(2, "NotReadyAddresses", &ips("notReadyAddresses"));
        let ports: Vec<Vec<String>> = list(subset.get("ports"))
            .map(|p| {
                let name = p["name"].as_str().filter(|n| !n.is_empty()).unwrap_or("<unset>");
                vec![
                    name.to_owned(),
                    scalar(p.get("port")),
                    p["protocol"].as_str().unwrap_or("TCP").to_owned(),
                ]
            })
            .collect();
        if !ports.is_empty() {
            page.indented_heading(2, "Ports");
            page.underlined_table(4, &["Name", "Port", "Protocol"], &ports);
        }
    }
}

fn list(value: Option<&Value>) -> impl Iterator<Item = &Value> {
    value.and_then(Value::as_array).into_iter().flatten()
}

fn joined_if_any(value: Option<&Value>) -> Option<String> {
    list(value).next().map(|_| joined(value))
}

fn joined(value: Option<&Value>) -> String {
    let words: Vec<String> = list(value).map(|w| scalar(Some(w))).collect();
    if words.is_empty() { "<none>".into() } else { words.join(",") }
}
