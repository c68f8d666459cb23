//! Whether a machine can be a node: what is there is observed, then judged as values, each finding with what to do about it.

mod checks;
mod facts;
mod machine;
mod ranges;

pub use self::{
    checks::{Finding, Status, findings},
    facts::{Asked, Facts, Server},
    machine::{Address, Machine, ObserveError, Route, observe},
    ranges::{Ranges, Taken, owners, taken},
};
