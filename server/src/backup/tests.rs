use std::{fs, io::Write as _, path::Path, sync::Arc};

use super::*;
use crate::{
    cache::Cache,
    pki::Pki,
    registry::with_reservations,
    store::{
        Store as _,
        sled_engine::{Damage, SledStore, write_new},
    },
};

mod fixture;

fn service(name: &str, ip: &str, port: u16) -> (Key, Bytes) {
    let object = format!(
        r#"{{"apiVersion":"v1","kind":"Service","metadata":{{"name":"{name}","namespace":"default"}},"spec":{{"clusterIP":"{ip}","ports":[{{"nodePort":{port},"port":80}}]}},"padding":"{}"}}"#,
        "p".repeat(400)
    );
    (format!("/objects/core/services/default/{name}").into(), object.into())
}

/// A cluster of some services, the i-th written by revision i.
fn objects(count: u16) -> BTreeMap<Key, Versioned> {
    (1..=count)
        .map(|i| {
            let (key, value) = service(&format!("s{i}"), &format!("10.96.1.{i}"), 30000 + i);
            (key, Versioned { revision: Revision(i.into()), value })
        })
        .collect()
}

/// A data directory with these objects and a CA, as a server that has stopped leaves it.
fn data_dir(objects: &BTreeMap<Key, Versioned>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    Pki::open(&dir.path().join("pki")).unwrap();
    let last = objects.values().map(|v| v.revision).max().unwrap_or_default();
    write_new(&dir.path().join("store"), last, with_reservations(objects.clone()).0).unwrap();
    dir
}

fn backup_of(data_dir: &Path, objects: &BTreeMap<Key, Versioned>) -> Vec<u8> {
    let text = |name: &str| fs::read_to_string(data_dir.join("pki").join(name)).unwrap();
    let ca = Ca { certificate: text("ca.crt"), key: text("ca.key") };
    let header = Header {
        minisvc: "backup".into(),
        format: FORMAT,
        version: "0".into(),
        created: "2026-01-01T00:00:00Z".into(),
        revision: Revision(objects.len() as u64),
        objects: objects.len(),
        ca_hash: String::new(),
    };
    let mut writer = Writer::begin(Vec::new(), &header, &ca).unwrap();
    for (key, stored) in objects {
        writer.entry(&Entry::line(key, stored.revision, &stored.value).unwrap()).unwrap();
    }
    writer.end().unwrap()
}

fn error_of(bytes: &[u8]) -> String {
    read(&mut &*bytes).err().unwrap()
}

#[test]
fn a_backup_is_read_back_or_refused_in_one_line() {
    let objects = objects(5);
    let dir = data_dir(&objects);
    let good = backup_of(dir.path(), &objects);
    assert_eq!(read(&mut &*good).unwrap().objects, objects);
    for end in (0..good.len()).step_by(97) {
        let why = error_of(&good[..end]);
        assert!(why.contains("cut short") || why.contains("no backup"), "{end}: {why}");
    }
    let altered = String::from_utf8(good.clone()).unwrap();
    for (from, to, says) in [
        ("10.96.1.3", "10.96.1.9", "altered"),
        ("\"name\":\"s2\"", "\"name\":\"s9\"", "is not the key"),
        ("\"kind\":\"Service\"", "\"kind\":\"Nothing\"", "is not the key"),
        ("\"format\":1", "\"format\":2", "backup format 2"),
        ("\"minisvc\":\"backup\"", "\"minisvc\":\"other\"", "no backup"),
        ("\"end\":5", "\"end\":4", "altered"),
    ] {
        let why = error_of(altered.replacen(from, to, 1).as_bytes());
        assert!(why.contains(says) && !why.contains('\n'), "{from}: {why}");
    }
    assert!(error_of(b"hello\n").contains("no backup of minisvc"));
    let lines: Vec<&str> = altered.lines().collect();
    let fewer = [&lines[..3], &lines[4..]].concat().join("\n") + "\n";
    assert!(error_of(fewer.as_bytes()).contains("altered"));
}

#[test]
fn a_writer_that_was_announced_more_does_not_end() {
    let objects = objects(1);
    let dir = data_dir(&objects);
    let whole = backup_of(dir.path(), &objects);
    let backup = read(&mut &*whole).unwrap();
    let header = Header { objects: 2, ..backup.header };
    let mut writer = Writer::begin(Vec::new(), &header, &backup.ca).unwrap();
    writer.entry(b"{}").unwrap();
    assert!(writer.end().unwrap_err().to_string().contains("1 objects came where 2"));
}

fn contents(data_dir: &Path) -> (Revision, BTreeMap<Key, Versioned>) {
    SledStore::open(&data_dir.join("store")).unwrap().load().unwrap()
}

