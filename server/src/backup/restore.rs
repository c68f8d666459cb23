//! A cluster from a backup.

use std::{
    fs::File,
    io::{BufReader, Read},
    path::{Path, PathBuf},
};

use minisvc_proto::Revision;

use super::{
    Backup, BackupError, Header,
    place::{PARTS, Room, free_name},
    read,
};
use crate::{pki::files, registry::with_reservations, store::sled_engine};

/// Revisions go on so far above the backup's. Whoever watched the cluster has seen revisions after the backup was taken: all of
/// them must read as too old, or it would wait for changes that never come and keep what is no more. (etcd's restore has
/// `--bump-revision` and `--mark-compacted` for this.)
pub const AHEAD: u64 = 1_000_000_000;

/// What was brought back.
#[derive(Debug)]
pub struct Restored {
    /// The backup's first line.
    pub header: Header,
    /// Where what was there before is now.
    pub aside: Option<PathBuf>,
}

/// Makes a data directory from a backup (`-`: standard input). What is there already is moved aside with `force`, else refused.
pub fn restore(file: &Path, data_dir: &Path, force: bool) -> Result<Restored, BackupError> {
    let failed = |cause| BackupError::File { path: file.to_path_buf(), cause };
    let input: Box<dyn Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(file).map_err(failed)?)
    };
    let backup = read(&mut BufReader::new(input))
        .map_err(|why| BackupError::Damaged { file: file.display().to_string(), why })?;
    let aside = free_name(data_dir, "before-restore");
    let there: Vec<&str> = PARTS.into_iter().filter(|part| data_dir.join(part).exists()).collect();
    if !there.is_empty() && !force && super::check_finished(data_dir).is_ok() {
        let what = there.join(", ");
        return Err(BackupError::Taken { data_dir: data_dir.to_path_buf(), what, aside });
    }
    in_use(data_dir)?;
    let room = Room::new(data_dir)?;
    if let Err(error) = fill(&room, &backup) {
        room.abandon();
        return Err(error);
    }
    room.settle(&aside)?;
    Ok(Restored { header: backup.header, aside: aside.exists().then_some(aside) })
}

/// An error if a server runs on this directory.
pub fn in_use(data_dir: &Path) -> Result<(), BackupError> {
    let path = data_dir.join("store");
    if sled_engine::is_in_use(&path) {
        return Err(sled_engine::OpenError::InUse { path }.into());
    }
    Ok(())
}

fn fill(room: &Room, backup: &Backup) -> Result<(), BackupError> {
    let pki = room.dir.join("pki");
    let failed = |cause| BackupError::File { path: pki.clone(), cause };
    files::create_dir(&pki).map_err(failed)?;
    files::write(&pki.join("ca.key"), backup.ca.key.as_bytes()).map_err(failed)?;
    files::write(&pki.join("ca.crt"), backup.ca.certificate.as_bytes()).map_err(failed)?;
    let revision = Revision(backup.header.revision.0 + AHEAD);
    let (values, _) = with_reservations(backup.objects.clone());
    sled_engine::write_new(&room.dir.join("store"), revision, values)?;
    Ok(())
}
