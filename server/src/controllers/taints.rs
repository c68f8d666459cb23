//! Taints of nodes, and how long a pod puts up with those that drive it away (effect NoExecute). Pure.
//! [pkg/controller/nodelifecycle and pkg/controller/tainteviction]

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use minisvc_proto::Object;
use serde_json::{Value, json};

use super::pod;
use crate::{conditions::Condition, scheduler};

/// The node is silent.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The node speaks, and says that it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";
/// How long a pod that says nothing stays on a node that speaks but is not ready: its pods run, and an agent that fails to program
/// its kernel still leaves what is there. [plugin/pkg/admission/defaulttolerationseconds]
const NOT_READY_TIMEOUT: Duration = Duration::from_mins(5);

/// The node's taints as they should be, if they are not: those of its condition Ready stand for it, all others stay. `evicts` is
/// false while most nodes are silent.
pub fn wanted(node: &Object, condition: &Condition, evicts: bool, now: &str) -> Option<Vec<Value>> {
    let key = match condition.status {
        "True" => None,
        "False" => Some(NOT_READY),
        _ => Some(UNREACHABLE),
    };
    let effects = if evicts { &[NO_SCHEDULE, NO_EXECUTE][..] } else { &[NO_SCHEDULE] };
    let is_ours = |t: &Value| [UNREACHABLE, NOT_READY].contains(&text(t, "key"));
    let is_wanted = |t: &Value| Some(text(t, "key")) == key && effects.contains(&text(t, "effect"));
    let old: Vec<&Value> = of(node).collect();
    let mut new: Vec<Value> =
        old.iter().filter(|t| !is_ours(t) || is_wanted(t)).map(|t| (*t).clone()).collect();
    if let Some(key) = key {
        for effect in effects {
            if !new.iter().any(|t| text(t, "key") == key && text(t, "effect") == *effect) {
                new.push(json!({"key": key, "effect": effect, "timeAdded": now}));
            }
        }
    }
    (new.len() != old.len() || new.iter().zip(&old).any(|(a, b)| a != *b)).then_some(new)
}

