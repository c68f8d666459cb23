//! What the kernel says it has committed, heard in a node's namespace by a socket of our own: another path than the agent's.

use std::{
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::Sender,
    },
    thread::JoinHandle,
    time::Instant,
};

use anyhow::bail;
use minisvc_tests::netns::Namespace;
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
            socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

/// Multicast group 7, NFNLGRP_NFTABLES, as a bit.
const GROUP: u32 = 1 << 6;
const SUBSYSTEM: u8 = 10;
const NEW_ELEMENT: u8 = 12;
const DELETE_ELEMENT: u8 = 14;
const BUFFER: usize = 64 << 20;
const LOOK_MS: i64 = 100;

/// An element that came or went.
#[derive(Debug)]
pub struct Change {
    /// Which monitor heard it.
    pub node: usize,
    /// When it was heard: after the commit.
    pub at: Instant,
    /// Whether it came; otherwise it went.
    pub added: bool,
    /// The message: names of table and set, key and value.
    pub message: Vec<u8>,
}

/// Tells of every element until it is dropped.
pub struct Monitor {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<anyhow::Result<()>>>>,
}

impl Monitor {
    /// Listens when this returns.
    pub fn start(at: &Namespace, node: usize, changes: Sender<Change>) -> anyhow::Result<Self> {
        let socket = at.enter(|| {
            let family = SockProtocol::NetlinkNetFilter;
            let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, family)?;
            if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).is_err() {
                setsockopt(&socket, sockopt::RcvBuf, &BUFFER)?;
            }
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(LOOK_MS))?;
            bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
            Ok(socket)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = at.spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                let length = match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                    Ok(length) => length,
                    // While a cluster is loaded, more comes than is of interest; a sample that misses its change says so.
                    Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => continue,
                    Err(e) => bail!("monitor of {node}: {e}"),
                };
                let at = Instant::now();
                for (added, message) in elements(&buffer[..length]) {
                    // Nobody listens any more: the end.
                    if changes.send(Change { node, at, added, message: message.to_vec() }).is_err() {
                        return Ok(());
                    }
                }
            }
            Ok(())
        })?;
        Ok(Monitor { stop, thread: Some(thread) })
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(Ok(())))) | None => {}
            other => eprintln!("a monitor ended badly: {other:?}"),
        }
    }
}

/// The element messages of a datagram, each with whether it is an addition.
fn elements(datagram: &[u8]) -> Vec<(bool, &[u8])> {
    let mut found = Vec::new();
    let mut rest = datagram;
    while let Some((head, _)) = rest.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let [kind, subsystem] = u16::from_ne_bytes([head[4], head[5]]).to_le_bytes();
        let message = &rest[..length.clamp(16, rest.len())];
        if subsystem == SUBSYSTEM && (kind == NEW_ELEMENT || kind == DELETE_ELEMENT) {
            found.push((kind == NEW_ELEMENT, &message[16..]));
        }
        rest = &rest[length.next_multiple_of(4).clamp(16, rest.len())..];
    }
    found
}
