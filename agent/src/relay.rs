//! Ports of 127.0.0.1 and [::1] that lead elsewhere, by copying in user space: the kernel does not translate what is sent
//! to loopback addresses. A node's agent keeps one for every nodePort; `minisvc up` does the same for its machine.

mod doors;
mod tcp;
mod udp;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::{
    net::{TcpStream, UdpSocket},
    sync::{mpsc, watch},
};

pub use doors::{Door, DoorKey, Taken, keep};

/// Where a door leads.
pub trait Dial: Clone + Send + Sync + 'static {
    /// A connection to the other side.
    fn tcp(&self) -> impl Future<Output = io::Result<TcpStream>> + Send;

    /// A socket that is connected to the other side.
    fn udp(&self) -> impl Future<Output = io::Result<UdpSocket>> + Send;
}

/// The addresses of this node: of IPv4, and of IPv6 where it has it.
pub type NodeIps = (Ipv4Addr, Option<Ipv6Addr>);

/// To this node's own address, where the kernel knows what to do with a nodePort.
#[derive(Clone, Debug)]
pub struct NodePort<O> {
    node_ips: NodeIps,
    door: DoorKey,
    wanted: watch::Receiver<BTreeMap<DoorKey, O>>,
    only6: fn(&O) -> bool,
}

impl<O> NodePort<O> {
    fn target(&self) -> SocketAddr {
        let (first, second) = self.node_ips;
        let only6 = self.wanted.borrow().get(&self.door).is_some_and(self.only6);
        let ip = second.filter(|_| only6).map_or(IpAddr::V4(first), IpAddr::V6);
        SocketAddr::new(ip, self.door.1)
    }
}

impl<O: Clone + Send + Sync + 'static> Dial for NodePort<O> {
    async fn tcp(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.target()).await
    }

    async fn udp(&self) -> io::Result<UdpSocket> {
        let target = self.target();
        let socket = UdpSocket::bind(SocketAddr::new(target.ip(), 0)).await?;
        socket.connect(target).await?;
        Ok(socket)
    }
}

/// Keeps a door open for every wanted nodePort of this node; see [`keep`]. `only6`: whether the owner's service is of IPv6 alone, and
/// answers at no IPv4 address.
pub async fn keep_node_ports<O: Clone + PartialEq + Send + Sync + 'static>(
    node_ips: NodeIps,
    wanted: watch::Receiver<BTreeMap<DoorKey, O>>,
    only6: fn(&O) -> bool,
    taken: mpsc::Sender<Taken<O>>,
) {
    let open = |proto, port| {
        let dial = NodePort { node_ips, door: (proto, port), wanted: wanted.clone(), only6 };
        Door::open(proto, port, dial)
    };
    keep(wanted.clone(), open, taken).await;
}

#[cfg(test)]
mod tests;
