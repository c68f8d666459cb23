//! The embedded engine: sled, with durability of our own.
//!
//! sled's `flush` does not fsync on Linux (it ends in `sync_file_range`), so it survives the death of the process but not of
//! the machine. Here one committer thread gathers the transactions that wait, applies them as one batch, flushes, calls
//! fdatasync on the database file, and only then acknowledges: many writers share one sync (group commit).

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, mpsc},
};

use bytes::Bytes;
use minisvc_proto::Revision;
use sha2::{Digest, Sha256};
use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};

use super::{BoxFuture, Change, CommitError, Committed, Key, Store, Txn, Versioned, Write, memory::holds};

/// A data directory that cannot be opened. The message names it and the way out.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be made or read.
    #[error("data directory {path}: {cause}")]
    Io {
        /// Which directory.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// Another process has it open.
    #[error(
        "data directory {path} is in use by another minisvc server; stop that one, or give this one its own --data-dir"
    )]
    InUse {
        /// Which directory.
        path: PathBuf,
    },
    /// It holds something, but not a sound store.
    #[error(
        "data directory {path} is damaged ({detail}); restore it from a backup, or move it away to start with an empty cluster"
    )]
    Damaged {
        /// Which directory.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
}

/// Makes what was flushed durable. A trait so that a test can hold it back and count it.
pub trait Sync: Send + 'static {
    /// Returns when everything written to the database file so far is on disk.
    fn sync(&mut self) -> io::Result<()>;
}

impl Sync for File {
    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

struct Request {
    txn: Txn,
    answer: oneshot::Sender<Result<Revision, CommitError>>,
}

impl Request {
    /// What it writes, in bytes.
    fn bytes(&self) -> usize {
        let size = |(key, write): (&Key, &Write)| match write {
            Write::Put(value) => key.len() + value.len(),
            Write::Delete => key.len(),
        };
        self.txn.writes.iter().map(size).sum()
    }
}

/// See the module.
pub struct SledStore {
    requests: mpsc::Sender<Request>,
    initial: Mutex<Option<(Revision, BTreeMap<Key, Versioned>)>>,
    subscriber: std::sync::Arc<Mutex<Option<UnboundedSender<Committed>>>>,
}

/// Values above a quarter of a segment would go to blob files that sled never syncs: 8 MiB keeps values to 2 MiB in the log.
const SEGMENT_SIZE: usize = 8 << 20;
/// Most transactions in one group: bounds the memory of a batch and the wait of the first in it.
const MAX_GROUP: usize = 512;
/// A group of this many bytes takes in no more: large objects wait for the next one instead of growing the batch.
const MAX_GROUP_BYTES: usize = 4 << 20;
/// Beside sled's files: the last acknowledged revision, with its checksum. sled takes a log that is damaged or cut for a shorter
/// one; this is how the loss is noticed. Written without a sync of its own: the death of a process keeps it exact, and after
/// that of a machine it is at worst older than the store.
const ACKNOWLEDGED_FILE: &str = "acknowledged";
const REVISION_KEY: &[u8] = b"!revision";
/// Revision (8 bytes, big-endian), then the first 8 bytes of the SHA-256 of key, revision and value.
const HEADER: usize = 16;

impl SledStore {
    /// Opens or makes the store in `dir`, which nothing else uses.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        Self::open_with(dir, |file| file)
    }

    /// Opens with a wrapper around the sync of the database file, for tests of what an acknowledgement promises.
    pub fn open_with<S: Sync>(dir: &Path, wrap: impl FnOnce(File) -> S) -> Result<Self, OpenError> {
        let io_error = |cause| OpenError::Io { path: dir.to_owned(), cause };
        fs::create_dir_all(dir).map_err(io_error)?;
        let acknowledged = dir.join(ACKNOWLEDGED_FILE);
        if !dir.join("db").exists() && !acknowledged.exists() {
            // Before sled's first file: from then on, its absence means that the directory is not whole.
            write_first(&acknowledged).map_err(io_error)?;
        }
        let Some(known) = read_acknowledged(&acknowledged).map_err(io_error)? else {
            let detail = format!("its file \"{ACKNOWLEDGED_FILE}\" is missing or unreadable");
            return Err(OpenError::Damaged { path: dir.to_owned(), detail });
        };
        let db = open_sled(dir)?;
        let (revision, values) =
            catch_unwind(AssertUnwindSafe(|| read_all(dir, &db))).unwrap_or_else(|_| {
                Err(OpenError::Damaged { path: dir.to_owned(), detail: "its pages cannot be read".into() })
            })?;
        let file = OpenOptions::new().read(true).write(true).open(dir.join("db")).map_err(io_error)?;
        // The names of the files must last as well as what is in them.
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directories = [dir, parent];
        file.sync_all()
            .and_then(|()| directories.iter().try_for_each(|d| File::open(d)?.sync_all()))
            .map_err(io_error)?;
        if known > revision {
            let detail = format!("it ends at revision {revision}, but {known} was acknowledged");
            return Err(OpenError::Damaged { path: dir.to_owned(), detail });
        }
        let acknowledged = OpenOptions::new().write(true).open(acknowledged).map_err(io_error)?;
        let sync = wrap(file);
        let (requests, queue) = mpsc::channel();
        let subscriber = std::sync::Arc::new(Mutex::new(None));
        let committer = Committer {
            versions: values.iter().map(|(k, v)| (k.clone(), v.clone())).collect(),
            db,
            sync,
            acknowledged,
            revision,
            subscriber: subscriber.clone(),
        };
        std::thread::Builder::new()
            .name("store-committer".into())
            .spawn(move || committer.run(&queue))
            .map_err(io_error)?;
        Ok(SledStore { requests, initial: Mutex::new(Some((revision, values))), subscriber })
    }
}