#[tokio::test]
async fn a_restored_cluster_has_objects_reservations_and_the_ca_and_its_old_revisions_are_too_old() {
    let objects = objects(7);
    let from = data_dir(&objects);
    let file = from.path().join("b");
    fs::write(&file, backup_of(from.path(), &objects)).unwrap();
    let to = tempfile::tempdir().unwrap();
    let data = to.path().join("new/server");
    let restored = restore(&file, &data, false).unwrap();
    assert_eq!((restored.header.objects, restored.aside), (7, None));
    let names: Vec<_> = fs::read_dir(&data).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let same = |name: &str| {
        let read = |dir: &Path| fs::read(dir.join("pki").join(name)).unwrap();
        assert_eq!(read(from.path()), read(&data));
    };
    same("ca.crt");
    same("ca.key");
    let (revision, values) = contents(&data);
    assert_eq!(values, with_reservations(objects).0);
    assert_eq!(
        values.get("/reserved/nodeports/30003").map(|v| v.value.clone()),
        contents(from.path()).1.get("/reserved/nodeports/30003").map(|v| v.value.clone())
    );
    // A watcher saw revision 5,000 of the cluster that is no more.
    let cache = Cache::open(Arc::new(SledStore::open(&data.join("store")).unwrap())).unwrap();
    assert!(revision > Revision(5000));
    assert!(cache.watch(&minisvc_proto::resource::SERVICES, Revision(5000)).is_err());
}

#[test]
fn what_is_there_is_moved_aside_when_asked_and_refused_else() {
    let (old, new) = (objects(3), objects(5));
    let dir = data_dir(&old);
    let file = dir.path().join("b");
    fs::write(&file, backup_of(dir.path(), &new)).unwrap();
    let refused = restore(&file, dir.path(), false).err().unwrap().to_string();
    assert!(refused.contains("--force") && refused.contains("before-restore-1"), "{refused}");
    assert_eq!(contents(dir.path()).1, with_reservations(old.clone()).0, "nothing was changed");

    let held = SledStore::open(&dir.path().join("store")).unwrap();
    let in_use = restore(&file, dir.path(), true).err().unwrap().to_string();
    assert!(in_use.contains("in use by another minisvc server"), "{in_use}");
    drop(held);

    // A backup that is no good changes nothing either.
    fs::write(dir.path().join("bad"), b"{}\n").unwrap();
    assert!(restore(&dir.path().join("bad"), dir.path(), true).is_err());
    assert_eq!(contents(dir.path()).1.len(), with_reservations(old.clone()).0.len());

    let restored = restore(&file, dir.path(), true).unwrap();
    assert_eq!(contents(dir.path()).1, with_reservations(new).0);
    assert_eq!(contents(&restored.aside.unwrap()).1, with_reservations(old).0);
}

#[test]
fn a_restore_that_was_cut_off_is_no_cluster() {
    let dir = data_dir(&objects(1));
    fs::create_dir(dir.path().join(".changing")).unwrap();
    let error = check_finished(dir.path()).unwrap_err().to_string();
    assert!(error.contains("was cut off: run it again"), "{error}");
    let file = dir.path().join("b");
    fs::write(&file, backup_of(dir.path(), &objects(2))).unwrap();
    restore(&file, dir.path(), false).unwrap();
    check_finished(dir.path()).unwrap();
    assert_eq!(contents(dir.path()).1, with_reservations(objects(2)).0);
}

/// Does something to the bytes of the store's file.
fn damage(data_dir: &Path, damage: impl FnOnce(&mut Vec<u8>)) {
    let db = data_dir.join("store/db");
    let mut bytes = fs::read(&db).unwrap();
    damage(&mut bytes);
    fs::write(&db, bytes).unwrap();
}

fn remove_snapshots(data_dir: &Path) {
    for entry in fs::read_dir(data_dir.join("store")).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name().to_string_lossy().starts_with("snap.") {
            fs::remove_file(entry.path()).unwrap();
        }
    }
}

#[test]
fn a_sound_store_is_left_alone() {
    let objects = objects(3);
    let dir = data_dir(&objects);
    let report = salvage(dir.path()).unwrap();
    assert_eq!((report.damage, report.aside.is_none()), (Damage::None, true));
    assert!(report.to_string().contains("sound (3 services)"), "{report}");
    assert_eq!(contents(dir.path()).1, with_reservations(objects).0);
    assert!(salvage(&dir.path().join("nothing")).unwrap_err().to_string().contains("no store"));
}

/// The objects whose bytes stand somewhere in a file.
fn whole_in<'a>(file: &[u8], objects: &'a BTreeMap<Key, Versioned>) -> std::collections::BTreeSet<&'a Key> {
    let start = b"{\"apiVersion";
    let places = file.windows(start.len()).enumerate().filter(|(_, w)| w == start).map(|(at, _)| at);
    let there = |at: usize| objects.iter().find(|(_, v)| file[at..].starts_with(&v.value)).map(|(k, _)| k);
    places.filter_map(there).collect()
}

