//! Controllers derive more desired state from desired state. Deciding is pure and lives in a file per kind.

pub mod action;
mod bootstrap;
pub mod deployment;
pub mod endpointslice;
pub mod gc;
pub mod nodes;
pub mod pod;
pub mod replicaset;

use std::sync::Arc;

pub use bootstrap::bootstrap;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{progress::Progress, registry::Registry};

/// Starts every controller. Each runs until `shutdown`; one that ends before answers its name, and the process should end
/// with it. Needs a tokio runtime.
pub fn start(
    registry: Registry,
    progress: Arc<Progress>,
    shutdown: CancellationToken,
) -> JoinSet<&'static str> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        shutdown.cancelled().await;
        drop((registry, progress));
        "controllers"
    });
    tasks
}