impl Store for SledStore {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>> {
        let (answer, result) = oneshot::channel();
        let sent = self.requests.send(Request { txn, answer });
        Box::pin(async move {
            let stopped = || CommitError::Engine("it stopped after an earlier failure".into());
            sent.map_err(|_| stopped())?;
            result.await.map_err(|_| stopped())?
        })
    }

    fn load(&self) -> Result<(Revision, BTreeMap<Key, Versioned>), CommitError> {
        let mut initial = self.initial.lock().unwrap_or_else(PoisonError::into_inner);
        initial.take().ok_or_else(|| CommitError::Engine("load is called once, at start".into()))
    }

    fn subscribe(&self) -> UnboundedReceiver<Committed> {
        let (sender, receiver) = unbounded_channel();
        *self.subscriber.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }
}

struct Committer<S> {
    db: sled::Db,
    sync: S,
    acknowledged: File,
    revision: Revision,
    versions: HashMap<Key, Versioned>,
    subscriber: std::sync::Arc<Mutex<Option<UnboundedSender<Committed>>>>,
}

impl<S: Sync> Committer<S> {
    fn run(mut self, queue: &mpsc::Receiver<Request>) {
        while let Ok(first) = queue.recv() {
            let mut bytes = first.bytes();
            let mut group = vec![first];
            while group.len() < MAX_GROUP
                && bytes < MAX_GROUP_BYTES
                && let Ok(next) = queue.try_recv()
            {
                bytes += next.bytes();
                group.push(next);
            }
            if let Err(detail) = self.commit_group(group) {
                // Memory and disk may differ now; a restart reads what is really there.
                tracing::error!(%detail, "the store failed and takes no more writes");
                return;
            }
        }
    }

    fn commit_group(&mut self, group: Vec<Request>) -> Result<(), String> {
        let mut batch = sled::Batch::default();
        let mut accepted = Vec::with_capacity(group.len());
        let mut refused = Vec::new();
        for Request { txn, answer } in group {
            let fault = txn.expect.iter().find(|(k, e)| !holds(**e, self.versions.get(*k)));
            if let Some((key, _)) = fault {
                let found = self.versions.get(key).cloned();
                let (key, revision) = (key.clone(), self.revision);
                refused.push((CommitError::Unexpected { key, found, revision }, answer));
                continue;
            }
            self.revision = Revision(self.revision.0 + 1);
            let committed = self.stage(&mut batch, txn);
            accepted.push((committed, answer));
        }
        if accepted.is_empty() {
            refuse(refused);
            return Ok(());
        }
        batch.insert(REVISION_KEY, &self.revision.0.to_be_bytes());
        let durable = self
            .db
            .apply_batch(batch)
            .and_then(|()| self.db.flush().map(drop))
            .map_err(|e| e.to_string())
            .and_then(|()| self.sync.sync().map_err(|e| e.to_string()))
            .and_then(|()| write_acknowledged(&self.acknowledged, self.revision).map_err(|e| e.to_string()));
        // A refusal speaks of what it found, which may be a write of this very group: not before that is on disk.
        if durable.is_ok() {
            refuse(refused);
        }
        let subscriber = self.subscriber.lock().unwrap_or_else(PoisonError::into_inner);
        for (committed, answer) in accepted {
            match &durable {
                Ok(()) => {
                    let revision = committed.revision;
                    if let Some(subscriber) = subscriber.as_ref() {
                        let _ = subscriber.send(committed);
                    }
                    let _ = answer.send(Ok(revision));
                }
                Err(detail) => {
                    let _ = answer.send(Err(CommitError::Engine(detail.clone())));
                }
            }
        }
        durable
    }

    fn stage(&mut self, batch: &mut sled::Batch, txn: Txn) -> Committed {
        let revision = self.revision;
        let mut changes = Vec::with_capacity(txn.writes.len());
        for (key, write) in txn.writes {
            let value = match write {
                Write::Put(value) => {
                    batch.insert(key.as_bytes(), encode(&key, revision, &value));
                    self.versions.insert(key.clone(), Versioned { revision, value: value.clone() });
                    Some(value)
                }
                Write::Delete => {
                    batch.remove(key.as_bytes());
                    self.versions.remove(&key);
                    None
                }
            };
            changes.push(Change { key, value });
        }
        Committed { revision, changes }
    }
}

