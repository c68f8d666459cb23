//! Volumes and where containers see them: defaults and rules. [pkg/apis/core/validation, ValidateVolumes and
//! ValidateVolumeMounts]

use std::collections::BTreeSet;

use minisvc_proto::{Cause, Quantity};
use serde_json::{Map, Value, json};

use super::{Field, set_default};

const HOST_PATH_TYPES: [&str; 5] = ["", "Directory", "DirectoryOrCreate", "File", "FileOrCreate"];

/// Fills what the volumes of a pod's spec leave out: one that says nothing is an empty directory.
pub fn set_defaults(spec: &mut Map<String, Value>) {
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(volume) = volume.as_object_mut() else { continue };
        if volume.iter().all(|(field, value)| field == "name" || value.is_null()) {
            volume.insert("emptyDir".into(), json!({}));
        }
        if let Some(host) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
            set_default(host, "type", "".into());
        }
    }
}

/// Every fault of a pod's volumes. What is right of their names comes back.
pub fn validate<'a>(spec: &Field<'a>, faults: &mut Vec<Cause>) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for volume in spec.child("volumes").items() {
        faults.extend(volume.child("name").unique_label(&mut names));
        let mut sources = 0;
        for (kind, value) in volume.entries().filter(|(k, v)| *k != "name" && !v.is_null()) {
            let source = Field { path: format!("{}.{kind}", volume.path), value: Some(value) };
            sources += 1;
            match kind {
                _ if sources > 1 => faults.push(source.forbidden("may not specify more than 1 volume type")),
                "emptyDir" => empty_dir(&source, faults),
                "hostPath" => host_path(&source, faults),
                _ => faults.push(source.forbidden(
                    "only emptyDir and hostPath can be had: there are no ConfigMaps, Secrets and claims, and nothing is \
                     mounted from elsewhere",
                )),
            }
        }
    }
    names
}

fn empty_dir(source: &Field<'_>, faults: &mut Vec<Cause>) {
    let (medium, limit) = (source.child("medium"), source.child("sizeLimit"));
    faults.extend(medium.one_of(&["", "Memory"]));
    let Some(value) = limit.value else { return };
    match Quantity::from_json(value) {
        Err(e) => faults.push(limit.invalid(&e.to_string())),
        Ok(size) if size.is_negative() => faults.push(limit.invalid("must be greater than or equal to 0")),
        Ok(_) if medium.text() != "Memory" => faults.push(limit.forbidden(
            "nobody measures a directory on the node's disk: leave it out, or set medium: Memory, whose size the kernel \
             limits",
        )),
        Ok(_) => {}
    }
}

fn host_path(source: &Field<'_>, faults: &mut Vec<Cause>) {
    let path = source.child("path");
    if path.text().is_empty() {
        faults.push(path.required(""));
    } else if has_back_step(path.text()) {
        faults.push(path.invalid("must not contain '..'"));
    }
    faults.extend(source.child("type").one_of(&HOST_PATH_TYPES));
}

/// Every fault of where a container sees volumes; `volumes` are those that the pod has.
pub fn validate_mounts(container: &Field<'_>, volumes: &BTreeSet<&str>, faults: &mut Vec<Cause>) {
    let mut places = BTreeSet::new();
    for mount in container.child("volumeMounts").items() {
        let (name, place, part) = (mount.child("name"), mount.child("mountPath"), mount.child("subPath"));
        if name.text().is_empty() {
            faults.push(name.required(""));
        } else if !volumes.contains(name.text()) {
            faults.push(Cause::not_found(&name.path, name.text()));
        }
        if place.text().is_empty() {
            faults.push(place.required(""));
        } else if !places.insert(place.text()) {
            faults.push(place.invalid("must be unique"));
        } else if has_back_step(place.text()) || place.text() == "/" {
            faults.push(place.invalid("must be a path below /, without '..'"));
        }
        if part.text().starts_with('/') {
            faults.push(part.invalid("must be a relative path"));
        } else if has_back_step(part.text()) {
            faults.push(part.invalid("must not contain '..'"));
        }
        let expression = mount.child("subPathExpr");
        if expression.is_set() {
            faults.push(expression.forbidden("write what it would become into subPath"));
        }
        let propagation = mount.child("mountPropagation");
        if !["", "None"].contains(&propagation.text()) {
            faults.push(
                propagation.forbidden("what is mounted after a container's start stays where it was mounted"),
            );
        }
        let recursive = mount.child("recursiveReadOnly");
        if !["", "Disabled"].contains(&recursive.text()) {
            faults.push(recursive.forbidden("readOnly goes for the volume itself, as it does by default"));
        }
    }
}

