//! The LAN's resolver: takes questions at the room's address and passes them to this machine's resolvers.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{net::UdpSocket, sync::Semaphore, time::timeout};

use super::{super::lan, RoomSockets};

const PORT: u16 = 53;
const PATIENCE: Duration = Duration::from_secs(2);
const LARGEST: usize = 65_535;
const MOST_AT_ONCE: usize = 512;

/// Answers until the relay ends. Without a resolver of this machine, questions stay without an answer, as on that machine.
pub async fn serve(room: RoomSockets) {
    let udp = async {
        if let Err(e) = serve_udp(&room).await {
            tracing::warn!("DNS for the LAN: {e}");
        }
    };
    let tcp = async {
        if let Err(e) = serve_tcp(&room).await {
            tracing::warn!("DNS over TCP for the LAN: {e}");
        }
    };
    tokio::join!(udp, tcp);
}

async fn serve_udp(room: &RoomSockets) -> io::Result<()> {
    let socket = Arc::new(room.udp(SocketAddr::new(lan::ROOM.into(), PORT)).await?);
    let places = Arc::new(Semaphore::new(MOST_AT_ONCE));
    let mut buffer = vec![0; LARGEST];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (question, socket) = (buffer[..length].to_vec(), socket.clone());
        tokio::spawn(async move {
            let _place = place;
            for resolver in resolvers() {
                if let Ok(Ok(answer)) = timeout(PATIENCE, ask(resolver, &question)).await {
                    let _ = socket.send_to(&answer, from).await;
                    return;
                }
            }
        });
    }
}

async fn ask(resolver: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr =
        if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; LARGEST];
    let length = socket.recv(&mut buffer).await?;
    buffer.truncate(length);
    Ok(buffer)
}

async fn serve_tcp(room: &RoomSockets) -> io::Result<()> {
    let socket = room.tcp().await?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(lan::ROOM.into(), PORT))?;
    let listener = socket.listen(64)?;
    loop {
        let (mut client, _) = listener.accept().await?;
        tokio::spawn(async move {
            for resolver in resolvers() {
                if let Ok(Ok(mut upstream)) =
                    timeout(PATIENCE, tokio::net::TcpStream::connect(resolver)).await
                {
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
                    return;
                }
            }
        });
    }
}

/// This machine's resolvers, read anew every time: they change when a laptop changes its network.
fn resolvers() -> Vec<SocketAddr> {
    parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

fn parse(resolv_conf: &str) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok())?
        })
        .map(|ip| SocketAddr::new(ip, PORT))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_come_from_nameserver_lines() {
        let list = parse("# x\nsearch a\nnameserver 9.9.9.9\nnameserver ::1\nnameserver fe80::1%eth0\n");
        assert_eq!(list, ["9.9.9.9:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
    }
}
