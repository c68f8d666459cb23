//! Watches: from a revision on, without a gap, until somebody ends them.

use futures::{Stream, StreamExt};
use minisvc_proto::{
    Revision,
    client::{ClientError, ListParams},
    path::Target,
    watch::{EventType, WatchEvent},
};
use serde_json::{Value, json};

use crate::harness::{Api, SERVICES};

fn services() -> Target {
    Target::parse(SERVICES).unwrap()
}

async fn next(
    watch: &mut (impl Stream<Item = Result<WatchEvent, ClientError>> + Unpin),
) -> (EventType, String, u64) {
    let event = watch.next().await.expect("the watch ended").unwrap();
    (event.kind, event.object.name().to_owned(), event.object.revision().unwrap().0)
}

/// A service for which no controller makes anything: nobody else's writes come between.
fn bare(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}})
}

#[tokio::test]
async fn a_watch_tells_every_change_after_its_revision_and_bookmarks_others() {
    let api = Api::start().await;
    let first = api.create(SERVICES, bare("a")).await.revision().unwrap();
    let b = api.create(SERVICES, bare("b")).await.revision().unwrap().0;
    let mut watch = api.admin.watch(&services(), &ListParams::default(), first).await.unwrap();
    assert_eq!(next(&mut watch).await, (EventType::Added, "b".into(), b));
    // Something of another kind happens: a bookmark says how far the silence reaches.
    let other =
        api.create("/api/v1/namespaces", json!({"metadata": {"name": "other"}})).await.revision().unwrap().0;
    assert_eq!(next(&mut watch).await, (EventType::Bookmark, String::new(), other));

    let path = Target::parse(&format!("{SERVICES}/b")).unwrap();
    let mut object = api.admin.get(&path).await.unwrap();
    object.metadata_mut().insert("labels".into(), json!({"app": "c"}));
    let changed = api.admin.update(&path, &object).await.unwrap().revision().unwrap().0;
    assert_eq!(next(&mut watch).await, (EventType::Modified, "b".into(), changed));
    api.admin.delete(&path, &json!({})).await.unwrap();
    let gone = next(&mut watch).await;
    assert_eq!((gone.0, gone.1.as_str()), (EventType::Deleted, "b"));
    assert!(gone.2 > changed);
    api.end().await;
}

#[tokio::test]
async fn a_selection_has_its_own_additions_and_deletions() {
    let api = Api::start().await;
    let since = api.create(SERVICES, bare("a")).await.revision().unwrap();
    let mut watch = api.admin.watch(&services(), &ListParams::labels("tier=x"), since).await.unwrap();
    let path = Target::parse(&format!("{SERVICES}/a")).unwrap();
    for (labels, expected) in [
        (json!({"tier": "x"}), EventType::Added),
        (json!({"tier": "x", "more": "y"}), EventType::Modified),
        (json!({"tier": "z"}), EventType::Deleted),
    ] {
        let mut object = api.admin.get(&path).await.unwrap();
        object.metadata_mut().insert("labels".into(), labels.clone());
        let at = api.admin.update(&path, &object).await.unwrap().revision().unwrap().0;
        assert_eq!(next(&mut watch).await, (expected, "a".into(), at), "{labels}");
    }
    api.end().await;
}

#[tokio::test]
async fn a_revision_of_another_history_is_410() {
    let api = Api::start().await;
    for since in [Revision(1), Revision(1 << 40)] {
        let answer = api.admin.watch(&services(), &ListParams::default(), since).await;
        // Revision 1 made the namespace `test`, and is still known.
        assert_eq!(answer.err().is_some_and(|e| e.is_expired()), since.0 != 1, "{since}");
    }
    api.end().await;
}
