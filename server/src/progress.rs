//! What the nodes said last, in memory.

pub mod service;
pub mod withdrawal;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use minisvc_proto::{
    NodeName, Revision,
    report::{NODE_SILENCE_LIMIT, NodeReport},
};
use tokio::sync::watch;

/// How many earlier lives of an agent are remembered, so that their late reports are told apart.
const FORMER_BOOTS: usize = 8;

struct Heard {
    report: NodeReport,
    at: Instant,
    former: Vec<String>,
}

/// The last report of each node. Nothing of it is stored: nodes speak again within a second.
pub struct Progress {
    nodes: Mutex<BTreeMap<NodeName, Heard>>,
    changed: watch::Sender<u64>,
    readiness: watch::Sender<u64>,
}

impl Default for Progress {
    fn default() -> Self {
        Progress { nodes: Mutex::default(), changed: watch::Sender::new(0), readiness: watch::Sender::new(0) }
    }
}

impl Progress {
    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeName, Heard>> {
        // Each change of the map is one insert: a panic elsewhere leaves it whole.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a report, heard at this time. One that was overtaken, by a later one or by a later life of the agent, is dropped
    /// (`false`). Who waits is woken only when something but the time changed.
    pub fn record(&self, node: &NodeName, report: NodeReport, at: Instant) -> bool {
        let mut nodes = self.nodes();
        let old = nodes.get(node);
        let news = old.is_none_or(|old| {
            (old.report.services, old.report.endpoint_slices, old.report.ready, &old.report.message)
                != (report.services, report.endpoint_slices, report.ready, &report.message)
        });
        let turned = old.is_none_or(|old| {
            (old.report.ready, &old.report.message) != (report.ready, &report.message)
                // One that is heard again after a silence must not wait for the next look.
                || at.saturating_duration_since(old.at) > NODE_SILENCE_LIMIT
        });
        let mut former = Vec::new();
        if let Some(old) = old {
            let overtaken = if old.report.boot_id == report.boot_id {
                report.sequence <= old.report.sequence
            } else {
                old.former.contains(&report.boot_id)
            };
            if overtaken {
                return false;
            }
            former.clone_from(&old.former);
            if old.report.boot_id != report.boot_id {
                former.push(old.report.boot_id.clone());
                let surplus = former.len().saturating_sub(FORMER_BOOTS);
                former.drain(..surplus);
            }
        }
        nodes.insert(node.clone(), Heard { report, at, former });
        drop(nodes);
        if news {
            self.changed.send_modify(|n| *n = n.wrapping_add(1));
        }
        if turned {
            self.readiness.send_modify(|n| *n = n.wrapping_add(1));
        }
        true
    }

    /// Forgets a node that left the cluster.
    pub fn forget(&self, node: &NodeName) {
        if self.nodes().remove(node).is_some() {
            self.changed.send_modify(|n| *n = n.wrapping_add(1));
            self.readiness.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// When the node was last heard.
    pub fn last_seen(&self, node: &NodeName) -> Option<Instant> {
        self.nodes().get(node).map(|h| h.at)
    }

    /// The node's last report.
    pub fn report(&self, node: &NodeName) -> Option<NodeReport> {
        self.nodes().get(node).map(|h| h.report.clone())
    }

    /// The nodes whose last report said that they are ready, by name. Silence is judged elsewhere.
    pub fn ready_nodes(&self) -> Vec<NodeName> {
        self.nodes().iter().filter(|(_, h)| h.report.ready).map(|(n, _)| n.clone()).collect()
    }

    /// Up to which revisions of Services and of EndpointSlices the node has programmed its kernel.
    pub fn programmed(&self, node: &NodeName) -> Option<(Revision, Revision)> {
        self.nodes().get(node).map(|h| (h.report.services, h.report.endpoint_slices))
    }

    /// Changes with every report that says something new.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Changes when a node comes, goes, is heard again after a silence, or says something new of its readiness.
    pub fn subscribe_readiness(&self) -> watch::Receiver<u64> {
        self.readiness.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(boot: &str, sequence: u64, services: u64) -> NodeReport {
        NodeReport {
            boot_id: boot.into(),
            sequence,
            services: Revision(services),
            ready: true,
            ..NodeReport::default()
        }
    }

    #[test]
    fn overtaken_reports_are_dropped_and_only_news_wakes() {
        let (progress, node, now) = (Progress::default(), "n1".parse().unwrap(), Instant::now());
        let mut waiter = progress.subscribe();
        for (boot, sequence, services, taken, woken) in [
            ("a", 1, 5, true, true),
            ("a", 2, 5, true, false),
            ("a", 2, 6, false, false),
            ("b", 1, 3, true, true),
            ("a", 9, 9, false, false),
            ("b", 2, 4, true, true),
        ] {
            assert_eq!(
                progress.record(&node, report(boot, sequence, services), now),
                taken,
                "{boot}{sequence}"
            );
            assert_eq!(waiter.has_changed().unwrap(), woken, "{boot}{sequence}");
            waiter.mark_unchanged();
        }
        assert_eq!(progress.programmed(&node), Some((Revision(4), Revision(0))));
        assert_eq!((progress.last_seen(&node), progress.ready_nodes()), (Some(now), vec![node.clone()]));
        progress.forget(&node);
        assert_eq!(progress.programmed(&node), None);
    }
}