fn has_back_step(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::tests::{container, faults, pod},
        *,
    };

    fn with(volumes: Value, mounts: Value) -> Value {
        let mut spec = container(json!({"volumeMounts": mounts}));
        spec["volumes"] = volumes;
        spec
    }

    #[test]
    fn volumes_are_taken_with_their_defaults() {
        let made = pod(with(
            json!([{"name": "a"}, {"name": "b", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
                   {"name": "c", "hostPath": {"path": "/etc"}}]),
            json!([{"name": "a", "mountPath": "/tmp/a", "subPath": "x/y", "readOnly": true},
                   {"name": "c", "mountPath": "/srv"}]),
        ));
        assert_eq!(super::super::validate(None, &made), []);
        assert_eq!(made.pointer("/spec/volumes/0/emptyDir"), Some(&json!({})));
        assert_eq!(made.pointer("/spec/volumes/2/hostPath/type"), Some(&json!("")));
    }

    #[test]
    fn each_fault_names_its_field_and_the_rule() {
        let volumes = "spec.volumes[0]";
        for (volume, expected) in [
            (json!({"name": "A"}), ".name: Invalid value"),
            (
                json!({"name": "a", "secret": {"secretName": "s"}}),
                ".secret: Forbidden: only emptyDir and hostPath",
            ),
            (
                json!({"name": "a", "emptyDir": {}, "hostPath": {"path": "/x"}}),
                ".hostPath: Forbidden: may not specify more",
            ),
            (
                json!({"name": "a", "emptyDir": {"medium": "HugePages"}}),
                ".emptyDir.medium: Unsupported value",
            ),
            (
                json!({"name": "a", "emptyDir": {"sizeLimit": "1Gi"}}),
                ".emptyDir.sizeLimit: Forbidden: nobody measures",
            ),
            (
                json!({"name": "a", "emptyDir": {"medium": "Memory", "sizeLimit": "-1"}}),
                ".emptyDir.sizeLimit: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (json!({"name": "a", "hostPath": {}}), ".hostPath.path: Required value"),
            (
                json!({"name": "a", "hostPath": {"path": "/a/../b"}}),
                ".hostPath.path: Invalid value: \"/a/../b\": must not",
            ),
            (
                json!({"name": "a", "hostPath": {"path": "/a", "type": "Socket"}}),
                ".hostPath.type: Unsupported value",
            ),
        ] {
            let found = faults(with(json!([volume]), json!([])));
            assert!(
                found.len() == 1 && found[0].starts_with(&format!("{volumes}{expected}")),
                "{expected}\n{found:#?}"
            );
        }
        for (mounts, expected) in [
            (json!([{"name": "b", "mountPath": "/b"}]), "[0].name: Not found: \"b\""),
            (json!([{"name": "a"}]), "[0].mountPath: Required value"),
            (json!([{"name": "a", "mountPath": "/"}]), "[0].mountPath: Invalid value"),
            (
                json!([{"name": "a", "mountPath": "/x"}, {"name": "a", "mountPath": "/x"}]),
                "[1].mountPath: Invalid value: \"/x\": must be unique",
            ),
            (
                json!([{"name": "a", "mountPath": "/x", "subPath": "/y"}]),
                "[0].subPath: Invalid value: \"/y\": must be a rel",
            ),
            (
                json!([{"name": "a", "mountPath": "/x", "subPath": "../y"}]),
                "[0].subPath: Invalid value: \"../y\": must not",
            ),
            (json!([{"name": "a", "mountPath": "/x", "subPathExpr": "$(A)"}]), "[0].subPathExpr: Forbidden"),
            (
                json!([{"name": "a", "mountPath": "/x", "mountPropagation": "Bidirectional"}]),
                "[0].mountPropagation: Forbidden",
            ),
            (
                json!([{"name": "a", "mountPath": "/x", "readOnly": true, "recursiveReadOnly": "Enabled"}]),
                "[0].recursiveReadOnly: Forbidden",
            ),
        ] {
            let found = faults(with(json!([{"name": "a"}]), mounts));
            let expected = format!("spec.containers[0].volumeMounts{expected}");
            assert!(found.len() == 1 && found[0].starts_with(&expected), "{expected}\n{found:#?}");
        }
    }
}
