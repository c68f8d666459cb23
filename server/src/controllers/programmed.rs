//! The condition `Programmed` of Services: every ready node has the service and its endpoints in its kernel. Each change and
//! each report touches only the services whose state it can change.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use minisvc_proto::{Object, ObjectKey, Revision};

use super::picture::{Changed, is_status_only};
use crate::conditions::Condition;

/// How long a service may be incomplete before that is written down: nodes catch up with an ordinary change far sooner, and
/// then nothing is written at all.
pub const GRACE: Duration = Duration::from_secs(1);

/// What the nodes must have of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Needs {
    /// The last change of the service that was no status-only write.
    service: Revision,
    /// The last change of its slices.
    slices: Revision,
    /// Since when it has been incomplete; `None` while it is complete.
    incomplete: Option<Instant>,
}

/// What every ready node has of Services and of EndpointSlices; `None` while no node is ready.
type Floor = Option<(Revision, Revision)>;

/// See the module.
#[derive(Debug, Default)]
pub struct Tracker {
    services: HashMap<ObjectKey, Needs>,
    /// Those that need more than the floor, by what they need.
    waiting_for_service: BTreeSet<(Revision, ObjectKey)>,
    waiting_for_slices: BTreeSet<(Revision, ObjectKey)>,
    floor: Floor,
}

impl Tracker {
    /// A service came, changed or went.
    pub fn service_changed(&mut self, changed: &Changed) {
        let key = &changed.key;
        let Some(new) = &changed.new else {
            if let Some(needs) = self.services.remove(key) {
                self.stop_waiting(key, needs);
            }
            return;
        };
        // The addresses of a load balancer are in the status, and the nodes answer there.
        let addresses = |o: &Object| o.pointer("/status/loadBalancer").cloned();
        let is_idle = |old: &Arc<Object>| is_status_only(old, new) && addresses(old) == addresses(new);
        if changed.old.as_ref().is_some_and(is_idle) {
            return;
        }
        self.need(key, |needs| needs.service = changed.revision);
    }

    /// A slice of the service came, changed or went.
    pub fn slices_changed(&mut self, service: &ObjectKey, at: Revision) {
        if self.services.contains_key(service) {
            self.need(service, |needs| needs.slices = needs.slices.max(at));
        }
    }

    fn need(&mut self, key: &ObjectKey, change: impl FnOnce(&mut Needs)) {
        let mut needs = self.services.get(key).copied().unwrap_or_default();
        self.stop_waiting(key, needs);
        change(&mut needs);
        self.services.insert(key.clone(), needs);
        if self.floor.is_none_or(|(services, _)| needs.service > services) {
            self.waiting_for_service.insert((needs.service, key.clone()));
        }
        if self.floor.is_none_or(|(_, slices)| needs.slices > slices) {
            self.waiting_for_slices.insert((needs.slices, key.clone()));
        }
    }

    fn stop_waiting(&mut self, key: &ObjectKey, needs: Needs) {
        self.waiting_for_service.remove(&(needs.service, key.clone()));
        self.waiting_for_slices.remove(&(needs.slices, key.clone()));
    }

    /// Takes what every ready node has; answers the services that may be complete now, or no longer.
    pub fn set_floor(&mut self, floor: Floor) -> Vec<ObjectKey> {
        let before = std::mem::replace(&mut self.floor, floor);
        if floor == before {
            return Vec::new();
        }
        let (Some((services, slices)), Some(had)) = (floor, before) else { return self.start_over() };
        if services < had.0 || slices < had.1 {
            return self.start_over();
        }
        let mut out = Vec::new();
        for (waiting, reached) in
            [(&mut self.waiting_for_service, services), (&mut self.waiting_for_slices, slices)]
        {
            while waiting.first().is_some_and(|(needed, _)| *needed <= reached) {
                out.extend(waiting.pop_first().map(|(_, key)| key));
            }
        }
        out
    }

    /// A node came with less, or the first came, or the last left: everything is looked at. That is rare.
    fn start_over(&mut self) -> Vec<ObjectKey> {
        let all: Vec<ObjectKey> = self.services.keys().cloned().collect();
        for key in &all {
            self.need(key, |_| {});
        }
        all
    }

    /// How the service stands at this time; `None` if it is not known (any more).
    pub fn standing(&mut self, service: &ObjectKey, now: Instant) -> Option<Standing> {
        let needs = self.services.get_mut(service)?;
        let complete = self.floor.is_some_and(|(s, e)| s >= needs.service && e >= needs.slices);
        if complete {
            needs.incomplete = None;
            return Some(Standing::Complete);
        }
        let since = *needs.incomplete.get_or_insert(now);
        Some(Standing::Incomplete {
            needs: (needs.service, needs.slices),
            left: GRACE.saturating_sub(now.saturating_duration_since(since)),
        })
    }
}

