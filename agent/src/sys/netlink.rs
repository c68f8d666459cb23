//! Netlink attributes and a netfilter socket.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
            setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike},
    },
};

/// Appends an attribute, padded to four bytes.
pub fn attr(v: &mut Vec<u8>, kind: u16, data: &[u8]) {
    v.extend((data.len() as u16 + 4).to_ne_bytes());
    v.extend(kind.to_ne_bytes());
    v.extend(data);
    v.resize(v.len().next_multiple_of(4), 0);
}

/// Appends a 32-bit attribute in network order, as netfilter wants it.
pub fn u32be(v: &mut Vec<u8>, kind: u16, n: u32) {
    attr(v, kind, &n.to_be_bytes());
}

/// Appends a zero-terminated string.
pub fn text(v: &mut Vec<u8>, kind: u16, s: &str) {
    let mut bytes = s.as_bytes().to_vec();
    bytes.push(0);
    attr(v, kind, &bytes);
}

/// Appends a nested attribute. The contents must stay below 64 KiB.
pub fn nest(v: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = v.len();
    v.extend([0, 0]);
    v.extend((kind | 0x8000).to_ne_bytes());
    fill(v);
    let len = (v.len() - at) as u16;
    v[at..at + 2].copy_from_slice(&len.to_ne_bytes());
}

/// A netlink message: type, flags, and what follows the header.
pub fn message(v: &mut Vec<u8>, kind: u16, flags: u16, seq: u32, fill: impl FnOnce(&mut Vec<u8>)) {
    let at = v.len();
    v.extend([0; 4]);
    v.extend(kind.to_ne_bytes());
    v.extend(flags.to_ne_bytes());
    v.extend(seq.to_ne_bytes());
    v.extend([0; 4]);
    fill(v);
    let len = (v.len() - at) as u32;
    v[at..at + 4].copy_from_slice(&len.to_ne_bytes());
}

/// A socket to the netfilter subsystems of the network namespace it is opened in.
#[derive(Debug)]
pub struct NetfilterSocket(OwnedFd);

impl NetfilterSocket {
    /// Opens the socket in the thread's network namespace.
    pub fn open() -> Result<Self, Errno> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        // Only the init namespace's admin may force; an ordinary user gets what wmem_max allows.
        for size in [64 << 20, 4 << 20] {
            if setsockopt(&fd, sockopt::SndBufForce, &size).is_err() {
                setsockopt(&fd, sockopt::SndBuf, &size)?;
            }
            if setsockopt(&fd, sockopt::RcvBufForce, &(4 << 20)).is_ok() {
                break;
            }
        }
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(10))?;
        Ok(NetfilterSocket(fd))
    }

    /// Sends one datagram.
    pub fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        sendto(self.0.as_raw_fd(), bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty()).map(drop)
    }

    /// Reads until the acknowledgement of `last`; the first error of messages from `first` on wins.
    pub fn acknowledged(&self, first: u32, last: u32) -> Result<(), (u32, Errno)> {
        let mut buffer = vec![0u8; 1 << 16];
        let mut failed = None;
        loop {
            let n = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(|e| (first, e))?;
            let mut rest = &buffer[..n];
            while rest.len() >= 20 {
                let word =
                    |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
                let (len, seq, code) = (word(0) as usize, word(8), word(16).cast_signed());
                let is_error = u16::from_ne_bytes([rest[4], rest[5]]) == 2;
                // What an earlier batch left behind is not ours.
                if is_error && seq >= first {
                    if code != 0 && failed.is_none() {
                        failed = Some((seq, Errno::from_raw(-code)));
                    }
                    // An error of the batch's first message is of the batch as a whole: nothing follows it.
                    if seq == last || (seq == first && code != 0) {
                        return failed.map_or(Ok(()), Err);
                    }
                }
                rest = &rest[len.next_multiple_of(4).clamp(16, rest.len())..];
            }
        }
    }
}
