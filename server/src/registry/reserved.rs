//! The reservations that follow from a set of objects.

use std::collections::BTreeMap;

use bytes::Bytes;
use minisvc_proto::Object;

use super::rules;
use crate::{
    cache::parse_key,
    store::{Key, Versioned},
};

/// Objects as the store holds them, with the reservations that belong to them; and the reservations that two of them claim, which
/// the one that was written later gets.
pub fn with_reservations(mut objects: BTreeMap<Key, Versioned>) -> (BTreeMap<Key, Versioned>, Vec<String>) {
    let mut reserved: BTreeMap<Key, Versioned> = BTreeMap::new();
    let mut contested = Vec::new();
    for (key, stored) in &objects {
        let Some(id) = parse_key(key) else { continue };
        let Ok(object) = serde_json::from_slice::<Object>(&stored.value) else { continue };
        for reservation in rules::reservations(&object) {
            let mine = Versioned { revision: stored.revision, value: Bytes::from(id.to_string()) };
            let place = Key::from(reservation.as_str());
            match reserved.get(&place) {
                Some(other) => {
                    contested
                        .push(format!("{reservation} ({} and {id})", String::from_utf8_lossy(&other.value)));
                    if other.revision < mine.revision {
                        reserved.insert(place, mine);
                    }
                }
                None => drop(reserved.insert(place, mine)),
            }
        }
    }
    objects.extend(reserved);
    (objects, contested)
}
