//! Facts about a pod that several controllers read.

use std::{net::IpAddr, time::Duration};

use jiff::Timestamp;
use minisvc_proto::Object;
use serde_json::Value;

use crate::{alloc::Family, conditions, registry::special_address};

/// Its condition `Ready` is `True`.
pub fn is_ready(pod: &Object) -> bool {
    conditions::is_true(pod, "Ready")
}

/// How long until it has been Ready for this long; zero if it has been, `None` while it is not Ready.
pub fn available_in(pod: &Object, min_ready: Duration, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    let since = conditions::get(pod, "Ready")?.get("lastTransitionTime").and_then(Value::as_str);
    // A time that cannot be read is taken to be long ago; one that is still to come, for now.
    let Some(since) = since.and_then(|t| t.parse::<Timestamp>().ok()) else { return Some(Duration::ZERO) };
    let been = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    Some(min_ready.saturating_sub(been))
}

/// Its deletion was asked for.
pub fn is_terminating(pod: &Object) -> bool {
    pod.deletion_timestamp().is_some()
}

/// It failed or succeeded, and will not run again.
pub fn is_ended(pod: &Object) -> bool {
    matches!(pod.str_at("/status/phase"), Some("Failed" | "Succeeded"))
}

/// The node it is bound to.
pub fn node(pod: &Object) -> Option<&str> {
    pod.str_at("/spec/nodeName").filter(|n| !n.is_empty())
}

/// Annotation of a pod that was replaced because its node was silent. [`is_given_up`]
pub const GIVEN_UP: &str = "minisvc.io/given-up";

/// It was replaced because its node was silent. Whatever the node says of it when it is back, it serves nobody any more.
pub fn is_given_up(pod: &Object) -> bool {
    is_terminating(pod) && pod.annotations().contains_key(GIVEN_UP)
}

/// Its address of a family, if it is one that a slice may hold: a node that writes rubbish must not keep the endpoints of other
/// nodes out.
pub fn address(pod: &Object, family: Family) -> Option<&str> {
    let list = pod.pointer("/status/podIPs").and_then(Value::as_array);
    let list = list.into_iter().flatten().filter_map(|entry| entry.get("ip")?.as_str());
    let usable = |ip: IpAddr| Family::of(ip) == family && special_address(ip).is_none();
    pod.str_at("/status/podIP").into_iter().chain(list).find(|text| text.parse().is_ok_and(usable))
}

/// The number of the port with this name and protocol, of a container or else of a sidecar. [pkg/api/v1/pod, FindPort]
pub fn named_port(pod: &Object, name: &str, protocol: &str) -> Option<u16> {
    let list = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let sidecars = list("/spec/initContainers").filter(|c| c["restartPolicy"] == "Always");
    let containers = list("/spec/containers").chain(sidecars);
    let ports = containers.filter_map(|c| c.get("ports")?.as_array()).flatten();
    let mut matching = ports.filter(|p| {
        p.get("name").and_then(Value::as_str) == Some(name)
            && p.get("protocol").and_then(Value::as_str).unwrap_or("TCP") == protocol
    });
    u16::try_from(matching.next()?.get("containerPort")?.as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_port_has_its_name_from_a_container_or_a_sidecar() {
        let port =
            |name: &str, number: u16| json!([{"name": name, "containerPort": number, "protocol": "TCP"}]);
        let pod: Object = serde_json::from_value(json!({"spec": {
            "initContainers": [{"name": "i", "ports": port("setup", 1)},
                {"name": "s", "restartPolicy": "Always", "ports": port("proxy", 2)},
                {"name": "t", "restartPolicy": "Always", "ports": port("web", 3)}],
            "containers": [{"name": "c", "ports": port("web", 4)}]}}))
        .unwrap();
        let found = ["setup", "proxy", "web"].map(|name| named_port(&pod, name, "TCP"));
        assert_eq!(found, [None, Some(2), Some(4)]);
        assert_eq!(named_port(&pod, "web", "UDP"), None);
    }
}
