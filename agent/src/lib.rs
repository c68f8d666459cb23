//! The node agent: runs pods as local processes and programs the kernel's forwarding.

#[cfg(target_os = "linux")]
pub mod api;
pub mod config;
#[cfg(target_os = "linux")]
pub mod conntrack;
#[cfg(target_os = "linux")]
pub mod dataplane;
pub mod dns;
#[cfg(target_os = "linux")]
pub mod doctor;
#[cfg(target_os = "linux")]
pub mod firewall;
#[cfg(target_os = "linux")]
pub mod identity;
#[cfg(target_os = "linux")]
pub mod net;
#[cfg(target_os = "linux")]
pub mod nft;
pub mod plan;
pub mod relay;
#[cfg(target_os = "linux")]
pub mod run;
#[cfg(target_os = "linux")]
pub mod runtime;
pub mod source;
pub mod sync;
#[cfg(target_os = "linux")]
pub mod sys;

pub use config::AgentConfig;
#[cfg(target_os = "linux")]
pub use run::{AgentError, run};
