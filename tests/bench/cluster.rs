//! What a whole cluster takes: its start, its memory, and the way of a pod's readiness into every kernel.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use minisvc_proto::{
    NodeName, Object, ObjectKey, Revision,
    client::{Client, Kubeconfig, PatchKind},
    path::Target,
    report::{HEARTBEAT_PERIOD, NodeReport, ServiceProgress},
    resource::{NODES, PODS, SERVICES},
};
use minisvc_tests::{cluster::Cluster, netns::Namespace};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::{runtime::Runtime, task::JoinSet};

use super::{
    figure::{Figure, Target as Goal, Unit, median, quantile, thousands},
    monitor::{Change, Monitor},
    objects::{ENDPOINTS, POD_PORT, PORT, name, pod_ip},
    processes,
    program::Effort,
};

const NODE_COUNT: u8 = 3;
/// Services of a small cluster.
const FEW: u16 = 10;
/// Until the work that a start leaves behind is done.
const SETTLE: Duration = Duration::from_secs(5);
const WRITERS: usize = 64;
/// A node whose pods exist on paper only: 10,000 processes would be measured instead.
const PAPER_NODE: &str = "paper";
const PATIENCE: Duration = Duration::from_secs(10);

fn client(cluster: &Cluster) -> anyhow::Result<Client> {
    let config = cluster.home().join("XDG_CONFIG_HOME/minisvc/config");
    Ok(Client::from_kubeconfig(&Kubeconfig::load(&config)?)?)
}

fn runtime() -> anyhow::Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// A start of an empty cluster, and its memory when it has a few services and nothing to do.
pub fn start(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let runtime = runtime()?;
    let mut seconds = Vec::new();
    let (mut servers, mut agents) = (Memory::default(), Memory::default());
    for _ in 0..effort.rounds {
        let cluster = Cluster::prepared("bench");
        let began = Instant::now();
        let said = cluster.start(NODE_COUNT);
        seconds.push(began.elapsed().as_secs_f64());
        anyhow::ensure!(said.status.success(), "{said}");
        let client = client(&cluster)?;
        runtime.block_on(async {
            for number in 0..FEW {
                create(&client, &SERVICES, new_service(number)).await?;
            }
            anyhow::Ok(())
        })?;
        std::thread::sleep(SETTLE);
        let found = processes::of(cluster.home(), "agent")?;
        anyhow::ensure!(found.len() == usize::from(NODE_COUNT), "agents: {found:?}");
        servers.add(&processes::of(cluster.home(), "server")?)?;
        agents.add(&found)?;
    }
    let name = "up to Ready, 3 nodes, empty data directory";
    let note = "from exec of `minisvc up --detach` to its end".to_owned();
    Ok(vec![
        Figure::of_rounds(name, Unit::Seconds, &seconds, Goal::AtMost(3.0), note),
        servers.figure("resident memory idle, server, 10 services", Goal::AtMost(40.0)),
        agents.figure("resident memory idle, largest of 3 agents", Goal::AtMost(20.0)),
    ])
}

#[derive(Default)]
struct Memory {
    resident: Vec<f64>,
    proportional: Vec<f64>,
}

impl Memory {
    /// The largest of these.
    fn add(&mut self, processes: &[processes::Process]) -> anyhow::Result<()> {
        let (mut resident, mut proportional) = (0.0, 0.0);
        for process in processes {
            resident = process.resident()?.max(resident);
            proportional = process.proportional()?.max(proportional);
        }
        self.resident.push(resident);
        self.proportional.push(proportional);
        Ok(())
    }

    fn figure(&self, name: &str, target: Goal) -> Figure {
        let note = format!("VmRSS; Pss {:.1} MB", median(&self.proportional));
        Figure::of_rounds(name, Unit::Megabytes, &self.resident, target, note)
    }
}

