//! A store of each released format opens. The fixtures are data directories of a store, packed as text.
//!
//! To make one for a new format: `MINISVC_FIXTURE=FILE cargo test -p minisvc-server fixture` writes it to FILE.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compression, read::GzDecoder, write::GzEncoder};

use super::*;

const FORMAT_1: &str = include_str!("../fixtures/store-format-1.txt");
const WIDTH: usize = 120;

/// The files of a directory: each as a line of name and length, then its bytes; compressed, in base64.
fn pack(dir: &Path) -> String {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    for name in ["acknowledged", "conf", "db"] {
        let bytes = fs::read(dir.join(name)).unwrap();
        writeln!(packed, "{name} {}", bytes.len()).unwrap();
        packed.write_all(&bytes).unwrap();
    }
    let text = STANDARD.encode(packed.finish().unwrap());
    let lines = text.as_bytes().chunks(WIDTH).map(|line| std::str::from_utf8(line).unwrap());
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

fn unpack(text: &str, dir: &Path) {
    let bytes = STANDARD.decode(text.lines().collect::<String>()).unwrap();
    let mut whole = Vec::new();
    GzDecoder::new(&*bytes).read_to_end(&mut whole).unwrap();
    let mut rest = &*whole;
    while let Some(end) = rest.iter().position(|b| *b == b'\n') {
        let line = std::str::from_utf8(&rest[..end]).unwrap();
        let (name, length) = line.split_once(' ').unwrap();
        let (file, after) = rest[end + 1..].split_at(length.parse().unwrap());
        fs::write(dir.join(name), file).unwrap();
        rest = after;
    }
}

fn opens_with(text: &str, wanted: &BTreeMap<Key, Versioned>) {
    let dir = tempfile::tempdir().unwrap();
    unpack(text, dir.path());
    let (revision, values) = SledStore::open(dir.path()).unwrap().load().unwrap();
    assert_eq!((revision, &values), (Revision(9), wanted));
}

#[test]
fn a_store_of_format_1_opens() {
    opens_with(FORMAT_1, &with_reservations(objects(9)).0);
}

#[test]
fn a_fixture_of_the_present_format_can_be_made() {
    let dir = data_dir(&objects(9));
    let text = pack(&dir.path().join("store"));
    opens_with(&text, &with_reservations(objects(9)).0);
    if let Some(file) = std::env::var_os("MINISVC_FIXTURE") {
        fs::write(file, text).unwrap();
    }
}
