//! A queue of keys that need a reconcile. A key stands in it once, however often it is added; it is never worked on twice at
//! the same time, and one that is added while it is worked on comes again. What failed comes again later, and later each time.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    future::Future,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use minisvc_proto::ApiError;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// The wait after a first failure; it doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_millis(5);
/// The longest wait after a write that lost a race: the next try reads afresh and is likely to win.
const LONGEST_WAIT_AFTER_CONFLICT: Duration = Duration::from_millis(200);
/// The longest wait after any other failure.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// How a reconcile ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing more to do until something changes.
    Done,
    /// Time alone will make something to do.
    Again(Duration),
}

/// See the module.
pub struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    queued: HashSet<K>,
    /// What is worked on, and whether it was added meanwhile.
    running: HashMap<K, bool>,
    failures: HashMap<K, u32>,
    /// What comes later; the number tells apart what comes at the same time.
    later: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    count: u64,
}

impl<K> Default for Queue<K> {
    fn default() -> Self {
        let state = State {
            ready: VecDeque::new(),
            queued: HashSet::new(),
            running: HashMap::new(),
            failures: HashMap::new(),
            later: BTreeMap::new(),
            due: HashMap::new(),
            count: 0,
        };
        Queue { state: Mutex::new(state), wake: Notify::new() }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a reconcile of this key, as soon as possible.
    pub fn add(&self, key: K) {
        if self.lock().add(key) {
            self.wake.notify_one();
        }
    }

    /// Works until shutdown, on at most `limit` keys at the same time. `name` is for the log.
    pub async fn run<F, R>(&self, name: &str, limit: usize, shutdown: &CancellationToken, reconcile: F)
    where
        F: Fn(K) -> R,
        R: Future<Output = Result<Outcome, ApiError>>,
        K: std::fmt::Debug,
    {
        let mut running = FuturesUnordered::new();
        loop {
            let due = {
                let mut state = self.lock();
                state.promote(Instant::now());
                while running.len() < limit
                    && let Some(key) = state.take()
                {
                    let work = reconcile(key.clone());
                    running.push(async move { (key, work.await) });
                }
                state.later.first_key_value().map(|((at, _), _)| *at)
            };
            let wait = async {
                match due {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.wake.notified() => {}
                () = wait => {}
                Some((key, result)) = running.next(), if !running.is_empty() => {
                    if let Err(error) = &result {
                        // Lost races are everyday.
                        if error.is_conflict() {
                            tracing::debug!(controller = name, ?key, %error, "to be tried again");
                        } else {
                            tracing::warn!(controller = name, ?key, %error, "failed; to be tried again");
                        }
                    }
                    self.lock().finish(&key, result);
                }
            }
        }
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    /// Whether there is something new to take.
    fn add(&mut self, key: K) -> bool {
        if let Some(at) = self.due.remove(&key) {
            self.later.remove(&at);
        }
        if let Some(again) = self.running.get_mut(&key) {
            *again = true;
            return false;
        }
        if !self.queued.insert(key.clone()) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn add_at(&mut self, key: K, at: Instant) {
        if self.queued.contains(&key) || self.due.get(&key).is_some_and(|(due, _)| *due <= at) {
            return;
        }
        self.count += 1;
        let at = (at, self.count);
        if let Some(old) = self.due.insert(key.clone(), at) {
            self.later.remove(&old);
        }
        self.later.insert(at, key);
    }

    /// Makes ready what is due.
    fn promote(&mut self, now: Instant) {
        while let Some(entry) = self.later.first_entry()
            && entry.key().0 <= now
        {
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.queued.remove(&key);
        self.running.insert(key.clone(), false);
        Some(key)
    }

    fn finish(&mut self, key: &K, result: Result<Outcome, ApiError>) {
        let again = self.running.remove(key).unwrap_or(false);
        let later = match result {
            Ok(outcome) => {
                self.failures.remove(key);
                match outcome {
                    Outcome::Done => None,
                    Outcome::Again(wait) => Some(wait),
                }
            }
            Err(error) => {
                let failures = self.failures.entry(key.clone()).or_default();
                let wait = FIRST_WAIT.saturating_mul(1 << (*failures).min(20));
                *failures = failures.saturating_add(1);
                let raced = error.is_conflict() || error.is_already_exists();
                Some(wait.min(if raced { LONGEST_WAIT_AFTER_CONFLICT } else { LONGEST_WAIT }))
            }
        };
        // News do not wait for the end of a back-off, unless they are the echo of what failed.
        match (later, again, self.failures.contains_key(key)) {
            (Some(wait), false, _) | (Some(wait), true, true) => {
                self.add_at(key.clone(), Instant::now() + wait);
            }
            (_, true, _) => drop(self.add(key.clone())),
            (None, false, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn a_key_stands_once_runs_once_and_comes_again_when_added_meanwhile() {
        let queue = Queue::default();
        for key in ["a", "a", "b", "a"] {
            queue.add(key);
        }
        let shutdown = CancellationToken::new();
        let (runs, at_once) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
        let reconcile = |key: &'static str| {
            let (queue, runs, at_once, shutdown) = (&queue, &runs, &at_once, &shutdown);
            async move {
                let n = {
                    let mut runs = runs.lock().unwrap();
                    runs.push(key);
                    runs.len()
                };
                if key == "a" {
                    assert_eq!(at_once.fetch_add(1, Ordering::SeqCst), 0, "never twice at the same time");
                    tokio::task::yield_now().await;
                    if n < 3 {
                        queue.add("a");
                        queue.add("a");
                    } else {
                        shutdown.cancel();
                    }
                    at_once.fetch_sub(1, Ordering::SeqCst);
                }
                Ok(Outcome::Done)
            }
        };
        queue.run("test", 4, &shutdown, reconcile).await;
        assert_eq!(*runs.lock().unwrap(), ["a", "b", "a"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fails_comes_later_each_time_and_starts_afresh_after_a_success() {
        let queue = Queue::default();
        queue.add("a");
        let shutdown = CancellationToken::new();
        let (start, times) = (Instant::now(), Mutex::new(Vec::new()));
        let reconcile = |_| {
            let mut times = times.lock().unwrap();
            times.push(start.elapsed().as_millis());
            let n = times.len();
            if n == 6 {
                shutdown.cancel();
            }
            async move {
                match n {
                    4 => Ok(Outcome::Again(Duration::from_secs(1))),
                    _ => Err(ApiError::internal("no")),
                }
            }
        };
        queue.run("test", 1, &shutdown, reconcile).await;
        assert_eq!(*times.lock().unwrap(), [0, 5, 15, 35, 1035, 1040]);
    }
}
