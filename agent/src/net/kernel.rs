//! A connection to rtnetlink, and its errors in our words.

use std::{io, net::IpAddr};

use futures::TryStreamExt;
use netlink_packet_route::{
    address::{AddressAttribute, AddressMessage},
    link::{LinkAttribute, LinkMessage},
};
use nix::errno::Errno;
use rtnetlink::Handle;
use tokio::task::JoinHandle;

use super::NetError;

/// Names what was done to what, when the kernel refuses it.
pub(super) trait Refused<T> {
    fn refused(self, operation: &'static str, object: impl ToString) -> Result<T, NetError>;
}

impl<T> Refused<T> for Result<T, rtnetlink::Error> {
    fn refused(self, operation: &'static str, object: impl ToString) -> Result<T, NetError> {
        self.map_err(|error| NetError::Kernel { operation, object: object.to_string(), errno: errno(&error) })
    }
}

/// The kernel's reason; a broken connection counts as EIO.
pub(super) fn errno(error: &rtnetlink::Error) -> Errno {
    match error {
        rtnetlink::Error::NetlinkError(e) => Errno::from_raw(e.raw_code().abs()),
        _ => Errno::EIO,
    }
}

pub(super) fn io(operation: &'static str, object: impl ToString, error: &io::Error) -> NetError {
    let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    NetError::Kernel { operation, object: object.to_string(), errno }
}

/// A connection; closed when dropped.
pub(super) struct Netlink {
    pub(super) handle: Handle,
    task: JoinHandle<()>,
}

impl Netlink {
    /// Opens it in the thread's network namespace; needs a tokio runtime.
    pub(super) fn open() -> Result<Self, NetError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|e| io("open", "a netlink socket", &e))?;
        Ok(Netlink { handle, task: tokio::spawn(connection) })
    }

    /// A link by its name, if it is there.
    pub(super) async fn link(&self, name: &str) -> Result<Option<Link>, NetError> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await {
            Ok(message) => Ok(message.map(|m| Link::from(&m))),
            Err(error) if errno(&error) == Errno::ENODEV => Ok(None),
            Err(error) => Err(error).refused("look up link", name),
        }
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What we care for of a link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) mac: Vec<u8>,
    pub(super) mtu: u32,
    pub(super) group: u32,
    /// Index of the other end of a veth, in that one's namespace.
    pub(super) peer: Option<u32>,
}

impl From<&LinkMessage> for Link {
    fn from(message: &LinkMessage) -> Self {
        let mut link = Link { index: message.header.index, ..Link::default() };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(mac) => link.mac.clone_from(mac),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Group(group) => link.group = *group,
                LinkAttribute::Link(peer) => link.peer = Some(*peer),
                _ => {}
            }
        }
        link
    }
}

/// The address that a message is about, at this end of the link.
pub(crate) fn local(message: &AddressMessage) -> Option<IpAddr> {
    let find = |of: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(of);
    // IPv6 tells an address of its own only where the other end has another.
    find(|a| if let AddressAttribute::Local(ip) = a { Some(*ip) } else { None })
        .or_else(|| find(|a| if let AddressAttribute::Address(ip) = a { Some(*ip) } else { None }))
}

/// Runs a future on a runtime of its own in this thread.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, NetError>>) -> Result<T, NetError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| io("start", "a runtime", &e))?
        .block_on(future)
}
