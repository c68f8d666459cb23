//! The engine of tests: everything in memory, nothing durable.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use minisvc_proto::Revision;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{BoxFuture, Change, CommitError, Committed, Expect, Key, Store, Txn, Versioned, Write};

/// See the module.
#[derive(Default)]
pub struct MemoryStore {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    revision: Revision,
    values: BTreeMap<Key, Versioned>,
    subscriber: Option<UnboundedSender<Committed>>,
}

/// Whether `found` is what a transaction expects; also the rule of every other engine.
pub(super) fn holds(expect: Expect, found: Option<&Versioned>) -> bool {
    match expect {
        Expect::Absent => found.is_none(),
        Expect::At(revision) => found.is_some_and(|v| v.revision == revision),
    }
}

impl Store for MemoryStore {
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>> {
        let result = (|| {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            for (key, expect) in &txn.expect {
                let found = state.values.get(key);
                if !holds(*expect, found) {
                    return Err(CommitError::Unexpected {
                        key: key.clone(),
                        found: found.cloned(),
                        revision: state.revision,
                    });
                }
            }
            let revision = Revision(state.revision.0 + 1);
            state.revision = revision;
            let mut changes = Vec::with_capacity(txn.writes.len());
            for (key, write) in txn.writes {
                let value = match write {
                    Write::Put(value) => {
                        state.values.insert(key.clone(), Versioned { revision, value: value.clone() });
                        Some(value)
                    }
                    Write::Delete => {
                        state.values.remove(&key);
                        None
                    }
                };
                changes.push(Change { key, value });
            }
            if let Some(subscriber) = &state.subscriber {
                // A subscriber that is gone needs nothing.
                let _ = subscriber.send(Committed { revision, changes });
            }
            Ok(revision)
        })();
        Box::pin(std::future::ready(result))
    }

    fn load(&self) -> Result<(Revision, BTreeMap<Key, Versioned>), CommitError> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Ok((state.revision, state.values.clone()))
    }

    fn subscribe(&self) -> UnboundedReceiver<Committed> {
        let (sender, receiver) = unbounded_channel();
        self.state.lock().unwrap_or_else(PoisonError::into_inner).subscriber = Some(sender);
        receiver
    }
}