/// The node's taints.
pub fn of(node: &Object) -> impl Iterator<Item = &Value> {
    node.pointer("/spec/taints").and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(taint: &'a Value, field: &str) -> &'a str {
    taint.get(field).and_then(Value::as_str).unwrap_or("")
}

/// Since when the taints stand that drive pods away, and since when the pods are seen there, by the server's own clock. It starts
/// anew when the server does, so that no pod is hurt by what a wall clock did.
#[derive(Debug, Default)]
pub struct Standing {
    since: HashMap<String, Tainted>,
}

/// A node that drives pods away.
#[derive(Debug, Default)]
struct Tainted {
    /// By key and value.
    taints: HashMap<(String, String), Instant>,
    /// Its pods, by uid: one that came to the taint has its patience from then on, or it and each that replaces it would be ended
    /// as soon as it is there.
    pods: HashMap<String, Instant>,
}

impl Standing {
    /// Looks at a node and the pods on it.
    pub fn see<'a>(&mut self, node: &Object, pods: impl Iterator<Item = &'a Arc<Object>>, now: Instant) {
        let before = self.since.remove(node.name()).unwrap_or_default();
        let taints: HashMap<_, _> = of(node)
            .filter(|t| text(t, "effect") == NO_EXECUTE)
            .map(|t| (text(t, "key").to_owned(), text(t, "value").to_owned()))
            .map(|id| {
                let since = before.taints.get(&id).copied().unwrap_or(now);
                (id, since)
            })
            .collect();
        if taints.is_empty() {
            return;
        }
        let since = |p: &Arc<Object>| before.pods.get(p.uid()).copied().unwrap_or(now);
        let pods = pods.map(|p| (p.uid().to_owned(), since(p))).collect();
        self.since.insert(node.name().to_owned(), Tainted { taints, pods });
    }

    /// Forgets the nodes that are no more.
    pub fn keep(&mut self, exists: impl Fn(&str) -> bool) {
        self.since.retain(|node, _| exists(node));
    }

    /// When a pod has to leave its node, and for which taint; `None`: it may stay. Silence counts from `heard_from`: before that the
    /// server could not hear anybody.
    pub fn end(
        &self,
        node: &Object,
        p: &Object,
        unreachable_timeout: Duration,
        heard_from: Instant,
    ) -> Option<(Instant, String)> {
        if pod::is_terminating(p) || pod::is_ended(p) {
            return None;
        }
        let tainted = self.since.get(node.name())?;
        // One that was not there at the last look is looked at next time.
        let came = *tainted.pods.get(p.uid())?;
        let ends = of(node).filter(|t| text(t, "effect") == NO_EXECUTE).filter_map(|t| {
            let key = text(t, "key");
            let seen = *tainted.taints.get(&(key.to_owned(), text(t, "value").to_owned()))?.max(&came);
            let seen = if key == UNREACHABLE { seen.max(heard_from) } else { seen };
            let patience = match patience(p, t) {
                Patience::Endless => return None,
                Patience::Of(time) => time,
                Patience::Unsaid if key == UNREACHABLE => unreachable_timeout,
                Patience::Unsaid if key == NOT_READY => NOT_READY_TIMEOUT,
                Patience::Unsaid => Duration::ZERO,
            };
            Some((seen.checked_add(patience)?, key.to_owned()))
        });
        ends.min()
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Patience {
    Unsaid,
    Of(Duration),
    Endless,
}

/// The least `tolerationSeconds` of the pod's tolerations of this taint; those without any tolerate it for ever.
fn patience(p: &Object, taint: &Value) -> Patience {
    let tolerations = p.pointer("/spec/tolerations").and_then(Value::as_array).into_iter().flatten();
    let mut found = Patience::Unsaid;
    for toleration in tolerations.filter(|t| scheduler::tolerates(t, taint)) {
        let seconds = toleration.get("tolerationSeconds").and_then(Value::as_i64);
        let seconds = seconds.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(0)));
        found = match (found, seconds) {
            (Patience::Of(a), Some(b)) => Patience::Of(a.min(b)),
            (Patience::Of(a), None) => Patience::Of(a),
            (_, Some(b)) => Patience::Of(b),
            (_, None) => Patience::Endless,
        };
    }
    found
}

#[cfg(test)]
mod tests {
    use minisvc_proto::resource::{NODES, PODS};

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn node(taints: &Value) -> Object {
        let mut node = Object::new(&NODES, None, "n1");
        node.spec_mut().insert("taints".into(), taints.clone());
        node
    }

    fn pod(name: &str) -> Object {
        let mut p = Object::new(&PODS, Some("default"), name);
        p.metadata_mut().insert("uid".into(), name.into());
        p
    }

    fn ready(status: &'static str) -> Condition {
        Condition { kind: "Ready", status, reason: "", message: String::new() }
    }

    #[test]
    fn a_node_has_the_taints_of_its_condition_and_keeps_those_of_users() {
        let user = json!({"key": "mine", "effect": "NoExecute"});
        let of = |key: &str, effect: &str| json!({"key": key, "effect": effect, "timeAdded": "t"});
        let silent = [of(UNREACHABLE, NO_SCHEDULE), of(UNREACHABLE, NO_EXECUTE)];
        let [all, most, failing] = [
            json!([user, silent[0], silent[1]]),
            json!([user, silent[0]]),
            json!([user, of(NOT_READY, NO_SCHEDULE), of(NOT_READY, NO_EXECUTE)]),
        ];
        let none = json!([user]);
        for (before, status, evicts, after) in [
            (&none, "True", true, None),
            (&none, "Unknown", true, Some(&all)),
            (&all, "Unknown", true, None),
            (&all, "Unknown", false, Some(&most)),
            (&none, "Unknown", false, Some(&most)),
            (&most, "Unknown", true, Some(&all)),
            (&all, "True", true, Some(&none)),
            (&all, "False", true, Some(&failing)),
            (&failing, "Unknown", true, Some(&all)),
        ] {
            let wanted = wanted(&node(before), &ready(status), evicts, "t").map(Value::from);
            assert_eq!(wanted.as_ref(), after, "{before} {status} {evicts}");
        }
    }

    #[test]
    fn a_pod_leaves_when_its_patience_ends_which_counts_from_when_the_server_could_hear() {
        let (t0, timeout) = (Instant::now(), 6 * S);
        let unreachable = json!({"key": UNREACHABLE, "effect": "NoExecute"});
        let tolerates = |key: &str, seconds: Option<i64>| {
            let mut t = json!({"key": key, "operator": "Exists", "effect": "NoExecute"});
            if let Some(seconds) = seconds {
                t["tolerationSeconds"] = seconds.into();
            }
            t
        };
        for (taint, tolerations, heard_from, end) in [
            (&unreachable, json!([]), 0, Some(6)),
            (&unreachable, json!([]), 10, Some(16)),
            (&unreachable, json!([tolerates(UNREACHABLE, Some(300))]), 0, Some(300)),
            (&unreachable, json!([tolerates(UNREACHABLE, Some(0))]), 0, Some(0)),
            (&unreachable, json!([tolerates(UNREACHABLE, Some(-5))]), 0, Some(0)),
            (&unreachable, json!([tolerates(UNREACHABLE, None)]), 0, None),
            (
                &unreachable,
                json!([tolerates(UNREACHABLE, None), tolerates(UNREACHABLE, Some(9))]),
                0,
                Some(9),
            ),
            (&unreachable, json!([tolerates(NOT_READY, Some(9))]), 0, Some(6)),
            (&unreachable, json!([{"operator": "Exists"}]), 0, None),
            (&json!({"key": NOT_READY, "effect": "NoExecute"}), json!([]), 0, Some(300)),
            (&json!({"key": "mine", "effect": "NoExecute"}), json!([]), 10, Some(0)),
            (&json!({"key": "mine", "effect": "NoSchedule"}), json!([]), 0, None),
        ] {
            let node = node(&json!([taint]));
            let mut standing = Standing::default();
            let mut p = pod("p");
            p.spec_mut().insert("tolerations".into(), tolerations.clone());
            let pods = [Arc::new(p.clone())];
            standing.see(&node, pods.iter(), t0);
            standing.see(&node, pods.iter(), t0 + 3 * S);
            let at = |p: &Object| standing.end(&node, p, timeout, t0 + heard_from * S).map(|(at, _)| at);
            assert_eq!(at(&p), end.map(|s| t0 + s * S), "{taint} {tolerations} {heard_from}");
            p.metadata_mut().insert("deletionTimestamp".into(), "t".into());
            assert_eq!(at(&p), None, "it leaves already");
        }
    }

    #[test]
    fn a_pod_that_came_to_the_taint_has_its_patience_from_then_on() {
        let t0 = Instant::now();
        let silent = node(&json!([{"key": UNREACHABLE, "effect": "NoExecute"}]));
        let (old, new) = (Arc::new(pod("old")), Arc::new(pod("new")));
        let mut standing = Standing::default();
        standing.see(&silent, [&old].into_iter(), t0);
        assert_eq!(standing.end(&silent, &new, 6 * S, t0), None, "nobody has seen it there");
        standing.see(&silent, [&old, &new].into_iter(), t0 + 9 * S);
        standing.see(&silent, [&old, &new].into_iter(), t0 + 10 * S);
        let end = |p| standing.end(&silent, p, 6 * S, t0).map(|(at, _)| at);
        assert_eq!((end(&old), end(&new)), (Some(t0 + 6 * S), Some(t0 + 15 * S)));
    }

    #[test]
    fn a_node_that_comes_and_goes_does_not_add_up_its_silences() {
        let t0 = Instant::now();
        let (silent, back) = (node(&json!([{"key": UNREACHABLE, "effect": "NoExecute"}])), node(&json!([])));
        let p = Arc::new(pod("p"));
        let pods = || std::iter::once(&p);
        let mut standing = Standing::default();
        for flap in 0..5 {
            standing.see(&silent, pods(), t0 + flap * 10 * S);
            let end = standing.end(&silent, &p, 6 * S, t0).unwrap().0;
            assert_eq!(end, t0 + (flap * 10 + 6) * S);
            standing.see(&back, pods(), t0 + (flap * 10 + 5) * S);
            assert_eq!(standing.end(&back, &p, 6 * S, t0), None);
        }
        standing.see(&silent, pods(), t0);
        standing.keep(|_| false);
        assert_eq!(standing.end(&silent, &p, S, t0), None);
    }
}
