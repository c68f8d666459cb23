//! What every engine must do. Each engine's tests run all of it.

use std::sync::Arc;

use bytes::Bytes;
use minisvc_proto::Revision;

use super::{CommitError, Expect, Key, Store, Txn, Write, memory::MemoryStore, sled_engine::SledStore};

pub(super) fn put(key: &str, value: &str) -> Txn {
    let mut txn = Txn::default();
    txn.writes.insert(Key::from(key), Write::Put(Bytes::copy_from_slice(value.as_bytes())));
    txn
}

fn create(key: &str, value: &str) -> Txn {
    let mut txn = put(key, value);
    txn.expect.insert(Key::from(key), Expect::Absent);
    txn
}

async fn revisions_count_up_without_gaps(store: Arc<dyn Store>) {
    assert_eq!(store.commit(put("/a", "1")).await, Ok(Revision(1)));
    assert!(store.commit(create("/a", "2")).await.is_err());
    assert_eq!(
        store.commit(put("/b", "1")).await,
        Ok(Revision(2)),
        "a refused transaction takes no revision"
    );
}

async fn expectations_decide(store: Arc<dyn Store>) {
    store.commit(create("/a", "1")).await.unwrap();
    let Err(CommitError::Unexpected { key, found, revision: at }) = store.commit(create("/a", "2")).await
    else {
        panic!("created twice");
    };
    assert_eq!((&*key, found.unwrap().value, at), ("/a", Bytes::from("1"), Revision(1)));

    let mut update = put("/a", "3");
    update.expect.insert("/a".into(), Expect::At(Revision(1)));
    assert_eq!(store.commit(update.clone()).await, Ok(Revision(2)));
    assert!(store.commit(update).await.is_err(), "the old revision is no longer there");
}

async fn a_transaction_is_all_or_nothing(store: Arc<dyn Store>) {
    let mut subscribed = store.subscribe();
    store.commit(put("/taken", "x")).await.unwrap();
    let mut both = create("/object", "o");
    both.writes.insert("/taken".into(), Write::Put("o".into()));
    both.expect.insert("/taken".into(), Expect::Absent);
    assert!(store.commit(both).await.is_err());
    assert_eq!(
        store.commit(create("/object", "p")).await,
        Ok(Revision(2)),
        "nothing of the refused one is left"
    );
    let seen: Vec<_> = [subscribed.recv().await, subscribed.recv().await].into_iter().flatten().collect();
    assert_eq!(seen.iter().map(|c| c.revision.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(seen[1].changes[0].value, Some(Bytes::from("p")));
}

async fn of_two_that_want_the_same_one_wins(store: Arc<dyn Store>) {
    let tries = (0..32).map(|i| {
        let store = store.clone();
        tokio::spawn(async move { store.commit(create("/port/30080", &i.to_string())).await.is_ok() })
    });
    let mut won = 0;
    for one in tries.collect::<Vec<_>>() {
        won += usize::from(one.await.unwrap());
    }
    assert_eq!(won, 1);
}

async fn a_deleted_key_is_absent(store: Arc<dyn Store>) {
    store.commit(create("/a", "1")).await.unwrap();
    let mut delete = Txn::default();
    delete.writes.insert("/a".into(), Write::Delete);
    store.commit(delete).await.unwrap();
    assert_eq!(store.commit(create("/a", "2")).await, Ok(Revision(3)));
}

macro_rules! suite {
    ($engine:ident, $make:expr) => {
        mod $engine {
            use super::*;
            suite!(@one $make, revisions_count_up_without_gaps, expectations_decide, a_transaction_is_all_or_nothing,
                of_two_that_want_the_same_one_wins, a_deleted_key_is_absent);
        }
    };
    (@one $make:expr, $($case:ident),*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $case() {
            let (store, _guard): (Arc<dyn Store>, _) = $make;
            super::$case(store).await;
        }
    )*};
}

suite!(memory, (Arc::new(MemoryStore::default()), ()));
suite!(sled, {
    let dir = tempfile::tempdir().unwrap();
    (Arc::new(SledStore::open(dir.path()).unwrap()), dir)
});
