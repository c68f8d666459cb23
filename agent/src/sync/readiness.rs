//! What this node tells of itself: how far it has come, and whether it may be used.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use minisvc_proto::{Revision, report::NodeReport};
use tokio::sync::watch;

/// The newest report, written by the loops and sent by the reporter. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Readiness {
    report: watch::Sender<NodeReport>,
    /// What stands in the way, by the part that it is a fault of.
    problems: Arc<Mutex<BTreeMap<&'static str, String>>>,
}

impl Readiness {
    /// Not ready until each of these parts has called [`Readiness::works`].
    pub fn new(parts: &[&'static str]) -> Self {
        let problems: BTreeMap<_, _> = parts.iter().map(|p| (*p, format!("{p}: not ready yet"))).collect();
        let report = NodeReport {
            boot_id: uuid::Uuid::new_v4().to_string(),
            ready: problems.is_empty(),
            message: problems.values().next().cloned().unwrap_or_default(),
            ..NodeReport::default()
        };
        Readiness { report: watch::Sender::new(report), problems: Arc::new(Mutex::new(problems)) }
    }

    /// The newest report, now and whenever it changes.
    pub fn subscribe(&self) -> watch::Receiver<NodeReport> {
        self.report.subscribe()
    }

    /// Everything up to these revisions is in the kernel.
    pub fn programmed(&self, services: Revision, endpoint_slices: Revision) {
        self.report.send_if_modified(|r| {
            let news = (r.services, r.endpoint_slices) != (services, endpoint_slices);
            (r.services, r.endpoint_slices) = (services, endpoint_slices);
            news
        });
    }

    /// This part does its work.
    pub fn works(&self, part: &'static str) {
        self.set(part, None);
    }

    /// This part does not do its work, and why.
    pub fn fails(&self, part: &'static str, why: &dyn std::fmt::Display) {
        self.set(part, Some(format!("{part}: {why}")));
    }

    fn set(&self, part: &'static str, problem: Option<String>) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        match problem {
            Some(problem) => drop(problems.insert(part, problem)),
            None => drop(problems.remove(part)),
        }
        let message = problems.values().next().cloned().unwrap_or_default();
        self.report.send_if_modified(|r| {
            let ready = message.is_empty();
            let news = (r.ready, &r.message) != (ready, &message);
            r.ready = ready;
            r.message = message;
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_ready_when_all_its_parts_work_and_says_what_does_not() {
        let readiness = Readiness::new(&["rules", "routes"]);
        let mut report = readiness.subscribe();
        assert!(!report.borrow().ready);
        readiness.works("rules");
        assert_eq!(report.borrow().message, "routes: not ready yet");
        readiness.works("routes");
        assert!(report.borrow_and_update().ready);
        readiness.works("routes");
        assert!(!report.has_changed().unwrap());
        readiness.fails("rules", &"no nftables");
        assert_eq!((report.borrow().ready, report.borrow().message.as_str()), (false, "rules: no nftables"));
        readiness.programmed(Revision(3), Revision(2));
        assert_eq!(report.borrow().services, Revision(3));
    }
}
