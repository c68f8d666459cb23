//! The node agent: runs pods as local processes and programs the kernel's forwarding.

pub mod config;
pub mod sync;

pub use config::AgentConfig;
