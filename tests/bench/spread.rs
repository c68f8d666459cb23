//! Whether each endpoint gets its share: connections are counted, and the counts compared with what even chances would bring.

use std::collections::BTreeMap;

use super::{
    figure::{Figure, Target, Unit},
    load::{port_server, ports_reached},
    objects::{self, PORT, cluster_ip},
    program::Effort,
    topology::{Place, Topology},
};

/// Counts of endpoints: few, odd, below and above what has a chain of its own.
const COUNTS: [u16; 5] = [3, 7, 17, 50, 250];
/// What each endpoint should get, times a round.
const SHARE: usize = 20;
const FIRST_PORT: u16 = 10_000;
/// Chance alone is below this once in a thousand runs.
const UNLIKELY: f64 = 0.001;

/// Connections of a pod over the endpoints of a service. The kernel draws, and takes no seed: what is recorded is what it drew.
pub fn over_endpoints(effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let topology = Topology::new()?;
    let most = COUNTS.into_iter().max().unwrap_or(0);
    let _server = port_server(&topology.remote, FIRST_PORT..FIRST_PORT + most)?;
    (0..).zip(COUNTS).map(|(service, count)| over(&topology, service, count, effort.rounds * SHARE)).collect()
}

fn over(topology: &Topology, service: u16, count: u16, share: usize) -> anyhow::Result<Figure> {
    let slice = |n| objects::slice(service, 1, FIRST_PORT + n, &[(Topology::server(Place::Remote), true)]);
    topology.load(&objects::plan(vec![objects::service(service)], (0..count).map(slice).collect())?)?;
    let connections = share * usize::from(count);
    let mut seen: BTreeMap<u16, u32> = (0..count).map(|n| (FIRST_PORT + n, 0)).collect();
    for port in ports_reached(&topology.client, (cluster_ip(service), PORT), connections)? {
        *seen.entry(port).or_default() += 1;
    }
    anyhow::ensure!(seen.len() == usize::from(count), "an answer came from a port that is no endpoint");
    #[allow(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let expected = share as f64;
    let square = seen.values().map(|n| (f64::from(*n) - expected).powi(2) / expected).sum::<f64>();
    let p = upper_tail(square, f64::from(count - 1));
    let (least, most) = (seen.values().min().unwrap_or(&0), seen.values().max().unwrap_or(&0));
    Ok(Figure {
        name: format!("spread over {count} endpoints, chi-square p"),
        unit: Unit::Probability,
        got: p,
        spread: (p, p),
        target: Target::AtLeast(UNLIKELY),
        note: format!("{connections} connections, {least} to {most} each, {expected} expected"),
    })
}

/// How likely a chi-square variable of so many degrees of freedom is to be as large: its cube root is nearly normal
/// (Wilson and Hilferty, 1931).
fn upper_tail(square: f64, degrees: f64) -> f64 {
    let variance = 2.0 / (9.0 * degrees);
    let z = ((square / degrees).cbrt() - (1.0 - variance)) / variance.sqrt();
    0.5 * libm::erfc(z / std::f64::consts::SQRT_2)
}