/// How a service stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Every ready node has it, and there is one.
    Complete,
    /// Some ready node lacks it, or no node is ready.
    Incomplete {
        /// The revisions of Services and of EndpointSlices that it takes.
        needs: (Revision, Revision),
        /// How long this may still last before it is written down.
        left: Duration,
    },
}

/// The condition of a complete service.
pub fn complete() -> Condition {
    Condition {
        kind: "Programmed",
        status: "True",
        reason: "Programmed",
        message: "Every ready node has programmed the service".into(),
    }
}

/// The condition of a service that these of so many ready nodes have not programmed.
pub fn incomplete(late: &[String], ready: usize) -> Condition {
    const SHOWN: usize = 5;
    let (reason, message) = if ready == 0 {
        ("NoReadyNode", "No node is ready".to_owned())
    } else {
        let mut names = late.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        if late.len() > SHOWN {
            names.push_str(", …");
        }
        (
            "NodesLate",
            format!("{} of {ready} ready nodes have not programmed the service: {names}", late.len()),
        )
    };
    Condition { kind: "Programmed", status: "False", reason, message }
}

/// Whether the service says already what this condition says, of its present generation.
pub fn is_said(service: &Object, condition: &Condition) -> bool {
    let old = crate::conditions::get(service, condition.kind);
    old.is_some_and(|old| {
        old.get("status").and_then(serde_json::Value::as_str) == Some(condition.status)
            && (condition.status != "True"
                || old.get("observedGeneration").and_then(serde_json::Value::as_i64)
                    == Some(service.generation()))
    })
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::SERVICES;
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> ObjectKey {
        ObjectKey::namespaced(&SERVICES, "default", &format!("s{n}"))
    }

    fn changed(n: u8, revision: u64, old: Option<Arc<Object>>, there: bool) -> Changed {
        let mut new = Object::new(&SERVICES, Some("default"), &format!("s{n}"));
        new.spec_mut().insert("at".into(), revision.into());
        Changed { key: key(n), revision: Revision(revision), old, new: there.then(|| Arc::new(new)) }
    }

    #[test]
    fn a_status_write_asks_nothing_of_the_nodes_and_grace_counts_from_the_first_look() {
        let (mut tracker, t0) = (Tracker::default(), Instant::now());
        let first = changed(1, 5, None, true);
        tracker.service_changed(&first);
        let mut with_status = (**first.new.as_ref().unwrap()).clone();
        with_status.status_mut().insert("a".into(), 1.into());
        let second =
            Changed { old: first.new.clone(), new: Some(Arc::new(with_status)), ..changed(1, 9, None, true) };
        tracker.service_changed(&second);
        let at = |ip: &str| {
            let mut new = (**first.new.as_ref().unwrap()).clone();
            new.status_mut().insert("loadBalancer".into(), serde_json::json!({"ingress": [{"ip": ip}]}));
            Some(Arc::new(new))
        };
        let moved = Changed { old: at("10.0.0.1"), new: at("10.0.0.2"), ..changed(3, 4, None, true) };
        tracker.service_changed(&moved);
        let left = |s| if let Some(Standing::Incomplete { left, .. }) = s { Some(left) } else { None };
        assert_eq!(left(tracker.standing(&key(1), t0)), Some(GRACE));
        assert_eq!(left(tracker.standing(&key(1), t0 + GRACE)), Some(Duration::ZERO));
        let mut complete = tracker.set_floor(Some((Revision(5), Revision(0))));
        complete.sort();
        assert_eq!(complete, [key(1), key(3)]);
        assert_eq!(tracker.standing(&key(1), t0), Some(Standing::Complete));
        assert_eq!(tracker.standing(&key(2), t0), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn whoever_changes_is_named(steps in proptest::collection::vec((0_u8..5, 0_u8..4, 0_u64..12, 0_u64..12), 1..60)) {
            let (mut tracker, t0) = (Tracker::default(), Instant::now());
            let mut told: HashMap<ObjectKey, bool> = HashMap::new();
            for (revision, (what, n, a, b)) in (1_u64..).zip(steps) {
                let named = match what {
                    0 => {
                        tracker.service_changed(&changed(n, revision, None, true));
                        vec![key(n)]
                    }
                    1 => {
                        tracker.service_changed(&changed(n, revision, None, false));
                        vec![key(n)]
                    }
                    2 => {
                        tracker.slices_changed(&key(n), Revision(revision));
                        vec![key(n)]
                    }
                    3 => tracker.set_floor(Some((Revision(a * 5), Revision(b * 5)))),
                    _ => tracker.set_floor((a > 3).then_some((Revision(a * 5), Revision(b * 5)))),
                };
                for k in named {
                    match tracker.standing(&k, t0) {
                        Some(s) => drop(told.insert(k, s == Standing::Complete)),
                        None => drop(told.remove(&k)),
                    }
                }
                for n in 0..4 {
                    let is = tracker.standing(&key(n), t0).map(|s| s == Standing::Complete);
                    prop_assert_eq!(told.get(&key(n)).copied(), is, "s{} after step {}", n, revision);
                }
            }
        }
    }
}
