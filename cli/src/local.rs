//! A whole cluster on this machine: `up` and `down`.
//!
//! `up` starts a keeper, the keeper a room (namespaces of its own, which hold a LAN, the server and the nodes) and a relay.
//! Everything ends with the keeper, however that ends.

pub mod args;

#[cfg(target_os = "linux")]
mod api;
#[cfg(target_os = "linux")]
mod commands;
#[cfg(target_os = "linux")]
mod demo;
#[cfg(target_os = "linux")]
mod hints;
#[cfg(target_os = "linux")]
mod keeper;
#[cfg(target_os = "linux")]
mod lan;
#[cfg(target_os = "linux")]
mod paths;
#[cfg(target_os = "linux")]
mod relay;
#[cfg(target_os = "linux")]
mod report;
#[cfg(target_os = "linux")]
mod room;
#[cfg(target_os = "linux")]
mod state;
#[cfg(target_os = "linux")]
mod supervise;

pub use args::{DownArgs, UpArgs};
#[cfg(target_os = "linux")]
pub use commands::{down, up};

/// Port of the API on the server's machine.
#[cfg(target_os = "linux")]
const SERVER_PORT: u16 = 7443;

/// The path of this very program.
#[cfg(target_os = "linux")]
fn own_binary() -> anyhow::Result<std::path::PathBuf> {
    use anyhow::Context;
    std::env::current_exe().context("the path of this program cannot be found: is /proc mounted?")
}

/// Start a cluster on this machine.
#[cfg(not(target_os = "linux"))]
pub fn up(_args: UpArgs, _config: Option<std::path::PathBuf>) -> anyhow::Result<()> {
    anyhow::bail!(
        "`minisvc up` needs Linux: here, run a cluster in containers with `docker compose up --build` in minisvc's sources \
         (README.md: With docker compose), or in a Linux virtual machine"
    )
}

/// Stop a cluster.
#[cfg(not(target_os = "linux"))]
pub fn down(_args: DownArgs) -> anyhow::Result<()> {
    anyhow::bail!("`minisvc down` needs Linux")
}
