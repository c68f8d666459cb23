//! Netlink attributes and a netfilter socket.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockopt, recv,
            sendto, setsockopt, socket, sockopt,
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
            // What an earlier batch left behind is not ours.
            for message in messages(&buffer[..n]).filter(|m| m.kind == ERROR && m.seq >= first) {
                let Some(code) = message.body.first_chunk() else { continue };
                let code = i32::from_ne_bytes(*code);
                if code != 0 && failed.is_none() {
                    failed = Some((message.seq, Errno::from_raw(-code)));
                }
                // An error of the batch's first message is of the batch as a whole: nothing follows it.
                if message.seq == last || (message.seq == first && code != 0) {
                    return failed.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// How many bytes one [`NetfilterSocket::send`] may have.
    pub fn send_limit(&self) -> usize {
        // The kernel keeps twice what was asked for, and some of it for itself.
        getsockopt(&self.0, sockopt::SndBuf).unwrap_or(0).saturating_sub(64)
    }

    /// Sends one request and hands every answer to `each`, as type and contents behind the netfilter header: one answer for a
    /// plain request, all of them for a dump. A dump that somebody's change cut through is `EINTR`.
    pub fn ask(&self, request: &[u8], seq: u32, mut each: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
        self.send(request)?;
        let is_dump = u16::from_ne_bytes([request[6], request[7]]) & DUMP == DUMP;
        let mut buffer = vec![0u8; 1 << 17];
        let mut torn = false;
        loop {
            let n = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            for message in messages(&buffer[..n]).filter(|m| m.seq == seq) {
                torn |= message.flags & DUMP_TORN != 0;
                match (message.kind, message.body) {
                    (ERROR, body) => {
                        return match body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code)) {
                            0 => Ok(()),
                            code => Err(Errno::from_raw(-code)),
                        };
                    }
                    (DONE, _) => return if torn { Err(Errno::EINTR) } else { Ok(()) },
                    (kind, body) => each(kind, body.get(4..).unwrap_or_default()),
                }
                if !is_dump {
                    return Ok(());
                }
            }
        }
    }
}

/// Request flags that ask for all objects.
pub const DUMP: u16 = 0x300;
const DUMP_TORN: u16 = 0x10;
const ERROR: u16 = 2;
const DONE: u16 = 3;

struct Message<'b> {
    kind: u16,
    flags: u16,
    seq: u32,
    body: &'b [u8],
}

fn messages(mut rest: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let header: &[u8; 16] = rest.first_chunk()?;
        let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
        let len = u32::from_ne_bytes(word(0)) as usize;
        let message = Message {
            kind: u16::from_ne_bytes([header[4], header[5]]),
            flags: u16::from_ne_bytes([header[6], header[7]]),
            seq: u32::from_ne_bytes(word(8)),
            body: rest.get(16..len)?,
        };
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes in a message's contents, as kind (without flags) and data.
pub fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header: &[u8; 4] = rest.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & 0x3fff;
        let data = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, data))
    })
}

/// The data of the attribute of this kind.
pub fn find(attrs: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(attrs).find(|(k, _)| *k == kind).map(|(_, data)| data)
}

/// A zero-terminated string.
pub fn read_text(data: &[u8]) -> &str {
    std::str::from_utf8(data).unwrap_or("").trim_end_matches('\0')
}