/// A pod turns ready in a cluster with many services: from the request that says so to the last of three kernels.
pub fn ready(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let runtime = runtime()?;
    let cluster = Cluster::prepared("bench");
    let said = cluster.start(NODE_COUNT);
    anyhow::ensure!(said.status.success(), "{said}");
    let client = client(&cluster)?;
    let _heartbeat = runtime.block_on(paper_node(&client))?;
    let created = runtime.block_on(fill(&client, effort.services))?;

    let (sender, changes) = mpsc::channel();
    let agents = processes::of(cluster.home(), "agent")?;
    anyhow::ensure!(agents.len() == usize::from(NODE_COUNT), "agents: {agents:?}");
    let mut monitors = Vec::new();
    for (number, agent) in agents.iter().enumerate() {
        let node = Namespace::open(&format!("node-{}", number + 1), &agent.network())?;
        monitors.push(Monitor::start(&node, number, sender.clone())?);
    }
    drop(sender);

    let mut times = Vec::new();
    for sample in 0..effort.samples {
        let number = sample % usize::from(effort.services);
        let service = u16::try_from(number)?;
        let pod = u16::try_from(sample / usize::from(effort.services))? % ENDPOINTS;
        let set = |ready| runtime.block_on(set_ready(&client, service, pod, ready));
        set(false)?;
        heard(&changes, false, pod_ip(service, pod))?;
        let began = Instant::now();
        set(true)?;
        let last = heard(&changes, true, pod_ip(service, pod))?;
        times.push(last.saturating_duration_since(began).as_secs_f64() * 1e3);
    }
    let services = thousands(f64::from(effort.services));
    let spread = (median(&times), quantile(&times, 1.0));
    let note = format!("spread is p50 - max of {} samples; heard from the kernels", times.len());
    let figure = Figure {
        name: format!("pod turns ready to all 3 kernels, {services} services, p99"),
        unit: Unit::Milliseconds,
        got: quantile(&times, 0.99),
        spread,
        target: Goal::AtMost(100.0),
        note,
    };
    let note = format!("{} pods through server, relay and controllers", thousands(created.pods));
    let over_https = Figure::of_rounds(
        "creates over HTTPS, 64 writers, in a running cluster",
        Unit::PerSecond,
        &[created.rate],
        Goal::Informative,
        note,
    );
    let mut figures = vec![figure, over_https];
    for (command, whose) in [("server", "server"), ("agent", "largest of 3 agents")] {
        let mut memory = Memory::default();
        memory.add(&processes::of(cluster.home(), command)?)?;
        let name = format!("resident memory, {whose}, {services} services x 10");
        figures.push(memory.figure(&name, Goal::Informative));
    }
    Ok(figures)
}

/// Waits until every node's kernel has said so of an endpoint; when the last one did.
fn heard(changes: &Receiver<Change>, added: bool, ip: Ipv4Addr) -> anyhow::Result<Instant> {
    let needle = [&ip.octets()[..], &POD_PORT.to_be_bytes()].concat();
    let mut nodes: Vec<Option<Instant>> = vec![None; usize::from(NODE_COUNT)];
    let until = Instant::now() + PATIENCE;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let Ok(change) = changes.recv_timeout(left) else {
            let late: Vec<_> = (1..).zip(&nodes).filter(|(_, at)| at.is_none()).map(|(n, _)| n).collect();
            let what = if added { "added" } else { "removed" };
            bail!("{ip} was not {what} within {PATIENCE:?} on the nodes {late:?}");
        };
        if change.added == added && change.message.windows(needle.len()).any(|w| w == needle) {
            nodes[change.node].get_or_insert(change.at);
            if let Some(all) = nodes.iter().copied().collect::<Option<Vec<_>>>() {
                return all.into_iter().max().context("no node");
            }
        }
    }
}

/// A node that says it is well and runs nothing.
async fn paper_node(client: &Client) -> anyhow::Result<JoinSet<()>> {
    client.create(&Target::collection(&NODES, None), &Object::new(&NODES, None, PAPER_NODE), false).await?;
    let node: NodeName = PAPER_NODE.parse()?;
    let mut heartbeat = JoinSet::new();
    let client = client.clone();
    heartbeat.spawn(async move {
        let mut report = NodeReport {
            boot_id: PAPER_NODE.to_owned(),
            services: Revision(u64::MAX),
            endpoint_slices: Revision(u64::MAX),
            ready: true,
            ..NodeReport::default()
        };
        loop {
            report.sequence += 1;
            if let Err(error) = client.post_report(&node, &report).await {
                eprintln!("the paper node's report: {error}");
            }
            tokio::time::sleep(HEARTBEAT_PERIOD).await;
        }
    });
    Ok(heartbeat)
}

