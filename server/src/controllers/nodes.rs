//! A node that falls silent is not ready, and neither are its pods.

use std::time::{Duration, Instant};

use minisvc_proto::report::{NODE_SILENCE_LIMIT, NodeReport};

use crate::conditions::Condition;

/// How late the server's own clock tick may be before silence of nodes proves nothing.
pub const STALL_LIMIT: Duration = Duration::from_secs(1);

/// Since when silence counts: the server's start, or the end of its own last stall. While the server stood still it could not
/// hear anybody.
#[derive(Clone, Copy, Debug)]
pub struct Listening {
    since: Instant,
    expected: Instant,
}

impl Listening {
    /// From now on.
    pub fn start(now: Instant) -> Self {
        Listening { since: now, expected: now }
    }

    /// Since some time ago, without a stall since then.
    #[cfg(test)]
    pub fn since(then: Instant) -> Self {
        Listening { since: then, expected: Instant::now() }
    }

    /// To be called at each tick, with the time of the next one.
    pub fn tick(&mut self, now: Instant, period: Duration) {
        if now.saturating_duration_since(self.expected) > STALL_LIMIT {
            self.since = now;
        }
        self.expected = now + period;
    }

    /// Whether a node last heard at `last` is silent for too long.
    pub fn is_silent(&self, last: Option<Instant>, now: Instant) -> bool {
        let from = last.map_or(self.since, |l| l.max(self.since));
        now.saturating_duration_since(from) > NODE_SILENCE_LIMIT
    }
}

/// What the node's condition Ready should be; `None` while nothing is known about it yet.
pub fn ready(report: Option<&NodeReport>, silent: bool) -> Option<Condition> {
    let (status, reason, message) = match report {
        _ if silent => {
            let message = format!("The node did not speak for {} s", NODE_SILENCE_LIMIT.as_secs());
            ("Unknown", "NodeStatusUnknown", message)
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

    #[test]
    fn silence_counts_from_the_servers_start_and_from_the_end_of_its_stall() {
        let t0 = Instant::now();
        let mut listening = Listening::start(t0);
        assert!(!listening.is_silent(None, t0 + 4 * S));
        assert!(listening.is_silent(None, t0 + 5 * S));
        for i in 0..10 {
            listening.tick(t0 + i * S, S);
        }
        assert!(listening.is_silent(Some(t0 + 3 * S), t0 + 10 * S));
        listening.tick(t0 + 20 * S, S);
        assert!(!listening.is_silent(Some(t0 + 9 * S), t0 + 20 * S));
        assert!(listening.is_silent(Some(t0 + 9 * S), t0 + 25 * S));
    }

    #[test]
    fn the_condition_says_why() {
        let report = NodeReport { ready: true, ..NodeReport::default() };
        assert_eq!(ready(None, false), None);
        assert_eq!(ready(Some(&report), false).unwrap().status, "True");
        assert_eq!(ready(Some(&report), true).unwrap().status, "Unknown");
        let report = NodeReport { message: "no nftables".into(), ..NodeReport::default() };
        assert_eq!(ready(Some(&report), false).unwrap().message, "no nftables");
    }
}
