//! Messages with open files over a Unix socket that keeps their bounds (`SOCK_SEQPACKET`).

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
        bind, connect, listen, recvmsg, sendmsg, socket,
    },
};

/// The longest message.
pub const LIMIT: usize = 128 << 10;
/// The most files that one message carries.
const FILES: usize = 4;

fn open() -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
}

/// A socket's address holds 108 bytes, a path more: the directory is named by an open file.
fn address(directory: &Path, name: &str) -> Result<(File, UnixAddr), Errno> {
    let directory =
        File::open(directory).map_err(|e| e.raw_os_error().map_or(Errno::ENOENT, Errno::from_raw))?;
    let address = UnixAddr::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()).as_str())?;
    Ok((directory, address))
}

/// Listens on `directory/name`. Neither this socket nor those that it accepts ever block.
pub fn listen_at(directory: &Path, name: &str) -> Result<OwnedFd, Errno> {
    let socket = open()?;
    let (_directory, address) = address(directory, name)?;
    bind(socket.as_raw_fd(), &address)?;
    listen(&socket, Backlog::new(64)?)?;
    Ok(socket)
}

/// Accepts one connection; EAGAIN when there is none.
pub fn accept(listener: impl AsFd) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = nix::sys::socket::accept4(listener.as_fd().as_raw_fd(), flags)?;
    #[allow(unsafe_code, reason = "the kernel gave a new descriptor")]
    // SAFETY: accept4 has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects to `directory/name`; EAGAIN when too many wait to be accepted.
pub fn connect_to(directory: &Path, name: &str) -> Result<OwnedFd, Errno> {
    let socket = open()?;
    let (_directory, address) = address(directory, name)?;
    connect(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

/// Sends one message, whole or not at all; EAGAIN when the other side does not read.
pub fn send(socket: impl AsFd, bytes: &[u8], files: &[OwnedFd]) -> Result<(), Errno> {
    let files: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&files)];
    let control: &[_] = if files.is_empty() { &[] } else { &rights };
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None).map(drop)
}

/// A message and its files.
pub type Message = (Vec<u8>, Vec<OwnedFd>);

/// The next message; `None` when the other side has closed; EAGAIN when there is nothing yet.
pub fn receive(socket: impl AsFd) -> Result<Option<Message>, Errno> {
    let mut bytes = vec![0; LIMIT];
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; FILES]);
    let (length, files, cut) = {
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
        let got = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut iov, Some(&mut control), flags)?;
        let mut files = Vec::new();
        for message in got.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = message {
                #[allow(unsafe_code, reason = "the kernel gave new descriptors")]
                // SAFETY: recvmsg has just made these descriptors, and nobody else owns them.
                files.extend(fds.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (got.bytes, files, got.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC))
    };
    if cut {
        return Err(Errno::EMSGSIZE);
    }
    bytes.truncate(length);
    Ok((length > 0).then_some((bytes, files)))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_message_keeps_its_bounds_and_brings_its_files() {
        let home = tempfile::tempdir().unwrap();
        let deep = home.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let listener = listen_at(&deep, "s").unwrap();
        assert_eq!(accept(&listener).unwrap_err(), Errno::EAGAIN);
        let here = connect_to(&deep, "s").unwrap();
        let there = accept(&listener).unwrap();
        assert_eq!(receive(&there).unwrap_err(), Errno::EAGAIN);
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(&here, b"one", &[writer.into()]).unwrap();
        send(&here, b"two", &[]).unwrap();
        let (bytes, mut files) = receive(&there).unwrap().unwrap();
        assert_eq!((bytes.as_slice(), files.len()), (b"one".as_slice(), 1));
        let mut writer = File::from(files.remove(0));
        writer.write_all(b"through").unwrap();
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
        assert_eq!(receive(&there).unwrap().unwrap().0, b"two");
        drop(here);
        assert!(receive(&there).unwrap().is_none());
        drop(listener);
        assert_eq!(connect_to(&deep, "s").unwrap_err(), Errno::ECONNREFUSED);
    }
}
