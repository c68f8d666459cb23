//! The command line: which groups of figures, how many rounds, and where it may run.

use std::{
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use minisvc_agent::sys::process::in_user_namespace;

use super::{
    agent, cluster, dataplane, dns,
    figure::{Figure, table},
    objects::SERVICES,
    spread, store,
};

const USAGE: &str = "tests/bench/run [--quick] [--rounds N] [GROUP...]";
/// Set where the program has made itself root of a user namespace.
const INSIDE: &str = "MINISVC_BENCH_IN_USER_NAMESPACE";

/// How much is done for a figure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Rounds of each comparison.
    pub rounds: usize,
    /// Time of one side of a round.
    pub time: Duration,
    /// Watch events of a round.
    pub events: usize,
    /// Services of the whole cluster.
    pub services: u16,
    /// How often a pod turns ready.
    pub samples: usize,
}

const FULL: Effort =
    Effort { rounds: 9, time: Duration::from_secs(1), events: 500, services: SERVICES, samples: 500 };
const QUICK: Effort =
    Effort { rounds: 3, time: Duration::from_millis(500), events: 100, services: 100, samples: 50 };

/// Measures one or more figures.
type Measure = fn(Effort) -> anyhow::Result<Vec<Figure>>;

const GROUPS: [(&str, Measure); 13] = [
    ("connections", dataplane::connections),
    ("outside", dataplane::from_outside),
    ("services", dataplane::many_services),
    ("spread", spread::over_endpoints),
    ("throughput", dataplane::throughput),
    ("names", dns::names),
    ("event", agent::watch_event),
    ("event-many", agent::watch_event_of_many),
    ("start", agent::cold_start),
    ("start-many", agent::cold_start_of_many),
    ("creates", store::durable_creates),
    ("up", cluster::start),
    ("ready", cluster::ready),
];

struct Options {
    effort: Effort,
    groups: Vec<(&'static str, Measure)>,
}

impl Options {
    fn parse(args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut options = Options { effort: FULL, groups: Vec::new() };
        let mut rounds = None;
        let mut args = args;
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--quick" => options.effort = QUICK,
                "--rounds" => {
                    let count = args.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
                    rounds =
                        Some(count.with_context(|| format!("--rounds wants a number above 0; {USAGE}"))?);
                }
                // Cargo says so to every bench.
                "--bench" => {}
                name => {
                    let Some(group) = GROUPS.iter().find(|(group, _)| *group == name) else {
                        let all = GROUPS.map(|(group, _)| group).join(", ");
                        bail!("there is no option or group {name:?}; groups are {all}; {USAGE}")
                    };
                    options.groups.push(*group);
                }
            }
        }
        if options.groups.is_empty() {
            options.groups = GROUPS.to_vec();
        }
        options.effort.rounds = rounds.unwrap_or(options.effort.rounds);
        Ok(options)
    }
}

/// Exits with 0 if all was measured, whether or not it is as it should be; with 1 if something broke, with 2 if it was asked
/// for what is not there.
pub fn main() -> ExitCode {
    let options = match Options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("bench: {error:#}");
            return ExitCode::from(2);
        }
    };
    if !nix::unistd::geteuid().is_root() && std::env::var_os(INSIDE).is_none() {
        return match again_as_root_of_a_namespace() {
            Ok(code) => code,
            Err(error) => {
                eprintln!("bench: this machine refuses a user namespace ({error:#}): run as root");
                ExitCode::FAILURE
            }
        };
    }
    let began = Instant::now();
    let mut figures = Vec::new();
    let mut broken = Vec::new();
    for (name, measure) in &options.groups {
        eprintln!("{:>6.1}s  {name}", began.elapsed().as_secs_f64());
        match guarded(*measure, options.effort) {
            Ok(measured) => figures.extend(measured),
            Err(error) => broken.push(format!("{name}: {error:#}")),
        }
    }
    print!("{}", table(&figures));
    for line in &broken {
        eprintln!("bench: could not measure {line}");
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The test kit panics where it cannot go on; the other figures do not suffer from it.
fn guarded(measure: Measure, effort: Effort) -> anyhow::Result<Vec<Figure>> {
    std::panic::catch_unwind(|| measure(effort)).unwrap_or_else(|_| bail!("see the panic above"))
}

fn again_as_root_of_a_namespace() -> anyhow::Result<ExitCode> {
    let mut again = Command::new(std::env::current_exe()?);
    again.args(std::env::args().skip(1)).env(INSIDE, "1");
    in_user_namespace(&mut again);
    let status = again.status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
