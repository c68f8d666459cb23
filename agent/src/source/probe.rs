//! When other nodes are asked whether a foreign source comes back from them, and what follows. Pure: the time and the answers come in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::{Duration, Instant},
};

use super::Peer;

/// Between two probes of a node that answers, and how much more for each node: a thousand nodes cost each one 16 probes a second.
const EVERY: Duration = Duration::from_secs(10);
const EVERY_PER_NODE: Duration = Duration::from_millis(50);
/// After a failure of one that has answered.
const AGAIN: Duration = Duration::from_secs(1);
/// Between probes of one that does not answer: twice as long each time.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_mins(1);
/// So many failures in a row: its pods see the entry again.
const LOST_AFTER: u32 = 3;
/// So many answers in a row bring one back that was lost.
const REGAINED_AFTER: u32 = 2;

/// Why a node's pods do not see sources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// It is not asked: no way leads there, or it tells no link address.
    NotAsked,
    /// It was not asked yet.
    NotYet,
    /// Nothing came back.
    Silent,
    /// This node's kernel does not send it.
    Unsent,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Failure::NotAsked => "it says no link address, or no way leads there",
            Failure::NotYet => "it was not asked yet",
            Failure::Silent => {
                {
                "a datagram with a foreign source did not come back: something on the way drops it, or its agent does not answer"
            }
            }
            Failure::Unsent => "no datagram can be sent there",
        })
    }
}

#[derive(Clone, Debug)]
struct State {
    peer: Peer,
    kept: bool,
    was_kept: bool,
    answers: u32,
    failures: u32,
    last: Failure,
    /// `None`: a probe is on its way.
    due: Option<Instant>,
    /// Changes with what is asked: answers to earlier questions count for nothing.
    round: u64,
}

/// What is known of all other nodes.
#[derive(Clone, Debug, Default)]
pub struct Probes {
    states: BTreeMap<String, State>,
    round: u64,
}

/// A probe to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which node.
    pub node: String,
    /// Whom to ask.
    pub peer: Peer,
    /// Goes back with the result.
    pub round: u64,
}

impl Probes {
    /// These are the nodes now. One that is new or reached in another way is asked at once.
    pub fn set(&mut self, now: Instant, peers: &BTreeMap<String, Peer>) {
        self.states.retain(|name, _| peers.contains_key(name));
        for (name, peer) in peers {
            if self.states.get(name).is_some_and(|state| state.peer == *peer) {
                continue;
            }
            self.round += 1;
            let (last, due) =
                if peer.way.is_some() { (Failure::NotYet, Some(now)) } else { (Failure::NotAsked, None) };
            let (peer, round) = (peer.clone(), self.round);
            let state =
                State { peer, kept: false, was_kept: false, answers: 0, failures: 0, last, due, round };
            self.states.insert(name.clone(), state);
        }
    }

    /// So many at most of the probes that are due; each gets one result.
    pub fn take_due(&mut self, now: Instant, most: usize) -> Vec<Question> {
        let due = self.states.iter_mut().filter(|(_, state)| state.due.is_some_and(|due| due <= now));
        due.take(most)
            .map(|(name, state)| {
                state.due = None;
                Question { node: name.clone(), peer: state.peer.clone(), round: state.round }
            })
            .collect()
    }

    /// When the next one is due.
    pub fn next_due(&self) -> Option<Instant> {
        self.states.values().filter_map(|state| state.due).min()
    }

    /// What has become of a probe.
    pub fn result(&mut self, now: Instant, question: &Question, result: Result<(), Failure>) {
        let every = EVERY + EVERY_PER_NODE * u32::try_from(self.states.len()).unwrap_or(u32::MAX).min(10_000);
        let Some(state) = self.states.get_mut(&question.node) else { return };
        if state.round != question.round {
            return;
        }
        let wait = match result {
            Ok(()) => {
                (state.answers, state.failures) = (state.answers.saturating_add(1), 0);
                let enough = if state.was_kept { REGAINED_AFTER } else { 1 };
                if state.kept || state.answers >= enough {
                    (state.kept, state.was_kept) = (true, true);
                    every
                } else {
                    AGAIN
                }
            }
            Err(failure) => {
                (state.answers, state.failures, state.last) = (0, state.failures.saturating_add(1), failure);
                state.kept &= state.failures < LOST_AFTER;
                if state.kept {
                    AGAIN
                } else {
                    (FIRST_RETRY * 2u32.saturating_pow(state.failures.min(10) - 1)).min(LAST_RETRY)
                }
            }
        };
        state.due = Some(now + wait);
    }

    /// The nodes that answer.
    pub fn kept(&self) -> BTreeSet<&str> {
        self.states.iter().filter(|(_, state)| state.kept).map(|(name, _)| name.as_str()).collect()
    }

