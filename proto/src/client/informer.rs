//! A collection kept up to date: list, watch, and again after every failure.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt;
use tokio::sync::mpsc;

use super::{Client, ClientError, ListParams};
use crate::{
    names::Revision,
    object::Object,
    path::Target,
    watch::{EventType, WatchEvent},
};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const LAST_DELAY: Duration = Duration::from_secs(5);
const BUFFER: usize = 256;

/// What the receiver of an informer sees.
#[derive(Clone, Debug, PartialEq)]
pub enum InformerEvent {
    /// This is all there is now; whatever else was known is gone.
    Reset(Revision, Vec<Arc<Object>>),
    /// One change after the last reset; bookmarks say that nothing happened up to their revision.
    Changed(WatchEvent),
}

/// Where an informer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nothing usable is known: a list comes next.
    Listing {
        /// Failures in a row.
        failures: u32,
    },
    /// Everything up to a revision is known: a watch comes next, or runs.
    Watching {
        /// The last revision seen.
        since: Revision,
        /// Failures in a row.
        failures: u32,
    },
}

/// What happened to an informer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A list came.
    Listed(Revision),
    /// An event or a bookmark came.
    Event(Option<Revision>),
    /// The watch ended, as servers end them now and then.
    Ended,
    /// The history is gone (410).
    Expired,
    /// Anything else failed.
    Failed,
}

/// The next state, and how long to wait before acting on it (before jitter).
pub fn step(state: State, input: Input) -> (State, Duration) {
    let failures = match state {
        State::Listing { failures } | State::Watching { failures, .. } => failures,
    };
    match (input, state) {
        (Input::Listed(since), _) => (State::Watching { since, failures: 0 }, Duration::ZERO),
        (Input::Event(seen), State::Watching { since, .. }) => {
            let since = seen.map_or(since, |r| r.max(since));
            (State::Watching { since, failures: 0 }, Duration::ZERO)
        }
        (Input::Ended | Input::Failed, State::Watching { since, .. }) => {
            (State::Watching { since, failures: failures + 1 }, delay(failures))
        }
        (Input::Expired, _) | (_, State::Listing { .. }) => {
            (State::Listing { failures: failures + 1 }, delay(failures))
        }
    }
}

fn delay(failures: u32) -> Duration {
    FIRST_DELAY.saturating_mul(1 << failures.min(10)).min(LAST_DELAY)
}

/// Between half of a delay and all of it, so that many clients do not come back at once.
fn jittered(delay: Duration) -> Duration {
    let random = u32::try_from(RandomState::new().hash_one(delay) % 1024).unwrap_or(0);
    delay / 2 + delay / 2 * random / 1024
}

/// Runs the steps against a server.
#[derive(Debug)]
pub struct Informer;

impl Informer {
    /// Keeps a collection until the receiver is dropped. A dead server is waited for without end.
    pub fn spawn(client: Client, target: Target, params: ListParams) -> mpsc::Receiver<InformerEvent> {
        let (events, receiver) = mpsc::channel(BUFFER);
        tokio::spawn(async move {
            tokio::select! {
                () = run(&client, &target, &params, &events) => {}
                () = events.closed() => {}
            }
        });
        receiver
    }
}

async fn run(client: &Client, target: &Target, params: &ListParams, events: &mpsc::Sender<InformerEvent>) {
    let mut state = State::Listing { failures: 0 };
    loop {
        let input = match state {
            State::Listing { .. } => match client.list(target, params).await {
                Ok((revision, items)) => {
                    let items = items.into_iter().map(Arc::new).collect();
                    if events.send(InformerEvent::Reset(revision, items)).await.is_err() {
                        return;
                    }
                    Input::Listed(revision)
                }
                Err(e) => failed(target, &e),
            },
            State::Watching { since, .. } => match client.watch(target, params, since).await {
                Err(e) => failed(target, &e),
                Ok(mut watch) => loop {
                    match watch.next().await {
                        None => break Input::Ended,
                        Some(Err(e)) => break failed(target, &e),
                        Some(Ok(event)) if event.kind == EventType::Error => break Input::Failed,
                        Some(Ok(event)) => {
                            state = step(state, Input::Event(event.object.revision())).0;
                            if events.send(InformerEvent::Changed(event)).await.is_err() {
                                return;
                            }
                        }
                    }
                },
            },
        };
        let (next, wait) = step(state, input);
        state = next;
        if !wait.is_zero() {
            tokio::time::sleep(jittered(wait)).await;
        }
    }
}

fn failed(target: &Target, e: &ClientError) -> Input {
    tracing::debug!(%target, error = %e, "informer");
    if e.is_expired() { Input::Expired } else { Input::Failed }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_goes_on_where_it_was_and_lists_again_after_410() {
        let (s, wait) = step(State::Listing { failures: 3 }, Input::Listed(Revision(7)));
        assert_eq!((s, wait), (State::Watching { since: Revision(7), failures: 0 }, Duration::ZERO));
        let (s, _) = step(s, Input::Event(Some(Revision(9))));
        let (s, wait) = step(s, Input::Failed);
        assert_eq!((s, wait), (State::Watching { since: Revision(9), failures: 1 }, FIRST_DELAY));
        assert_eq!(step(s, Input::Expired).0, State::Listing { failures: 2 });
    }

    #[test]
    fn the_delay_grows_to_a_limit() {
        assert_eq!(delay(0), FIRST_DELAY);
        assert_eq!(delay(u32::MAX), LAST_DELAY);
        for _ in 0..100 {
            let d = jittered(LAST_DELAY);
            assert!(d >= LAST_DELAY / 2 && d <= LAST_DELAY);
        }
    }
}