/// Whatever is damaged: what comes out was written once, everything whose bytes are whole comes out, and the damaged store is kept.
#[test]
fn what_is_sound_is_brought_out_of_a_damaged_log() {
    let mut some_are_lost = false;
    for snapshots in [true, false] {
        for (from, to) in [(2, 3), (5, 9), (9, 10)] {
            let objects = objects(200);
            let dir = data_dir(&objects);
            if !snapshots {
                remove_snapshots(dir.path());
            }
            damage(dir.path(), |bytes| {
                let end = bytes.windows(9).rposition(|w| w == b"ppppppppp").unwrap();
                bytes[end * from / 10..end * to / 10].fill(0);
            });
            let before = fs::read(dir.path().join("store/db")).unwrap();
            let error = SledStore::open(&dir.path().join("store")).err().unwrap().to_string();
            assert!(error.contains("minisvc server salvage"), "{error}");
            let after = fs::read(dir.path().join("store/db")).unwrap();
            assert!(after == before, "an open that failed has changed the store");
            let report = salvage(dir.path()).unwrap();
            let aside = report.aside.clone().unwrap();
            assert_eq!(
                fs::read(aside.join("store/db")).unwrap(),
                before,
                "the damaged store is kept as it was"
            );
            let (revision, values) = contents(dir.path());
            assert!(revision > Revision(200), "{revision}");
            let kept: BTreeMap<_, _> = values.iter().filter(|(k, _)| k.starts_with("/objects/")).collect();
            assert!(kept.iter().all(|(k, v)| objects[*k] == **v), "nothing else comes out");
            let whole = whole_in(&before, &objects);
            assert!(!whole.is_empty());
            some_are_lost |= whole.len() < objects.len();
            let missing: Vec<_> = whole.iter().filter(|k| !kept.contains_key(**k)).collect();
            assert!(
                missing.is_empty(),
                "{from}-{to}, snapshots {snapshots}: {missing:?} could have been saved"
            );
            assert!(values.keys().filter(|k| k.starts_with("/reserved/nodeports/")).count() == kept.len());
            assert!(report.to_string().contains(&format!("{} services", kept.len())), "{report}");
        }
    }
    assert!(some_are_lost, "nothing was damaged");
}

#[test]
fn what_lets_somebody_in_is_not_searched_for() {
    let mut objects = objects(20);
    let credential =
        r#"{"apiVersion":"minisvc.io/v1","kind":"NodeCredential","metadata":{"name":"gone"},"spec":{}}"#;
    let key: Key = "/objects/minisvc.io/nodecredentials/-/gone".into();
    objects.insert(key.clone(), Versioned { revision: Revision(21), value: credential.into() });
    let dir = data_dir(&objects);
    remove_snapshots(dir.path());
    // The engine reads an empty log; everything behind its head is still in the file.
    damage(dir.path(), |bytes| bytes[..64].fill(0));
    let report = salvage(dir.path()).unwrap();
    assert_eq!(report.damage, Damage::Log);
    let (_, values) = contents(dir.path());
    assert!(values.keys().any(|k| k.contains("/services/")), "{report}");
    assert!(!values.contains_key(&key));
    assert!(report.to_string().contains("joins again with a new token"), "{report}");
}

#[test]
fn torn_snapshots_are_put_right_by_themselves() {
    let objects = objects(50);
    let dir = data_dir(&objects);
    let store = dir.path().join("store");
    let snapshots = || {
        let entries = fs::read_dir(&store).unwrap().map(|e| e.unwrap().path());
        entries.filter(|p| p.file_name().unwrap().to_string_lossy().starts_with("snap.")).collect::<Vec<_>>()
    };
    // sled may have written none yet.
    let name = snapshots().first().cloned().unwrap_or_else(|| store.join("snap.0000000000000001"));
    for torn in [&b""[..], b"rubbish", &[0xa5; 5000]] {
        fs::write(&name, torn).unwrap();
        let mut generating = fs::File::create(store.join("snap.00000000000000FF.generating")).unwrap();
        generating.write_all(torn).unwrap();
        assert_eq!(contents(dir.path()).1, with_reservations(objects.clone()).0);
    }
}

#[test]
fn two_objects_that_claim_the_same_are_told_of() {
    let mut both = objects(2);
    let (key, value) = service("later", "10.96.1.1", 30001);
    both.insert(key, Versioned { revision: Revision(9), value });
    let (values, contested) = with_reservations(both);
    assert_eq!(contested.len(), 2, "{contested:?}");
    let owner = &values["/reserved/nodeports/30001"];
    assert!(String::from_utf8_lossy(&owner.value).contains("later"));
}
