//! Controllers derive more desired state from desired state. Deciding is pure and lives in a file per kind.

pub mod action;
pub mod conditions;
pub mod deployment;
pub mod endpointslice;
pub mod gc;
pub mod nodes;
pub mod pod;
pub mod replicaset;
