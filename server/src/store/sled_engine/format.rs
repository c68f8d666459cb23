//! What is on disk: each value with its revision and checksum, and two things beside the values.
//!
//! Format 1: under each key REVISION (8 bytes, big-endian), the first 8 bytes of the SHA-256 of key, 0, revision and value, then the
//! value. `!revision` holds the last revision, `!format` the format in decimal digits; where that is absent, it is 1. The file
//! `acknowledged` beside sled's holds the last acknowledged revision with its checksum.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
};

use bytes::Bytes;
use minisvc_proto::Revision;
use sha2::{Digest, Sha256};

use super::Versioned;

/// The format that this version writes, and the newest that it reads.
pub const FORMAT: u64 = 1;
/// Where the format stands.
pub const FORMAT_KEY: &[u8] = b"!format";
/// Beside sled's files: the last acknowledged revision, with its checksum. sled takes a log that is damaged or cut for a shorter
/// one; this is how the loss is noticed. Written without a sync of its own: the death of a process keeps it exact, and after
/// that of a machine it is at worst older than the store.
pub const ACKNOWLEDGED_FILE: &str = "acknowledged";
pub const REVISION_KEY: &[u8] = b"!revision";
/// Revision (8 bytes, big-endian), then the first 8 bytes of the SHA-256 of key, revision and value.
pub const HEADER: usize = 16;

pub fn checksum(key: &str, revision: [u8; 8], value: &[u8]) -> [u8; 8] {
    let mut hash = Sha256::new();
    hash.update(key.as_bytes());
    hash.update([0]);
    hash.update(revision);
    hash.update(value);
    let mut out = [0; 8];
    out.copy_from_slice(&hash.finalize()[..8]);
    out
}

pub fn encode(key: &str, revision: Revision, value: &[u8]) -> Vec<u8> {
    let revision = revision.0.to_be_bytes();
    let mut out = Vec::with_capacity(HEADER + value.len());
    out.extend(revision);
    out.extend(checksum(key, revision, value));
    out.extend(value);
    out
}

pub fn decode(key: &str, stored: &[u8]) -> Option<Versioned> {
    let revision: [u8; 8] = stored.get(..8)?.try_into().ok()?;
    let value = stored.get(HEADER..)?;
    (stored.get(8..HEADER)? == checksum(key, revision, value)).then(|| Versioned {
        revision: Revision(u64::from_be_bytes(revision)),
        value: Bytes::copy_from_slice(value),
    })
}

/// The file of a new store, on disk before anything else is.
pub fn write_first(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    write_acknowledged(&file, Revision::default())?;
    file.sync_all()
}

/// The last acknowledged revision; `None` where the file is absent or not whole.
pub fn read_acknowledged(path: &Path) -> io::Result<Option<Revision>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let parts =
        bytes.split_first_chunk::<8>().filter(|(revision, sum)| checksum("", **revision, &[]) == *sum);
    Ok(parts.map(|(revision, _)| Revision(u64::from_be_bytes(*revision))))
}

pub fn write_acknowledged(file: &File, revision: Revision) -> io::Result<()> {
    let revision = revision.0.to_be_bytes();
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&revision);
    bytes[8..].copy_from_slice(&checksum("", revision, &[]));
    file.write_all_at(&bytes, 0)
}
