//! Which objects a set has: those that name it as their controller, and strangers without one that its selector matches.
//! [pkg/controller/controller_ref_manager.go]

use std::sync::Arc;

use minisvc_proto::{Object, selector::LabelSelector};
use serde_json::Value;

use super::action::{Action, is_controlled_by, owned_by};

/// `spec.selector`; `None` if there is none, or one that selects everything: no set may own that.
pub fn selector(set: &Object) -> Option<LabelSelector> {
    LabelSelector::from_object(set.pointer("/spec/selector")?).ok().filter(|s| !s.is_empty())
}

/// The set's objects, and the writes that let go what its selector no longer matches and adopt what it matches.
pub fn claim(
    set: &Object,
    owned: Vec<Arc<Object>>,
    unowned: Vec<Arc<Object>>,
) -> (Vec<Arc<Object>>, Vec<Action>) {
    let (Some(selector), None) = (selector(set), set.deletion_timestamp()) else {
        return (owned, Vec::new());
    };
    let (mut mine, mut actions) = (Vec::with_capacity(owned.len()), Vec::new());
    for object in owned.into_iter().filter(|o| is_controlled_by(o, set)) {
        if object.deletion_timestamp().is_some() || selector.matches(&object.labels()) {
            mine.push(object);
        } else {
            let mut freed = (*object).clone();
            remove_owner(&mut freed, set.uid());
            actions.push(Action::Update(freed));
        }
    }
    let adoptable = |o: &Arc<Object>| {
        o.controller_uid().is_none()
            && o.deletion_timestamp().is_none()
            && !super::pod::is_ended(o)
            && selector.matches(&o.labels())
    };
    for object in unowned.into_iter().filter(adoptable) {
        let mut adopted = (*object).clone();
        let Value::Array(new) = owned_by(set) else { continue };
        match adopted.metadata_mut().get_mut("ownerReferences").and_then(Value::as_array_mut) {
            Some(list) => list.extend(new),
            None => drop(adopted.metadata_mut().insert("ownerReferences".into(), Value::Array(new))),
        }
        actions.push(Action::Update(adopted.clone()));
        mine.push(Arc::new(adopted));
    }
    (mine, actions)
}

/// Takes the owner with this uid from the object; answers whether it was one.
pub fn remove_owner(object: &mut Object, uid: &str) -> bool {
    let meta = object.metadata_mut();
    let Some(list) = meta.get_mut("ownerReferences").and_then(Value::as_array_mut) else { return false };
    let before = list.len();
    list.retain(|o| o.get("uid").and_then(Value::as_str) != Some(uid));
    let (after, empty) = (list.len(), list.is_empty());
    if empty {
        meta.remove("ownerReferences");
    }
    after < before
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::{PODS, REPLICA_SETS};
    use serde_json::json;

    use super::*;

    #[test]
    fn matching_strangers_are_adopted_and_what_no_longer_matches_is_let_go() {
        let mut set = Object::new(&REPLICA_SETS, Some("default"), "web");
        set.metadata_mut().insert("uid".into(), "r1".into());
        set.spec_mut().insert("selector".into(), json!({"matchLabels": {"app": "web"}}));
        let pod = |name: &str, app: &str| {
            let mut p = Object::new(&PODS, Some("default"), name);
            p.metadata_mut().insert("labels".into(), json!({"app": app}));
            p
        };
        let owned = |name, app| {
            let mut p = pod(name, app);
            p.metadata_mut().insert("ownerReferences".into(), owned_by(&set));
            Arc::new(p)
        };
        let mut ending = pod("ending", "web");
        ending.metadata_mut().insert("deletionTimestamp".into(), "2026-01-01T00:00:00Z".into());
        let strangers = [pod("stranger", "web"), pod("other", "db"), ending].map(Arc::new);
        let (mine, actions) = claim(&set, vec![owned("a", "web"), owned("b", "db")], strangers.to_vec());
        assert_eq!(mine.iter().map(|p| p.name()).collect::<Vec<_>>(), ["a", "stranger"]);
        assert!(mine.iter().all(|p| is_controlled_by(p, &set)));
        let [Action::Update(freed), Action::Update(adopted)] = actions.as_slice() else {
            panic!("{actions:?}")
        };
        assert_eq!((freed.name(), freed.owner_references().len()), ("b", 0));
        assert_eq!((adopted.name(), adopted.controller_uid()), ("stranger", Some("r1")));
    }
}
