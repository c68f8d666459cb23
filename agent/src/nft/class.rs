//! Classes: a service's count of slots and its mode, each with a chain of its own.

use std::collections::BTreeMap;

use crate::plan::{BIG_FIRST, BIG_LAST, EXACT};

/// How endpoints of a service are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// There is none.
    Reject,
    /// There are some, but none that the policy allows.
    Drop,
    /// At random from so many slots.
    Plain(u32),
    /// The same, then the client stays for so many seconds.
    Sticky(u32, u32),
}

/// Numbers below are those of fixed classes.
const FIRST_FREE: u32 = 128;
/// A class has the low bits of a mark.
const LAST: u32 = 4095;
/// So many chains for affinity are kept before those out of use are removed.
pub(super) const KEPT: usize = 128;

impl Class {
    /// What a service port needs.
    pub(super) fn of(slots: u32, affinity: Option<u32>) -> Self {
        match (slots, affinity) {
            (0, _) => Class::Reject,
            (n, None) => Class::Plain(n),
            (n, Some(seconds)) => Class::Sticky(n, seconds),
        }
    }

    /// The classes that every table has.
    pub(super) fn fixed() -> impl Iterator<Item = Class> {
        let big = std::iter::successors(Some(BIG_FIRST), |n| Some(n * 2)).take_while(|n| *n <= BIG_LAST);
        [Class::Reject, Class::Drop].into_iter().chain((1..=EXACT).chain(big).map(Class::Plain))
    }

    /// Its number, if it is one of the fixed.
    pub(super) fn fixed_number(self) -> Option<u32> {
        match self {
            Class::Reject => Some(0),
            Class::Drop => Some(FIRST_FREE - 1),
            Class::Plain(n) if n <= EXACT => Some(n),
            Class::Plain(n) => Some(EXACT + 1 + n.ilog2() - BIG_FIRST.ilog2()),
            Class::Sticky(..) => None,
        }
    }

    /// Its chain.
    pub(super) fn chain(self) -> String {
        match self {
            Class::Reject => "reject".into(),
            Class::Drop => "drop".into(),
            Class::Plain(n) => format!("c{n}"),
            Class::Sticky(n, seconds) => format!("c{n}-sticky-{seconds}s"),
        }
    }

    /// The class of a chain.
    pub(super) fn of_chain(name: &str) -> Option<Self> {
        if name == "reject" {
            return Some(Class::Reject);
        }
        if name == "drop" {
            return Some(Class::Drop);
        }
        let rest = name.strip_prefix('c')?;
        match rest.split_once("-sticky-") {
            None => Some(Class::Plain(rest.parse().ok()?)),
            Some((n, seconds)) => {
                Some(Class::Sticky(n.parse().ok()?, seconds.strip_suffix('s')?.parse().ok()?))
            }
        }
    }

    /// How many rules its chain has.
    pub(super) fn rules(self) -> usize {
        match self {
            Class::Reject => 3,
            Class::Drop => 1,
            Class::Plain(_) => 2,
            Class::Sticky(..) => 6,
        }
    }
}

/// The classes in the kernel, with the numbers that `svc` and `np` have for them.
#[derive(Clone, Debug, Default)]
pub(super) struct Classes(BTreeMap<Class, u32>);

impl Classes {
    pub(super) fn fixed() -> Self {
        Classes(Class::fixed().filter_map(|c| Some((c, c.fixed_number()?))).collect())
    }

    pub(super) fn number(&self, class: Class) -> Option<u32> {
        self.0.get(&class).copied()
    }

    pub(super) fn of_number(&self, number: u32) -> Option<Class> {
        self.0.iter().find(|(_, n)| **n == number).map(|(c, _)| *c)
    }

    pub(super) fn insert(&mut self, class: Class, number: u32) {
        self.0.insert(class, number);
    }

    /// Gives a class a number; `None` if all are taken.
    pub(super) fn add(&mut self, class: Class) -> Option<u32> {
        let taken: std::collections::BTreeSet<u32> = self.0.values().copied().collect();
        let number = (FIRST_FREE..=LAST).find(|n| !taken.contains(n))?;
        self.0.insert(class, number);
        Some(number)
    }

    pub(super) fn remove(&mut self, class: Class) {
        self.0.remove(&class);
    }

    /// The classes that were made for a service.
    pub(super) fn made(&self) -> impl Iterator<Item = (Class, u32)> {
        self.0.iter().filter(|(c, _)| c.fixed_number().is_none()).map(|(c, n)| (*c, *n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_says_its_class_and_fixed_numbers_do_not_meet() {
        let mut numbers = std::collections::BTreeSet::new();
        for class in Class::fixed().chain([Class::Sticky(3, 10_800)]) {
            assert_eq!(Class::of_chain(&class.chain()), Some(class));
            if let Some(number) = class.fixed_number() {
                assert!(numbers.insert(number) && number < FIRST_FREE, "{class:?}");
            }
        }
        assert_eq!(Class::of_chain("services"), None);
    }
}
