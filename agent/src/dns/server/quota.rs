//! Room that clients share: one that takes much leaves enough for the others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Quota(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    all: usize,
    each: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by: HashMap<IpAddr, usize>,
}

/// A place that was taken; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    quota: Quota,
    who: IpAddr,
}

impl Quota {
    /// Places of all clients together, and of one.
    pub(super) fn new((all, each): (usize, usize)) -> Self {
        Quota(Arc::new(Inner { all, each, taken: Mutex::default() }))
    }

    /// A place for a client, if there is one.
    pub(super) fn take(&self, who: IpAddr) -> Option<Place> {
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.0.all || taken.by.get(&who).is_some_and(|n| *n >= self.0.each) {
            return None;
        }
        taken.all += 1;
        *taken.by.entry(who).or_default() += 1;
        Some(Place { quota: self.clone(), who })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.quota.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all -= 1;
        if let Some(n) = taken.by.get_mut(&self.who) {
            *n -= 1;
            if *n == 0 {
                taken.by.remove(&self.who);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all() {
        let quota = Quota::new((3, 2));
        let [a, b] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
        let first = quota.take(a).unwrap();
        let second = quota.take(a);
        assert!(second.is_some() && quota.take(a).is_none());
        let other = quota.take(b);
        assert!(other.is_some() && quota.take(b).is_none(), "three are all");
        drop(first);
        assert!(quota.take(b).is_some() && quota.take(a).is_some());
        drop((second, other));
        assert_eq!(quota.0.taken.lock().unwrap().by.len(), 0);
    }
}
