//! What this node knows of its own pods before the server does: which of them do not serve.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// Why a pod does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Down {
    /// It is not Ready; who looks after it says when it is.
    NotReady,
    /// Nothing of it is left: it stays out until no slice names it.
    Gone,
}

/// The pods of this node that do not serve now, by uid: told by the pods' tasks, followed by who programs the kernel. Cheap to
/// clone.
#[derive(Clone, Debug, Default)]
pub struct LocalHealth(watch::Sender<BTreeMap<String, Down>>);

impl LocalHealth {
    /// Those that do not serve, now and whenever it changes.
    pub fn subscribe(&self) -> watch::Receiver<BTreeMap<String, Down>> {
        self.0.subscribe()
    }

    /// The pod is, or is not, Ready.
    pub fn put(&self, uid: &str, is_ready: bool) {
        self.set(uid, (!is_ready).then_some(Down::NotReady));
    }

    /// Nothing of the pod is left.
    pub fn gone(&self, uid: &str) {
        self.set(uid, Some(Down::Gone));
    }

    fn set(&self, uid: &str, state: Option<Down>) {
        self.0.send_if_modified(|down| {
            let before = match state {
                Some(state) => down.insert(uid.to_owned(), state),
                None => down.remove(uid),
            };
            before.is_some() != state.is_some()
        });
    }

    /// Forgets those that are gone and that nobody names any more.
    pub fn prune(&self, is_named: impl Fn(&str) -> bool) {
        self.0.send_if_modified(|down| {
            down.retain(|uid, state| *state == Down::NotReady || is_named(uid));
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_news_is_told_and_who_is_gone_stays_out_while_a_slice_names_it() {
        let health = LocalHealth::default();
        let mut told = health.subscribe();
        let mut news = || told.has_changed().unwrap() && told.borrow_and_update().len() < 9;
        health.put("a", true);
        assert!(!news());
        for (is_ready, is_news) in [(false, true), (false, false), (true, true), (false, true)] {
            health.put("a", is_ready);
            assert_eq!(news(), is_news, "{is_ready}");
        }
        health.put("b", false);
        health.gone("a");
        health.gone("c");
        health.prune(|uid| uid == "a");
        let down: Vec<_> = health.0.borrow().clone().into_iter().collect();
        assert_eq!(down, [("a".to_owned(), Down::Gone), ("b".to_owned(), Down::NotReady)]);
        health.prune(|_| false);
        assert_eq!(health.0.borrow().len(), 1);
    }
}
