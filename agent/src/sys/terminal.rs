//! Pseudo-terminals.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, FdFlag, OFlag, fcntl},
    pty::{OpenptyResult, Winsize, openpty},
    unistd::{read, write},
};
use tokio::io::{Interest, unix::AsyncFd};

/// The side of a terminal that a person sits at. Clones of the other side keep it open.
#[derive(Debug)]
pub struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    /// A new terminal, and the side for the program.
    pub fn open() -> io::Result<(Terminal, OwnedFd)> {
        let OpenptyResult { master, slave } = openpty(None, None)?;
        for end in [&master, &slave] {
            fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        }
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK))?;
        Ok((Terminal(super::register(master)?), slave))
    }

    /// Tells the program how large the window is now.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        #[allow(unsafe_code, reason = "nix has no safe call for this")]
        // SAFETY: the descriptor is open, and the kernel reads one Winsize, which lives until the call returns.
        let done = unsafe { libc::ioctl(self.0.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        Ok(Errno::result(done).map(drop)?)
    }

    /// What the program wrote; 0 when nobody holds its side any more.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.0.async_io(Interest::READABLE, |fd| Ok(read(fd, buffer)?)).await;
        match got {
            // So says the kernel when the last one has closed the other side.
            Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(0),
            other => other,
        }
    }

    /// What the program wrote so far; `None` when there is nothing.
    pub fn read_now(&self, buffer: &mut [u8]) -> Option<usize> {
        read(self.0.get_ref(), buffer).ok().filter(|n| *n > 0)
    }

    /// Types something.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.0.async_io(Interest::WRITABLE, |fd| Ok(write(fd, bytes)?)).await?;
            bytes = &bytes[n..];
        }
        Ok(())
    }
}
