//! The endpoints of one scope of a service port, as they stand in the kernel.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Pod,
    elements::{Elements, Id, Key, Value},
    slots::{place, slots_for},
};

/// Endpoints with affinity have numbers of 12 bits; 0 is none.
pub(super) const MOST_NUMBERS: u16 = 4095;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) id: Id,
    slots: Vec<Pod>,
    /// Stable numbers, with affinity only.
    pub(super) numbers: BTreeMap<Pod, u16>,
}

impl Group {
    pub(super) fn new(id: Id) -> Self {
        Group { id, slots: Vec::new(), numbers: BTreeMap::new() }
    }

    /// Gives the endpoints their slots; what stands right stays.
    pub(super) fn place(&mut self, endpoints: &BTreeSet<Pod>, affinity: Option<u32>) -> Value {
        let most = if affinity.is_some() { usize::from(MOST_NUMBERS) } else { usize::MAX };
        let endpoints: BTreeSet<Pod> = endpoints.iter().take(most).copied().collect();
        let count = slots_for(endpoints.len() as u32, self.slots.len() as u32);
        self.slots = place(&self.slots, &endpoints, count);
        self.numbers = affinity.map(|_| number(&self.numbers, &endpoints)).unwrap_or_default();
        Value::Port { id: self.id, slots: count, affinity: affinity.filter(|_| count > 0) }
    }

    pub(super) fn write(&self, out: &mut Elements) {
        for (slot, pod) in (0u32..).zip(&self.slots) {
            match self.numbers.get(pod) {
                Some(n) => out.insert(Key::Choice(self.id, slot), Value::Number(*n)),
                None => out.insert(Key::Slot(self.id, slot), Value::Pod(pod.0, pod.1)),
            };
        }
        for (pod, n) in &self.numbers {
            out.insert(Key::Endpoint(self.id, *n), Value::Pod(pod.0, pod.1));
        }
    }
}

/// Ids that are taken.
#[derive(Clone, Debug, Default)]
pub(super) struct Ids {
    taken: BTreeSet<Id>,
    last: u32,
}

impl Ids {
    /// A free one, not one that was freed just now. `None`: a million service ports.
    pub(super) fn take(&mut self) -> Option<Id> {
        if self.taken.len() as u32 == Id::MAX {
            return None;
        }
        loop {
            self.last = self.last % Id::MAX + 1;
            if self.taken.insert(Id(self.last)) {
                return Some(Id(self.last));
            }
        }
    }

    pub(super) fn free(&mut self, id: Id) {
        self.taken.remove(&id);
    }
}

/// What an earlier agent left, until it is known whose it is.
#[derive(Clone, Debug, Default)]
pub(super) struct Adopted {
    groups: BTreeMap<Id, Group>,
    leads: BTreeMap<Key, Id>,
}

impl Adopted {
    pub(super) fn read(kernel: &Elements) -> Self {
        let mut groups: BTreeMap<Id, Group> = BTreeMap::new();
        let mut leads = BTreeMap::new();
        for (key, value) in kernel {
            let Value::Port { id, .. } = value else { continue };
            if (1..=Id::MAX).contains(&id.0) {
                leads.insert(key.clone(), *id);
                groups.entry(*id).or_insert_with(|| Group::new(*id));
            }
        }
        // A slot is worth keeping only where all before it are known, too; the order of keys sees to that.
        for (key, value) in kernel {
            match (key, value) {
                (Key::Endpoint(id, number), Value::Pod(ip, port)) => {
                    if let Some(group) = groups.get_mut(id) {
                        group.numbers.insert((*ip, *port), *number);
                    }
                }
                (Key::Slot(id, slot), Value::Pod(ip, port)) => {
                    if let Some(group) = groups.get_mut(id).filter(|g| g.slots.len() == *slot as usize) {
                        group.slots.push((*ip, *port));
                    }
                }
                (Key::Choice(id, slot), Value::Number(number)) => {
                    if let Some(group) = groups.get_mut(id).filter(|g| g.slots.len() == *slot as usize)
                        && let Some((pod, _)) = group.numbers.iter().find(|(_, n)| *n == number)
                    {
                        group.slots.push(*pod);
                    }
                }
                _ => {}
            }
        }
        Adopted { groups, leads }
    }

    pub(super) fn ids(&self) -> Ids {
        let taken: BTreeSet<Id> = self.groups.keys().copied().collect();
        let last = taken.last().map_or(0, |id| id.0);
        Ids { taken, last }
    }

    /// The group that one of the addresses led to.
    pub(super) fn take(&mut self, leads: &[Key]) -> Option<Group> {
        leads.iter().find_map(|key| self.groups.remove(self.leads.get(key)?))
    }

    /// What nobody asked for.
    pub(super) fn rest(&mut self) -> impl Iterator<Item = Id> {
        self.leads.clear();
        std::mem::take(&mut self.groups).into_keys()
    }
}

/// Numbers for the endpoints: those that have one keep it, and a freed one is not given again at once.
fn number(before: &BTreeMap<Pod, u16>, endpoints: &BTreeSet<Pod>) -> BTreeMap<Pod, u16> {
    let mut used: BTreeSet<u16> = before.values().copied().collect();
    let mut last = used.last().copied().unwrap_or(0);
    let mut numbers = BTreeMap::new();
    for pod in endpoints {
        if let Some(n) = before.get(pod) {
            numbers.insert(*pod, *n);
        }
    }
    if endpoints.len() + before.len() >= usize::from(MOST_NUMBERS) {
        used = numbers.values().copied().collect();
    }
    for pod in endpoints {
        if !numbers.contains_key(pod) {
            loop {
                last = last % MOST_NUMBERS + 1;
                if used.insert(last) {
                    break;
                }
            }
            numbers.insert(*pod, last);
        }
    }
    numbers
}
