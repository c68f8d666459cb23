//! The control plane: objects in a store, served in the Kubernetes wire format, and the controllers that derive more of them.

pub mod alloc;
pub mod backup;
pub mod cache;
pub mod conditions;
pub mod controllers;
pub mod http;
pub mod identity;
pub mod patch;
pub mod pki;
pub mod progress;
pub mod registry;
pub mod run;
pub mod scheduler;
pub mod schema;
mod sparse;
pub mod store;
mod tls;
