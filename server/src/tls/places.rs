//! A bounded number of places. When all are taken, a newcomer gets that of the oldest of whoever holds most: one that opens many
//! connections and says nothing only takes its own places away from itself.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

struct Taken<K> {
    number: u64,
    who: K,
    end: CancellationToken,
}

struct State<K> {
    /// The oldest first.
    taken: Vec<Taken<K>>,
    next: u64,
}

/// See the module.
pub struct Places<K> {
    limit: usize,
    state: Mutex<State<K>>,
}

/// A place that is held until this is dropped.
pub struct Place<K> {
    places: Arc<Places<K>>,
    number: u64,
    end: CancellationToken,
}

impl<K: Clone + Eq + Hash> Places<K> {
    /// So many.
    pub fn new(limit: usize) -> Arc<Self> {
        let state = State { taken: Vec::new(), next: 0 };
        Arc::new(Places { limit, state: Mutex::new(state) })
    }

    /// Takes a place, and answers whose was taken away for it.
    pub fn take(self: &Arc<Self>, who: K) -> (Place<K>, Option<K>) {
        let end = CancellationToken::new();
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.taken.push(Taken { number, who, end: end.clone() });
        let full = state.taken.len() > self.limit;
        let lost = full.then(|| victim(state.taken.iter().map(|t| &t.who))).flatten();
        let lost = lost.map(|i| {
            let lost = state.taken.remove(i);
            lost.end.cancel();
            lost.who
        });
        drop(state);
        (Place { places: self.clone(), number, end }, lost)
    }
}

impl<K> Places<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Place<K> {
    /// Ends when the place is taken away.
    pub async fn lost(&self) {
        self.end.cancelled().await;
    }
}

impl<K> Drop for Place<K> {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        if let Ok(i) = state.taken.binary_search_by_key(&self.number, |t| t.number) {
            state.taken.remove(i);
        }
    }
}

/// Which of these, the oldest first, gives way: the first of whoever is there most often. The newcomer is the last, so that of all
/// who are there once, it is not the one.
fn victim<'a, K: Eq + Hash + 'a>(all: impl Iterator<Item = &'a K>) -> Option<usize> {
    let mut seen: HashMap<&K, (usize, usize)> = HashMap::new();
    for (i, who) in all.enumerate() {
        seen.entry(who).or_insert((i, 0)).1 += 1;
    }
    seen.into_values().max_by_key(|(first, count)| (*count, usize::MAX - first)).map(|(first, _)| first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_holds_most_gives_way() {
        for (all, expected) in [
            ("", None),
            ("a", Some(0)),
            ("abc", Some(0)),
            ("abbc", Some(1)),
            ("abcbcc", Some(2)),
            ("aabb", Some(0)),
        ] {
            let all: Vec<char> = all.chars().collect();
            assert_eq!(victim(all.iter()), expected, "{all:?}");
        }
    }

    #[test]
    fn a_flood_takes_its_own_places_only() {
        let places = Places::new(3);
        let (honest, lost) = places.take("honest");
        assert_eq!(lost, None);
        let flood: Vec<_> = (0..20).map(|_| places.take("flood")).collect();
        assert_eq!(flood.iter().filter(|(_, lost)| *lost == Some("flood")).count(), 18);
        assert_eq!(flood.iter().filter(|(place, _)| !place.end.is_cancelled()).count(), 2);
        let (late, lost) = places.take("late");
        assert_eq!(lost, Some("flood"));
        assert!(!honest.end.is_cancelled() && !late.end.is_cancelled());
        drop((flood, honest, late));
        assert!(places.lock().taken.is_empty());
    }
}
