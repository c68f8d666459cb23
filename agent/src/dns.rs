//! Names of services for this node's pods, answered from memory; all other names go to the machine's resolvers.

mod answer;
mod name;
mod question;
mod server;
mod upstream;
mod zone;

pub use self::{
    server::Listeners,
    upstream::parse_resolv_conf,
    zone::{SharedZone, Zone, ZoneConfig},
};
