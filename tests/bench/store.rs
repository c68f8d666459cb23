//! What a durable write costs.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use ipnet::Ipv4Net;
use minisvc_proto::{
    Object, ObjectKey, Resource,
    path::Target,
    resource::{NAMESPACES, PODS, SERVICES},
};
use minisvc_server::{
    alloc::{NodePortRange, PodRange, ServiceRange},
    cache::Cache,
    registry::{Ranges, Registry, WriteOptions},
    store::sled_engine::SledStore,
};
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinSet};

use super::{
    figure::{self, Figure, Unit},
    program::Effort,
};

const WRITERS: usize = 64;
const DURABLE: figure::Target = figure::Target::AtLeast(3000.0);

/// A figure's name, the kind that is created, and an object of it by number.
type Kind = (&'static str, &'static Resource, fn(u64) -> Value);

/// Creates through the registry, each acknowledged after fdatasync, by many writers at once.
pub fn durable_creates(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let kinds: [Kind; 2] = [
        ("durable creates, pods, 64 writers", &PODS, pod),
        ("durable creates, services, 64 writers", &SERVICES, service),
    ];
    let mut rounds = kinds.map(|_| Vec::new());
    for _ in 0..effort.rounds {
        for ((_, resource, make), rates) in kinds.iter().zip(&mut rounds) {
            let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
            rates.push(creates_per_second(&runtime, directory.path(), resource, *make, effort)?);
        }
    }
    let figure = |((name, _, _), rates): (&Kind, &Vec<f64>)| {
        Figure::of_rounds(name, Unit::PerSecond, rates, DURABLE, "registry on sled, fdatasync".into())
    };
    Ok(kinds.iter().zip(&rounds).map(figure).collect())
}

#[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn creates_per_second(
    runtime: &Runtime,
    directory: &Path,
    resource: &'static Resource,
    make: fn(u64) -> Value,
    effort: Effort,
) -> anyhow::Result<f64> {
    runtime.block_on(async {
        let registry = registry(directory)?;
        let namespace: Object = serde_json::from_value(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}),
        )?;
        let options = WriteOptions::default();
        if registry.get(&ObjectKey::cluster(&NAMESPACES, "default")).is_err() {
            registry.create(&Target::collection(&NAMESPACES, None), namespace, options).await?;
        }
        let next = Arc::new(AtomicU64::new(0));
        let began = Instant::now();
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            let (registry, next) = (registry.clone(), next.clone());
            writers.spawn(async move {
                let target = Target::collection(resource, Some("default"));
                let mut created = 0u64;
                while began.elapsed() < effort.time {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let object: Object = serde_json::from_value(make(number))?;
                    registry.create(&target, object, options).await?;
                    created += 1;
                }
                anyhow::Ok(created)
            });
        }
        let mut created = 0;
        while let Some(writer) = writers.join_next().await {
            created += writer??;
        }
        Ok(created as f64 / began.elapsed().as_secs_f64())
    })
}

fn registry(directory: &Path) -> anyhow::Result<Registry> {
    let cache = Cache::open(Arc::new(SledStore::open(directory)?))?;
    let ranges = Ranges {
        services: ServiceRange::new("10.96.0.0/16".parse::<Ipv4Net>()?)?,
        services6: None,
        node_ports: NodePortRange::new(30000..=32767)
            .ok_or_else(|| anyhow::anyhow!("no range of node ports"))?,
        pods: PodRange::new("10.244.0.0/16".parse::<Ipv4Net>()?)?,
        pods6: None,
    };
    Ok(Registry::new(cache, ranges))
}

fn pod(number: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{number}"), "namespace": "default", "labels": {"app": "hello"}},
        "spec": {"containers": [{"name": "hello", "command": ["minisvc", "echo", "--port", "8080"],
            "ports": [{"containerPort": 8080}], "readinessProbe": {"httpGet": {"path": "/", "port": 8080}}}]}})
}

fn service(number: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("svc-{number}"), "namespace": "default"},
        "spec": {"selector": {"app": "hello"}, "ports": [{"port": 80, "targetPort": 8080}]}})
}
