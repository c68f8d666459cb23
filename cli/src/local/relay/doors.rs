//! A door: one port of this machine, on 127.0.0.1 and [::1], that leads into the room.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

use super::{RoomSockets, Targets, tcp, udp};

/// Transport of a door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams, told apart by the sender's address.
    Udp,
}

impl std::fmt::Display for Protocol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        })
    }
}

/// Closes, with all that goes through it, when dropped.
pub struct Door {
    _tasks: JoinSet<()>,
}

impl Door {
    /// Opens a port. Fails when 127.0.0.1 or [::1] has it taken; a machine without IPv6 goes without [::1].
    pub async fn open(
        protocol: Protocol,
        port: u16,
        room: RoomSockets,
        targets: Targets,
    ) -> io::Result<Door> {
        let mut tasks = JoinSet::new();
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let at = SocketAddr::new(ip, port);
            let (room, targets) = (room.clone(), targets.clone());
            let opened = match protocol {
                Protocol::Tcp => TcpListener::bind(at).await.map(|listener| {
                    tasks.spawn(tcp::serve(listener, room, targets));
                }),
                Protocol::Udp => UdpSocket::bind(at).await.map(|socket| {
                    tasks.spawn(udp::serve(socket, room, targets));
                }),
            };
            match opened {
                Err(e) if ip.is_ipv6() && e.kind() != io::ErrorKind::AddrInUse => {}
                other => other?,
            }
        }
        Ok(Door { _tasks: tasks })
    }
}
