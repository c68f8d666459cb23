//! Who speaks and who is silent, and since when that counts. Pure: what the clocks say comes in.

use std::time::{Duration, Instant};

use minisvc_proto::report::{HEARTBEAT_PERIOD, NODE_SILENCE_LIMIT, NodeReport};

use crate::conditions::{Condition, MOST_SILENT};

/// How late the server's own clock tick may be before silence of nodes proves nothing.
pub const STALL_LIMIT: Duration = Duration::from_secs(1);
/// How often silence is looked for. What a node says is acted on at once.
pub const PERIOD: Duration = Duration::from_millis(500);
/// How long a node has said nothing when it counts as one of those that are cut off together: when the first of them is silent for
/// [`NODE_SILENCE_LIMIT`], the last may have spoken a heartbeat later, and was looked at a tick ago.
const QUIET_LIMIT: Duration = NODE_SILENCE_LIMIT.saturating_sub(HEARTBEAT_PERIOD).saturating_sub(PERIOD);
/// Percent of the nodes from which on their silence is rather the server's own fault.
/// [pkg/controller/nodelifecycle, --unhealthy-zone-threshold]
const MOST: usize = 55;

/// Since when silence counts: the server's start, or the end of its own last stall, or of its machine's sleep. While the server
/// stood still it could not hear anybody.
#[derive(Clone, Copy, Debug)]
pub struct Listening {
    since: Instant,
    expected: Instant,
    /// How long the machine has slept in all, as far as is known.
    slept: Option<Duration>,
}

impl Listening {
    /// From now on.
    pub fn start(now: Instant) -> Self {
        Listening { since: now, expected: now, slept: None }
    }

    /// Since some time ago, without a stall since then.
    #[cfg(test)]
    pub fn since_then(then: Instant) -> Self {
        Listening { since: then, expected: Instant::now(), slept: None }
    }

    /// To be called each [`PERIOD`]. `slept` is how long the machine has slept since its start, which `Instant` does not count.
    pub fn tick(&mut self, now: Instant, slept: Duration) {
        let stalled = now.saturating_duration_since(self.expected) > STALL_LIMIT;
        let woke = self.slept.is_some_and(|before| slept.saturating_sub(before) > STALL_LIMIT);
        if stalled || woke {
            self.since = now;
        }
        self.slept = Some(slept);
        self.expected = now + PERIOD;
    }

    /// Since when the server listens without a break.
    pub fn since(&self) -> Instant {
        self.since
    }

    fn silence(&self, last: Option<Instant>, now: Instant) -> Duration {
        now.saturating_duration_since(last.map_or(self.since, |l| l.max(self.since)))
    }

    /// Whether a node last heard at `last` is silent for too long.
    pub fn is_silent(&self, last: Option<Instant>, now: Instant) -> bool {
        self.silence(last, now) > NODE_SILENCE_LIMIT
    }

    /// Whether a node last heard at `last` is silent, or may be about to be found so together with others.
    pub fn is_quiet(&self, last: Option<Instant>, now: Instant) -> bool {
        self.silence(last, now) > QUIET_LIMIT
    }

    /// Whether the node was heard at all while the server listened.
    pub fn has_heard(&self, last: Option<Instant>) -> bool {
        last.is_some_and(|l| l > self.since)
    }

    /// Whether so many nodes are silent, or about to be, that the server is likelier to be the one that is cut off.
    pub fn outage(&self, last: impl IntoIterator<Item = Option<Instant>>, now: Instant) -> Outage {
        let (mut total, mut quiet) = (0, 0);
        for last in last {
            total += 1;
            quiet += usize::from(self.is_quiet(last, now));
        }
        Outage { quiet, total }
    }
}

/// How many nodes are silent at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Silent, or about to be.
    pub quiet: usize,
    /// All nodes.
    pub total: usize,
}

impl Outage {
    /// Whether most nodes are silent: then nothing is evicted. Unlike Kubernetes' this needs no third silent node: with two of three
    /// machines gone it is as likely that the server is cut off, and one machine seldom has the room for three.
    pub fn is_of_most(self) -> bool {
        self.quiet > 0 && self.quiet * 100 >= self.total * MOST
    }
}

