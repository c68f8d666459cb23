//! Controllers derive more desired state from desired state. Deciding is pure and lives in a file per kind; `world` holds what
//! they all see, `reconcile` and `lifecycle` carry decisions out.
//!
//! One task follows the registry and puts the keys that a change concerns into the controllers' queues; each controller works
//! its queue off, level triggered: a reconcile looks at the state as it is, not at what happened.

pub mod action;
mod bootstrap;
pub mod claim;
pub mod deployment;
pub mod endpoints;
pub mod endpointslice;
pub mod events;
pub mod gc;
mod index;
mod lifecycle;
pub mod load_balancer;
pub mod mirroring;
pub mod nodes;
mod picture;
pub mod pod;
mod programmed;
mod queue;
mod reconcile;
pub mod replicaset;
pub mod slices;
pub mod taints;
mod tokens;
mod world;

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

pub use bootstrap::bootstrap;
use minisvc_proto::{ApiError, ObjectKey};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::{
    lifecycle::Lifecycle,
    nodes::Listening,
    queue::{Outcome, Queue},
    world::{Queues, World},
};
use crate::{progress::Progress, registry::Registry};

/// Keys that one controller works on at the same time: waiting writers share the store's syncs.
const AT_ONCE: usize = 64;

/// Starts every controller. Each runs until `shutdown`; one that ends before answers its name, and the process should end
/// with it. Pods of silent nodes are replaced `eviction_timeout` after the silence was found. Needs a tokio runtime.
pub fn start(
    registry: Registry,
    progress: Arc<Progress>,
    eviction_timeout: Duration,
    shutdown: CancellationToken,
) -> JoinSet<&'static str> {
    start_listening(
        registry,
        progress,
        Lifecycle::new(Listening::start(Instant::now()), eviction_timeout),
        shutdown,
    )
}

fn start_listening(
    registry: Registry,
    progress: Arc<Progress>,
    lifecycle: Lifecycle,
    shutdown: CancellationToken,
) -> JoinSet<&'static str> {
    let (recorder, scribe) = events::recorder();
    let world = Arc::new(World::new(registry, progress, recorder));
    let lifecycle = Arc::new(lifecycle);
    let mut tasks = JoinSet::new();

    {
        let (world, shutdown) = (world.clone(), shutdown.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = world.follow() => {}
            }
            "controllers' picture"
        });
    }
    {
        let (world, shutdown) = (world.clone(), shutdown.clone());
        tasks.spawn(async move {
            scribe.run(&world.registry, &shutdown).await;
            "event recorder"
        });
    }
    {
        let (world, shutdown) = (world.clone(), shutdown.clone());
        tasks.spawn(async move {
            tokens::run(&world.registry, &shutdown).await;
            "sweep of join tokens"
        });
    }
    {
        let (world, lifecycle, shutdown) = (world.clone(), lifecycle.clone(), shutdown.clone());
        tasks.spawn(async move {
            lifecycle.watch(&world, &shutdown).await;
            "node watch"
        });
    }
    {
        let (world, shutdown) = (world.clone(), shutdown.clone());
        tasks.spawn(async move {
            let mut news = world.progress.subscribe();
            while !shutdown.is_cancelled() {
                world.refresh_floor(&mut world.sight());
                tokio::select! {
                    () = shutdown.cancelled() => {}
                    // The sender lives in the world.
                    _ = news.changed() => {}
                }
            }
            "progress watch"
        });
    }

    let mut spawn = Spawn { tasks: &mut tasks, world: &world, shutdown: &shutdown };
    spawn.controller(
        "endpointslice controller",
        |q| &q.services,
        |w, k| async move { reconcile::service(&w, k).await },
    );
    spawn.controller(
        "endpoints controller",
        |q| &q.endpoints,
        |w, k| async move { reconcile::endpoints(&w, k).await },
    );
    spawn.controller(
        "load balancer controller",
        |q| &q.load_balancers,
        |w, k| async move { reconcile::load_balancer(&w, k).await },
    );
    spawn.controller(
        "deployment controller",
        |q| &q.deployments,
        |w, k| async move { reconcile::deployment(&w, k).await },
    );
    spawn.controller(
        "replicaset controller",
        |q| &q.replica_sets,
        |w, k| async move { reconcile::replica_set(&w, k).await },
    );
    spawn.controller(
        "scheduler",
        |q| &q.unscheduled,
        |w, k| async move { reconcile::unscheduled(&w, k).await },
    );
    spawn.controller(
        "stranded pods",
        |q| &q.stranded,
        |w, k| async move { reconcile::stranded(&w, k).await },
    );
    spawn.controller(
        "garbage collector",
        |q| &q.garbage,
        |w, k| async move { reconcile::garbage(&w, k).await },
    );
    spawn.controller(
        "namespace controller",
        |q| &q.namespaces,
        |w, k| async move { reconcile::namespace(&w, k).await },
    );
    spawn.controller(
        "service progress",
        |q| &q.programmed,
        |w, k| async move { reconcile::programmed(&w, k).await },
    );
    spawn.controller(
        "node lifecycle",
        |q| &q.nodes,
        move |w, k| {
            let lifecycle = lifecycle.clone();
            async move { lifecycle.reconcile(&w, k).await }
        },
    );
    tasks
}

struct Spawn<'a> {
    tasks: &'a mut JoinSet<&'static str>,
    world: &'a Arc<World>,
    shutdown: &'a CancellationToken,
}

impl Spawn<'_> {
    fn controller<F, R>(&mut self, name: &'static str, queue: fn(&Queues) -> &Queue<ObjectKey>, reconcile: F)
    where
        F: Fn(Arc<World>, ObjectKey) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Outcome, ApiError>> + Send + 'static,
    {
        let (world, shutdown) = (self.world.clone(), self.shutdown.clone());
        self.tasks.spawn(async move {
            let work = |key| reconcile(world.clone(), key);
            queue(&world.queues).run(name, AT_ONCE, &shutdown, work).await;
            name
        });
    }
}

#[cfg(test)]
mod tests;
