//! The set of a pod template: how it is found among others, what it is called, what is in it.

use minisvc_proto::{Object, resource::REPLICA_SETS};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::{super::action::owned_by, TEMPLATE_HASH, scale::Limits};
use crate::controllers::action::number;

/// Whether the set has the deployment's template, but for the hash in its labels. [deployment/util, EqualIgnoreHash]
pub fn is_of(set: &Object, deployment: &Object) -> bool {
    plain(set) == plain(deployment)
}

fn plain(object: &Object) -> Value {
    let mut template = object.pointer("/spec/template").cloned().unwrap_or_default();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(TEMPLATE_HASH);
    }
    template
}

/// What the set of the deployment's template is called, where there is none yet.
pub fn name(deployment: &Object) -> String {
    format!("{}-{}", deployment.name(), hash(deployment))
}

/// The same for the same template, in whatever order its fields are written; another one after each collision.
fn hash(deployment: &Object) -> String {
    fn canonical(value: &Value, out: &mut Sha256) {
        match value {
            Value::Object(map) => {
                let mut fields: Vec<_> = map.iter().collect();
                fields.sort_by_key(|(k, _)| *k);
                out.update("{");
                for (k, v) in fields {
                    out.update(Value::from(k.as_str()).to_string());
                    canonical(v, out);
                }
                out.update("}");
            }
            Value::Array(list) => {
                out.update("[");
                for v in list {
                    canonical(v, out);
                }
                out.update("]");
            }
            plain => {
                out.update(plain.to_string());
                out.update(",");
            }
        }
    }
    let mut hasher = Sha256::new();
    canonical(deployment.pointer("/spec/template").unwrap_or(&Value::Null), &mut hasher);
    if let Some(count) = number(deployment, "/status/collisionCount") {
        hasher.update(count.to_string());
    }
    let digest = hasher.finalize();
    // Letters and digits that spell no words.
    let alphabet = b"bcdfghjklmnpqrstvwxz2456789";
    digest.iter().take(10).map(|b| char::from(alphabet[usize::from(*b) % alphabet.len()])).collect()
}

/// A set of the deployment's template.
pub fn new_set(deployment: &Object, limits: &Limits, replicas: i64) -> Object {
    let hash = hash(deployment);
    let mut set = Object::new(&REPLICA_SETS, deployment.namespace(), &name(deployment));
    let object =
        |pointer: &str| deployment.pointer(pointer).and_then(Value::as_object).cloned().unwrap_or_default();
    let with_hash = |mut map: Map<String, Value>| {
        map.insert(TEMPLATE_HASH.into(), hash.as_str().into());
        Value::Object(map)
    };
    let mut selector = object("/spec/selector");
    selector.insert("matchLabels".into(), with_hash(object("/spec/selector/matchLabels")));
    let mut template = object("/spec/template");
    let mut metadata = object("/spec/template/metadata");
    let labels = with_hash(object("/spec/template/metadata/labels"));
    metadata.insert("labels".into(), labels.clone());
    template.insert("metadata".into(), Value::Object(metadata));
    let meta = set.metadata_mut();
    meta.insert("labels".into(), labels);
    meta.insert("ownerReferences".into(), owned_by(deployment));
    set.0.insert("spec".into(), json!({"replicas": replicas, "selector": selector, "template": template}));
    copy_min_ready(deployment, &mut set);
    limits.note(&mut set);
    set
}

/// How long a pod of the set must have been ready to be available is the deployment's word.
pub fn copy_min_ready(deployment: &Object, set: &mut Object) {
    let seconds = |o: &Object| number(o, "/spec/minReadySeconds").unwrap_or(0);
    if seconds(deployment) != seconds(set) {
        set.spec_mut().insert("minReadySeconds".into(), seconds(deployment).into());
    }
}
