//! Lines that strangers can cause, kept from filling the log.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// At most one line in this time.
const PERIOD: Duration = Duration::from_secs(1);

/// Lets one line in a second through.
#[derive(Debug, Default)]
pub struct Sparse(Mutex<(Option<Instant>, u64)>);

impl Sparse {
    /// How many lines were left out before this one; `None`: leave this one out, too.
    pub fn may(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, left_out) = *state;
        if last.is_some_and(|last| now.saturating_duration_since(last) < PERIOD) {
            state.1 += 1;
            return None;
        }
        *state = (Some(now), 0);
        Some(left_out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_counted() {
        let (sparse, start) = (Sparse::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let got: Vec<_> = [0, 10, 999, 1000, 1001, 5000].map(|ms| sparse.may(at(ms))).to_vec();
        assert_eq!(got, [Some(0), None, None, Some(2), None, Some(1)]);
    }
}
