//! One port for TCP and UDP, on IPv4 and IPv6.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
};

use anyhow::{Context as _, anyhow};
use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};
use tokio::net::{TcpListener, UdpSocket};

const BACKLOG: i32 = 1024;

/// Opens the port, both protocols or none.
pub fn on(port: u16) -> anyhow::Result<(TcpListener, UdpSocket)> {
    let (tcp, udp) = match both(port, true) {
        // A machine without IPv6.
        Err((_, e)) if is_without_v6(&e) => both(port, false),
        other => other,
    }
    .map_err(|(protocol, e)| match e.kind() {
        io::ErrorKind::AddrInUse => {
            anyhow!("--port: {port} is in use by another {protocol} listener: choose another")
        }
        io::ErrorKind::PermissionDenied => anyhow!("--port: {port} is for root only: choose one above 1023"),
        _ => anyhow!("--port: cannot listen on {protocol} port {port}: {e}"),
    })?;
    Ok((
        TcpListener::from_std(tcp).context("the TCP socket")?,
        UdpSocket::from_std(udp).context("the UDP socket")?,
    ))
}

type Sockets = (std::net::TcpListener, std::net::UdpSocket);

fn both(port: u16, v6: bool) -> Result<Sockets, (&'static str, io::Error)> {
    let tcp = tcp(port, v6).map_err(|e| ("TCP", e))?;
    // A port that the system chose for one is asked for by its number for the other.
    let port = tcp.local_addr().map_err(|e| ("TCP", e))?.port();
    Ok((tcp, udp(port, v6).map_err(|e| ("UDP", e))?))
}

fn is_without_v6(e: &io::Error) -> bool {
    use rustix::io::Errno;
    let code = e.raw_os_error();
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].iter().any(|n| code == Some(n.raw_os_error()))
}

/// All addresses: an IPv6 socket that serves IPv4 too, whatever the system's default is.
fn open(kind: SocketType, port: u16, v6: bool) -> io::Result<std::os::fd::OwnedFd> {
    let family = if v6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let fd = socket(family, kind, None)?;
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    let address = if v6 {
        sockopt::set_ipv6_v6only(&fd, false)?;
        SocketAddr::V6(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0))
    } else {
        SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port))
    };
    if kind == SocketType::STREAM {
        // A server that starts again need not wait for the last one's connections to time out.
        sockopt::set_socket_reuseaddr(&fd, true)?;
    }
    bind(&fd, &address)?;
    Ok(fd)
}

fn tcp(port: u16, v6: bool) -> io::Result<std::net::TcpListener> {
    let fd = open(SocketType::STREAM, port, v6)?;
    listen(&fd, BACKLOG)?;
    Ok(fd.into())
}

fn udp(port: u16, v6: bool) -> io::Result<std::net::UdpSocket> {
    Ok(open(SocketType::DGRAM, port, v6)?.into())
}
