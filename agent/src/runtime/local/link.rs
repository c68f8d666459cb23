//! A connection to a shim.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
    time::Duration,
};

use nix::errno::Errno;
use tokio::io::{Interest, unix::AsyncFd};

use super::super::wire::{self, Answer, Request};
use crate::sys::packet;

/// Between tries to connect to a shim whose queue is full.
const BUSY: Duration = Duration::from_millis(5);
const TRIES: usize = 200;

/// One connection.
#[derive(Debug)]
pub struct Link(AsyncFd<OwnedFd>);

impl Link {
    /// To the shim of the pod in `dir`.
    pub async fn connect(dir: &Path) -> io::Result<Link> {
        let mut tries = 0;
        loop {
            match packet::connect_to(dir, wire::SOCKET) {
                Err(Errno::EAGAIN) if tries < TRIES => {
                    tries += 1;
                    tokio::time::sleep(BUSY).await;
                }
                Err(e) => return Err(e.into()),
                Ok(socket) => return Ok(Link(crate::sys::register(socket)?)),
            }
        }
    }

    /// Sends a request with open files.
    pub async fn send(&mut self, request: &Request, files: &[OwnedFd]) -> io::Result<()> {
        let bytes = serde_json::to_vec(request)?;
        if bytes.len() > packet::LIMIT {
            return Err(io::Error::other(format!("a command of {} bytes is too long", bytes.len())));
        }
        self.0.async_io(Interest::WRITABLE, |fd| Ok(packet::send(fd, &bytes, files)?)).await
    }

    /// The next answer; `None` when the shim closed the connection.
    pub async fn receive(&mut self) -> io::Result<Option<(Answer, Vec<OwnedFd>)>> {
        let got = self.0.async_io(Interest::READABLE, |fd| Ok(packet::receive(fd)?)).await?;
        let Some((bytes, files)) = got else { return Ok(None) };
        Ok(Some((serde_json::from_slice(&bytes)?, files)))
    }
}

/// Kills the shim that listens in `dir`, and with it, by the kernel, everything in its pod.
pub async fn kill(dir: &Path) -> io::Result<()> {
    use nix::sys::{
        signal::{Signal, kill},
        socket::{getsockopt, sockopt::PeerCredentials},
    };
    let link = match Link::connect(dir).await {
        Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
            return Ok(());
        }
        other => other?,
    };
    let peer = getsockopt(link.0.get_ref(), PeerCredentials)?;
    tracing::warn!(dir = %dir.display(), pid = peer.pid(), fd = link.0.get_ref().as_raw_fd(), "a shim that does not end is killed");
    // The connection is open, so the pid is still that of the shim.
    Ok(kill(nix::unistd::Pid::from_raw(peer.pid()), Signal::SIGKILL)?)
}
