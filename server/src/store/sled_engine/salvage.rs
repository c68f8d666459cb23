//! What can be brought out of a damaged store. Every value carries a checksum over its key, revision and bytes, so that what comes out
//! here is what was written once, whatever happened to the pages around it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    panic::AssertUnwindSafe,
    path::Path,
};

use minisvc_proto::{Object, Revision};

use super::{
    Key, OpenError, Versioned,
    format::{ACKNOWLEDGED_FILE, FORMAT_KEY, HEADER, REVISION_KEY, decode, read_acknowledged},
    open::{Pristine, check_format, open_sled, read_all},
    panics::caught,
};

/// How a store was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// Everything that was acknowledged is there.
    None,
    /// sled reads it, but values are missing or wrong.
    Values,
    /// sled does not read it: its file was searched for values. What had been deleted may be among them.
    Log,
}

/// What came out.
#[derive(Debug)]
pub struct Salvaged {
    /// How.
    pub damage: Damage,
    /// The last revision that was acknowledged, where that is known.
    pub acknowledged: Option<Revision>,
    /// The last revision that was found.
    pub found: Revision,
    /// Sound values.
    pub values: BTreeMap<Key, Versioned>,
    /// Keys whose values are not sound.
    pub lost: BTreeSet<String>,
}

/// Reads what is sound in `dir`, which may be changed by that: give it a copy. `key_of` tells the key of an object.
pub fn salvage(dir: &Path, key_of: impl Fn(&Object) -> Option<Key>) -> Result<Salvaged, OpenError> {
    let io_error = |cause| OpenError::Io { path: dir.to_owned(), cause };
    let acknowledged = read_acknowledged(&dir.join(ACKNOWLEDGED_FILE)).map_err(io_error)?;
    Pristine::restore(dir).map_err(io_error)?;
    let file = fs::read(dir.join("db")).map_err(io_error)?;
    match open_sled(dir) {
        Ok(db) => {
            if let Err(newer @ OpenError::Newer { .. }) = check_format(dir, &db) {
                return Err(newer);
            }
            let whole = caught(AssertUnwindSafe(|| read_all(dir, &db)));
            if let Some(Ok((found, values))) = whole
                && acknowledged.is_some_and(|known| known <= found)
            {
                return Ok(Salvaged {
                    damage: Damage::None,
                    acknowledged,
                    found,
                    values,
                    lost: BTreeSet::new(),
                });
            }
            let mut some = sound_of(&db, acknowledged);
            // A log that is cut short reads as an older store: what is behind the cut may still be in the file.
            if acknowledged.is_none_or(|known| known > some.found) {
                some.damage = Damage::Log;
                carve(&file, &key_of, &mut some);
            }
            Ok(some)
        }
        Err(error @ (OpenError::InUse { .. } | OpenError::Io { .. } | OpenError::Newer { .. })) => Err(error),
        Err(OpenError::Damaged { .. }) => {
            let mut some = Salvaged {
                damage: Damage::Log,
                acknowledged,
                found: Revision(0),
                values: BTreeMap::new(),
                lost: BTreeSet::new(),
            };
            carve(&file, &key_of, &mut some);
            Ok(some)
        }
    }
}

/// The values that sled shows and that are sound.
fn sound_of(db: &sled::Db, acknowledged: Option<Revision>) -> Salvaged {
    let mut some = Salvaged {
        damage: Damage::Values,
        acknowledged,
        found: Revision(0),
        values: BTreeMap::new(),
        lost: BTreeSet::new(),
    };
    // What sled cannot go on after ends this; what was read before is kept.
    let _ = caught(AssertUnwindSafe(|| {
        for (key, stored) in db.iter().flatten() {
            if key.as_ref() == FORMAT_KEY {
                continue;
            }
            if key.as_ref() == REVISION_KEY {
                let last = <[u8; 8]>::try_from(stored.as_ref()).map_or(0, u64::from_be_bytes);
                some.found = some.found.max(Revision(last));
                continue;
            }
            let sound = std::str::from_utf8(&key).ok().and_then(|text| Some((text, decode(text, &stored)?)));
            match sound {
                Some((text, value)) => drop(some.values.insert(text.into(), value)),
                None => drop(some.lost.insert(String::from_utf8_lossy(&key).into_owned())),
            }
        }
    }));
    let last = some.values.values().map(|v| v.revision).max().unwrap_or_default();
    some.found = some.found.max(last);
    some
}

/// Searches bytes for objects: each is JSON behind its header, and its checksum says whether it is what it seems.
fn carve(file: &[u8], key_of: &impl Fn(&Object) -> Option<Key>, into: &mut Salvaged) {
    let mut at = HEADER;
    while let Some(found) = file.get(at..).and_then(|rest| rest.windows(2).position(|w| w == b"{\"")) {
        let start = at + found;
        at = start + 1;
        let mut objects = serde_json::Deserializer::from_slice(&file[start..]).into_iter::<Object>();
        let Some(Ok(object)) = objects.next() else { continue };
        let end = start + objects.byte_offset();
        let Some(key) = key_of(&object) else { continue };
        let Some(value) = decode(&key, &file[start - HEADER..end]) else { continue };
        at = end;
        into.found = into.found.max(value.revision);
        into.lost.remove(&*key);
        let newest = into.values.get(&key).is_none_or(|known| known.revision < value.revision);
        if newest {
            into.values.insert(key, value);
        }
    }
}
