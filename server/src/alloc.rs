//! Choosing cluster IPs, node ports and the nodes' parts of the pod range. Pure: what is taken comes in, a choice goes out; the reservation itself is made by the
//! store's transaction, so a choice that lost a race is simply made again.
//!
//! The bands follow KEP-3070 (cluster IPs) and KEP-3668 (node ports): explicit requests are expected in the lower band, so
//! dynamic choices come from above it and fall through to it only when the upper band is full.

mod pods;
mod ports;
mod services;

pub use self::{
    pods::{NoRoomForANode, PodRange},
    ports::NodePortRange,
    services::{Family, ServiceRange, WrongSize},
};

/// Nothing is left to choose from. The message is the one that clients know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("range is full")]
pub struct Full;

/// A range of numbers with a static band at its lower end. Addresses of both families are numbers here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bands {
    first: u128,
    last: u128,
    /// Size of the static band, at most the whole range.
    fixed: u128,
}

impl Bands {
    fn size(self) -> u128 {
        self.last - self.first + 1
    }

    fn contains(self, number: u128) -> bool {
        (self.first..=self.last).contains(&number)
    }

    /// A free number: from a random start in the upper band, once around, then the same in the static band. `random` is any
    /// number; the random start makes it rare that a freed number is given out again at once. It ends after at most one look more than there are
    /// taken numbers.
    fn pick(self, random: u64, taken: impl Fn(u128) -> bool) -> Result<u128, Full> {
        let upper = (self.first + self.fixed, self.size() - self.fixed);
        let lower = (self.first, self.fixed);
        [upper, lower]
            .into_iter()
            .filter(|(_, size)| *size > 0)
            .find_map(|(base, size)| {
                let start = u128::from(random) % size;
                (0..size).map(|i| base + (start + i) % size).find(|n| !taken(*n))
            })
            .ok_or(Full)
    }
}

#[cfg(test)]
mod tests;
