//! The nodePorts of a service on this machine's own loopback, which the relay of `up` opens.

use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use minisvc_proto::{
    Object,
    client::{Client, ListParams},
    path::Target,
    resource::EVENTS,
};
use serde_json::Value;
use tokio::time::{sleep, timeout};

use crate::output;

/// How long the relay may take to open a nodePort.
const DOOR: Duration = Duration::from_secs(2);
/// So many addresses of a load balancer are shown.
const SHOWN: usize = 3;
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Whether the server is on this machine's loopback, as that of a cluster of `up` is; its nodePorts are beside it then.
pub fn is_here(server: &str) -> bool {
    ["https://127.0.0.1:", "https://localhost:", "https://[::1]:"].iter().any(|p| server.starts_with(p))
}

/// Waits until the relay has opened the service's TCP ports, or has said that it cannot: until then the next command would fail.
/// What comes back are the ports that answer here, and the relay's words about those that it could not have.
pub async fn await_relay(client: &Client, service: &Object, limit: Duration) -> (Vec<u16>, Vec<String>) {
    let end = Instant::now() + limit.min(DOOR);
    let all = node_ports(service);
    let mut left: Vec<u16> = all.iter().filter(|(_, protocol)| *protocol == "TCP").map(|(n, _)| *n).collect();
    let (mut here, mut taken) = (Vec::new(), Vec::new());
    while !all.is_empty() {
        for port in std::mem::take(&mut left) {
            if connects(port).await { here.push(port) } else { left.push(port) }
        }
        // Who accepts may be another program that had the port before. The relay learns of the service as the nodes do, and a
        // moment later it has said so.
        sleep(PAUSE).await;
        taken = words_of_relay(client, service).await;
        if left.is_empty() || !taken.is_empty() || Instant::now() >= end {
            break;
        }
    }
    here.retain(|port| !taken.iter().any(|text| names(text, *port)));
    (here, taken)
}

async fn connects(port: u16) -> bool {
    let attempt = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    timeout(DOOR, attempt).await.is_ok_and(|stream| stream.is_ok())
}

/// `TCP port 30080 of this machine ...`.
fn names(text: &str, port: u16) -> bool {
    text.starts_with(&format!("TCP port {port} "))
}

/// What the relay has written about this service.
async fn words_of_relay(client: &Client, service: &Object) -> Vec<String> {
    let target = Target::collection(&EVENTS, service.namespace());
    let Ok((_, events)) = client.list(&target, &ListParams::default()).await else { return Vec::new() };
    words(&events, service.uid())
}

fn words(events: &[Object], uid: &str) -> Vec<String> {
    let of_relay = |e: &&Object| {
        e.str_at("/reason") == Some("PortTaken")
            && e.str_at("/source/component") == Some("minisvc-relay")
            && e.str_at("/involvedObject/uid") == Some(uid)
    };
    events.iter().filter(of_relay).filter_map(|e| e.str_at("/message")).map(str::to_owned).collect()
}

/// Says where a service answers, and where it cannot.
pub fn tell(service: &Object, here: &[u16], taken: &[String]) {
    for line in lines(service, here) {
        output::note(&line);
    }
    for line in taken {
        output::note(&format!("note: {line}"));
    }
}

fn node_ports(service: &Object) -> Vec<(u16, &str)> {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).into_iter().flatten();
    let node_port = |p: &Value| u16::try_from(p["nodePort"].as_u64()?).ok().filter(|n| *n > 0);
    ports.filter_map(|p| Some((node_port(p)?, p["protocol"].as_str().unwrap_or("TCP")))).collect()
}

/// How to reach a service; `here` are the nodePorts that this machine's loopback answers.
fn lines(service: &Object, here: &[u16]) -> Vec<String> {
    let mut lines: Vec<String> = node_ports(service)
        .into_iter()
        .map(|(port, _)| {
            let also =
                if here.contains(&port) { format!("127.0.0.1:{port}, and at ") } else { String::new() };
            format!("reach it at {also}port {port} of every node")
        })
        .collect();
    let balanced: Vec<String> = list(service, "/spec/ports")
        .filter_map(|p| p["port"].as_u64())
        .filter_map(|port| {
            let ips: Vec<&str> =
                list(service, "/status/loadBalancer/ingress").filter_map(|i| i["ip"].as_str()).collect();
            let at = |ip: &&str| {
                if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
            };
            let mut shown: Vec<String> = ips.iter().take(SHOWN).map(at).collect();
            if ips.len() > SHOWN {
                shown.push(format!("{} more addresses", ips.len() - SHOWN));
            }
            (!shown.is_empty()).then(|| format!("reach it at {}", shown.join(", ")))
        })
        .collect();
    lines.splice(0..0, balanced);
    // TCP and UDP of one number are one line.
    lines.dedup();
    lines
}

fn list<'a>(object: &'a Object, at: &str) -> impl Iterator<Item = &'a Value> {
    object.pointer(at).and_then(Value::as_array).into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::SERVICES;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_port_is_reached_here_where_it_answers() {
        let mut service = Object::new(&SERVICES, None, "hello");
        let ports =
            json!([{"port": 80, "nodePort": 30080}, {"port": 80, "protocol": "UDP", "nodePort": 30080}]);
        service.spec_mut().insert("ports".into(), ports);
        assert_eq!(node_ports(&service), [(30080, "TCP"), (30080, "UDP")]);
        assert_eq!(
            lines(&service, &[30080]),
            ["reach it at 127.0.0.1:30080, and at port 30080 of every node"]
        );
        assert_eq!(lines(&service, &[]), ["reach it at port 30080 of every node"]);
        let ingress: Vec<_> =
            ["10.0.0.1", "fd00::1", "10.0.0.2", "10.0.0.3"].map(|ip| json!({"ip": ip})).into();
        service.status_mut().insert("loadBalancer".into(), json!({"ingress": ingress}));
        assert_eq!(
            lines(&service, &[]),
            [
                "reach it at 10.0.0.1:80, [fd00::1]:80, 10.0.0.2:80, 1 more addresses",
                "reach it at port 30080 of every node"
            ]
        );
        assert!(lines(&Object::new(&SERVICES, None, "x"), &[]).is_empty());
        assert!(is_here("https://127.0.0.1:7443") && !is_here("https://192.168.1.5:7443"));
    }

    #[test]
    fn the_relays_words_are_those_about_this_service() {
        let event = |reason: &str, component: &str, uid: &str| -> Object {
            serde_json::from_value(
                json!({"kind": "Event", "reason": reason, "message": format!("{component} {uid}"),
                "source": {"component": component}, "involvedObject": {"uid": uid}}),
            )
            .unwrap()
        };
        let events = [
            event("PortTaken", "minisvc-relay", "other"),
            event("PortTaken", "minisvc-agent", "ours"),
            event("Else", "minisvc-relay", "ours"),
            event("PortTaken", "minisvc-relay", "ours"),
        ];
        assert_eq!(words(&events, "ours"), ["minisvc-relay ours"]);
        assert!(names("TCP port 30080 of this machine", 30080) && !names("UDP port 30080 of", 30080));
        assert!(!names("TCP port 30080 of this machine", 3008));
    }
}
