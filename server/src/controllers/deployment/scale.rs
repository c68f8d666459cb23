//! How many pods each set is to have. [pkg/controller/deployment, rolling.go, recreate.go, scale in sync.go]

use std::cmp::Reverse;

use minisvc_proto::Object;
use serde_json::{Value, json};

use super::super::action::number;

/// What a set was last measured by: the deployment's replicas, and these with its surge. Where they are not today's, the
/// deployment was scaled.
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MOST: &str = "deployment.kubernetes.io/max-replicas";

/// How many pods there may be, and how many must be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub wanted: i64,
    surge: i64,
    unavailable: i64,
}

impl Limits {
    /// maxSurge (rounded up) and maxUnavailable (rounded down) in pods; if both were 0 nothing could ever move.
    pub fn of(deployment: &Object) -> Self {
        let wanted = number(deployment, "/spec/replicas").unwrap_or(1).max(0);
        if super::is_recreate(deployment) {
            return Limits { wanted, surge: 0, unavailable: 0 };
        }
        let hundredths = |field: &str| {
            let value = deployment.pointer(&format!("/spec/strategy/rollingUpdate/{field}"));
            match value {
                Some(Value::Number(n)) => n.as_i64().unwrap_or(0).saturating_mul(100),
                Some(Value::String(s)) => {
                    s.trim_end_matches('%').parse::<i64>().unwrap_or(25).saturating_mul(wanted)
                }
                _ => wanted.saturating_mul(25),
            }
        };
        let surge = hundredths("maxSurge").saturating_add(99) / 100;
        let unavailable = (hundredths("maxUnavailable") / 100).min(wanted);
        let unavailable = if surge == 0 && unavailable == 0 { wanted.min(1) } else { unavailable };
        Limits { wanted, surge, unavailable }
    }

    /// The most pods, those that end not counted.
    pub fn most(&self) -> i64 {
        self.wanted.saturating_add(self.surge)
    }

    /// The fewest that must be available.
    pub fn least(&self) -> i64 {
        self.wanted - self.unavailable
    }

    /// Writes down what a set is measured by.
    pub fn note(&self, set: &mut Object) {
        let notes = set.metadata_mut().entry("annotations").or_insert_with(|| json!({}));
        notes[DESIRED] = self.wanted.to_string().into();
        notes[MOST] = self.most().to_string().into();
    }
}

/// A set, as far as its size is concerned.
#[derive(Clone, Debug, Default)]
pub struct Size {
    pub replicas: i64,
    /// Of those pods, how many are available.
    pub available: i64,
    desired: Option<i64>,
    most: Option<i64>,
}

impl Size {
    pub fn of(set: &Object) -> Self {
        let replicas = number(set, "/spec/replicas").unwrap_or(1);
        let notes = set.annotations();
        let note = |name: &str| notes.get(name).and_then(|n| n.parse().ok());
        // Pods that are about to go count no more.
        let available = number(set, "/status/availableReplicas").unwrap_or(0).min(replicas);
        Size { replicas, available, desired: note(DESIRED), most: note(MOST) }
    }

    /// Pods that would be no loss.
    fn idle(&self) -> i64 {
        self.replicas - self.available
    }
}

/// Whether the deployment's number of replicas was changed since its sets were last brought in line with it.
pub fn is_due(limits: &Limits, sets: &[Size]) -> bool {
    sets.iter().any(|s| s.replicas > 0 && s.desired.is_some_and(|d| d != limits.wanted))
}

/// The sizes after the deployment was scaled, without a step of a rollout. The newest set is the last; `has_new` says whether
/// it is of the deployment's template.
pub fn scaled(limits: &Limits, sets: &[Size], has_new: bool, rolling: bool) -> Vec<i64> {
    let mut sizes: Vec<i64> = sets.iter().map(|s| s.replicas).collect();
    let active: Vec<usize> = (0..sets.len()).filter(|i| sets[*i].replicas > 0).collect();
    match (&active[..], sets.last()) {
        (_, None) => {}
        ([], Some(_)) => sizes[sets.len() - 1] = limits.wanted,
        (&[one], _) => sizes[one] = limits.wanted,
        (_, Some(new)) if has_new && new.available == limits.wanted && new.replicas == limits.wanted => {
            sizes[..sets.len() - 1].fill(0);
        }
        _ if rolling => proportional(limits, sets, active, &mut sizes),
        _ => {}
    }
    sizes
}

