//! The demo workload: HTTP, raw TCP and UDP on one port, answering who it is and whom it sees.

use std::{
    env,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context as _;
use axum::{Router, extract::Request};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const METHODS: [&[u8]; 8] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ", b"OPTIONS ", b"PRI "];
/// How long a client may be silent before it is taken for none that speaks HTTP.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// Serves until the token is cancelled, then finishes what is in flight.
pub async fn run(port: u16, stop: CancellationToken) -> anyhow::Result<()> {
    let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let tcp = TcpListener::bind(at).await.with_context(|| format!("--port: cannot listen on TCP {at}"))?;
    let at = tcp.local_addr()?;
    let udp = UdpSocket::bind(at).await.with_context(|| format!("--port: cannot listen on UDP {at}"))?;
    serve(tcp, udp, stop).await;
    Ok(())
}

async fn serve(tcp: TcpListener, udp: UdpSocket, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let mut datagram = vec![0; 65536];
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            accepted = tcp.accept() => if let Ok((stream, peer)) = accepted {
                tasks.spawn(connection(stream, peer, stop.clone()));
            },
            received = udp.recv_from(&mut datagram) => if let Ok((n, peer)) = received {
                let _ = udp.send_to(&raw(&datagram[..n]), peer).await;
            },
        }
    }
    drop(tcp);
    tasks.close();
    tasks.wait().await;
}

async fn connection(mut stream: TcpStream, peer: SocketAddr, stop: CancellationToken) {
    let mut first = [0; 8];
    let seen = tokio::select! {
        () = stop.cancelled() => return,
        seen = tokio::time::timeout(FIRST_WORD, stream.peek(&mut first)) => seen,
    };
    let Ok(Ok(n)) = seen else { return };
    if METHODS.iter().any(|m| m.starts_with(&first[..n.min(m.len())])) && n > 0 {
        http(stream, peer, stop).await;
        return;
    }
    let mut buffer = vec![0; 16384];
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            read = stream.read(&mut buffer) => match read {
                Ok(n) if n > 0 => if stream.write_all(&raw(&buffer[..n])).await.is_err() { return },
                _ => return,
            },
        }
    }
}

async fn http(stream: TcpStream, peer: SocketAddr, stop: CancellationToken) {
    let pod_ip = stream.local_addr().map(|a| a.ip().to_string()).unwrap_or_default();
    let answer = move |request: Request| async move { body(&request, peer, &pod_ip) };
    let service = TowerToHyperService::new(Router::new().fallback(answer));
    let builder = Builder::new(TokioExecutor::new());
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

fn body(request: &Request, peer: SocketAddr, pod_ip: &str) -> String {
    let (pod, node) = (name("HOSTNAME"), name("NODE_NAME"));
    let path = request.uri().path();
    if request.uri().query().is_some_and(|q| q.split('&').any(|p| p == "format=text")) {
        return format!("{pod} {node} {pod_ip} {peer} {path}\n");
    }
    let method = request.method().as_str();
    format!(
        "{}\n",
        json!({"pod": pod, "node": node, "podIP": pod_ip, "client": peer.to_string(), "method": method, "path": path})
    )
}

fn raw(data: &[u8]) -> Vec<u8> {
    [name("HOSTNAME").as_bytes(), b" ", data].concat()
}

fn name(variable: &str) -> String {
    env::var(variable).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn http_tcp_and_udp_answer_on_one_port_and_it_drains() {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = tcp.local_addr().unwrap();
        let udp = UdpSocket::bind(at).await.unwrap();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve(tcp, udp, stop.clone()));

        let mut c = TcpStream::connect(at).await.unwrap();
        c.write_all(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        c.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200") && text.contains("\"path\":\"/x\""), "{text}");

        let mut c = TcpStream::connect(at).await.unwrap();
        c.write_all(b"hello\n").await.unwrap();
        let mut buffer = [0; 256];
        let n = c.read(&mut buffer).await.unwrap();
        assert!(buffer[..n].ends_with(b" hello\n"));

        let u = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        u.send_to(b"hi", at).await.unwrap();
        let n = u.recv(&mut buffer).await.unwrap();
        assert!(buffer[..n].ends_with(b" hi"));

        stop.cancel();
        server.await.unwrap();
        assert!(TcpStream::connect(at).await.is_err());
    }
}
