//! The cluster's DNS, asked from a pod over its own link, under the rules of many services.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use minisvc_agent::{
    dns::{Listeners, SharedZone, Upstream, Zone, ZoneConfig},
    plan::ServiceKey,
};
use minisvc_tests::netns::Namespace;
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use tokio_util::sync::CancellationToken;

use super::{
    figure::{Figure, Target, Unit, median, quantile, thousands},
    objects::{self, SERVICES, cluster_ip},
    program::Effort,
    topology::Topology,
};

const DNS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53);
/// Questions per second of the time that an answer takes.
const RATE: u32 = 1000;
/// Questions that are under way at any time when as many as possible are asked.
const IN_FLIGHT: u16 = 128;
/// A client that hears nothing for so long is stuck.
const PATIENCE: Duration = Duration::from_secs(2);
const HEADER: usize = 12;

/// A node's DNS, until dropped.
struct Server {
    stop: CancellationToken,
    thread: Option<JoinHandle<anyhow::Result<anyhow::Result<()>>>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(Ok(())))) | None => {}
            other => eprintln!("the DNS of the load ended badly: {other:?}"),
        }
    }
}

/// Serves on the node, on this core alone if one is given.
fn serve(node: &Namespace, core: Option<usize>) -> anyhow::Result<Server> {
    let zone = SharedZone::new(Zone::new(&ZoneConfig {
        domain: "cluster.local".into(),
        servers: vec![DNS.ip()],
        ranges: vec!["10.96.0.0/16".parse()?, "10.244.0.0/16".parse()?],
        fixed: [].into(),
    }));
    for number in 0..SERVICES {
        let key = ServiceKey { namespace: "default".into(), name: objects::name(number) };
        zone.put(&key, Some((&serde_json::from_value(objects::service(number))?, &[])));
    }
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let (ready, is_ready) = mpsc::channel();
    let thread = node.spawn(move || {
        if let Some(core) = core {
            only_on(core)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listeners = Listeners::bind(&[DNS]).await?;
            ready.send(())?;
            let upstream = Upstream { resolv_conf: "/dev/null".into(), own: vec![DNS.ip()] };
            Ok(listeners.serve(zone, upstream, stopped).await?)
        })
    })?;
    let server = Server { stop, thread: Some(thread) };
    is_ready.recv().context("the DNS did not start")?;
    Ok(server)
}

/// Keeps this thread, and those that it starts, on one core.
fn only_on(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &set)?)
}

/// Cores that this process may use.
fn cores() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0))?;
    Ok((0..CpuSet::count()).filter(|core| set.is_set(*core).unwrap_or(false)).collect())
}

/// A question for a service's address, with EDNS as resolvers send it.
fn question(id: u16, service: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut message = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in [objects::name(service).as_str(), "default", "svc", "cluster", "local"] {
        message.push(u8::try_from(label.len()).unwrap_or(0));
        message.extend(label.bytes());
    }
    message.extend([0, 0, 1, 0, 1]);
    message.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    message
}

/// The id of an answer that is right: one record, with the service's address.
fn checked(answer: &[u8], service: u16) -> anyhow::Result<u16> {
    let header: &[u8; HEADER] = answer.first_chunk().context("a short answer")?;
    let (code, count) = (header[3] % 16, &header[6..8]);
    ensure!((code, count) == (0, &[0, 1]), "an answer that is none: {header:?}");
    let ip = cluster_ip(service).octets();
    ensure!(answer.windows(4).any(|w| w == ip), "not the address of service {service}");
    Ok(u16::from_be_bytes([header[0], header[1]]))
}

fn socket() -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(DNS)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Milliseconds from when each question was due to its answer, so that one that waits for an earlier one counts in full.
fn latencies(time: Duration) -> anyhow::Result<Vec<f64>> {
    let socket = socket()?;
    let mut buffer = [0; 1500];
    let mut times = Vec::new();
    let began = Instant::now();
    for number in 0u32.. {
        let due = began + number * Duration::from_secs(1) / RATE;
        if due > began + time {
            break;
        }
        // Not asleep: the client's own waking is not the DNS' time.
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        let id = u16::try_from(number % 65_536)?;
        let service = id % SERVICES;
        socket.send(&question(id, service))?;
        let length = socket.recv(&mut buffer).context("no answer")?;
        times.push(due.elapsed().as_secs_f64() * 1e3);
        ensure!(checked(&buffer[..length], service)? == id, "an answer to another question");
    }
    Ok(times)
}

/// Answers per second to as many questions as the server takes.
#[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn saturated(time: Duration) -> anyhow::Result<f64> {
    let socket = socket()?;
    let questions: Vec<Vec<u8>> = (0..SERVICES).map(|n| question(n, n)).collect();
    let mut buffer = [0; 1500];
    let mut next = (0..usize::from(SERVICES)).cycle();
    for number in next.by_ref().take(IN_FLIGHT.into()) {
        socket.send(&questions[number])?;
    }
    let began = Instant::now();
    let mut answers = 0u64;
    while began.elapsed() < time {
        // A question whose packet is lost leaves one fewer under way; none left is an error.
        let length = socket.recv(&mut buffer).context("no question is under way any more")?;
        let id = buffer.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
        checked(&buffer[..length], id)?;
        answers += 1;
        if let Some(number) = next.next() {
            socket.send(&questions[number])?;
        }
    }
    Ok(answers as f64 / began.elapsed().as_secs_f64())
}

/// How long a pod waits for the name of a service, and how many names one core answers.
pub fn names(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let topology = Topology::new()?;
    let plans = objects::plan(
        (0..SERVICES).map(objects::service).collect(),
        (0..SERVICES).map(objects::idle_slice).collect(),
    )?;
    topology.load(&plans)?;
    let (mut tails, mut middles, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    {
        let _server = serve(topology.entry_node(), None)?;
        for _ in 0..effort.rounds {
            let times = topology.client.enter(|| latencies(effort.time))?;
            tails.push(quantile(&times, 0.99));
            middles.push(median(&times));
        }
    }
    let cores = cores()?;
    let [first, others @ ..] = cores.as_slice() else { bail!("no core") };
    ensure!(!others.is_empty(), "one core for the DNS and another one for who asks are needed");
    let _server = serve(topology.entry_node(), Some(*first))?;
    for _ in 0..effort.rounds {
        rates.push(topology.client.enter(|| {
            only_on(others[0])?;
            saturated(effort.time)
        })?);
    }
    let note = format!("from a pod, {} services; p50 {:.2} ms", thousands(SERVICES.into()), median(&middles));
    let name = format!("DNS, a service's name at {} questions/s, p99", thousands(RATE.into()));
    let tail = Figure::of_rounds(&name, Unit::Milliseconds, &tails, Target::AtMost(1.0), note);
    let note = format!("from a pod on another core, {IN_FLIGHT} under way");
    let name = "DNS, names of services, the server on one core";
    let rate = Figure::of_rounds(name, Unit::PerSecond, &rates, Target::AtLeast(50_000.0), note);
    Ok(vec![tail, rate])
}
