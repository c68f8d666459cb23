//! The demo workload: HTTP, raw TCP and UDP on one port, answering who it is and whom it sees.

mod ask;
mod listen;

use std::{
    convert::Infallible,
    env,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::body::Body;
use hyper::{Request, Response, body::Incoming, header, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::ask::ask;
use crate::{args::Echo, output};

const METHODS: [&[u8]; 7] = [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"PATCH ", b"DELETE ", b"OPTIONS "];
/// How long a client may be silent before it is taken for none that speaks HTTP.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How long a connection stays open for its first or next request once the end is asked for: to close it at once could cross a request
/// on its way.
const NEXT_WORD: Duration = Duration::from_secs(10);
/// The longest delay that a request may ask for.
const LONGEST_DELAY: Duration = Duration::from_mins(1);

/// Who answers.
#[derive(Clone, Debug)]
struct Me {
    pod: String,
    node: String,
    ip: Option<String>,
}

impl Me {
    /// From what the agent says; outside of a pod the machine's own name.
    fn from_environment() -> Me {
        let set = |name: &str| env::var(name).ok().filter(|v| !v.is_empty());
        let host = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        Me {
            pod: set("MINISVC_POD").or_else(|| set("HOSTNAME")).unwrap_or_else(host),
            node: set("MINISVC_NODE").unwrap_or_else(host),
            ip: set("MINISVC_POD_IP"),
        }
    }
}

/// Serves until the token is cancelled, then finishes what is in flight; or asks another one.
pub async fn run(args: Echo, stop: CancellationToken) -> anyhow::Result<()> {
    if let Some(address) = args.ask {
        return Ok(output::bytes(ask(&address).await?.as_bytes())?);
    }
    let (tcp, udp) = listen::on(args.port)?;
    let me = Me::from_environment();
    let port = tcp.local_addr()?.port();
    // Nobody has to read it.
    let _ = output::line(&format!("{} listens on port {port}: HTTP, TCP and UDP", me.pod));
    serve(tcp, udp, Arc::new(me), stop).await;
    Ok(())
}

async fn serve(tcp: TcpListener, udp: UdpSocket, me: Arc<Me>, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    let mut datagram = vec![0; 65536];
    loop {
        tokio::select! {
            // What stands in the queue of the socket comes before the end of it.
            biased;
            accepted = tcp.accept() => match accepted {
                Ok((stream, peer)) => {
                    tasks.spawn(connection(stream, peer, me.clone(), stop.clone()));
                }
                // Out of files, most likely: others may give some back.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
            received = udp.recv_from(&mut datagram) => if let Ok((n, peer)) = received {
                let _ = udp.send_to(&raw(&me, &datagram[..n]), peer).await;
            },
            () = stop.cancelled() => break,
        }
    }
    drop(udp);
    // Who connected before the end is in the queue, though the runtime may not have heard of it.
    if let Ok(queue) = tcp.into_std() {
        while let Ok((stream, peer)) = queue.accept() {
            let Ok(stream) = stream.set_nonblocking(true).and_then(|()| TcpStream::from_std(stream)) else {
                continue;
            };
            tasks.spawn(connection(stream, peer, me.clone(), stop.clone()));
        }
    }
    tasks.close();
    tasks.wait().await;
}

async fn connection(mut stream: TcpStream, peer: SocketAddr, me: Arc<Me>, stop: CancellationToken) {
    let mut first = [0; 8];
    let ended = async {
        stop.cancelled().await;
        tokio::time::sleep(NEXT_WORD).await;
    };
    let seen = tokio::select! {
        seen = tokio::time::timeout(FIRST_WORD, stream.peek(&mut first)) => seen,
        () = ended => return,
    };
    let Ok(Ok(n)) = seen else { return };
    if METHODS.iter().any(|m| m.starts_with(&first[..n.min(m.len())])) && n > 0 {
        http(stream, peer, me, stop).await;
        return;
    }
    let mut buffer = vec![0; 16384];
    loop {
        tokio::select! {
            biased;
            read = stream.read(&mut buffer) => match read {
                Ok(n) if n > 0 => if stream.write_all(&raw(&me, &buffer[..n])).await.is_err() { return },
                _ => return,
            },
            () = stop.cancelled() => return,
        }
    }
}

/// One connection, with as many requests as the client likes; after the token's end the one in flight, or the next.
async fn http(stream: TcpStream, peer: SocketAddr, me: Arc<Me>, stop: CancellationToken) {
    let local = stream.local_addr().map(|a| a.ip().to_canonical());
    let ends = stop.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (me, local, ends) = (me.clone(), local.as_ref().ok().copied(), ends.clone());
        async move {
            if let Some(delay) = delay(&request) {
                tokio::time::sleep(delay).await;
            }
            let mut answer = answer(&me, &request, peer, local);
            if ends.is_cancelled() {
                answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let connection =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => {}
        () = stop.cancelled() => {
            // The next answer closes it.
            tokio::select! {
                _ = connection.as_mut() => return,
                () = tokio::time::sleep(NEXT_WORD) => {}
            }
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

fn parameter<'a, B>(request: &'a Request<B>, name: &str) -> Option<&'a str> {
    let pairs = request.uri().query()?.split('&');
    pairs.filter_map(|p| p.split_once('=')).find_map(|(k, v)| (k == name).then_some(v))
}

/// `?delay=MILLISECONDS`: a slow answer, to see how a connection ends.
fn delay<B>(request: &Request<B>) -> Option<Duration> {
    Some(Duration::from_millis(parameter(request, "delay")?.parse().ok()?).min(LONGEST_DELAY))
}

fn answer<B>(me: &Me, request: &Request<B>, peer: SocketAddr, local: Option<IpAddr>) -> Response<Body> {
    let client = SocketAddr::new(peer.ip().to_canonical(), peer.port());
    let ip = me.ip.clone().or_else(|| local.map(|ip| ip.to_string())).unwrap_or_default();
    let Me { pod, node, .. } = me;
    let path = request.uri().path();
    let (kind, text) = if parameter(request, "format") == Some("text") {
        ("text/plain; charset=utf-8", format!("{pod} on {node} ({ip}) saw {client} {path}\n"))
    } else {
        let method = request.method().as_str();
        let value = json!({"pod": pod, "node": node, "podIP": ip, "client": client.to_string(), "method": method, "path": path});
        ("application/json", format!("{value}\n"))
    };
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

fn raw(me: &Me, data: &[u8]) -> Vec<u8> {
    [me.pod.as_bytes(), b" ", data].concat()
}

#[cfg(test)]
mod tests;