struct Created {
    pods: f64,
    rate: f64,
}

/// Makes the services and their pods, and waits until every kernel has them.
#[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
async fn fill(client: &Client, services: u16) -> anyhow::Result<Created> {
    each(client, usize::from(services), |client, number| async move {
        create(&client, &SERVICES, new_service(u16::try_from(number)?)).await
    })
    .await?;
    let pods = usize::from(services) * usize::from(ENDPOINTS);
    let began = Instant::now();
    each(client, pods, |client, number| async move {
        let (service, pod) = place(number)?;
        create(&client, &PODS, new_pod(service, pod)).await
    })
    .await?;
    let rate = pods as f64 / began.elapsed().as_secs_f64();
    each(client, pods, |client, number| async move {
        let (service, pod) = place(number)?;
        set_ready(&client, service, pod, true).await
    })
    .await?;
    for number in 0..services {
        let path = format!(
            "/apis/minisvc.io/v1/namespaces/default/services/{}/progress?timeoutSeconds=60",
            name(number)
        );
        let progress: ServiceProgress = serde_json::from_value(client.raw(Method::GET, &path, None).await?)?;
        anyhow::ensure!(
            progress.complete && progress.pods == usize::from(ENDPOINTS),
            "{}: {progress:?}",
            name(number)
        );
    }
    Ok(Created { pods: pods as f64, rate })
}

/// Service and pod of a number that counts all pods.
fn place(number: usize) -> anyhow::Result<(u16, u16)> {
    let endpoints = usize::from(ENDPOINTS);
    Ok((u16::try_from(number / endpoints)?, u16::try_from(number % endpoints)?))
}

/// Does something for each number below `count`, by many writers.
async fn each<F>(
    client: &Client,
    count: usize,
    work: impl Fn(Client, usize) -> F + Send + Sync + Copy + 'static,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (client, next) = (client.clone(), next.clone());
        writers.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(());
                }
                work(client.clone(), number).await?;
            }
        });
    }
    while let Some(writer) = writers.join_next().await {
        writer??;
    }
    Ok(())
}

async fn create(
    client: &Client,
    resource: &'static minisvc_proto::Resource,
    object: Value,
) -> anyhow::Result<()> {
    let object: Object = serde_json::from_value(object)?;
    client.create(&Target::collection(resource, Some("default")), &object, false).await?;
    Ok(())
}

fn new_service(number: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name(number), "namespace": "default"},
        "spec": {"selector": {"app": name(number)},
            "ports": [{"name": "http", "port": PORT, "targetPort": POD_PORT}]}})
}

fn pod_name(service: u16, pod: u16) -> String {
    format!("{}-{pod}", name(service))
}

fn new_pod(service: u16, pod: u16) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": pod_name(service, pod), "namespace": "default", "labels": {"app": name(service)}},
        "spec": {"nodeName": PAPER_NODE,
            "containers": [{"name": "hello", "command": ["minisvc", "echo", "--port", POD_PORT.to_string()],
                "ports": [{"containerPort": POD_PORT}]}]}})
}

async fn set_ready(client: &Client, service: u16, pod: u16, ready: bool) -> anyhow::Result<()> {
    let status = if ready { "True" } else { "False" };
    let ip = pod_ip(service, pod).to_string();
    let patch = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [{"type": "ContainersReady", "status": status}, {"type": "Ready", "status": status}]}});
    let key = ObjectKey::namespaced(&PODS, "default", &pod_name(service, pod));
    let target = Target::object(&key).with_subresource("status");
    client.patch(&target, PatchKind::Merge, &patch).await?;
    Ok(())
}
