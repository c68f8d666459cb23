//! Lines that strangers can cause, kept from filling the log.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// So many lines in this time.
const PERIOD: Duration = Duration::from_secs(1);
const LINES: u32 = 5;

/// Lets a few lines a second through.
#[derive(Debug, Default)]
pub struct Sparse(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    since: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Sparse {
    /// How many lines were left out before this one; `None`: leave this one out, too.
    pub fn may(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD) {
            state.since = Some(now);
            state.lines = 0;
        }
        if state.lines == LINES {
            state.left_out += 1;
            return None;
        }
        state.lines += 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_left_out_is_counted() {
        let (sparse, start) = (Sparse::default(), Instant::now());
        let got: Vec<_> = [0, 1, 2, 3, 999, 999, 999, 1000, 1001, 5000]
            .map(|ms| sparse.may(start + Duration::from_millis(ms)))
            .to_vec();
        let few = [Some(0); LINES as usize];
        assert_eq!(got, [&few[..], &[None, None, Some(2), Some(0), Some(0)]].concat());
    }
}
