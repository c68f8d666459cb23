//! The contract between server, agents and clients: resources, names, selectors, errors, watch events and paths.
//!
//! Nothing here performs I/O, except behind the feature `client`.

pub mod digest;
pub mod event;
pub mod join;
pub mod names;
pub mod object;
pub mod path;
pub mod quantity;
pub mod report;
pub mod resource;
pub mod selector;
pub mod status;
pub mod table;
pub mod watch;

#[cfg(feature = "client")]
pub mod client;

pub use names::{NodeName, ObjectKey, Revision};
pub use object::Object;
pub use quantity::{Quantity, QuantityError};
pub use resource::{Resource, Scope};
pub use status::{ApiError, Cause, Reason};
