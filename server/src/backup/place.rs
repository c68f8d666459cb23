//! Putting a store and a CA where a server finds them, all of it or nothing.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use super::BackupError;
use crate::pki::files;

/// What a server reads in its data directory.
pub const PARTS: [&str; 2] = ["store", "pki"];
/// Stands in a data directory while it is changed as a whole.
const MARKER: &str = ".changing";

/// An error if a change of this data directory as a whole was cut off.
pub fn check_finished(data_dir: &Path) -> Result<(), BackupError> {
    let marker = data_dir.join(MARKER);
    if marker.exists() {
        return Err(BackupError::Unfinished { data_dir: data_dir.to_path_buf(), marker });
    }
    Ok(())
}

/// The room in which new parts are made.
pub struct Room {
    data_dir: PathBuf,
    /// Where the parts go first.
    pub dir: PathBuf,
}

impl Room {
    /// Makes it, empty.
    pub fn new(data_dir: &Path) -> Result<Self, BackupError> {
        let dir = data_dir.join(MARKER);
        let failed = |cause| BackupError::File { path: dir.clone(), cause };
        files::create_dir(data_dir).map_err(failed)?;
        if dir.exists() {
            fs::remove_dir_all(&dir).map_err(failed)?;
        }
        files::create_dir(&dir).map_err(failed)?;
        sync(data_dir).map_err(failed)?;
        Ok(Room { data_dir: data_dir.to_path_buf(), dir })
    }

    /// Moves the parts that are here to where the server looks, what is there to `aside`, and takes the room away. Until the last step
    /// no server starts here.
    pub fn settle(self, aside: &Path) -> Result<(), BackupError> {
        let moved = || -> io::Result<()> {
            for part in PARTS {
                let (new, place) = (self.dir.join(part), self.data_dir.join(part));
                if !new.exists() {
                    continue;
                }
                if place.exists() {
                    files::create_dir(aside)?;
                    fs::rename(&place, aside.join(part))?;
                }
                fs::rename(&new, &place)?;
            }
            sync(&self.data_dir)?;
            fs::remove_dir_all(&self.dir)?;
            sync(&self.data_dir)
        };
        moved().map_err(|cause| BackupError::File { path: self.data_dir.clone(), cause })
    }

    /// Takes the room away, nothing being changed.
    pub fn abandon(self) {
        // What stays says so at the next start.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// The first of `NAME-1`, `NAME-2` ... that is not there.
pub fn free_name(data_dir: &Path, name: &str) -> PathBuf {
    let names = (1_u32..).map(|n| data_dir.join(format!("{name}-{n}")));
    names.into_iter().find(|path| !path.exists()).unwrap_or_else(|| data_dir.join(name))
}
