//! Probes: when a container is asked, and what its answers in a row mean. [pkg/kubelet/prober/worker.go]

use std::{net::Ipv4Addr, time::Duration};

use k8s_openapi::api::core::v1::Container;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::handler::{Handler, Place, Report, What};
use crate::runtime::PodRuntime;

/// Until a container was well once, it is asked this often during its first period: most are ready within milliseconds, and
/// nobody wants to wait a whole period for them.
const EAGER: Duration = Duration::from_millis(50);
/// The distance grows with the time that has passed, so that many containers that are slow cost little: to this share of it.
const PATIENCE: u32 = 20;
/// A row of failures is told when it is this long, or when it changes something.
const TOLD: u32 = 3;

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProbeKind {
    /// The others wait for its success; its failure ends the container.
    Startup,
    /// Whether the container gets traffic.
    Readiness,
    /// Its failure ends the container.
    Liveness,
}

impl ProbeKind {
    /// As events call it.
    pub fn name(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Readiness => "Readiness",
            ProbeKind::Liveness => "Liveness",
        }
    }
}

/// When and how a container is asked, with Kubernetes' defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    kind: ProbeKind,
    handler: Handler,
    initial_delay: Duration,
    period: Duration,
    timeout: Duration,
    success: u32,
    failure: u32,
}

/// What a probe has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What it is about.
    pub kind: ProbeKind,
    /// Well or not; `None` when a failure changes nothing, but should be told.
    pub well: Option<bool>,
    /// Why not.
    pub message: String,
}

/// The probe of this kind that the spec has.
pub fn spec_of(kind: ProbeKind, container: &Container) -> Option<&k8s_openapi::api::core::v1::Probe> {
    match kind {
        ProbeKind::Startup => container.startup_probe.as_ref(),
        ProbeKind::Readiness => container.readiness_probe.as_ref(),
        ProbeKind::Liveness => container.liveness_probe.as_ref(),
    }
}

impl Probe {
    /// The container's probe of this kind, if it has one that can be done; a fault is one line for the user.
    pub fn of(kind: ProbeKind, container: &Container, ip: Ipv4Addr) -> Result<Option<Self>, String> {
        let Some(probe) = spec_of(kind, container) else { return Ok(None) };
        let handler = Handler::of_probe(probe, container, ip)?;
        let seconds = |n: Option<i32>, default: u64| {
            Duration::from_secs(n.and_then(|n| u64::try_from(n).ok()).unwrap_or(default))
        };
        let times = |n: Option<i32>, default: u32| {
            n.and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(default)
        };
        Ok(Some(Probe {
            kind,
            handler,
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds.filter(|n| *n > 0), 10),
            timeout: seconds(probe.timeout_seconds.filter(|n| *n > 0), 1),
            success: times(probe.success_threshold, 1),
            failure: times(probe.failure_threshold, 3),
        }))
    }

    /// Asks until there is nothing more to ask, or the receiver is gone. The container started `age` ago. One that `was_well`
    /// when an earlier agent asked last is taken to be, and whether it is ready is asked at once.
    pub async fn run<R: PodRuntime>(
        self,
        place: Place<R>,
        (age, was_well): (Duration, bool),
        reports: mpsc::Sender<Report>,
    ) {
        let begun = Instant::now();
        let at_once = was_well && self.kind == ProbeKind::Readiness;
        let first = if at_once { begun } else { begun + self.initial_delay.saturating_sub(age) };
        let mut tick = first;
        let mut next = first;
        let mut count = Count::new(self.kind, was_well);
        loop {
            sleep_until(next).await;
            let answer = match timeout(self.timeout, self.handler.ask(&place)).await {
                Ok(answer) => answer,
                Err(_) => Err(format!("no answer within {:?}", self.timeout)),
            };
            // What is asked out of turn cannot bring a container closer to its end.
            let in_turn = next >= tick;
            let step = count.step(answer.is_ok(), in_turn, self.success, self.failure);
            if step.changed.is_some() || (step.told && answer.is_err()) {
                let message = answer
                    .err()
                    .map(|e| format!("{} probe failed: {e}", self.kind.name()))
                    .unwrap_or_default();
                let verdict = Verdict { kind: self.kind, well: step.changed, message };
                let last = match self.kind {
                    ProbeKind::Startup => step.changed.is_some(),
                    ProbeKind::Liveness => step.changed == Some(false),
                    ProbeKind::Readiness => false,
                };
                if reports.send(place.report(What::Probe(verdict))).await.is_err() || last {
                    return;
                }
            }
            let now = Instant::now();
            if in_turn {
                // Pods that an agent took up together are not asked together for ever.
                let share = if was_well && tick == first { rand::random::<f64>() } else { 1.0 };
                tick += self.period.mul_f64(share);
            }
            while tick <= now {
                tick += self.period;
            }
            // A command costs a process.
            let share = if self.handler.is_costly() { 1 } else { PATIENCE };
            let wait = EAGER.max(now.duration_since(first) / share);
            next = if count.was_well || now >= first + self.period { tick } else { tick.min(now + wait) };
        }
    }
}

/// Answers in a row.
#[derive(Clone, Copy, Debug)]
struct Count {
    good: u32,
    /// In their turn.
    bad: u32,
    /// In and out of turn.
    row: u32,
    /// Unknown for a startup probe that is not done.
    well: Option<bool>,
    was_well: bool,
}

