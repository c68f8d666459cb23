//! Thin layers over system calls.

pub mod capture;
pub mod netlink;
pub mod packet;
pub mod process;
pub mod terminal;

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Has the runtime's reactor tell when a file that never blocks is readable or writable.
pub fn register(file: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[allow(unsafe_code, reason = "the descriptor must stay the same while it is registered")]
    // SAFETY: an OwnedFd is one descriptor for its whole life, and the AsyncFd owns it.
    let registered = unsafe { AsyncFd::register(file) };
    registered.map_err(|e| e.into_parts().1)
}