/// However it ends, a panic of sled's included: the end of what is subscribed says so.
impl<S> Drop for Committer<S> {
    fn drop(&mut self) {
        *self.subscriber.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn refuse(refused: Vec<(CommitError, oneshot::Sender<Result<Revision, CommitError>>)>) {
    for (error, answer) in refused {
        // A writer that went away needs no answer.
        let _ = answer.send(Err(error));
    }
}

fn checksum(key: &str, revision: [u8; 8], value: &[u8]) -> [u8; 8] {
    let mut hash = Sha256::new();
    hash.update(key.as_bytes());
    hash.update([0]);
    hash.update(revision);
    hash.update(value);
    let mut out = [0; 8];
    out.copy_from_slice(&hash.finalize()[..8]);
    out
}

fn encode(key: &str, revision: Revision, value: &[u8]) -> Vec<u8> {
    let revision = revision.0.to_be_bytes();
    let mut out = Vec::with_capacity(HEADER + value.len());
    out.extend(revision);
    out.extend(checksum(key, revision, value));
    out.extend(value);
    out
}

fn decode(key: &str, stored: &[u8]) -> Option<Versioned> {
    let revision: [u8; 8] = stored.get(..8)?.try_into().ok()?;
    let value = stored.get(HEADER..)?;
    (stored.get(8..HEADER)? == checksum(key, revision, value)).then(|| Versioned {
        revision: Revision(u64::from_be_bytes(revision)),
        value: Bytes::copy_from_slice(value),
    })
}

/// The file of a new store, on disk before anything else is.
fn write_first(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    write_acknowledged(&file, Revision::default())?;
    file.sync_all()
}

/// The last acknowledged revision; `None` where the file is absent or not whole.
fn read_acknowledged(path: &Path) -> io::Result<Option<Revision>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let parts =
        bytes.split_first_chunk::<8>().filter(|(revision, sum)| checksum("", **revision, &[]) == *sum);
    Ok(parts.map(|(revision, _)| Revision(u64::from_be_bytes(*revision))))
}

fn write_acknowledged(file: &File, revision: Revision) -> io::Result<()> {
    let revision = revision.0.to_be_bytes();
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&revision);
    bytes[8..].copy_from_slice(&checksum("", revision, &[]));
    file.write_all_at(&bytes, 0)
}

fn open_sled(dir: &Path) -> Result<sled::Db, OpenError> {
    match try_open(dir) {
        Err(OpenError::Damaged { .. }) if set_snapshots_aside(dir) => try_open(dir),
        other => other,
    }
}

/// A snapshot is only a shortcut: a torn one makes sled refuse a log that is sound. Set aside, not deleted.
fn set_snapshots_aside(dir: &Path) -> bool {
    let Ok(entries) = fs::read_dir(dir) else { return false };
    let mut moved = false;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("snap.") {
            moved |= fs::rename(entry.path(), dir.join(format!("aside.{name}"))).is_ok();
        }
    }
    moved
}

fn try_open(dir: &Path) -> Result<sled::Db, OpenError> {
    let config =
        sled::Config::new().path(dir).segment_size(SEGMENT_SIZE).flush_every_ms(None).cache_capacity(8 << 20);
    let damaged = |detail: String| OpenError::Damaged { path: dir.to_owned(), detail };
    // sled panics on some kinds of damage (its issue 1387).
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(sled::Error::Io(e)))
            if e.to_string().contains("could not acquire lock") || e.kind() == io::ErrorKind::WouldBlock =>
        {
            Err(OpenError::InUse { path: dir.to_owned() })
        }
        Ok(Err(sled::Error::Io(cause))) => Err(OpenError::Io { path: dir.to_owned(), cause }),
        Ok(Err(other)) => Err(damaged(other.to_string())),
        Err(_) => Err(damaged("its log cannot be read".into())),
    }
}

fn read_all(dir: &Path, db: &sled::Db) -> Result<(Revision, BTreeMap<Key, Versioned>), OpenError> {
    let damaged = |detail: String| OpenError::Damaged { path: dir.to_owned(), detail };
    let mut values = BTreeMap::new();
    let mut last = None;
    for item in db.iter() {
        let (key, stored) = item.map_err(|e| damaged(e.to_string()))?;
        if key.as_ref() == REVISION_KEY {
            let bytes: [u8; 8] =
                stored.as_ref().try_into().map_err(|_| damaged("its revision is cut short".into()))?;
            last = Some(Revision(u64::from_be_bytes(bytes)));
            continue;
        }
        let key = std::str::from_utf8(&key).map_err(|_| damaged("a key is no text".into()))?;
        let value =
            decode(key, &stored).ok_or_else(|| damaged(format!("{key} does not match its checksum")))?;
        values.insert(Key::from(key), value);
    }
    match last {
        None if values.is_empty() => Ok((Revision(0), values)),
        None => Err(damaged("its revision is missing".into())),
        Some(last) if values.values().any(|v| v.revision > last) => {
            Err(damaged("a value is newer than its revision".into()))
        }
        Some(last) => Ok((last, values)),
    }
}

#[cfg(test)]
mod tests;
