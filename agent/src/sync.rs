//! The loops that join what the server says, what is decided, and what the kernel and the processes do.

mod condition;
pub mod events;
pub mod families;
pub mod firewall;
pub mod health_checks;
pub mod local_health;
pub mod node_ports;
pub mod nodes;
mod parallel;
pub mod peers;
pub mod pods;
pub mod port_claims;
pub mod readiness;
pub mod registration;
pub mod repairs;
pub mod reporter;
pub mod services;
pub mod source;
pub mod viewpoint;
pub mod world;
