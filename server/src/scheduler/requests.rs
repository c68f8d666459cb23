//! What a pod asks of its node, and what the node has.
//! [staging/src/k8s.io/component-helpers/resource/helpers.go, PodRequests; plugins/noderesources/fit.go]

use std::collections::BTreeMap;

use minisvc_proto::{Object, Quantity};
use serde_json::Value;

/// Amounts by the resource's name: cores of `cpu`, bytes of `memory`.
pub type Amounts = BTreeMap<String, Quantity>;

/// What a machine has whether or not the node says how much: where it does not, it is not counted.
const OF_EVERY_NODE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];

/// The amounts that stand in a map. What is no amount was refused when it was written.
fn read(map: Option<&Value>) -> Amounts {
    let entries = map.and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(name, v)| Some((name.clone(), Quantity::from_json(v).ok()?))).collect()
}

/// A container's requests; of what it only limits, the limit.
fn of_container(container: &Value) -> Amounts {
    let mut amounts = read(container.pointer("/resources/limits"));
    amounts.extend(read(container.pointer("/resources/requests")));
    amounts
}

/// Adds the other amounts.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        *to.entry(name.clone()).or_default() += *amount;
    }
}

/// Takes the other amounts away.
pub fn subtract(from: &mut Amounts, less: &Amounts) {
    for (name, amount) in less {
        let entry = from.entry(name.clone()).or_default();
        *entry = *entry - *amount;
    }
}

/// The greater of each two.
fn raise(to: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        let entry = to.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

/// What the pod needs at most at any time: its containers and sidecars together, or an init container and the sidecars that were
/// started before it.
pub fn of_pod(pod: &Object) -> Amounts {
    let list = |at: &str| pod.pointer(at).and_then(Value::as_array).into_iter().flatten();
    let mut total = Amounts::new();
    for container in list("/spec/containers") {
        add(&mut total, &of_container(container));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in list("/spec/initContainers") {
        let own = of_container(container);
        let mut now = sidecars.clone();
        add(&mut now, &own);
        raise(&mut peak, &now);
        if container.get("restartPolicy").and_then(Value::as_str) == Some("Always") {
            add(&mut total, &own);
            sidecars = now;
        }
    }
    raise(&mut total, &peak);
    total
}

/// What a node has for pods.
pub fn allocatable(node: &Object) -> Amounts {
    read(node.pointer("/status/allocatable"))
}

/// What a node with so many pods, which use so much, lacks for another one.
pub fn lacks(has: &Amounts, pods: usize, used: &Amounts, asked: &Amounts) -> Vec<String> {
    let mut lacks = Vec::new();
    let room = has.get("pods").map(|q| usize::try_from(q.value()).unwrap_or(0));
    if room.is_some_and(|room| pods >= room) {
        lacks.push("Too many pods".to_owned());
    }
    for (name, amount) in asked.iter().filter(|(_, amount)| !amount.is_zero()) {
        let has = match has.get(name) {
            None if OF_EVERY_NODE.contains(&name.as_str()) => continue,
            has => has.copied().unwrap_or_default(),
        };
        if used.get(name).copied().unwrap_or_default() + *amount > has {
            lacks.push(format!("Insufficient {name}"));
        }
    }
    lacks
}

/// How full the node would be with the pod, in thousandths: cpu and memory together.
pub fn fullness(has: &Amounts, used: &Amounts, asked: &Amounts) -> i128 {
    let of = |name: &str| {
        let has = i128::from(has.get(name).map_or(0, |q| q.milli_value()));
        let amount = |a: &Amounts| a.get(name).copied().unwrap_or_default();
        let wanted = i128::from((amount(used) + amount(asked)).milli_value());
        if has == 0 { 0 } else { wanted * 1000 / has }
    };
    of("cpu") + of("memory")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn asked(spec: &Value) -> String {
        let pod: Object = serde_json::from_value(json!({"spec": spec})).unwrap();
        of_pod(&pod).iter().map(|(name, q)| format!("{name} {q}")).collect::<Vec<_>>().join(", ")
    }

    fn cpu(amount: &str) -> Value {
        json!({"resources": {"requests": {"cpu": amount}}})
    }

    #[test]
    fn a_pod_asks_for_its_greatest_need() {
        let sidecar = |amount: &str| {
            let mut one = cpu(amount);
            one["restartPolicy"] = "Always".into();
            one
        };
        for (spec, expected) in [
            (json!({"containers": [{}]}), ""),
            (json!({"containers": [cpu("100m"), cpu("0.2")]}), "cpu 300m"),
            (json!({"containers": [cpu("100m")], "initContainers": [cpu("50m"), cpu("1")]}), "cpu 1"),
            (json!({"containers": [cpu("100m")], "initContainers": [sidecar("200m")]}), "cpu 300m"),
            // The init container after the sidecar runs beside it, the one before does not.
            (
                json!({"containers": [cpu("100m")], "initContainers": [cpu("600m"), sidecar("200m"), cpu("500m")]}),
                "cpu 700m",
            ),
            // What is only limited is asked for.
            (
                json!({"containers": [{"resources": {"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1"}}}]}),
                "cpu 1, memory 1Gi",
            ),
        ] {
            assert_eq!(asked(&spec), expected, "{spec}");
        }
    }

    #[test]
    fn what_a_node_lacks_is_named() {
        let amounts = |v: Value| read(Some(&v));
        let has = amounts(json!({"cpu": "2", "memory": "1Gi", "pods": "3"}));
        for (has, pods, used, wanted, expected) in [
            (&has, 0, json!({}), json!({"cpu": "2", "memory": "1Gi"}), &[][..]),
            (&has, 2, json!({"cpu": "1500m"}), json!({"cpu": "501m"}), &["Insufficient cpu"]),
            (&has, 3, json!({}), json!({}), &["Too many pods"]),
            (&has, 3, json!({"cpu": "9"}), json!({"cpu": "0"}), &["Too many pods"]),
            (
                &has,
                0,
                json!({}),
                json!({"cpu": "3", "memory": "2Gi"}),
                &["Insufficient cpu", "Insufficient memory"],
            ),
            (&has, 0, json!({}), json!({"ephemeral-storage": "1Gi"}), &[]),
            (&has, 0, json!({}), json!({"example.com/gpu": "1"}), &["Insufficient example.com/gpu"]),
            (&Amounts::new(), 9, json!({}), json!({"cpu": "3"}), &[]),
        ] {
            let lacks = lacks(has, pods, &amounts(used.clone()), &amounts(wanted.clone()));
            assert_eq!(lacks, expected, "{pods} {used} {wanted}");
        }
        assert_eq!(fullness(&has, &amounts(json!({"cpu": "1"})), &amounts(json!({"memory": "512Mi"}))), 1000);
    }
}
