use std::net::Ipv4Addr;

use super::*;

struct Running {
    port: u16,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

fn start() -> Running {
    let (tcp, udp) = listen::on(0).unwrap();
    let port = tcp.local_addr().unwrap().port();
    let stop = CancellationToken::new();
    let me = Me { pod: "hello-1".into(), node: "node-1".into(), ip: None };
    let task = tokio::spawn(serve(tcp, udp, Arc::new(me), stop.clone()));
    Running { port, stop, task }
}

async fn connect(port: u16) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap()
}

/// One answer on a connection that stays open.
async fn answer_of(stream: &mut TcpStream, path: &str) -> String {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !text.ends_with(b"\n") || !text.windows(4).any(|w| w == b"\r\n\r\n") || text.ends_with(b"\r\n\r\n")
    {
        let mut buffer = [0; 1024];
        let n = stream.read(&mut buffer).await.unwrap();
        assert!(n > 0, "cut short: {}", String::from_utf8_lossy(&text));
        text.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn http_says_who_answers_and_whom_it_sees() {
    let running = start();
    let mut c = connect(running.port).await;
    let client = c.local_addr().unwrap();
    // Two requests over one connection.
    let text = answer_of(&mut c, "/x?a=b").await;
    let body: serde_json::Value = serde_json::from_str(text.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    assert_eq!(
        body,
        json!({"pod": "hello-1", "node": "node-1", "podIP": "127.0.0.1", "client": client.to_string(), "method": "GET", "path": "/x"})
    );
    let text = answer_of(&mut c, "/?format=text").await;
    assert!(text.ends_with(&format!("hello-1 on node-1 (127.0.0.1) saw {client} /\n")), "{text}");
    assert_eq!(ask(&format!("localhost:{}", running.port)).await.unwrap().matches("hello-1").count(), 1);
}

#[tokio::test]
async fn raw_tcp_and_udp_answer_on_the_same_port_and_ipv6_too() {
    let running = start();
    let mut buffer = [0; 256];
    let mut c = connect(running.port).await;
    c.write_all(b"hello\n").await.unwrap();
    let n = c.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..n], b"hello-1 hello\n");

    let u = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    u.send_to(b"hi", ("127.0.0.1", running.port)).await.unwrap();
    let n = u.recv(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..n], b"hello-1 hi");

    // Where the machine has it.
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        let mut c = TcpStream::connect(("::1", running.port)).await.unwrap();
        c.write_all(b"six").await.unwrap();
        let n = c.read(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..n], b"hello-1 six");
    }
}

#[tokio::test]
async fn the_end_answers_what_is_in_flight_and_one_request_more_of_each_connection() {
    let Running { port, stop, task } = start();
    let mut idle = connect(port).await;
    answer_of(&mut idle, "/").await;
    let mut busy = connect(port).await;
    busy.write_all(b"GET /?delay=100 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut raw = connect(port).await;
    raw.write_all(b"x").await.unwrap();
    let mut buffer = [0; 64];
    assert!(raw.read(&mut buffer).await.unwrap() > 0);
    stop.cancel();
    let mut text = String::new();
    busy.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.to_lowercase().contains("connection: close"), "{text}");
    // Its client did not know of the end.
    let text = answer_of(&mut idle, "/").await;
    assert!(text.to_lowercase().contains("connection: close"), "{text}");
    assert_eq!(idle.read(&mut buffer).await.unwrap(), 0);
    assert_eq!(raw.read(&mut buffer).await.unwrap(), 0);
    task.await.unwrap();
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err());
}

#[tokio::test]
async fn a_request_that_comes_with_the_end_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let me = Arc::new(Me { pod: "hello-1".into(), node: "node-1".into(), ip: None });
    let stop = CancellationToken::new();
    stop.cancel();
    // Often, for what is ready at once is chosen at random.
    for _ in 0..100 {
        let mut client = connect(port).await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        connection(stream, peer, me.clone(), stop.clone()).await;
        let mut text = String::new();
        client.read_to_string(&mut text).await.unwrap();
        assert!(
            text.starts_with("HTTP/1.1 200") && text.to_lowercase().contains("connection: close"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn a_port_in_use_is_one_line() {
    let running = start();
    let error = listen::on(running.port).unwrap_err().to_string();
    assert_eq!(error, format!("--port: {} is in use by another TCP listener: choose another", running.port));
}
