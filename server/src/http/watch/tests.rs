use axum::body::BodyDataStream;
use minisvc_proto::resource::{NAMESPACES, SERVICES};
use serde_json::Value;

use super::*;
use crate::registry::{WriteOptions, testing};

async fn create(registry: &Registry, resource: &'static Resource, object: Value) -> Revision {
    let target = Target::collection(resource, Some("default"));
    let object = serde_json::from_value(object).unwrap();
    registry.create(&target, object, WriteOptions::default()).await.unwrap().revision().unwrap()
}

async fn namespace(registry: &Registry, name: &str) -> Revision {
    create(registry, &NAMESPACES, json!({"metadata": {"name": name}})).await
}

async fn service(registry: &Registry, name: &str) -> Revision {
    let spec = json!({"ports": [{"port": 80}]});
    create(registry, &SERVICES, json!({"metadata": {"name": name}, "spec": spec})).await
}

fn watch(registry: &Registry, query: &str) -> Result<BodyDataStream, ApiError> {
    let target = Target::collection(&SERVICES, Some("default"));
    let query = Query::parse(query).unwrap();
    let answer = answer(registry, CancellationToken::new(), &target, &query, Form::Objects)?;
    Ok(answer.into_body().into_data_stream())
}

async fn next(watch: &mut BodyDataStream) -> Option<Value> {
    let line = watch.next().await?.unwrap();
    assert_eq!(line.last(), Some(&b'\n'), "one event, one line");
    Some(serde_json::from_slice(&line).unwrap())
}

fn at(event: &Value) -> (&str, &str) {
    (event["type"].as_str().unwrap(), event["object"]["metadata"]["resourceVersion"].as_str().unwrap())
}

#[tokio::test(start_paused = true)]
async fn bookmarks_come_at_once_and_then_at_most_one_a_second() {
    let registry = testing::registry();
    let since = namespace(&registry, "default").await;
    let mut events = watch(&registry, &format!("allowWatchBookmarks=true&resourceVersion={since}")).unwrap();
    let start = Instant::now();
    let first = namespace(&registry, "a").await;
    assert_eq!(at(&next(&mut events).await.unwrap()), ("BOOKMARK", first.to_string().as_str()));
    assert_eq!(start.elapsed(), Duration::ZERO);
    namespace(&registry, "b").await;
    let last = namespace(&registry, "c").await;
    let bookmark = next(&mut events).await.unwrap();
    assert_eq!(at(&bookmark), ("BOOKMARK", last.to_string().as_str()), "two revisions, one bookmark");
    assert_eq!(bookmark["object"]["kind"], "Service");
    // The clock of the test moves only when everybody waits.
    assert!((BOOKMARK_PERIOD..BOOKMARK_PERIOD * 2).contains(&start.elapsed()), "{:?}", start.elapsed());

    namespace(&registry, "d").await;
    let event = service(&registry, "web").await;
    assert_eq!(at(&next(&mut events).await.unwrap()), ("ADDED", event.to_string().as_str()));
    let end = namespace(&registry, "e").await;
    assert_eq!(at(&next(&mut events).await.unwrap()), ("BOOKMARK", end.to_string().as_str()));
}

#[tokio::test(start_paused = true)]
async fn a_watch_without_bookmarks_ends_in_its_time_and_one_with_them_says_where() {
    let registry = testing::registry();
    let since = namespace(&registry, "default").await;
    let query = format!("resourceVersion={since}&timeoutSeconds=2");
    let mut plain = watch(&registry, &query).unwrap();
    let mut marked = watch(&registry, &format!("{query}&allowWatchBookmarks=1")).unwrap();
    namespace(&registry, "a").await;
    assert_eq!(at(&next(&mut marked).await.unwrap()).0, "BOOKMARK");
    assert_eq!(next(&mut plain).await, None);
    assert_eq!(next(&mut marked).await, None);
}

#[tokio::test]
async fn what_there_is_comes_first_where_no_revision_is_named() {
    let registry = testing::registry();
    namespace(&registry, "default").await;
    service(&registry, "a").await;
    let b = service(&registry, "b").await.to_string();
    for query in ["", "resourceVersion=0", "sendInitialEvents=true&resourceVersionMatch=NotOlderThan"] {
        let mut events = watch(&registry, query).unwrap();
        let first = next(&mut events).await.unwrap();
        assert_eq!((&first["type"], &first["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
        assert_eq!(at(&next(&mut events).await.unwrap()), ("ADDED", b.as_str()));
        if query.contains("sendInitialEvents") {
            let end = next(&mut events).await.unwrap();
            assert_eq!(at(&end), ("BOOKMARK", b.as_str()));
            assert_eq!(end["object"]["metadata"]["annotations"][INITIAL_EVENTS_END], "true");
        }
    }
}

#[tokio::test]
async fn a_watch_that_is_too_slow_hears_410_as_its_last_event() {
    let registry = testing::registry();
    let since = namespace(&registry, "default").await;
    let query = format!("resourceVersion={since}");
    let mut slow = watch(&registry, &query).unwrap();
    let event = json!({"metadata": {"generateName": "e-"}, "involvedObject": {}});
    for _ in 0..=crate::cache::RING {
        create(&registry, &minisvc_proto::resource::EVENTS, event.clone()).await;
    }
    let end = next(&mut slow).await.unwrap();
    assert_eq!((&end["type"], &end["object"]["kind"]), (&json!("ERROR"), &json!("Status")));
    assert_eq!((&end["object"]["code"], &end["object"]["reason"]), (&json!(410), &json!("Expired")));
    assert_eq!(next(&mut slow).await, None);
    assert_eq!(watch(&registry, &query).err().unwrap().code, 410, "and the next one hears it at once");
}

#[tokio::test]
async fn a_watch_may_be_asked_to_last_longer_than_any_clock() {
    let registry = testing::registry();
    namespace(&registry, "default").await;
    let mut events = watch(&registry, &format!("timeoutSeconds={}", u64::MAX)).unwrap();
    let web = service(&registry, "web").await;
    assert_eq!(at(&next(&mut events).await.unwrap()), ("ADDED", web.to_string().as_str()));
}
