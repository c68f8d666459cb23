//! Where objects live. An engine keeps bytes under keys and makes each transaction atomic and durable; it knows no kinds.

pub mod memory;
pub mod sled_engine;

#[cfg(test)]
mod contract;

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use minisvc_proto::Revision;

/// A key of the store: `/objects/services/default/web`, `/reserved/nodeports/30080`.
pub type Key = Arc<str>;

/// What a transaction asks of a key before it writes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing is there.
    Absent,
    /// Something is there, written by exactly this revision.
    At(Revision),
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Puts a value.
    Put(Bytes),
    /// Removes the key; no fault if it is absent.
    Delete,
}

/// All or nothing: if every expectation holds, all writes happen at one new revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// Checked first, in key order.
    pub expect: BTreeMap<Key, Expect>,
    /// Applied together.
    pub writes: BTreeMap<Key, Write>,
}

/// A value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The revision that wrote the value.
    pub revision: Revision,
    /// The value.
    pub value: Bytes,
}

/// One key's change, as a transaction made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Key,
    /// Its value, or `None` where it was deleted.
    pub value: Option<Bytes>,
}

/// A committed transaction, in the order of revisions, without gaps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The revision of all these changes.
    pub revision: Revision,
    /// In key order.
    pub changes: Vec<Change>,
}

/// Why a transaction was not committed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// An expectation did not hold; nothing was written.
    #[error("{key} is not as expected")]
    Unexpected {
        /// The first key that failed.
        key: Key,
        /// What stands there now.
        found: Option<Versioned>,
        /// The last revision that was looked at.
        revision: Revision,
    },
    /// The engine failed; whether the transaction is on disk is not known, and the store takes no more writes.
    #[error("the store failed: {0}")]
    Engine(String),
}

/// A future that can be sent and named in a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An engine. One contract suite (`store::contract`) runs on every one.
pub trait Store: Send + Sync + 'static {
    /// Commits; returns when the transaction is as durable as the engine promises. Dropping the future does not undo it.
    fn commit(&self, txn: Txn) -> BoxFuture<'_, Result<Revision, CommitError>>;

    /// Everything there is, with the revision of the last commit. Called once, at start.
    fn load(&self) -> Result<(Revision, BTreeMap<Key, Versioned>), CommitError>;

    /// Every transaction committed after this call, in order, exactly once. Called once, before the first commit. Ends when the
    /// store takes no more writes.
    fn subscribe(&self) -> tokio::sync::mpsc::UnboundedReceiver<Committed>;
}
