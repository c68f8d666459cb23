//! Whether a machine can be a node: what is there is observed, then judged as values, each finding with what to do about it.

mod machine;
mod ranges;

pub use self::{
    machine::{Address, Machine, ObserveError, Route, observe},
    ranges::{Ranges, Taken, owners, taken},
};
