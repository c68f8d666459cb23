//! What services cost on the way of a packet.

use std::{net::Ipv4Addr, ops::Range, time::Duration};

use super::{
    figure::{Figure, Target, Unit, median, thousands},
    load::{Server, bytes_per_second, connections_per_second, request_server, sink_server},
    objects::{self, ENDPOINTS, MANY_SERVICES, PORT, SERVICES, cluster_ip},
    program::Effort,
    topology::{Place, Topology},
};

/// What direct connections go to. A server keeps its closed connections for a minute and compares new ones of the same ports
/// with them; a client's clock differs by the address it called, so direct and service connections must not meet there.
const DIRECT_PORT: u16 = 7000;
const DIRECT_BULK_PORT: u16 = 7001;
const BULK_PORT: u16 = 9000;
/// What endpoints of the measured services listen on.
const SERVED: Range<u16> = objects::POD_PORT..objects::POD_PORT + ENDPOINTS;

const REMOTE_SERVICE: u16 = 0;
const LOCAL_SERVICE: u16 = 1;
const BULK_SERVICE: u16 = 2;
const SPREAD_SERVICE: u16 = 3;
const LOCAL_DOOR: u16 = 4;
const REMOTE_DOOR: u16 = 5;
/// NodePort of [`LOCAL_DOOR`]; that of [`REMOTE_DOOR`] is the next one.
const NODE_PORT: u16 = 30_080;

struct Stage {
    topology: Topology,
    _servers: Vec<Server>,
}

impl Stage {
    fn new() -> anyhow::Result<Self> {
        let topology = Topology::new()?;
        let mut servers = Vec::new();
        for pod in [&topology.local, &topology.remote] {
            servers.push(request_server(pod, DIRECT_PORT..DIRECT_PORT + 1)?);
            servers.push(request_server(pod, SERVED)?);
        }
        servers.push(sink_server(&topology.remote, DIRECT_BULK_PORT..DIRECT_BULK_PORT + 1)?);
        servers.push(sink_server(&topology.remote, BULK_PORT..BULK_PORT + 1)?);
        Ok(Stage { topology, _servers: servers })
    }

    /// The services that are measured, and others up to `count`.
    fn load(&self, measured: &[u16], count: u16) -> anyhow::Result<()> {
        let one = |place, port| move |n| vec![objects::slice(n, 1, port, &[(Topology::server(place), true)])];
        let slices = |n: u16| match n {
            REMOTE_SERVICE | REMOTE_DOOR => one(Place::Remote, SERVED.start)(n),
            LOCAL_SERVICE | LOCAL_DOOR => one(Place::Local, SERVED.start)(n),
            BULK_SERVICE => one(Place::Remote, BULK_PORT)(n),
            SPREAD_SERVICE => SERVED.flat_map(|port| one(Place::Remote, port)(n)).collect(),
            other => vec![objects::idle_slice(other)],
        };
        let last = REMOTE_DOOR + 1;
        let all: Vec<u16> =
            measured.iter().copied().chain((last..).take(usize::from(count) - measured.len())).collect();
        let plans = objects::plan(
            all.iter()
                .copied()
                .map(|n| match n {
                    LOCAL_DOOR | REMOTE_DOOR => objects::door(n, NODE_PORT + n - LOCAL_DOOR),
                    other => objects::service(other),
                })
                .collect(),
            all.iter().flat_map(|n| slices(*n)).collect(),
        )?;
        self.topology.load(&plans)
    }

    fn connections(&self, to: (Ipv4Addr, u16), time: Duration) -> anyhow::Result<f64> {
        connections_per_second(&self.topology.client, to, time)
    }

    fn connections_in(&self, to: (Ipv4Addr, u16), time: Duration) -> anyhow::Result<f64> {
        connections_per_second(&self.topology.outside, to, time)
    }
}

/// One side of a comparison: prepares, and measures for a time.
type Side<'a> = &'a dyn Fn(Duration) -> anyhow::Result<f64>;

/// How often the sides take turns within a round: whatever else the machine does hits both.
const TURNS: u32 = 5;

/// The mean rates of both sides in every round. Which side goes first alternates.
fn alternate(effort: Effort, below: Side, above: Side) -> anyhow::Result<Vec<(f64, f64)>> {
    let time = effort.time / TURNS;
    let round = |_| {
        let mut sums = (0.0, 0.0);
        for turn in 0..TURNS {
            if turn % 2 == 0 {
                sums.0 += below(time)?;
                sums.1 += above(time)?;
            } else {
                sums.1 += above(time)?;
                sums.0 += below(time)?;
            }
        }
        Ok((sums.0 / f64::from(TURNS), sums.1 / f64::from(TURNS)))
    };
    (0..effort.rounds).map(round).collect()
}

