//! The test kit and the end-to-end tests.

pub mod binary;
#[cfg(target_os = "linux")]
pub mod cluster;
#[cfg(target_os = "linux")]
pub mod machines;
#[cfg(target_os = "linux")]
pub mod netns;
#[cfg(target_os = "linux")]
pub mod node;
#[cfg(target_os = "linux")]
pub mod rooted;
pub mod server;
#[cfg(target_os = "linux")]
pub mod traffic;
