//! The embedded engine: sled, with durability of our own.
//!
//! sled's `flush` does not fsync on Linux (it ends in `sync_file_range`), so it survives the death of the process but not of
//! the machine. Here one committer thread gathers the transactions that wait, applies them as one batch, flushes, calls
//! fdatasync on the database file, and only then acknowledges: many writers share one sync (group commit).

mod format;
mod open;
mod panics;
mod salvage;

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io,
    path::Path,
    sync::{Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use minisvc_proto::Revision;
use tokio::sync::{
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    oneshot,
};

pub use self::{
    format::FORMAT,
    open::{OpenError, is_in_use},
    salvage::{Damage, Salvaged, salvage},
};
use self::{
    format::{ACKNOWLEDGED_FILE, REVISION_KEY, encode, read_acknowledged, write_acknowledged, write_first},
    open::{Opened, check_format, open_sled, open_sound},
};
use super::{BoxFuture, Change, CommitError, Committed, Key, Store, Txn, Versioned, Write, memory::holds};

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
    /// `None` while it ends.
    requests: Option<mpsc::Sender<Request>>,
    committer: Option<JoinHandle<()>>,
    initial: Mutex<Option<(Revision, BTreeMap<Key, Versioned>)>>,
    subscriber: std::sync::Arc<Mutex<Option<UnboundedSender<Committed>>>>,
}

/// Most transactions in one group: bounds the memory of a batch and the wait of the first in it.
const MAX_GROUP: usize = 512;
/// A group of this many bytes takes in no more: large objects wait for the next one instead of growing the batch.
const MAX_GROUP_BYTES: usize = 4 << 20;
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
        let Opened { db, revision, values } = open_sound(dir, known)?;
        let file = OpenOptions::new().read(true).write(true).open(dir.join("db")).map_err(io_error)?;
        // The names of the files must last as well as what is in them.
        let parent = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let directories = [dir, parent];
        file.sync_all()
            .and_then(|()| directories.iter().try_for_each(|d| File::open(d)?.sync_all()))
            .map_err(io_error)?;
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
        let committer = std::thread::Builder::new()
            .name("store-committer".into())
            .spawn(move || committer.run(&queue))
            .map_err(io_error)?;
        Ok(SledStore {
            requests: Some(requests),
            committer: Some(committer),
            initial: Mutex::new(Some((revision, values))),
            subscriber,
        })
    }
}

/// Most values of a new store in one batch.
const BATCH: usize = 512;

/// Makes a store that holds exactly this, on disk when it returns. `dir` is absent or empty.
pub fn write_new(
    dir: &Path,
    revision: Revision,
    values: impl IntoIterator<Item = (Key, Versioned)>,
) -> Result<(), OpenError> {
    let io_error = |cause| OpenError::Io { path: dir.to_owned(), cause };
    let failed = |e: sled::Error| OpenError::Io { path: dir.to_owned(), cause: io::Error::other(e) };
    fs::create_dir_all(dir).map_err(io_error)?;
    let acknowledged = dir.join(ACKNOWLEDGED_FILE);
    write_first(&acknowledged).map_err(io_error)?;
    let db = open_sled(dir)?;
    check_format(dir, &db)?;
    let mut values = values.into_iter().peekable();
    while values.peek().is_some() {
        let mut batch = sled::Batch::default();
        for (key, Versioned { revision, value }) in values.by_ref().take(BATCH) {
            batch.insert(key.as_bytes(), encode(&key, revision, &value));
        }
        db.apply_batch(batch).map_err(failed)?;
    }
    db.insert(REVISION_KEY, &revision.0.to_be_bytes()).map_err(failed)?;
    db.flush().map_err(failed)?;
    drop(db);
    let acknowledged = OpenOptions::new().write(true).open(acknowledged).map_err(io_error)?;
    write_acknowledged(&acknowledged, revision).map_err(io_error)?;
    for entry in fs::read_dir(dir).map_err(io_error)? {
        File::open(entry.map_err(io_error)?.path()).and_then(|f| f.sync_all()).map_err(io_error)?;
    }
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error)
}

/// Returns when what waits is written and the directory is free for the next one.
impl Drop for SledStore {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(committer) = self.committer.take() {
            // A panic of the committer has been told by the end of what is subscribed.
            let _ = committer.join();
        }
    }
}

impl Store for SledStore {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>> {
        let (answer, result) = oneshot::channel();
        let sent = self.requests.as_ref().map(|requests| requests.send(Request { txn, answer }));
        Box::pin(async move {
            let stopped = || CommitError::Engine("it stopped after an earlier failure".into());
            sent.and_then(Result::ok).ok_or_else(stopped)?;
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

#[cfg(test)]
mod tests;