fn ratio(
    name: &str,
    target: f64,
    sides: (&str, &str),
    show: fn(f64) -> String,
    rounds: &[(f64, f64)],
) -> Figure {
    let ratios: Vec<f64> = rounds.iter().map(|(below, above)| above / below).collect();
    let side = |pick: fn(&(f64, f64)) -> f64| show(median(&rounds.iter().map(pick).collect::<Vec<_>>()));
    let note = format!("{} {}, {} {}", sides.0, side(|r| r.0), sides.1, side(|r| r.1));
    Figure::of_rounds(name, Unit::Ratio, &ratios, Target::AtLeast(target), note)
}

fn rate(n: f64) -> String {
    format!("{}/s", thousands(n))
}

fn bulk(n: f64) -> String {
    format!("{:.2} GB/s", n / 1e9)
}

/// New connections of a pod to a ClusterIP, beside those to the pod itself without any table.
pub fn connections(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let stage = Stage::new()?;
    let places = [
        ("new connections, ClusterIP / direct, other node", Place::Remote, REMOTE_SERVICE),
        ("new connections, ClusterIP / direct, same node", Place::Local, LOCAL_SERVICE),
    ];
    let measure = |(name, place, service)| {
        let direct = |time| {
            stage.topology.unload()?;
            stage.connections((Topology::server(place), DIRECT_PORT), time)
        };
        let through = |time| {
            stage.load(&[service], 1)?;
            stage.connections((cluster_ip(service), PORT), time)
        };
        let rounds = alternate(effort, &direct, &through)?;
        Ok(ratio(name, 0.80, ("direct", "ClusterIP"), rate, &rounds))
    };
    places.into_iter().map(measure).collect()
}

/// New connections of a machine outside to a node's nodePort, beside those to the pod itself without any table, by the shortest way.
pub fn from_outside(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let stage = Stage::new()?;
    let places = [
        ("new connections, nodePort / direct, endpoint on the entry node", Place::Local, LOCAL_DOOR, 0.85),
        ("new connections, nodePort / direct, endpoint on another node", Place::Remote, REMOTE_DOOR, 0.70),
    ];
    let measure = |(name, place, service, target)| {
        let direct = |time| {
            stage.topology.unload()?;
            stage.connections_in((Topology::server(place), DIRECT_PORT), time)
        };
        let through = |time| {
            stage.load(&[service], 1)?;
            stage.connections_in((Topology::entry(), NODE_PORT + service - LOCAL_DOOR), time)
        };
        let rounds = alternate(effort, &direct, &through)?;
        Ok(ratio(name, target, ("direct", "nodePort"), rate, &rounds))
    };
    places.into_iter().map(measure).collect()
}

/// New connections to a service among many, beside those to the same service alone.
pub fn many_services(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    [SERVICES, MANY_SERVICES].into_iter().map(|count| beside_others(effort, count)).collect()
}

fn beside_others(effort: Effort, count: u16) -> anyhow::Result<Figure> {
    let stage = Stage::new()?;
    let among = |count, time| {
        stage.load(&[SPREAD_SERVICE], count)?;
        stage.connections((cluster_ip(SPREAD_SERVICE), PORT), time)
    };
    let rounds = alternate(effort, &|time| among(1, time), &|time| among(count, time))?;
    let count = thousands(count.into());
    let name = format!("new connections, {count} services / 1 service");
    Ok(ratio(&name, 0.90, ("1:", &format!("{count}:")), rate, &rounds))
}

/// Bulk through one connection to a ClusterIP, beside one to the pod itself without any table.
pub fn throughput(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let stage = Stage::new()?;
    let client = &stage.topology.client;
    let direct = |time| {
        stage.topology.unload()?;
        bytes_per_second(client, (Topology::server(Place::Remote), DIRECT_BULK_PORT), time)
    };
    let through = |time| {
        stage.load(&[BULK_SERVICE], 1)?;
        bytes_per_second(client, (cluster_ip(BULK_SERVICE), PORT), time)
    };
    let rounds = alternate(effort, &direct, &through)?;
    let name = "TCP throughput, ClusterIP / direct, other node";
    Ok(vec![ratio(name, 0.95, ("direct", "ClusterIP"), bulk, &rounds)])
}
