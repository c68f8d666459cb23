//! Opening what is on disk: what is sound, what is damaged, and what is of a later version.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use minisvc_proto::Revision;

use super::{
    Key, Versioned,
    format::{FORMAT, FORMAT_KEY, REVISION_KEY, decode},
    panics::caught,
};

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
        "data directory {path} is damaged ({detail}); `minisvc server salvage` brings out what is sound, `minisvc server restore` a backup"
    )]
    Damaged {
        /// Which directory.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// A later version of minisvc has written it.
    #[error(
        "data directory {path} is of store format {found}, and this minisvc knows formats up to {known}: run the minisvc that wrote it, or a newer one"
    )]
    Newer {
        /// Which directory.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The newest that is known here.
        known: u64,
    },
}

/// Values above a quarter of a segment would go to blob files that sled never syncs: 8 MiB keeps values to 2 MiB in the log.
const SEGMENT_SIZE: usize = 8 << 20;

/// A store whose every value is sound.
pub struct Opened {
    /// sled's handle.
    pub db: sled::Db,
    /// The last revision.
    pub revision: Revision,
    /// Every value.
    pub values: BTreeMap<Key, Versioned>,
}

/// How long a process that ends, or sled's threads after a close, may keep the lock.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Whether another process has the store open, and keeps it. Its lock alone is looked at: opening a damaged store changes it.
pub fn is_in_use(dir: &Path) -> bool {
    let held = || {
        let tried = File::open(dir.join("db")).map(|db| db.try_lock());
        matches!(tried, Ok(Err(TryLockError::WouldBlock)))
    };
    let end = Instant::now() + LOCK_PATIENCE;
    while held() {
        if Instant::now() > end {
            return true;
        }
        std::thread::sleep(LOCK_POLL);
    }
    false
}

/// Opens what is whole up to the revision that was acknowledged. What is not stays on disk as it was found, for `salvage`: sled cuts a
/// log off at its first damage, and with it everything behind that.
pub fn open_sound(dir: &Path, known: Revision) -> Result<Opened, OpenError> {
    if is_in_use(dir) {
        return Err(OpenError::InUse { path: dir.to_owned() });
    }
    let pristine = Pristine::keep(dir);
    let opened = look(dir, known);
    match (opened, pristine) {
        (Err(damaged @ OpenError::Damaged { .. }), Some(pristine)) => {
            pristine.put_back();
            Err(damaged)
        }
        (Ok(opened), Some(pristine)) => {
            // A copy that stayed would be put back in place of what is written from now on.
            pristine.discard().map_err(|cause| OpenError::Io { path: dir.to_owned(), cause })?;
            Ok(opened)
        }
        (other, _) => other,
    }
}

fn look(dir: &Path, known: Revision) -> Result<Opened, OpenError> {
    let damaged = |detail: String| OpenError::Damaged { path: dir.to_owned(), detail };
    let db = open_sled(dir)?;
    check_format(dir, &db)?;
    let (revision, values) = caught(AssertUnwindSafe(|| read_all(dir, &db)))
        .unwrap_or_else(|| Err(damaged("its pages cannot be read".into())))?;
    if known > revision {
        return Err(damaged(format!("it ends at revision {revision}, but {known} was acknowledged")));
    }
    Ok(Opened { db, revision, values })
}

/// sled's file as it was before sled looked at it.
pub struct Pristine {
    db: PathBuf,
    copy: PathBuf,
}

impl Pristine {
    fn of(dir: &Path) -> Self {
        Pristine { db: dir.join("db"), copy: dir.join("db.before-open") }
    }

    /// Copies it. A copy that is there already is that of an open that was cut off: nothing was written since.
    fn keep(dir: &Path) -> Option<Self> {
        let pristine = Self::of(dir);
        if pristine.copy.exists() {
            return Some(pristine);
        }
        // Under another name until it is whole.
        let part = pristine.copy.with_extension("part");
        match fs::copy(&pristine.db, &part).and_then(|_| fs::rename(&part, &pristine.copy)) {
            Ok(()) => Some(pristine),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(%error, "the store is opened without a copy of its file for the case of damage");
                }
                let _ = fs::remove_file(&part);
                None
            }
        }
    }

    /// What sled made of the file gives way to what was there.
    fn put_back(self) {
        if let Err(error) = fs::rename(&self.copy, &self.db) {
            tracing::warn!(%error, copy = %self.copy.display(), "the store's file cannot be put back as it was");
        }
    }

    fn discard(self) -> io::Result<()> {
        fs::remove_file(&self.copy)
    }

    /// In a copy of the directory of an open that was cut off.
    pub fn restore(dir: &Path) -> io::Result<()> {
        let pristine = Self::of(dir);
        if pristine.copy.exists() { fs::rename(&pristine.copy, &pristine.db) } else { Ok(()) }
    }
}

/// Opens sled's files; torn snapshots are no reason not to.
pub fn open_sled(dir: &Path) -> Result<sled::Db, OpenError> {
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
    match caught(AssertUnwindSafe(|| config.open())) {
        Some(Ok(db)) => Ok(db),
        Some(Err(sled::Error::Io(e)))
            if e.to_string().contains("could not acquire lock") || e.kind() == io::ErrorKind::WouldBlock =>
        {
            Err(OpenError::InUse { path: dir.to_owned() })
        }
        Some(Err(sled::Error::Io(cause))) => Err(OpenError::Io { path: dir.to_owned(), cause }),
        Some(Err(other)) => Err(damaged(other.to_string())),
        None => Err(damaged("its log cannot be read".into())),
    }
}

/// All values, if every one is sound, with the last revision.
pub fn read_all(dir: &Path, db: &sled::Db) -> Result<(Revision, BTreeMap<Key, Versioned>), OpenError> {
    let damaged = |detail: String| OpenError::Damaged { path: dir.to_owned(), detail };
    let mut values = BTreeMap::new();
    let mut last = None;
    for item in db.iter() {
        let (key, stored) = item.map_err(|e| damaged(e.to_string()))?;
        if key.as_ref() == FORMAT_KEY {
            continue;
        }
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

/// Refuses what a later version has written, and marks what this one writes.
pub fn check_format(dir: &Path, db: &sled::Db) -> Result<(), OpenError> {
    let damaged = |detail: String| OpenError::Damaged { path: dir.to_owned(), detail };
    let stored = caught(AssertUnwindSafe(|| db.get(FORMAT_KEY)))
        .ok_or_else(|| damaged("its pages cannot be read".into()))?
        .map_err(|e| damaged(e.to_string()))?;
    let Some(stored) = stored else {
        db.insert(FORMAT_KEY, FORMAT.to_string().as_bytes()).map_err(|e| damaged(e.to_string()))?;
        return Ok(());
    };
    let found = std::str::from_utf8(&stored).ok().and_then(|text| text.parse().ok());
    match found {
        Some(found) if found <= FORMAT => Ok(()),
        Some(found) => Err(OpenError::Newer { path: dir.to_owned(), found, known: FORMAT }),
        None => Err(damaged("its format is no number".into())),
    }
}
