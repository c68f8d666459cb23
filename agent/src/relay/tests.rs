use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{mpsc, watch},
};

use super::*;
use crate::plan::Proto;

/// To a server of the test's own.
#[derive(Clone, Copy)]
struct To(SocketAddr);

impl Dial for To {
    async fn tcp(&self) -> io::Result<TcpStream> {
        TcpStream::connect(self.0).await
    }

    async fn udp(&self) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        socket.connect(self.0).await?;
        Ok(socket)
    }
}

async fn tcp_server() -> (TcpListener, To) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    (listener, To(at))
}

/// A port that was free a moment ago on both loopback addresses.
async fn free_port() -> u16 {
    loop {
        let v4 = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = v4.local_addr().unwrap().port();
        if TcpListener::bind((Ipv6Addr::LOCALHOST, port)).await.is_ok()
            && UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).await.is_ok()
        {
            return port;
        }
    }
}

#[tokio::test]
async fn one_side_may_end_while_the_other_still_speaks() {
    let (server, to) = tcp_server().await;
    let port = free_port().await;
    let _door = Door::open(Proto::Tcp, port, to).await.unwrap();
    for at in [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), (Ipv6Addr::LOCALHOST, port).into()] {
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let (mut inside, _) = server.accept().await.unwrap();
        let mut heard = String::new();
        inside.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "question");
        inside.write_all(b"answer after the end").await.unwrap();
        drop(inside);
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "answer after the end");
    }
}

#[tokio::test]
async fn a_side_that_does_not_read_stops_the_one_that_writes() {
    let (server, to) = tcp_server().await;
    let port = free_port().await;
    let _door = Door::open(Proto::Tcp, port, to).await.unwrap();
    let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let (mut inside, _) = server.accept().await.unwrap();
    let block = vec![7; 1 << 16];
    let mut sent = 0;
    // Writes until nothing more fits anywhere between the two. The kernel's buffers end somewhere below 64 MB.
    while sent < 64 << 20 {
        if let Ok(n) = client.try_write(&block) {
            sent += n;
            continue;
        }
        let writable = tokio::time::timeout(std::time::Duration::from_millis(200), client.writable());
        if writable.await.is_err() {
            break;
        }
    }
    assert!(sent < 64 << 20, "the relay takes without end");
    drop(client);
    let mut all = Vec::new();
    inside.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), sent);
}

#[tokio::test]
async fn datagrams_come_back_to_who_sent_them() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let to = To(server.local_addr().unwrap());
    let port = free_port().await;
    let _door = Door::open(Proto::Udp, port, to).await.unwrap();
    let clients = [
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
        UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap(),
    ];
    let mut buffer = [0; 16];
    let mut seen = Vec::new();
    for (n, client) in (0u8..).zip(&clients) {
        client.connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        for word in [n, n + 10] {
            client.send(&[word]).await.unwrap();
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            server.send_to(&[buffer[0] + 100], from).await.unwrap();
            seen.push(from);
            assert_eq!((length, client.recv(&mut buffer).await.unwrap(), buffer[0]), (1, 1, word + 100));
        }
    }
    // One flow for each.
    assert_eq!((seen[0] == seen[1], seen[2] == seen[3], seen[0] == seen[2]), (true, true, false));
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_and_the_others_open() {
    let (server, to) = tcp_server().await;
    let taken_port = server.local_addr().unwrap().port();
    let port = free_port().await;
    let wanted = BTreeMap::from([((Proto::Tcp, taken_port), "a"), ((Proto::Tcp, port), "b")]);
    let (sender, receiver) = watch::channel(wanted);
    let (words, mut told) = mpsc::channel(4);
    let keeper = tokio::spawn(keep(receiver, move |proto, port| Door::open(proto, port, to), words));
    let word = told.recv().await.unwrap();
    assert_eq!((word.proto, word.port, word.owner), (Proto::Tcp, taken_port, "a"));
    assert!(word.cause.contains("in use"), "{}", word.cause);
    let mut client = loop {
        // The other door opens right after the word.
        if let Ok(client) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await {
            break client;
        }
        tokio::task::yield_now().await;
    };
    let (mut inside, _) = server.accept().await.unwrap();
    inside.write_all(b"x").await.unwrap();
    assert_eq!(client.read_u8().await.unwrap(), b'x');
    // Not wanted any more: closed, with what goes through it.
    sender.send(BTreeMap::new()).unwrap();
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0);
    drop(sender);
    keeper.await.unwrap();
}