struct Step {
    changed: Option<bool>,
    /// The failures in a row have just become worth telling.
    told: bool,
}

impl Count {
    fn new(kind: ProbeKind, was_well: bool) -> Self {
        let well = match kind {
            ProbeKind::Startup => None,
            ProbeKind::Readiness => Some(was_well),
            ProbeKind::Liveness => Some(true),
        };
        Count { good: 0, bad: 0, row: 0, well, was_well: well == Some(true) }
    }

    fn step(&mut self, good: bool, in_turn: bool, success: u32, failure: u32) -> Step {
        let before = self.well;
        if good {
            (self.good, self.bad, self.row) = (self.good.saturating_add(1), 0, 0);
            if self.good >= success {
                self.well = Some(true);
            }
        } else {
            (self.good, self.row) = (0, self.row.saturating_add(1));
            self.bad = self.bad.saturating_add(u32::from(in_turn));
            if self.bad >= failure {
                self.well = Some(false);
            }
        }
        self.was_well |= self.well == Some(true);
        let changed = self.well.filter(|_| self.well != before);
        Step { changed, told: self.row == failure.min(TOLD) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::handler::tests::*, *};

    fn probe(kind: ProbeKind, spec: Value) -> Probe {
        let field = format!("{}Probe", kind.name().to_lowercase());
        let container = json!({"name": "c", field: spec});
        Probe::of(kind, &serde_json::from_value(container).unwrap(), Ipv4Addr::LOCALHOST).unwrap().unwrap()
    }

    /// What answers of `+` and `-` change, those out of turn in brackets.
    fn changes(kind: ProbeKind, success: u32, failure: u32, answers: &str) -> String {
        let mut count = Count::new(kind, false);
        let mut in_turn = true;
        let mut out = String::new();
        for c in answers.chars() {
            if let '(' | ')' = c {
                in_turn = c == ')';
                continue;
            }
            out.push(match count.step(c == '+', in_turn, success, failure).changed {
                Some(true) => 'W',
                Some(false) => 'N',
                None => '.',
            });
        }
        out
    }

    #[test]
    fn thresholds_count_answers_in_a_row() {
        use ProbeKind::{Liveness, Readiness, Startup};
        assert_eq!(changes(Readiness, 2, 3, "+-++--+---+"), "...W.....N.");
        assert_eq!(changes(Liveness, 1, 3, "+--+---"), "......N");
        assert_eq!(changes(Startup, 1, 3, "--+"), "..W");
        assert_eq!(changes(Startup, 1, 3, "-(----)-(----)-"), "..........N");
        assert_eq!(changes(Startup, 1, 3, "-(----+)"), ".....W");
    }

    async fn verdict(reports: &mut mpsc::Receiver<Report>) -> Option<Verdict> {
        let report = reports.recv().await?;
        let What::Probe(verdict) = report.what else { panic!("{report:?}") };
        assert_eq!((report.container.as_str(), report.attempt), ("c", 2));
        Some(verdict)
    }

    fn free_port() -> (std::net::TcpListener, u16) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        (listener, port)
    }

    #[tokio::test]
    async fn the_first_success_is_told_at_once() {
        let (_listener, port) = free_port();
        for kind in [ProbeKind::Readiness, ProbeKind::Startup] {
            let probe = probe(kind, json!({"tcpSocket": {"port": port}}));
            let (sender, mut reports) = mpsc::channel(4);
            let task = tokio::spawn(probe.run(place(), (Duration::ZERO, false), sender));
            let told = Verdict { kind, well: Some(true), message: String::new() };
            assert_eq!(verdict(&mut reports).await, Some(told));
            if kind == ProbeKind::Startup {
                assert_eq!(verdict(&mut reports).await, None, "nothing more to ask");
            }
            task.abort();
        }
    }

    #[tokio::test]
    async fn what_was_ready_is_asked_at_once_and_says_only_that_it_is_no_longer() {
        let (listener, port) = free_port();
        drop(listener);
        let spec = json!({"tcpSocket": {"port": port}, "initialDelaySeconds": 3600, "failureThreshold": 1});
        let (sender, mut reports) = mpsc::channel(4);
        let run = probe(ProbeKind::Readiness, spec).run(place(), (Duration::ZERO, true), sender);
        let task = tokio::spawn(run);
        assert_eq!(verdict(&mut reports).await.unwrap().well, Some(false));
        task.abort();
    }

    #[tokio::test]
    async fn a_delay_counts_from_the_containers_start_and_a_hanging_command_is_a_failure() {
        let place = running().await;
        place.runtime.hangs("stuck");
        let spec =
            json!({"exec": {"command": ["stuck"]}, "initialDelaySeconds": 3600, "failureThreshold": 1});
        let (sender, mut reports) = mpsc::channel(4);
        let probe = probe(ProbeKind::Liveness, spec);
        tokio::spawn(probe.run(place, (Duration::from_hours(1), false), sender));
        let said = verdict(&mut reports).await.unwrap();
        assert_eq!(
            (said.well, said.message.as_str()),
            (Some(false), "Liveness probe failed: no answer within 1s")
        );
        assert_eq!(verdict(&mut reports).await, None);
    }
}
