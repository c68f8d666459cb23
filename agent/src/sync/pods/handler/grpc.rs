//! The gRPC health check: `grpc.health.v1.Health/Check` over HTTP/2 without TLS.
//! [grpc/doc/health-checking.md, PROTOCOL-HTTP2.md]

use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// More than any health check answers.
const LONGEST: usize = 64 << 10;

/// Asks once; good is only SERVING. An error is worded as Kubernetes' [pkg/probe/grpc].
pub async fn check(target: SocketAddr, service: &str) -> Result<(), String> {
    let stream = TcpStream::connect(target).await.map_err(|e| {
        format!("error: failed to connect service at \"{target}\": {}", super::dial(target, &e))
    })?;
    let failed = |why: &dyn std::fmt::Display| format!("error: health rpc probe failed: {why}");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|e| failed(&e))?;
    let request = http::Request::post(format!("http://{target}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "minisvc-probe")
        .body(Full::new(framed(&health_check_request(service))))
        .map_err(|e| failed(&e))?;
    let ask = async {
        let answer = sender.send_request(request).await.map_err(|e| failed(&e))?;
        let (head, body) = answer.into_parts();
        if head.status != http::StatusCode::OK {
            return Err(failed(&format!("HTTP status {}", head.status.as_u16())));
        }
        let body = Limited::new(body, LONGEST).collect().await.map_err(|e| failed(&e))?;
        // An answer without a message has its status in the head.
        let field = |name: &str| {
            let trailer = body.trailers().and_then(|t| t.get(name));
            trailer.or_else(|| head.headers.get(name)).and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        let (code, message) = (field("grpc-status"), field("grpc-message").unwrap_or_default());
        verdict(code.as_deref(), &message, &body.to_bytes())
    };
    tokio::select! {
        biased;
        answer = ask => answer,
        Err(e) = connection => Err(failed(&e)),
    }
}

/// What an answer means.
fn verdict(code: Option<&str>, message: &str, body: &[u8]) -> Result<(), String> {
    match code {
        Some("0") => {}
        Some("12") => {
            return Err("error: this server does not implement the grpc health protocol \
                 (grpc.health.v1.Health)"
                .into());
        }
        Some(code) => return Err(format!("error: health rpc probe failed: code {code}: {message}")),
        None => return Err("error: health rpc probe failed: the answer has no grpc-status".into()),
    }
    let status = unframed(body).and_then(serving_status);
    let status = status.ok_or("error: health rpc probe failed: not a HealthCheckResponse")?;
    let name = match status {
        1 => return Ok(()),
        0 => "UNKNOWN".to_owned(),
        2 => "NOT_SERVING".to_owned(),
        3 => "SERVICE_UNKNOWN".to_owned(),
        other => other.to_string(),
    };
    Err(format!("service unhealthy (responded with \"{name}\")"))
}

/// `message HealthCheckRequest { string service = 1; }`
fn health_check_request(service: &str) -> Bytes {
    let mut out = BytesMut::new();
    if !service.is_empty() {
        out.put_u8(1 << 3 | 2);
        let mut length = service.len();
        while length >= 0x80 {
            out.put_u8((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        out.put_u8(length as u8);
        out.put_slice(service.as_bytes());
    }
    out.freeze()
}

/// A message as gRPC sends it: not compressed, with its length.
fn framed(message: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.put_slice(message);
    out.freeze()
}

/// The first message of a body; `None` if there is none, or it is compressed, which nobody asked for.
fn unframed(body: &[u8]) -> Option<&[u8]> {
    let (head, rest) = body.split_first_chunk::<5>()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    rest.get(..usize::try_from(length).ok()?).filter(|_| head[0] == 0)
}

/// `message HealthCheckResponse { ServingStatus status = 1; }`, with fields of later versions passed over.
fn serving_status(mut message: &[u8]) -> Option<u64> {
    let mut status = 0;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let length = match key & 7 {
            0 => {
                let value = varint(&mut message)?;
                status = if key >> 3 == 1 { value } else { status };
                0
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        message = message.get(length..)?;
    }
    Some(status)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use http_body_util::StreamBody;
    use hyper::{body::Frame, service::service_fn};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn messages_are_those_of_the_protocol() {
        assert_eq!(&framed(&health_check_request(""))[..], b"\0\0\0\0\0");
        assert_eq!(&framed(&health_check_request("db"))[..], b"\0\0\0\0\x04\x0a\x02db");
        assert_eq!(health_check_request(&"x".repeat(300))[..3], [0x0a, 0xac, 0x02]);
        for (message, want) in [
            (&b""[..], Some(0)),
            (b"\x08\x01", Some(1)),
            (b"\x12\x02hi\x08\x02", Some(2)),
            (b"\x08", None),
            (b"\x12\x09hi", None),
            (b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(serving_status(message), want, "{message:?}");
        }
        assert_eq!(unframed(b"\x01\0\0\0\0"), None, "compressed");
        assert_eq!(unframed(b"\0\0\0\0\x05ab"), None, "cut off");
        assert_eq!(verdict(Some("0"), "", b"\0\0\0\0\x02\x08\x01"), Ok(()));
        assert_eq!(
            verdict(Some("0"), "", b"\0\0\0\0\x02\x08\x02"),
            Err("service unhealthy (responded with \"NOT_SERVING\")".into())
        );
        assert!(verdict(Some("12"), "", b"").unwrap_err().contains("does not implement"));
        assert!(verdict(Some("5"), "unknown service", b"").unwrap_err().ends_with("code 5: unknown service"));
        assert!(verdict(None, "", b"\0\0\0\0\x02\x08\x01").is_err(), "cut off before its end");
    }

    #[tokio::test]
    async fn a_server_is_asked_over_http2() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = service_fn(async |request: http::Request<hyper::body::Incoming>| {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert_eq!(request.headers()["content-type"], "application/grpc");
                    assert_eq!(request.headers()["te"], "trailers");
                    let body = request.into_body().collect().await.unwrap().to_bytes();
                    let known = body.ends_with(b"\x0a\x04good");
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", if known { "0" } else { "5" }.parse().unwrap());
                    let mut frames = vec![Ok::<_, std::convert::Infallible>(Frame::trailers(trailers))];
                    if known {
                        frames.insert(0, Ok(Frame::data(framed(b"\x08\x01"))));
                    }
                    let body = StreamBody::new(futures::stream::iter(frames));
                    Ok::<_, hyper::Error>(http::Response::new(body))
                });
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                serving.serve_connection(TokioIo::new(stream), service).await.unwrap();
            }
        });
        assert_eq!(check(target, "good").await, Ok(()));
        assert!(check(target, "bad").await.unwrap_err().contains("code 5"));
    }

    #[tokio::test]
    async fn what_speaks_no_grpc_is_told_apart_from_what_is_not_there() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap();
        let silent = tokio::spawn(async move { drop(listener.accept().await.unwrap()) });
        assert!(check(target, "").await.unwrap_err().starts_with("error: health rpc probe failed"));
        silent.await.unwrap();
        assert!(check(target, "").await.unwrap_err().starts_with("error: failed to connect service at"));
    }
}
