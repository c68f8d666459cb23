//! The rules of metadata, the same for all kinds. [staging/src/k8s.io/apimachinery/pkg/api/validation/objectmeta.go]

use minisvc_proto::{
    Cause, Object,
    names::{check_dns_label, check_dns_subdomain},
    selector::{is_label_key, is_label_value},
};
use serde_json::Value;

use super::field::Field;

/// All annotations together, in bytes. [TotalAnnotationSizeLimitB]
const ANNOTATIONS_LIMIT: usize = 256 << 10;
const LABEL_KEY_RULE: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', at most 63 of them, and must start and \
     end with an alphanumeric character, with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')";
const LABEL_VALUE_RULE: &str = "a valid label must be an empty string or consist of at most 63 alphanumeric characters, '-', '_' or '.', \
     and must start and end with an alphanumeric character (e.g. 'MyValue' or '12345')";

/// Every fault of an object's metadata.
pub fn validate(object: &Object) -> Vec<Cause> {
    let mut faults = Vec::new();
    let name = match object.kind() {
        // A digit may come first since KEP-5311.
        "Service" | "Namespace" => check_dns_label(object.name()),
        _ => check_dns_subdomain(object.name()),
    };
    if let Err(rule) = name {
        faults.push(Cause::invalid("metadata.name", object.name(), rule.0));
    }
    let meta = Field::of(object, "metadata");
    labels(&meta.child("labels"), &mut faults);
    annotations(&meta.child("annotations"), &mut faults);
    for finalizer in meta.child("finalizers").items() {
        let name = finalizer.text();
        if !is_label_key(name) {
            faults.push(finalizer.invalid(LABEL_KEY_RULE));
        }
    }
    let mut controllers = 0;
    for owner in meta.child("ownerReferences").items() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            let field = owner.child(field);
            if field.text().is_empty() {
                faults.push(field.required("must not be empty"));
            }
        }
        controllers += usize::from(owner.child("controller").value == Some(&Value::Bool(true)));
    }
    if controllers > 1 {
        let owners = meta.child("ownerReferences");
        faults.push(owners.invalid("Only one reference can have Controller set to true"));
    }
    faults
}

/// Every fault of a map of labels.
pub fn labels(labels: &Field<'_>, faults: &mut Vec<Cause>) {
    for (key, value) in labels.entries() {
        if !is_label_key(key) {
            faults.push(Cause::invalid(&labels.path, key, LABEL_KEY_RULE));
        }
        if let Some(value) = value.as_str().filter(|v| !is_label_value(v)) {
            faults.push(Cause::invalid(&labels.path, value, LABEL_VALUE_RULE));
        }
    }
}

/// Every fault of a map of annotations.
pub fn annotations(annotations: &Field<'_>, faults: &mut Vec<Cause>) {
    let mut size = 0;
    for (key, value) in annotations.entries() {
        size += key.len() + value.as_str().map_or(0, str::len);
        if !is_label_key(&key.to_lowercase()) {
            faults.push(Cause::invalid(&annotations.path, key, LABEL_KEY_RULE));
        }
    }
    if size > ANNOTATIONS_LIMIT {
        faults.push(Cause {
            reason: "FieldValueTooLong".into(),
            message: format!("Too long: may not be more than {ANNOTATIONS_LIMIT} bytes"),
            field: annotations.path.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::{PODS, SERVICES};
    use serde_json::json;

    use super::*;

    #[test]
    fn the_name_of_a_service_is_a_label() {
        for (name, expected) in [
            ("web", ""),
            ("1st", ""),
            (&*"a".repeat(63), ""),
            (&*"a".repeat(64), "must be no more than 63 characters"),
            ("Web", "a lowercase RFC 1123 label must consist of"),
            ("web.a", "a lowercase RFC 1123 label must consist of"),
            ("-web", "a lowercase RFC 1123 label must consist of"),
        ] {
            let faults = validate(&Object::new(&SERVICES, Some("default"), name));
            let found = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
            let begins = format!("metadata.name: Invalid value: \"{name}\": {expected}");
            assert!(
                if expected.is_empty() { found.is_empty() } else { found.starts_with(&begins) },
                "{found}"
            );
        }
    }

    #[test]
    fn each_fault_names_its_field() {
        let mut o = Object::new(&PODS, Some("default"), "Web");
        let meta = o.metadata_mut();
        meta.insert("labels".into(), json!({"a b": "x", "ok": "-no-"}));
        meta.insert("annotations".into(), json!({"big": "x".repeat(ANNOTATIONS_LIMIT)}));
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": "a", "uid": "", "controller": true});
        meta.insert("ownerReferences".into(), json!([owner, owner]));
        let fields: Vec<_> = validate(&o).into_iter().map(|f| f.field).collect();
        assert_eq!(
            fields,
            [
                "metadata.name",
                "metadata.labels",
                "metadata.labels",
                "metadata.annotations",
                "metadata.ownerReferences[0].uid",
                "metadata.ownerReferences[1].uid",
                "metadata.ownerReferences"
            ]
        );
    }
}
