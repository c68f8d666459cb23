//! Names of services for this node's pods, answered from memory; all other names go to the machine's resolvers.

mod answer;
mod forward;
mod name;
mod question;
mod server;
mod zone;

use std::{fmt::Write as _, net::IpAddr};

pub use self::{
    server::{Listeners, Upstream},
    zone::{SharedZone, Zone, ZoneConfig},
};

/// A resolv.conf by which programs outside of any namespace find the names of services, as pods of the namespace default do.
pub fn resolv_conf(servers: &[IpAddr], zone: &str) -> String {
    let mut text = String::new();
    for server in servers {
        // Into a String: cannot fail.
        let _ = writeln!(text, "nameserver {server}");
    }
    text + &format!("search default.svc.{zone} svc.{zone} {zone}\noptions ndots:5\n")
}
