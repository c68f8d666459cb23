//! Ports of 127.0.0.1 and [::1] that lead elsewhere, by copying in user space: the kernel does not translate what is sent
//! to loopback addresses. A node's agent keeps one for every nodePort; `minisvc up` does the same for its machine.

mod doors;
mod tcp;
mod udp;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::net::{TcpStream, UdpSocket};

pub use doors::{Door, DoorKey, Taken, keep};

/// Where a door leads.
pub trait Dial: Clone + Send + Sync + 'static {
    /// A connection to the other side.
    fn tcp(&self) -> impl Future<Output = io::Result<TcpStream>> + Send;

    /// A socket that is connected to the other side.
    fn udp(&self) -> impl Future<Output = io::Result<UdpSocket>> + Send;
}

/// To this node's own address, where the kernel knows what to do with a nodePort.
#[derive(Clone, Copy, Debug)]
pub struct NodePort {
    /// The node's address.
    pub node_ip: Ipv4Addr,
    /// The nodePort.
    pub port: u16,
}

impl Dial for NodePort {
    async fn tcp(&self) -> io::Result<TcpStream> {
        TcpStream::connect((self.node_ip, self.port)).await
    }

    async fn udp(&self) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind(SocketAddr::new(self.node_ip.into(), 0)).await?;
        socket.connect((self.node_ip, self.port)).await?;
        Ok(socket)
    }
}

/// Keeps a door open for every wanted nodePort of this node; see [`keep`].
pub async fn keep_node_ports<O: Clone + PartialEq>(
    node_ip: Ipv4Addr,
    wanted: tokio::sync::watch::Receiver<std::collections::BTreeMap<DoorKey, O>>,
    taken: tokio::sync::mpsc::Sender<Taken<O>>,
) {
    let open = |proto, port| Door::open(proto, port, NodePort { node_ip, port });
    keep(wanted, open, taken).await;
}

#[cfg(test)]
mod tests;
