//! Backups: a cluster's objects and its CA in one file of JSON lines.
//!
//! The first line is a [`Header`], then come the CA's two files, then an [`Entry`] for each object, and an [`End`] whose SHA-256 is over
//! all bytes before its line: a file that is cut or altered is known before anything is written from it. Reservations are not in
//! it: they follow from the objects. Whoever holds a backup holds the CA's key, and with it the cluster.

mod place;
mod restore;
mod salvage;

use std::{
    collections::BTreeMap,
    io::{self, BufRead, Write},
    path::PathBuf,
};

use bytes::Bytes;
use minisvc_proto::{Object, Revision, digest::hex};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

pub use self::{
    place::check_finished,
    restore::{Restored, restore},
    salvage::{Report, salvage},
};
use crate::{
    cache::{object_key, parse_key},
    store::{Key, Versioned, sled_engine},
};

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u64 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// `backup`: what this is.
    pub minisvc: String,
    /// See [`FORMAT`].
    pub format: u64,
    /// Which minisvc wrote it.
    pub version: String,
    /// When, by the clock of that machine.
    pub created: String,
    /// The revision that all objects are read at.
    pub revision: Revision,
    /// How many objects there are.
    pub objects: usize,
    /// The hash of the CA's key, as join tokens name it.
    pub ca_hash: String,
}

/// The CA, as it is in the data directory.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ca {
    /// `ca.crt`.
    pub certificate: String,
    /// `ca.key`.
    pub key: String,
}

/// An object.
#[derive(Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is in the store.
    pub key: String,
    /// The revision that wrote it.
    pub revision: Revision,
    /// The object as it is stored.
    pub object: Box<RawValue>,
}

impl Entry {
    /// The line of an object.
    pub fn line(key: &str, revision: Revision, stored: &[u8]) -> Result<Vec<u8>, serde_json::Error> {
        let entry = Entry { key: key.to_owned(), revision, object: serde_json::from_slice(stored)? };
        serde_json::to_vec(&entry)
    }
}

/// The last line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct End {
    /// How many objects were written.
    end: usize,
    /// Of all bytes before this line, in hex digits.
    sha256: String,
}

/// Why a backup cannot be written, read or brought back. One clear line each.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file itself.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It is no backup, or not a whole one.
    #[error("{file}: {why}")]
    Damaged {
        /// Which.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// There is something already.
    #[error(
        "data directory {} holds a cluster already ({what}): give another --data-dir, or --force to move what is there into {} first",
        data_dir.display(), aside.display()
    )]
    Taken {
        /// Where it was to go.
        data_dir: PathBuf,
        /// What is there.
        what: String,
        /// Where --force would put it.
        aside: PathBuf,
    },
    /// An earlier restore or salvage was cut off.
    #[error(
        "a restore or salvage of data directory {} was cut off: run it again (or, to go back, move {} away)",
        data_dir.display(), marker.display()
    )]
    Unfinished {
        /// Which.
        data_dir: PathBuf,
        /// What says so.
        marker: PathBuf,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] sled_engine::OpenError),
    /// There is none.
    #[error("data directory {} holds no store: is it that of a server?", .0.display())]
    NoStore(PathBuf),
}

/// Writes a backup line by line.
pub struct Writer<W> {
    out: W,
    hash: Sha256,
    written: usize,
    announced: usize,
}

impl<W: Write> Writer<W> {
    /// Writes what comes first.
    pub fn begin(out: W, header: &Header, ca: &Ca) -> io::Result<Self> {
        let mut writer = Writer { out, hash: Sha256::new(), written: 0, announced: header.objects };
        writer.line(&serde_json::to_vec(header)?)?;
        writer.line(&serde_json::to_vec(ca)?)?;
        Ok(writer)
    }

    fn line(&mut self, line: &[u8]) -> io::Result<()> {
        for part in [line, b"\n"] {
            self.hash.update(part);
            self.out.write_all(part)?;
        }
        Ok(())
    }

    /// Writes an object: a line that [`Entry::line`] made.
    pub fn entry(&mut self, line: &[u8]) -> io::Result<()> {
        self.written += 1;
        self.line(line)
    }

    /// Writes the end, if everything announced has come.
    pub fn end(mut self) -> io::Result<W> {
        if self.written != self.announced {
            let why = format!("{} objects came where {} were announced", self.written, self.announced);
            return Err(io::Error::other(why));
        }
        let end = End { end: self.written, sha256: hex(&self.hash.finalize_reset()) };
        self.out.write_all(&serde_json::to_vec(&end)?)?;
        self.out.write_all(b"\n")?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// A whole backup, looked at line by line.
pub struct Backup {
    /// Its first line.
    pub header: Header,
    /// Its CA.
    pub ca: Ca,
    /// Its objects.
    pub objects: BTreeMap<Key, Versioned>,
}

/// Reads a backup; an error is what is wrong with it, in one line.
pub fn read(input: &mut impl BufRead) -> Result<Backup, String> {
    let mut hash = Sha256::new();
    let mut number = 0;
    let mut next = |hash: &mut Sha256| -> Result<Vec<u8>, String> {
        let mut line = Vec::new();
        number += 1;
        input.read_until(b'\n', &mut line).map_err(|e| format!("line {number}: {e}"))?;
        if line.last() != Some(&b'\n') {
            return Err(format!("it is cut short in line {number}"));
        }
        if !line.starts_with(b"{\"end\":") {
            hash.update(&line);
        }
        Ok(line)
    };
    let first = next(&mut hash).map_err(|_| "this is no backup of minisvc".to_owned())?;
    let header: Header = serde_json::from_slice(&first)
        .ok()
        .filter(|h: &Header| h.minisvc == "backup")
        .ok_or("this is no backup of minisvc")?;
    if header.format > FORMAT {
        return Err(format!(
            "it is of backup format {}, and this minisvc knows formats up to {FORMAT}: use the minisvc that wrote it ({}), or a newer one",
            header.format, header.version
        ));
    }
    let ca = serde_json::from_slice(&next(&mut hash)?).map_err(|e| format!("line 2 is not the CA: {e}"))?;
    let mut objects = BTreeMap::new();
    loop {
        let line = next(&mut hash)?;
        if let Ok(end) = serde_json::from_slice::<End>(&line) {
            let sum = hex(&hash.finalize());
            if end.sha256 != sum || end.end != objects.len() || end.end != header.objects {
                return Err(
                    "it was altered: its checksum or its number of objects is not what its last line says"
                        .into(),
                );
            }
            return Ok(Backup { header, ca, objects });
        }
        let at = objects.len() + 3;
        let entry: Entry =
            serde_json::from_slice(&line).map_err(|e| format!("line {at} is no object: {e}"))?;
        let value = Bytes::copy_from_slice(entry.object.get().as_bytes());
        let object: Object =
            serde_json::from_slice(&value).map_err(|e| format!("line {at} is no object: {e}"))?;
        if key_of(&object).as_deref() != Some(entry.key.as_str()) {
            return Err(format!("line {at}: {:?} is not the key of the object beside it", entry.key));
        }
        objects.insert(entry.key.into(), Versioned { revision: entry.revision, value });
    }
}

/// Where an object of a known kind is in the store.
fn key_of(object: &Object) -> Option<Key> {
    let key = object_key(&object.key()?);
    parse_key(&key).is_some().then_some(key)
}

#[cfg(test)]
mod tests;
