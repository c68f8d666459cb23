//! Dependents of a gone owner are deleted.

use minisvc_proto::{Object, object::OwnerReference};

/// Whether the object names owners and every one of them is gone. An owner is known by uid: one that was recreated under the
/// same name is another owner.
pub fn is_orphan(object: &Object, exists: impl Fn(&OwnerReference) -> bool) -> bool {
    let owners = object.owner_references();
    object.deletion_timestamp().is_none() && !owners.is_empty() && !owners.iter().any(exists)
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::PODS;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_goes_with_the_last_of_its_owners() {
        let with = |uids: &[&str]| {
            let mut pod = Object::new(&PODS, Some("default"), "a");
            let refs: Vec<_> = uids
                .iter()
                .map(|u| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": u}))
                .collect();
            pod.metadata_mut().insert("ownerReferences".into(), refs.into());
            pod
        };
        for (uids, orphan) in
            [(&[][..], false), (&["live"], false), (&["gone"], true), (&["gone", "live"], false)]
        {
            assert_eq!(is_orphan(&with(uids), |o| o.uid == "live"), orphan, "{uids:?}");
        }
    }
}