/// What the node's condition Ready should be; `None` while nothing is known about it yet.
pub fn ready(report: Option<&NodeReport>, silent: bool, outage: Outage) -> Option<Condition> {
    let (status, reason, message) = match report {
        _ if silent => {
            let limit = NODE_SILENCE_LIMIT.as_secs();
            let message = format!("The node did not speak for {limit} s");
            if outage.is_of_most() {
                let Outage { quiet, total } = outage;
                let message = format!(
                    "{message}, as {quiet} of {total} nodes: rather the server is cut off, and no pod is replaced; \
                     delete the nodes that are gone"
                );
                ("Unknown", MOST_SILENT, message)
            } else {
                ("Unknown", "NodeStatusUnknown", message)
            }
        }
        None => return None,
        Some(r) if r.ready => ("True", "AgentReady", "The agent is ready".to_owned()),
        Some(r) if r.message.is_empty() => ("False", "AgentNotReady", "The agent is not ready".to_owned()),
        Some(r) => ("False", "AgentNotReady", r.message.clone()),
    };
    Some(Condition { kind: "Ready", status, reason, message })
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const AWAKE: Duration = Duration::ZERO;

    /// Ticks as they should come, from one second of the test to another.
    fn run(listening: &mut Listening, t0: Instant, seconds: std::ops::Range<u32>, slept: Duration) {
        for half in seconds.start * 2..seconds.end * 2 {
            listening.tick(t0 + half * PERIOD, slept);
        }
    }

    #[test]
    fn silence_counts_from_the_servers_start_and_from_the_end_of_its_stall() {
        let t0 = Instant::now();
        let mut listening = Listening::start(t0);
        assert!(!listening.is_silent(None, t0 + 4 * S));
        assert!(listening.is_silent(None, t0 + 5 * S));
        run(&mut listening, t0, 0..10, AWAKE);
        assert!(listening.is_silent(Some(t0 + 3 * S), t0 + 10 * S));
        listening.tick(t0 + 20 * S, AWAKE);
        assert!(!listening.is_silent(Some(t0 + 9 * S), t0 + 20 * S));
        assert!(!listening.has_heard(Some(t0 + 9 * S)) && listening.has_heard(Some(t0 + 21 * S)));
        assert!(listening.is_silent(Some(t0 + 9 * S), t0 + 25 * S));
    }

    #[test]
    fn silence_counts_from_the_end_of_the_machines_sleep_which_the_monotonic_clock_does_not_see() {
        let t0 = Instant::now();
        for (before, after, silent) in [
            (AWAKE, AWAKE, true),
            (AWAKE, S / 2, true), // The two clocks are not read at the same time.
            (AWAKE, 3600 * S, false),
            (3600 * S, 3600 * S, true), // It slept before the server's start.
            (3600 * S, 3605 * S, false),
        ] {
            let mut listening = Listening::start(t0);
            run(&mut listening, t0, 0..8, before);
            listening.tick(t0 + 8 * S, after);
            assert_eq!(listening.is_silent(Some(t0 + 3 * S), t0 + 8 * S), silent, "{before:?} {after:?}");
        }
    }

    #[test]
    fn the_table_of_docs_operations_says_when_silence_is_the_servers_fault() {
        // (silent, of, whether their pods stay): a line for each cluster in docs/operations.md.
        for (quiet, total, suspended) in [
            (0, 0, false),
            (0, 1, false),
            (1, 1, true),
            (1, 2, false),
            (2, 2, true),
            (1, 3, false),
            (2, 3, true),
            (3, 3, true),
            (2, 4, false),
            (3, 4, true),
            (2, 5, false),
            (3, 5, true),
            (5, 10, false),
            (6, 10, true),
            (54, 100, false),
            (55, 100, true),
        ] {
            assert_eq!(Outage { quiet, total }.is_of_most(), suspended, "{quiet} of {total}");
        }
    }

    #[test]
    fn nodes_that_are_cut_off_together_count_together_when_the_first_of_them_is_silent() {
        let t0 = Instant::now();
        let listening = Listening::start(t0);
        let ms = |n| Some(t0 + Duration::from_millis(n));
        // Each heartbeat is a second after the one before; the cut comes at 10 s, and somebody is silent for more than 4 s first at 13.05.
        for (last, quiet) in [
            ([ms(9_050), ms(9_300), ms(9_990)], 3),
            ([ms(9_050), ms(12_900), ms(12_100)], 1), // One died.
            ([ms(9_050), ms(9_900), ms(12_100)], 2),  // Two died at once.
            ([ms(12_500), ms(12_900), ms(12_100)], 0),
            ([None, None, ms(12_100)], 2), // Not heard since the server's start.
        ] {
            assert_eq!(listening.outage(last, ms(13_100).unwrap()), Outage { quiet, total: 3 }, "{last:?}");
        }
    }

    #[test]
    fn the_condition_says_why() {
        let few = Outage { quiet: 1, total: 3 };
        let report = NodeReport { ready: true, ..NodeReport::default() };
        assert_eq!(ready(None, false, few), None);
        assert_eq!(ready(Some(&report), false, few).unwrap().status, "True");
        let silent = ready(Some(&report), true, few).unwrap();
        assert_eq!((silent.status, silent.reason), ("Unknown", "NodeStatusUnknown"));
        let most = ready(Some(&report), true, Outage { quiet: 2, total: 3 }).unwrap();
        assert_eq!((most.status, most.reason), ("Unknown", MOST_SILENT));
        assert!(most.message.contains("2 of 3 nodes"), "{}", most.message);
        let report = NodeReport { message: "no nftables".into(), ..NodeReport::default() };
        assert_eq!(ready(Some(&report), false, few).unwrap().message, "no nftables");
    }
}
