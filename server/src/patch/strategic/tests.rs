use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::schema::named;

fn patched(about: &str, original: Value, patch: Value) -> Result<Value, ApiError> {
    let (Value::Object(mut original), Value::Object(patch)) = (original, patch) else { panic!("no maps") };
    merge(&mut original, patch, named(about))?;
    Ok(Value::Object(original))
}

#[test]
fn lists_merge_by_their_keys_and_others_are_replaced() {
    for (about, original, patch, expected) in [
        // Maps merge, null removes, and a null of what is not there is nothing.
        (
            "meta.ObjectMeta",
            json!({"labels": {"a": "1", "b": "2"}}),
            json!({"labels": {"a": null, "c": "3", "d": null}, "annotations": {"x": null}}),
            json!({"labels": {"b": "2", "c": "3"}, "annotations": {}}),
        ),
        (
            "core.PodSpec",
            json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}, {"name": "b"}]}),
            json!({"containers": [{"name": "a", "env": [{"name": "Y", "value": "2"}], "tty": true}]}),
            json!({"containers": [{"name": "a", "tty": true,
                "env": [{"name": "Y", "value": "2"}, {"name": "X", "value": "1"}]}, {"name": "b"}]}),
        ),
        (
            "core.ServiceSpec",
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "b"}]}),
            json!({"ports": [{"port": 81, "$patch": "delete"}, {"port": 80, "nodePort": 30080}]}),
            json!({"ports": [{"port": 80, "name": "a", "nodePort": 30080}]}),
        ),
        (
            "core.ServiceSpec",
            json!({"ports": [{"port": 80}], "externalIPs": ["192.0.2.1"]}),
            json!({"ports": [{"$patch": "replace"}, {"port": 90}], "externalIPs": ["192.0.2.2"]}),
            json!({"ports": [{"port": 90}], "externalIPs": ["192.0.2.2"]}),
        ),
        // Tolerations have no key: the list is one thing.
        (
            "core.PodSpec",
            json!({"tolerations": [{"key": "a"}, {"key": "b"}]}),
            json!({"tolerations": [{"key": "c"}]}),
            json!({"tolerations": [{"key": "c"}]}),
        ),
        (
            "core.PodStatus",
            json!({"conditions": [{"type": "Ready", "status": "False"}, {"type": "Other", "status": "True"}]}),
            json!({"conditions": [{"type": "Ready", "status": "True"}]}),
            json!({"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "True"}]}),
        ),
        (
            "meta.ObjectMeta",
            json!({"finalizers": ["a/x", "b/x", "c/x"]}),
            json!({"finalizers": ["d/x"], "$deleteFromPrimitiveList/finalizers": ["b/x"],
                "$setElementOrder/finalizers": ["d/x", "a/x"]}),
            json!({"finalizers": ["d/x", "a/x", "c/x"]}),
        ),
        (
            "core.PodSpec",
            json!({"containers": [{"name": "a"}, {"name": "mine"}, {"name": "b"}]}),
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b", "tty": true}]}),
            json!({"containers": [{"name": "mine"}, {"name": "b", "tty": true}, {"name": "a"}]}),
        ),
        (
            "apps.DeploymentSpec",
            json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
            json!({"strategy": {"type": "Recreate"}}),
        ),
        (
            "core.ServiceSpec",
            json!({"selector": {"a": "b"}}),
            json!({"selector": {"$patch": "replace", "c": "d"}}),
            json!({"selector": {"c": "d"}}),
        ),
        (
            "core.ServiceSpec",
            json!({"selector": {"a": "b"}}),
            json!({"selector": {"$patch": "delete"}}),
            json!({"selector": {}}),
        ),
        // What was not there comes without directives.
        (
            "core.ServiceSpec",
            json!({}),
            json!({"$setElementOrder/ports": [{"port": 80}], "ports": [{"port": 80}, {"port": 81, "$patch": "delete"}]}),
            json!({"ports": [{"port": 80}]}),
        ),
        // A volume's source stands in the volume: another one takes its place.
        (
            "core.PodSpec",
            json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
            json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
        ),
    ] {
        assert_eq!(patched(about, original.clone(), patch.clone()).unwrap(), expected, "{original} {patch}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    for (patch, why) in [
        (json!({"ports": [{"name": "a"}]}), "does not contain declared merge key: port"),
        (json!({"ports": ["a"]}), "is no map"),
        (json!({"selector": {"$patch": "explode"}}), "unknown patch type found: \"explode\""),
        (json!({"$setElementOrder/externalIPs": ["a"]}), "no list that is merged"),
        (json!({"$setElementOrder/ports": [{"port": 80}], "ports": [{"port": 81}]}), "does not name"),
        (json!({"$retainKeys": ["type"], "clusterIP": "None"}), "does not name \"clusterIP\""),
        (json!({"$deleteFromPrimitiveList/externalIPs": "a"}), "is no list"),
    ] {
        let original = json!({"ports": [{"port": 80}], "selector": {"a": "b"}});
        let error = patched("core.ServiceSpec", original, patch.clone()).unwrap_err();
        assert_eq!(error.code, 422, "{patch}");
        assert!(error.message.contains(why), "{patch}: {error}");
    }
}

fn ports() -> impl Strategy<Value = Vec<(u16, Option<String>)>> {
    prop::collection::vec((80u16..86, prop::option::of("[a-c]")), 0..5)
}

fn list_of(ports: &[(u16, Option<String>)], delete: bool) -> Value {
    let mut seen = std::collections::BTreeSet::new();
    let list = ports.iter().filter(|(port, _)| seen.insert(*port)).map(|(port, name)| match name {
        Some(name) => json!({"port": port, "name": name}),
        None if delete => json!({"port": port, "$patch": "delete"}),
        None => json!({"port": port}),
    });
    list.collect()
}

proptest! {
    #[test]
    fn applying_twice_changes_nothing(
        old in ports(), new in ports(), ordered: bool, gone in prop::collection::vec("[a-d]", 0..3), have in prop::collection::vec("[a-d]", 0..4),
    ) {
        let mut patch = json!({"spec": {"ports": list_of(&new, true)}, "metadata": {"$deleteFromPrimitiveList/finalizers": gone}});
        if ordered {
            let list = list_of(&new, true);
            let order: Vec<Value> = list.as_array().unwrap().iter().map(|p| json!({"port": p["port"]})).collect();
            patch["spec"]["$setElementOrder/ports"] = order.into();
        }
        let original = json!({"spec": {"ports": list_of(&old, false)}, "metadata": {"finalizers": have}});
        let once = patched("core.Service", original, patch.clone()).unwrap();
        prop_assert_eq!(&patched("core.Service", once.clone(), patch).unwrap(), &once);
    }
}
