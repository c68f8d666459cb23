//! A sound store from a damaged one, and a report of what was lost.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use minisvc_proto::{Object, Revision};

use super::{
    BackupError, key_of,
    place::{Room, free_name},
    restore::{AHEAD, in_use},
};
use crate::{
    cache::parse_key,
    registry::with_reservations,
    store::{
        Key,
        sled_engine::{self, Damage, Salvaged},
    },
};

/// What came of it.
#[derive(Debug)]
pub struct Report {
    /// How the store could be read.
    pub damage: Damage,
    /// Objects that were brought out, by kind.
    pub kept: BTreeMap<&'static str, usize>,
    /// What was there and could not be read, as far as it is known.
    pub lost: Vec<String>,
    /// Two objects had reserved the same: the later one has it.
    pub contested: Vec<String>,
    /// The last revision that was found, and the last that was acknowledged.
    pub revisions: (Revision, Option<Revision>),
    /// Where the damaged store is now; none if nothing had to be done.
    pub aside: Option<PathBuf>,
}

/// Brings out what is sound in a data directory's store.
pub fn salvage(data_dir: &Path) -> Result<Report, BackupError> {
    let store = data_dir.join("store");
    if !store.is_dir() {
        return Err(BackupError::NoStore(data_dir.to_path_buf()));
    }
    in_use(data_dir)?;
    let room = Room::new(data_dir)?;
    let result = rescue(&room, &store);
    let (salvaged, contested) = match result {
        Ok(found) if found.0.damage != Damage::None => found,
        other => {
            room.abandon();
            return other.map(|(sound, _)| Report::of(&sound, Vec::new(), None));
        }
    };
    let aside = free_name(data_dir, "damaged");
    room.settle(&aside)?;
    Ok(Report::of(&salvaged, contested, Some(aside)))
}

/// Works on a copy: looking at a damaged store may change it.
fn rescue(room: &Room, store: &Path) -> Result<(Salvaged, Vec<String>), BackupError> {
    let copy = room.dir.join("copy");
    copy_files(store, &copy).map_err(|cause| BackupError::File { path: store.to_path_buf(), cause })?;
    let salvaged = sled_engine::salvage(&copy, searched_for)?;
    if salvaged.damage == Damage::None {
        return Ok((salvaged, Vec::new()));
    }
    let objects = salvaged.values.iter().filter(|(key, _)| parse_key(key).is_some());
    let (values, contested) = with_reservations(objects.map(|(k, v)| (k.clone(), v.clone())).collect());
    let last = salvaged.found.max(salvaged.acknowledged.unwrap_or_default());
    sled_engine::write_new(&room.dir.join("store"), Revision(last.0 + AHEAD), values)?;
    Ok((salvaged, contested))
}

/// What lets somebody in is not taken from behind the damage, where a deletion does not show: a token that was revoked and a node that
/// was removed stay so.
fn searched_for(object: &Object) -> Option<Key> {
    key_of(object).filter(|_| !matches!(object.kind(), "JoinToken" | "NodeCredential"))
}

fn copy_files(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

impl Report {
    fn of(salvaged: &Salvaged, contested: Vec<String>, aside: Option<PathBuf>) -> Self {
        let mut kept = BTreeMap::new();
        for key in salvaged.values.keys() {
            if let Some(key) = parse_key(key) {
                *kept.entry(key.resource.plural).or_default() += 1;
            }
        }
        let lost = salvaged.lost.iter().map(|key| name(&Key::from(key.as_str()))).collect();
        let revisions = (salvaged.found, salvaged.acknowledged);
        Report { damage: salvaged.damage, kept, lost, contested, revisions, aside }
    }
}

/// An object's kind and name; a key that names none as it is.
fn name(key: &Key) -> String {
    parse_key(key).map_or_else(|| key.to_string(), |key| key.to_string())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept: Vec<String> = self.kept.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        let Some(aside) = &self.aside else {
            return write!(f, "the store is sound ({}): nothing was changed", kept.join(", "));
        };
        let kept = if kept.is_empty() { "nothing".to_owned() } else { kept.join(", ") };
        writeln!(f, "brought out: {kept}")?;
        let (found, acknowledged) = self.revisions;
        match acknowledged {
            Some(known) if known > found => {
                writeln!(f, "lost: whatever revisions {} to {known} wrote", found.0 + 1)?;
            }
            Some(_) => {}
            None => {
                writeln!(f, "lost: what was acknowledged last is not known; revision {found} was found")?;
            }
        }
        for key in &self.lost {
            writeln!(f, "lost: {key}")?;
        }
        if self.damage == Damage::Log {
            writeln!(
                f,
                "the log itself is damaged: objects that had been deleted or changed lately may be back as they were before; \
                 credentials are not searched for: a node whose agent is refused joins again with a new token"
            )?;
        }
        for held in &self.contested {
            writeln!(f, "two objects hold {held}: the later one has it, give the other a new one")?;
        }
        write!(f, "the damaged store is in {}", aside.display())
    }
}
