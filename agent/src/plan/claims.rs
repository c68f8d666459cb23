//! Whose an address is. Two services never share one, and who has it does not depend on who came first to this node: the older service.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use super::{Key, ServiceKey};

/// A service and when it was made: the least has what several want.
pub(super) type Claimant = (i64, ServiceKey);

#[derive(Clone, Debug, Default)]
pub(super) struct Claims(BTreeMap<Key, Claim>);

#[derive(Clone, Debug)]
struct Claim {
    holder: Claimant,
    waiting: Vec<Claimant>,
}

impl Claims {
    pub(super) fn holder(&self, key: &Key) -> Option<&ServiceKey> {
        Some(&self.0.get(key)?.holder.1)
    }

    /// Asks for an address; `moved` learns who has lost it.
    pub(super) fn claim(&mut self, key: &Key, by: &Claimant, moved: &mut BTreeSet<ServiceKey>) {
        match self.0.entry(key.clone()) {
            Entry::Vacant(vacant) => {
                vacant.insert(Claim { holder: by.clone(), waiting: Vec::new() });
            }
            Entry::Occupied(mut claim) => {
                let claim = claim.get_mut();
                let mut loser = by.clone();
                if *by < claim.holder {
                    std::mem::swap(&mut claim.holder, &mut loser);
                    moved.insert(loser.1.clone());
                }
                claim.waiting.push(loser);
            }
        }
    }

    /// Gives an address up, or no longer waits for it; `moved` learns who gets it.
    pub(super) fn release(&mut self, key: &Key, by: &ServiceKey, moved: &mut BTreeSet<ServiceKey>) {
        let Some(claim) = self.0.get_mut(key) else { return };
        if claim.holder.1 != *by {
            claim.waiting.retain(|(_, other)| other != by);
            return;
        }
        let next = claim.waiting.iter().enumerate().min_by(|a, b| a.1.cmp(b.1)).map(|(at, _)| at);
        match next {
            Some(at) => {
                claim.holder = claim.waiting.swap_remove(at);
                moved.insert(claim.holder.1.clone());
            }
            None => drop(self.0.remove(key)),
        }
    }
}
