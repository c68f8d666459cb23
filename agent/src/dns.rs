//! Names of services for this node's pods, answered from memory; all other names go to the machine's resolvers.

mod answer;
mod forward;
mod name;
mod question;
mod server;
mod zone;

pub use self::{
    server::{Listeners, Upstream},
    zone::{SharedZone, Zone, ZoneConfig},
};
