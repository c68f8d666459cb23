//! UDP: a thread of its own for each address, so that a question never waits for what else the agent does.

use std::{
    io::{self, ErrorKind},
    net::{SocketAddr, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        setsockopt,
        sockopt::{RcvBuf, RcvBufForce},
    },
};
use tokio::{runtime::Handle, sync::oneshot};

use super::{Judged, Shared, Transport};

/// A question is much shorter; what is longer comes cut, and is malformed then.
const LONGEST: usize = 4096;
/// Room for the questions that come while the thread does not run: a thousand or so.
const BUFFER: usize = 1 << 20;
/// Pause after an error of a socket that goes on afterwards (no memory).
const AFTER_ERROR: Duration = Duration::from_millis(50);

/// Opens the socket.
pub(super) fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    // Beyond the machine's limit where that is allowed.
    if setsockopt(&socket, RcvBufForce, &BUFFER).is_err() {
        setsockopt(&socket, RcvBuf, &BUFFER)?;
    }
    Ok(socket)
}

/// Serves until dropped. It returns only if the thread ends by itself.
pub(super) async fn serve(shared: Arc<Shared>, socket: UdpSocket) -> io::Result<()> {
    // The thread sees its end closed when this future is dropped.
    let (_ours, theirs) = UnixStream::pair()?;
    let (ended, end) = oneshot::channel();
    let handle = Handle::current();
    thread::Builder::new().name("dns".into()).spawn(move || {
        // Nobody listens any more if we were told to end.
        let _ = ended.send(answer(&shared, &Arc::new(socket), &theirs, &handle));
    })?;
    end.await.map_err(|_| io::Error::other("its thread died"))?
}

fn answer(
    shared: &Arc<Shared>,
    socket: &Arc<UdpSocket>,
    stop: &UnixStream,
    handle: &Handle,
) -> io::Result<()> {
    let mut buffer = vec![0; LONGEST];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => match shared.judge(&buffer[..length], from.ip(), Transport::Udp) {
                Judged::Ignored => {}
                Judged::Answered(answer) => send(socket, &answer, from),
                Judged::Open(open) => {
                    let (shared, socket) = (shared.clone(), socket.clone());
                    handle.spawn(async move { send(&socket, &shared.complete(open).await, from) });
                }
            },
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if !wait(socket, stop)? {
                    return Ok(());
                }
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(%error, "DNS over UDP");
                thread::sleep(AFTER_ERROR);
            }
        }
    }
}

/// Waits for a question; false if there will be none.
fn wait(socket: &UdpSocket, stop: &UnixStream) -> io::Result<bool> {
    let mut files =
        [PollFd::new(socket.as_fd(), PollFlags::POLLIN), PollFd::new(stop.as_fd(), PollFlags::POLLIN)];
    match poll(&mut files, PollTimeout::NONE) {
        Ok(_) => Ok(files[1].revents().is_some_and(|r| r.is_empty())),
        Err(Errno::EINTR) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    // A client that went away, or a full buffer: the client asks again if it still wants to know.
    if let Err(error) = socket.send_to(answer, to) {
        tracing::debug!(%error, %to, socket = socket.as_raw_fd(), "a DNS answer was not sent");
    }
}
