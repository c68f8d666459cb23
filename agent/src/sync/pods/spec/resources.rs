//! What containers ask for and may have, from their fields.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use minisvc_proto::Quantity;

use crate::runtime::Resources;

/// What a container asks for and may have; the server has checked that these are amounts.
pub fn resources(container: &Container) -> Resources {
    let spec = container.resources.as_ref();
    let (limits, requests) = (spec.and_then(|r| r.limits.as_ref()), spec.and_then(|r| r.requests.as_ref()));
    let amount = |of: Option<&BTreeMap<String, _>>, name: &str| {
        of?.get(name).and_then(|q: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| q.0.parse().ok())
    };
    Resources {
        // Nothing is no limit. [pkg/kubelet/kuberuntime, calculateLinuxResources]
        memory_limit: amount(limits, "memory").map(Quantity::value).filter(|n| *n > 0),
        cpu_limit: amount(limits, "cpu").map(Quantity::milli_value).filter(|n| *n > 0),
        cpu_request: amount(requests, "cpu").map(Quantity::milli_value),
    }
}

/// What the user of a pod has to know where its containers have limits and the node enforces none, with the node's reason.
pub fn limits_not_enforced(pod: &Pod, enforced: Result<(), String>) -> Option<String> {
    let mut containers =
        pod.spec.iter().flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers)).map(resources);
    let limited = containers.any(|r| r.memory_limit.is_some() || r.cpu_limit.is_some());
    let why = enforced.err().filter(|_| limited)?;
    Some(format!("this node does not enforce the limits of containers: {why}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn amounts_become_bytes_and_thousandths_of_a_core() {
        for (given, memory_limit, cpu_limit, cpu_request) in [
            (json!({}), None, None, None),
            (json!({"limits": {"memory": "64Mi", "cpu": "0.5"}}), Some(64 << 20), Some(500), None),
            (json!({"requests": {"memory": "1G", "cpu": 2}}), None, None, Some(2000)),
            (json!({"limits": {"memory": 0, "cpu": "0"}}), None, None, None),
        ] {
            let spec = json!({"spec": {"containers": [{"name": "c", "resources": given}]}});
            let pod: Pod = serde_json::from_value(spec).unwrap();
            let wanted = Resources { memory_limit, cpu_limit, cpu_request };
            assert_eq!(resources(&pod.spec.as_ref().unwrap().containers[0]), wanted, "{given}");
            // Who has limits hears where they do not hold.
            let told = limits_not_enforced(&pod, Err("no cgroups".into()));
            assert_eq!(told.is_some(), memory_limit.is_some() || cpu_limit.is_some(), "{given}");
            assert!(told.is_none_or(|t| t.ends_with(": no cgroups")));
            assert_eq!(limits_not_enforced(&pod, Ok(())), None);
        }
    }
}
