//! Which endpoint stands in which slot. A connection draws a slot, each as likely as the other.

use std::collections::{BTreeMap, BTreeSet};

use super::Pod;

/// Up to here every count of endpoints has a class of its own, with one slot for each.
pub const EXACT: u32 = 64;
/// Slots per endpoint beyond: with 20 no endpoint is more than 5 % off its even share.
const SHARE: u32 = 20;
/// Slots of the smallest class beyond; each next one has twice as many.
pub const BIG_FIRST: u32 = 2048;
/// Slots of the largest class: up to 3,276 endpoints within 5 %.
pub const BIG_LAST: u32 = 65_536;

/// How many slots so many endpoints get. `now` stays while it is neither unfair nor far too large, so that one endpoint more
/// or less at a border does not fill all slots anew each time.
pub(super) fn slots_for(endpoints: u32, now: u32) -> u32 {
    if endpoints <= EXACT {
        return endpoints;
    }
    let least = endpoints.saturating_mul(SHARE);
    if now > EXACT && now >= least && now / 8 <= least {
        return now;
    }
    least.next_power_of_two().clamp(BIG_FIRST, BIG_LAST)
}

/// Fills `count` slots evenly, and leaves in place what stands right.
pub(super) fn place(before: &[Pod], wanted: &BTreeSet<Pod>, count: u32) -> Vec<Pod> {
    let endpoints = wanted.len() as u32;
    if endpoints == 0 || count == 0 {
        return Vec::new();
    }
    let (share, mut larger) = (count / endpoints, count % endpoints);
    let mut held: BTreeMap<Pod, u32> = wanted.iter().map(|pod| (*pod, 0)).collect();
    let mut slots: Vec<Option<Pod>> = (0..count as usize).map(|i| before.get(i).copied()).collect();
    for slot in &mut slots {
        let fair = slot.and_then(|pod| held.get_mut(&pod)).is_some_and(|n| {
            let fits = *n < share || (*n == share && larger > 0);
            if fits {
                larger -= u32::from(*n == share);
                *n += 1;
            }
            fits
        });
        if !fair {
            *slot = None;
        }
    }
    // Those that have least are served first; the last holes take one more each.
    let short = held.iter().flat_map(|(pod, n)| std::iter::repeat_n(*pod, share.saturating_sub(*n) as usize));
    let more = held.iter().filter(|(_, n)| **n <= share).map(|(pod, _)| *pod);
    let mut fill: Vec<Pod> = short.chain(more).collect();
    fill.reverse();
    slots.into_iter().filter_map(|slot| slot.or_else(|| fill.pop())).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pods(n: impl IntoIterator<Item = u16>) -> BTreeSet<Pod> {
        n.into_iter().map(|n| (std::net::Ipv4Addr::LOCALHOST.into(), n)).collect()
    }

    #[test]
    fn a_hole_takes_the_one_that_loses_its_slot() {
        let before = place(&[], &pods([1, 2, 3, 4]), 4);
        let after: Vec<u16> = place(&before, &pods([1, 3, 4]), 3).iter().map(|p| p.1).collect();
        assert_eq!(after, [1, 4, 3]);
    }

    #[test]
    fn one_endpoint_less_of_a_thousand_moves_only_its_own_slots() {
        let count = slots_for(1000, 0);
        let before = place(&[], &pods(1..=1000), count);
        let after = place(&before, &pods(2..=1000), slots_for(999, count));
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert_eq!(after.len(), before.len());
        assert!(moved <= 2 * (count as usize / 1000 + 1), "{moved}");
    }

    /// How far the worst share may be off the even one.
    const MOST: f64 = 0.05;

    /// Pods are known by their ports here.
    fn worst_share(slots: &[Pod], endpoints: u16) -> f64 {
        let mut held = vec![0u32; usize::from(endpoints)];
        for (_, port) in slots {
            held[usize::from(*port) - 1] += 1;
        }
        let even = f64::from(slots.len() as u32) / f64::from(endpoints);
        held.iter().map(|share| (f64::from(*share) / even - 1.0).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn every_share_of_one_to_a_thousand_is_even() {
        for n in 1..=1000 {
            let count = slots_for(u32::from(n), 0);
            let slots = place(&[], &pods(1..=n), count);
            assert_eq!(slots.len() as u32, count);
            assert!(worst_share(&slots, n) <= MOST, "{n} in {count}");
        }
    }

    proptest! {
        #[test]
        fn every_share_stays_even(steps in proptest::collection::vec(1u32..1000, 1..6)) {
            let (mut count, mut slots) = (0, Vec::new());
            for n in steps {
                count = slots_for(n, count);
                slots = place(&slots, &pods(1..=n as u16), count);
                prop_assert_eq!(slots.len() as u32, count);
                prop_assert!(worst_share(&slots, n as u16) <= MOST, "{} in {}", n, count);
            }
        }
    }
}
