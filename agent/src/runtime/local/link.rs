//! A connection to a shim.

use std::{io, os::fd::OwnedFd, path::Path, time::Duration};

use nix::{
    errno::Errno,
    sys::socket::{getsockopt, sockopt::PeerCredentials},
    unistd::Pid,
};
use tokio::io::{Interest, unix::AsyncFd};

use super::super::wire::{self, Answer, Request};
use crate::sys::{
    packet,
    process::{end_of, kill_by},
};

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

/// The first process of a pod, known by its socket.
#[derive(Debug)]
pub struct First {
    pid: Pid,
    end: AsyncFd<OwnedFd>,
}

impl First {
    /// Of the pod in `dir`; `None` when nobody listens there any more.
    pub async fn of(dir: &Path) -> io::Result<Option<First>> {
        let link = match Link::connect(dir).await {
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                return Ok(None);
            }
            other => other?,
        };
        let pid = Pid::from_raw(getsockopt(link.0.get_ref(), PeerCredentials)?.pid());
        let end = match end_of(pid) {
            Err(Errno::ESRCH) => return Ok(None),
            other => crate::sys::register(other?)?,
        };
        Ok(Some(First { pid, end }))
    }

    /// Returns when it has ended, and with it, by the kernel, everything in its pod.
    pub async fn ended(&self) -> io::Result<()> {
        self.end.readable().await.map(drop)
    }

    /// Kills it, and everything in its pod with it.
    pub async fn kill(&self) -> io::Result<()> {
        tracing::warn!(pid = self.pid.as_raw(), "a shim that does not end is killed");
        match kill_by(self.end.get_ref()) {
            Ok(()) => self.ended().await,
            Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}
