use minisvc_proto::resource::PODS;

use super::{container::example, *};

pub fn pod(spec: Value) -> Object {
    let mut pod = Object::new(&PODS, Some("default"), "web");
    pod.0.insert("spec".into(), spec);
    set_defaults(&mut pod);
    pod
}

pub fn faults(spec: Value) -> Vec<String> {
    validate(None, &pod(spec)).iter().map(ToString::to_string).collect()
}

pub fn container(more: Value) -> Value {
    let mut container = example();
    container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"containers": [container]})
}

#[test]
fn what_is_left_out_is_filled_as_kubernetes_fills_it() {
    let made = pod(container(json!({
        "ports": [{"containerPort": 80}],
    })));
    for (field, value) in [
        ("/spec/restartPolicy", json!("Always")),
        ("/spec/terminationGracePeriodSeconds", json!(30)),
        ("/spec/dnsPolicy", json!("ClusterFirst")),
        ("/spec/enableServiceLinks", json!(true)),
        ("/spec/containers/0/ports/0/protocol", json!("TCP")),
    ] {
        assert_eq!(made.pointer(field), Some(&value), "{field}");
    }
    assert_eq!(validate(None, &made), []);
}

#[test]
fn each_fault_names_its_field_and_the_rule() {
    for (spec, expected) in [
        (json!({}), "spec.containers: Required value: a pod needs at least one container"),
        (json!({"containers": [{"command": ["a"]}]}), "spec.containers[0].name: Required value"),
        (
            container(json!({"name": "A"})),
            "spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label",
        ),
        (json!({"containers": [example(), example()]}), "spec.containers[1].name: Duplicate value: \"c\""),
        (container(json!({"command": []})), "spec.containers[0].command: Required value: there is no image"),
        (
            container(json!({"image": "nginx:1"})),
            "spec.containers[0].image: Invalid value: \"nginx:1\": minisvc pulls no images: a pod runs the programs of the node's own",
        ),
        (
            container(json!({"ports": [{"containerPort": 0}]})),
            "spec.containers[0].ports[0].containerPort: Invalid value: 0: must be between",
        ),
        (
            container(json!({"ports": [{"containerPort": 8, "hostPort": 8}]})),
            "spec.containers[0].ports[0].hostPort: Forbidden: a pod takes no ports",
        ),
        (
            container(json!({"ports": [{"containerPort": 8, "protocol": "X"}]})),
            "spec.containers[0].ports[0].protocol: Unsupported value: \"X\"",
        ),
        (container(json!({"env": [{"name": "A=B"}]})), "spec.containers[0].env[0].name: Invalid value"),
        (
            container(
                json!({"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
            ),
            "spec.containers[0].env[0].valueFrom.secretKeyRef: Forbidden: only fieldRef",
        ),
        (
            container(json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]})),
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"spec.x\"",
        ),
        (
            container(json!({"restartPolicy": "Always"})),
            "spec.containers[0].restartPolicy: Forbidden: may not be set for non-init containers",
        ),
        (
            container(json!({"terminationMessagePath": "/dev/termination-log"})),
            "spec.containers[0].terminationMessagePath: Invalid value: \"/dev/termination-log\": a container sees",
        ),
        (
            container(json!({"terminationMessagePath": "/tmp/../x"})),
            "spec.containers[0].terminationMessagePath: Invalid value",
        ),
        (
            container(json!({"terminationMessagePolicy": "Both"})),
            "spec.containers[0].terminationMessagePolicy: Unsupported value: \"Both\"",
        ),
        (
            container(json!({"securityContext": {"privileged": true}})),
            "spec.containers[0].securityContext.privileged: Forbidden",
        ),
        (
            container(json!({"securityContext": {"runAsUser": -1}})),
            "spec.containers[0].securityContext.runAsUser: Invalid value: -1",
        ),
    ] {
        let found = faults(spec.clone());
        assert!(found.len() == 1 && found[0].starts_with(expected), "{spec}\n{found:#?}");
    }
    for (field, value) in [
        ("hostNetwork", json!(true)),
        ("hostPID", json!(true)),
        ("restartPolicy", json!("Sometimes")),
        ("dnsPolicy", json!("Mine")),
        ("terminationGracePeriodSeconds", json!(-1)),
        ("hostname", json!("a.b")),
        ("nodeSelector", json!({"a b": "c"})),
        ("tolerations", json!([{"effect": "Sometimes"}])),
    ] {
        let mut spec = container(json!({}));
        spec[field] = value;
        let found = faults(spec);
        assert!(found.len() == 1 && found[0].starts_with(&format!("spec.{field}")), "{field}: {found:#?}");
    }
}

#[test]
fn what_a_pod_is_may_not_change() {
    let mut old = pod(container(json!({})));
    old.spec_mut().insert("nodeName".into(), "n1".into());
    let mut again = pod(container(json!({"image": "host"})));
    inherit(&old, &mut again);
    assert_eq!(changed(&old, &again), None);
    again.spec_mut().insert("tolerations".into(), json!([{"operator": "Exists"}]));
    assert_eq!(changed(&old, &again), None);
    assert_eq!(changed(&again, &old).unwrap().field, "spec", "tolerations may only be added");
    again.spec_mut().insert("nodeName".into(), "n2".into());
    assert!(changed(&old, &again).unwrap().message.starts_with("Forbidden: pod updates may not change"));
}