/// Each set grows or shrinks by its share, so that a rollout which stands still comes no further by it.
fn proportional(limits: &Limits, sets: &[Size], mut active: Vec<usize>, sizes: &mut [i64]) {
    let total: i64 = sets.iter().map(|s| s.replicas).sum();
    let allowed = if limits.wanted > 0 { limits.most() } else { 0 };
    let mut left = allowed - total;
    // The largest first; of equals, what is newer grows and what is older shrinks.
    active.sort_by_key(|i| {
        (Reverse(sets[*i].replicas), if left > 0 { Reverse(*i) } else { Reverse(usize::MAX - i) })
    });
    for i in &active {
        let set = &sets[*i];
        let before = set.most.filter(|m| *m > 0).unwrap_or(total);
        let share = rounded(set.replicas, allowed, before) - set.replicas;
        let share = share.clamp(left.min(0), left.max(0));
        sizes[*i] += share;
        left -= share;
    }
    if let Some(first) = active.first() {
        sizes[*first] = (sizes[*first] + left).max(0);
    }
    spare_available(limits, sets, sizes);
}

/// Where rounding would take pods that must stay available, pods that serve nobody go instead.
fn spare_available(limits: &Limits, sets: &[Size], sizes: &mut [i64]) {
    let kept: i64 = sets.iter().zip(&*sizes).map(|(s, size)| s.available.min(*size)).sum();
    let had: i64 = sets.iter().map(|s| s.available).sum();
    let mut missing = limits.least().min(had) - kept;
    let mut spared = 0;
    for (set, size) in sets.iter().zip(&mut *sizes) {
        let more = (set.available - *size).clamp(0, missing.max(0));
        *size += more;
        missing -= more;
        spared += more;
    }
    for (set, size) in sets.iter().zip(sizes) {
        let less = (*size - set.available).clamp(0, spared);
        *size -= less;
        spared -= less;
    }
}

/// `a * b / c`, to the nearest.
fn rounded(a: i64, b: i64, c: i64) -> i64 {
    let (a, b, c) = (i128::from(a), i128::from(b), i128::from(c));
    i64::try_from((2 * a * b + c) / (2 * c)).unwrap_or(i64::MAX)
}

/// The sizes of the next step of a rolling update; the new set is the last, the others stand in the order of their age.
pub fn rolling(limits: &Limits, sets: &[Size]) -> Vec<i64> {
    let mut sizes: Vec<i64> = sets.iter().map(|s| s.replicas).collect();
    let Some((new, old)) = sets.split_last() else { return sizes };
    let total: i64 = sizes.iter().sum();
    let target = if new.replicas > limits.wanted {
        limits.wanted
    } else {
        new.replicas + (limits.most() - total).clamp(0, limits.wanted - new.replicas)
    };
    sizes[old.len()] = target;
    // Those of the new set that are not available yet might have been counted upon: no more than the rest may go.
    let new_available = new.available.min(target);
    let of_old: i64 = old.iter().map(|s| s.replicas).sum();
    let mut may_go = (of_old + new_available - limits.least()).max(0);
    // What serves nobody goes first: it would only hold up the rollout.
    for (size, set) in sizes.iter_mut().zip(old) {
        let gone = set.idle().min(may_go);
        *size -= gone;
        may_go -= gone;
    }
    let available: i64 = old.iter().map(|s| s.available).sum();
    let mut spare = (available + new_available - limits.least()).clamp(0, may_go);
    for size in &mut sizes[..old.len()] {
        let gone = spare.min(*size);
        *size -= gone;
        spare -= gone;
    }
    sizes
}

