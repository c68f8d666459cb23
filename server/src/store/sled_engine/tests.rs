use std::{
    sync::{Arc, mpsc as std_mpsc},
    task::Poll,
};

use super::{super::contract::put, *};

/// Each sync waits for one permit, and says that it began.
struct Gated {
    began: std_mpsc::Sender<()>,
    permits: std_mpsc::Receiver<()>,
    file: File,
}

impl Sync for Gated {
    fn sync(&mut self) -> io::Result<()> {
        self.began.send(()).map_err(io::Error::other)?;
        self.permits.recv().map_err(io::Error::other)?;
        self.file.sync_data()
    }
}

struct Broken;

impl Sync for Broken {
    fn sync(&mut self) -> io::Result<()> {
        Err(io::Error::other("disk gone"))
    }
}

#[tokio::test]
async fn an_acknowledgement_waits_for_its_sync_and_many_share_one() {
    let dir = tempfile::tempdir().unwrap();
    let (began_tx, began) = std_mpsc::channel();
    let (permit, permits) = std_mpsc::channel();
    let store = SledStore::open_with(dir.path(), |file| Gated { began: began_tx, permits, file }).unwrap();

    let mut first = store.commit(put("/0", "v"));
    began.recv().unwrap();
    // The first group is on its way to the disk: written and flushed, not synced, so not acknowledged.
    assert!(matches!(futures::poll!(&mut first), Poll::Pending), "acknowledged before it was synced");
    let rest: Vec<_> = (1..=64).map(|i| store.commit(put(&format!("/{i}"), "v"))).collect();
    permit.send(()).unwrap();
    assert_eq!(first.await, Ok(Revision(1)));

    began.recv().unwrap();
    permit.send(()).unwrap();
    for (i, one) in rest.into_iter().enumerate() {
        assert_eq!(one.await, Ok(Revision(i as u64 + 2)));
    }
    assert!(began.try_recv().is_err(), "64 writers that waited together cost one sync");
}

#[tokio::test]
async fn a_failed_sync_acknowledges_nothing_and_stops_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open_with(dir.path(), |_| Broken).unwrap();
    let mut seen = store.subscribe();
    assert!(matches!(store.commit(put("/a", "1")).await, Err(CommitError::Engine(_))));
    assert!(matches!(store.commit(put("/b", "1")).await, Err(CommitError::Engine(_))));
    assert_eq!(seen.recv().await, None, "nobody is told of what may not be there, but of the end");
}

#[tokio::test]
async fn a_cache_says_that_its_store_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open_with(dir.path(), |_| Broken).unwrap();
    let cache = crate::cache::Cache::open(std::sync::Arc::new(store)).unwrap();
    assert!(!cache.ended().is_cancelled());
    assert!(cache.commit(put("/reserved/a", "1")).await.is_err());
    cache.ended().cancelled().await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_copy_taken_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let copy = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    for i in 0..50 {
        store.commit(put(&format!("/{i}"), &"v".repeat(1000))).await.unwrap();
    }
    // The files as kill -9 would leave them: the first store is still open and has closed nothing.
    for entry in fs::read_dir(dir.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
    }
    let (revision, values) = SledStore::open(copy.path()).unwrap().load().unwrap();
    assert_eq!((revision, values.len()), (Revision(50), 50));
}

#[tokio::test]
async fn a_second_server_on_the_same_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = SledStore::open(dir.path()).unwrap();
    let error = SledStore::open(dir.path()).err().unwrap();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
}

/// Writes, closes, and then does `damage` to the bytes of the database file.
async fn damaged(damage: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, Result<SledStore, OpenError>) {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Arc::new(SledStore::open(dir.path()).unwrap());
        for i in 0..200 {
            store.commit(put(&format!("/{i}"), &"x".repeat(500))).await.unwrap();
        }
        let copy = dir.path().join("copy");
        fs::create_dir(&copy).unwrap();
        for file in ["db", "conf", ACKNOWLEDGED_FILE] {
            fs::copy(dir.path().join(file), copy.join(file)).unwrap();
        }
    }
    let db = dir.path().join("copy/db");
    let mut bytes = fs::read(&db).unwrap();
    damage(&mut bytes);
    fs::write(&db, bytes).unwrap();
    let opened = SledStore::open(&dir.path().join("copy"));
    (dir, opened)
}

#[tokio::test]
async fn damage_in_the_middle_is_one_clear_error_that_names_the_directory() {
    let (dir, opened) = damaged(|bytes| {
        let end = bytes.windows(100).rposition(|w| w == [b'x'; 100]).unwrap();
        bytes[end / 2..end].fill(0);
    })
    .await;
    let error = opened.err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains(&*dir.path().to_string_lossy()) && text.contains("backup"), "{text}");
}

#[tokio::test]
async fn a_file_of_rubbish_is_an_error_and_no_empty_start() {
    let (_dir, opened) = damaged(|bytes| bytes.fill(0xa5)).await;
    let error = opened.err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn a_directory_that_is_not_whole_is_an_error_and_no_empty_start() {
    for lost in ["db", ACKNOWLEDGED_FILE] {
        let dir = tempfile::tempdir().unwrap();
        SledStore::open(dir.path()).unwrap().commit(put("/a", "1")).await.unwrap();
        let copy = tempfile::tempdir().unwrap();
        for file in ["db", "conf", ACKNOWLEDGED_FILE].iter().filter(|f| **f != lost) {
            fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
        }
        let error = SledStore::open(copy.path()).err().unwrap();
        assert!(matches!(error, OpenError::Damaged { .. }), "{lost}: {error}");
    }
    let rubbish = tempfile::tempdir().unwrap();
    fs::write(rubbish.path().join("db"), [0xa5; 4096]).unwrap();
    assert!(matches!(SledStore::open(rubbish.path()).err(), Some(OpenError::Damaged { .. })));
}

#[tokio::test]
async fn a_store_of_a_later_format_is_refused_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    SledStore::open(dir.path()).unwrap().commit(put("/a", "1")).await.unwrap();
    let db = open_sled(dir.path()).unwrap();
    db.insert(format::FORMAT_KEY, "7").unwrap();
    db.flush().unwrap();
    drop(db);
    let opened = SledStore::open(dir.path()).err().unwrap();
    let salvaged = salvage(dir.path(), |_| None).err().unwrap();
    for error in [opened, salvaged] {
        assert!(matches!(error, OpenError::Newer { found: 7, known: 1, .. }), "{error}");
        assert_eq!(error.to_string().lines().count(), 1);
    }
}
