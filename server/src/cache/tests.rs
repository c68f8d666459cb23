use minisvc_proto::resource::{PODS, SERVICES};

use super::*;
use crate::store::{Write, memory::MemoryStore};

fn key(name: &str) -> ObjectKey {
    ObjectKey::namespaced(&SERVICES, "default", name)
}

fn write(key: &ObjectKey, label: &str) -> Txn {
    let mut object = Object::new(key.resource, key.namespace.as_deref(), &key.name);
    object.metadata_mut().insert("labels".into(), serde_json::json!({"v": label}));
    let mut txn = Txn::default();
    txn.writes.insert(object_key(key), Write::Put(serde_json::to_vec(&object).unwrap().into()));
    txn
}

fn remove(key: &ObjectKey) -> Txn {
    let mut txn = Txn::default();
    txn.writes.insert(object_key(key), Write::Delete);
    txn
}

fn open() -> Arc<Cache> {
    Cache::open(Arc::new(MemoryStore::default())).unwrap()
}

async fn told(watch: &mut Watch) -> String {
    match watch.next().await {
        Ok(Item::Event(e)) => format!("{:?} {} {}", e.kind, e.key.name, e.entry.object.revision().unwrap()),
        Ok(Item::Bookmark(r)) => format!("Bookmark {r}"),
        Err(e) => e.to_string(),
    }
}

#[tokio::test]
async fn a_write_is_read_at_once_and_carries_its_revision() {
    let cache = open();
    let revision = cache.commit(write(&key("web"), "1")).await.unwrap();
    let entry = cache.get(&key("web")).unwrap();
    assert_eq!((entry.revision, entry.object.revision()), (revision, Some(revision)));
    assert_eq!(cache.list(&SERVICES, Some("default")).1.len(), 1);
    assert_eq!(cache.list(&SERVICES, Some("defaul")).1.len(), 0);
    assert_eq!(cache.list(&PODS, None).1.len(), 0);
}

#[tokio::test]
async fn a_watch_tells_history_then_the_present_and_marks_progress_of_other_kinds() {
    let cache = open();
    cache.commit(write(&key("a"), "1")).await.unwrap();
    cache.commit(write(&key("a"), "2")).await.unwrap();
    let mut watch = cache.watch(&SERVICES, Revision(1)).unwrap();
    assert_eq!(told(&mut watch).await, "Modified a 2");
    assert_eq!(told(&mut watch).await, "Bookmark 2");
    cache.commit(write(&ObjectKey::namespaced(&PODS, "default", "p"), "1")).await.unwrap();
    assert_eq!(told(&mut watch).await, "Bookmark 3");
    cache.commit(remove(&key("a"))).await.unwrap();
    assert_eq!(told(&mut watch).await, "Deleted a 4");
}

#[tokio::test]
async fn a_watch_behind_the_ring_is_told_so_and_the_cache_goes_on() {
    let cache = open();
    let mut slow = cache.watch(&SERVICES, Revision(0)).unwrap();
    for i in 0..=RING {
        cache.commit(write(&key("a"), &i.to_string())).await.unwrap();
    }
    assert_eq!(slow.next().await.err(), Some(Expired { oldest: Revision(1) }));
    assert_eq!(cache.watch(&SERVICES, Revision(0)).err(), Some(Expired { oldest: Revision(1) }));
    let mut late = cache.watch(&SERVICES, Revision(1)).unwrap();
    for i in 2..=RING as u64 + 1 {
        assert_eq!(told(&mut late).await, format!("Modified a {i}"));
    }
}

#[tokio::test]
async fn a_reopened_cache_holds_what_was_written() {
    let store = Arc::new(MemoryStore::default());
    let cache = Cache::open(store.clone()).unwrap();
    let mut txn = write(&key("web"), "1");
    txn.writes.insert("/reserved/nodeports/30080".into(), Write::Put("services/default/web".into()));
    cache.commit(txn).await.unwrap();
    let again = Cache::open(store).unwrap();
    assert!(again.get(&key("web")).is_some());
    assert_eq!(again.reservation("/reserved/nodeports/30080").as_deref(), Some("services/default/web"));
    assert_eq!(again.reservations("/reserved/nodeports/").len(), 1);
    assert_eq!(again.reservations("/reserved/clusterips/").len(), 0);
    assert_eq!(again.watch(&SERVICES, Revision(0)).err(), Some(Expired { oldest: Revision(1) }));
}

#[tokio::test]
async fn large_objects_leave_less_history() {
    let cache = open();
    let label = "x".repeat(1 << 20);
    let most = RING_BYTES >> 20;
    for _ in 0..2 * most {
        cache.commit(write(&key("large"), &label)).await.unwrap();
    }
    let kept = cache.lock().ring.len();
    assert!((most / 2..=most).contains(&kept), "{kept} events of 1 MiB");
    let oldest = cache.watch(&SERVICES, Revision(1)).err().unwrap().oldest;
    let mut watch = cache.watch(&SERVICES, oldest).unwrap();
    assert_eq!(told(&mut watch).await, format!("Modified large {}", oldest.0 + 1));
}