/// The sizes where nothing new may run beside anything old; `gone`: no pod of an old set is left.
pub fn recreated(limits: &Limits, sets: &[Size], gone: bool) -> Vec<i64> {
    let mut sizes = vec![0; sets.len()];
    if let (Some(size), Some(new)) = (sizes.last_mut(), sets.last()) {
        *size = if gone { limits.wanted } else { new.replicas.min(limits.wanted) };
    }
    sizes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(wanted: i64, surge: i64, unavailable: i64) -> Limits {
        Limits { wanted, surge, unavailable }
    }

    fn sizes(sets: &[(i64, i64)], most: i64) -> Vec<Size> {
        let one = |&(replicas, available): &(i64, i64)| Size {
            replicas,
            available,
            desired: None,
            most: Some(most),
        };
        sets.iter().map(one).collect()
    }

    #[test]
    fn a_step_of_a_rolling_update_keeps_to_both_limits() {
        // Of each set: pods, and how many are available; the new one is the last.
        for (limits, sets, expected, why) in [
            (limits(4, 1, 0), &[(4, 4), (0, 0)][..], vec![4, 1], "begin"),
            (limits(4, 1, 0), &[(4, 4), (1, 0)], vec![4, 1], "wait for the first"),
            (limits(4, 1, 0), &[(4, 4), (1, 1)], vec![3, 1], "one for one"),
            (limits(4, 0, 1), &[(4, 4), (0, 0)], vec![3, 0], "make room first"),
            (limits(10, 3, 2), &[(8, 8), (5, 0)], vec![8, 5], "new pods that never get ready"),
            (limits(10, 3, 2), &[(8, 7), (5, 0)], vec![8, 5], "nor are old ones replaced then"),
            (limits(10, 3, 2), &[(8, 8), (5, 0), (0, 0)], vec![8, 0, 0], "what serves nobody goes first"),
            (
                limits(4, 1, 1),
                &[(4, 0), (0, 0)],
                vec![3, 1],
                "a blink of all old pods is no reason to end them",
            ),
            (limits(4, 1, 1), &[(0, 0), (6, 6)], vec![0, 4], "too many"),
            (limits(0, 0, 0), &[(2, 2), (1, 1)], vec![0, 0], "none wanted"),
        ] {
            assert_eq!(rolling(&limits, &sizes(sets, limits.most())), expected, "{why}: {sets:?}");
        }
    }

    #[test]
    fn what_is_scaled_in_a_rollout_grows_and_shrinks_by_its_share() {
        for (limits, sets, before, expected, why) in [
            (limits(20, 5, 5), &[(8, 8), (5, 0)][..], 13, vec![15, 10], "up"),
            (limits(5, 2, 1), &[(8, 8), (5, 0)], 13, vec![4, 3], "down"),
            (limits(12, 3, 3), &[(5, 5), (5, 0)], 13, vec![6, 9], "the newer of equals takes what is left"),
            (limits(0, 0, 0), &[(8, 8), (5, 0)], 13, vec![0, 0], "to nothing"),
            (limits(6, 2, 0), &[(8, 8), (0, 0)], 10, vec![6, 0], "one set is the deployment"),
            (limits(6, 2, 0), &[(0, 0), (0, 0)], 0, vec![0, 6], "from nothing the newest"),
            (limits(3, 1, 0), &[(2, 2), (4, 4), (3, 3)], 9, vec![0, 0, 3], "a new set that is whole"),
            (limits(4, 1, 0), &[(3, 3), (3, 3), (5, 0)], 11, vec![2, 2, 1], "what is available is spared"),
        ] {
            let sets = sizes(sets, before);
            assert_eq!(scaled(&limits, &sets, true, true), expected, "{why}");
        }
        assert_eq!(scaled(&limits(3, 1, 0), &[], false, true), [0; 0]);
    }

    #[test]
    fn only_another_number_of_replicas_is_a_reason_to_scale() {
        let size = |replicas, desired| Size { replicas, desired, ..Size::default() };
        for (sets, due) in [
            (vec![size(2, Some(4)), size(3, Some(4))], false),
            (vec![size(2, Some(3)), size(3, Some(4))], true),
            (vec![size(0, Some(3)), size(3, Some(4)), size(1, None)], false),
        ] {
            assert_eq!(is_due(&limits(4, 1, 1), &sets), due, "{sets:?}");
        }
    }

    #[test]
    fn nothing_new_runs_beside_anything_old() {
        for (sets, gone, expected) in [
            (&[(4, 4), (0, 0)][..], false, vec![0, 0]),
            (&[(0, 0), (0, 0)], false, vec![0, 0]),
            (&[(0, 0), (0, 0)], true, vec![0, 4]),
            (&[(0, 0), (6, 2)], false, vec![0, 4]),
        ] {
            assert_eq!(recreated(&limits(4, 0, 0), &sizes(sets, 4), gone), expected, "{sets:?} {gone}");
        }
    }
}
