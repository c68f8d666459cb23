//! Logs of the long-running commands: lines on stderr, `RUST_LOG` chooses which.

use std::io;

use tracing_subscriber::EnvFilter;

/// The store says what is wrong with it in words of its own.
const DEFAULT: &str = "info,sled=off";

/// Starts logging; a filter in `RUST_LOG` that cannot be read is told and left out.
pub fn start() {
    let given = std::env::var("RUST_LOG").ok().filter(|v| !v.is_empty());
    let parsed = given.as_deref().map(EnvFilter::try_new);
    let (filter, fault) = match parsed {
        None => (EnvFilter::new(DEFAULT), None),
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new(DEFAULT), Some(error)),
    };
    // Only the first call of a process counts.
    let _ =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).try_init();
    if let Some(error) = fault {
        tracing::warn!(%error, "RUST_LOG is no filter, {DEFAULT} is used");
    }
}