    /// The others, and why.
    pub fn failing(&self) -> BTreeMap<&str, Failure> {
        let failing = self.states.iter().filter(|(_, state)| !state.kept);
        failing.map(|(name, state)| (name.as_str(), state.last)).collect()
    }

    /// Whether every node that can be asked has been.
    pub fn is_settled(&self) -> bool {
        self.states.values().all(|state| state.kept || state.last != Failure::NotYet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Way;

    fn peers(names: &[(&str, Option<Way>)]) -> BTreeMap<String, Peer> {
        let peer = |way| Peer {
            ip: [192, 0, 2, 1].into(),
            pod_cidr: "10.244.1.0/24".parse().unwrap(),
            way,
            mac: Some([2; 6]),
        };
        names.iter().map(|(name, way)| ((*name).to_owned(), peer(*way))).collect()
    }

    /// Runs until then; `answers`: whether a probe is answered.
    fn run(
        probes: &mut Probes,
        now: &mut Instant,
        until: Instant,
        answers: impl Fn(&str) -> bool,
    ) -> Vec<String> {
        let mut asked = Vec::new();
        while let Some(due) = probes.next_due().filter(|due| *due <= until) {
            *now = due.max(*now);
            for question in probes.take_due(*now, usize::MAX) {
                asked.push(question.node.clone());
                let result = if answers(&question.node) { Ok(()) } else { Err(Failure::Silent) };
                probes.result(*now, &question, result);
            }
        }
        *now = until;
        asked
    }

    #[test]
    fn a_node_is_kept_once_it_answers_and_lost_after_failures_in_a_row() {
        let mut now = Instant::now();
        let second = Duration::from_secs(1);
        let mut probes = Probes::default();
        probes.set(now, &peers(&[("a", Some(Way::Uplink)), ("b", Some(Way::Tunnel)), ("c", None)]));
        assert!(!probes.is_settled() && probes.kept().is_empty());
        let until = now + second / 2;
        run(&mut probes, &mut now, until, |node| node == "a");
        assert_eq!((probes.kept(), probes.is_settled()), (["a"].into(), true));
        assert_eq!(probes.failing(), [("b", Failure::Silent), ("c", Failure::NotAsked)].into());
        // One lost datagram changes nothing; three in a row do, within seconds.
        let question = |probes: &mut Probes, now: &mut Instant| loop {
            *now = probes.next_due().unwrap().max(*now);
            let due = probes.take_due(*now, usize::MAX);
            for other in due.iter().filter(|q| q.node != "a") {
                probes.result(*now, other, Err(Failure::Silent));
            }
            if let Some(question) = due.into_iter().find(|q| q.node == "a") {
                return question;
            }
        };
        for results in [[false, true, true], [false, false, true]] {
            for ok in results {
                let q = question(&mut probes, &mut now);
                probes.result(now, &q, if ok { Ok(()) } else { Err(Failure::Silent) });
                assert_eq!(probes.kept(), ["a"].into());
            }
        }
        let before = now;
        let until = now + 20 * second;
        run(&mut probes, &mut now, until, |_| false);
        assert!(probes.kept().is_empty());
        // It comes back after two answers, at most as long as the longest pause after the way is open again.
        let until = before + 80 * second;
        run(&mut probes, &mut now, until, |_| false);
        let until = now + LAST_RETRY;
        run(&mut probes, &mut now, until, |node| node == "a");
        let until = now + 2 * second;
        run(&mut probes, &mut now, until, |node| node == "a");
        assert_eq!(probes.kept(), ["a"].into());
        // Another way is another question; late answers to the old one count for nothing.
        let old = Question { node: "a".into(), peer: peers(&[("a", None)])["a"].clone(), round: 1 };
        probes.set(now, &peers(&[("a", Some(Way::Tunnel))]));
        probes.result(now, &old, Ok(()));
        assert!(probes.kept().is_empty() && !probes.is_settled());
        probes.set(now, &peers(&[]));
        assert_eq!((probes.next_due(), probes.is_settled()), (None, true));
    }

    #[test]
    fn a_thousand_nodes_cost_few_probes() {
        let start = Instant::now();
        let names: Vec<String> = (0..1000).map(|n| format!("node-{n}")).collect();
        let list: Vec<_> = names.iter().map(|n| (n.as_str(), Some(Way::Uplink))).collect();
        for answers in [true, false] {
            let (mut now, mut probes) = (start, Probes::default());
            probes.set(start, &peers(&list));
            run(&mut probes, &mut now, start + Duration::from_mins(3), |_| answers);
            let minute = start + Duration::from_mins(4);
            let asked = run(&mut probes, &mut now, minute, |_| answers).len();
            assert!((900..=1_100).contains(&asked), "{asked} a minute");
        }
    }
}
