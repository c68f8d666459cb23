//! The first bytes of a connection: TLS, or somebody who speaks plainly and is told so.

use std::{io, time::Duration};

use rustls::{AlertDescription, CertificateError, Error};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// A TLS record of the kind "handshake". [RFC 8446, 5.1]
const HANDSHAKE: u8 = 0x16;
/// How long and how much is read of a client that was refused, so that the refusal reaches it: a connection closed with unread bytes
/// is reset, and what was written is lost.
const LINGER: Duration = Duration::from_secs(1);
const MOST: usize = 64 << 10;

const PLAIN: &str = "this port speaks TLS alone: use https:// instead of http://\n";

/// Whether the client begins a handshake; waits for its first byte.
pub async fn is_tls(tcp: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    match tcp.peek(&mut first).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(first[0] == HANDSHAKE),
    }
}

/// Answers plain HTTP, and whatever else it may be, in HTTP.
pub async fn refuse_plain(mut tcp: TcpStream) {
    let answer = format!(
        "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{PLAIN}",
        PLAIN.len()
    );
    let _ = timeout(LINGER, async {
        tcp.write_all(answer.as_bytes()).await?;
        linger(&mut tcp).await
    })
    .await;
}

/// Ends our side, and reads what is still to come.
pub async fn linger(tcp: &mut TcpStream) -> io::Result<()> {
    tcp.shutdown().await?;
    let mut buffer = [0; 4096];
    let mut left = MOST;
    let _ = timeout(LINGER, async {
        loop {
            match tcp.read(&mut buffer).await {
                Ok(n) if n > 0 && n < left => left -= n,
                _ => return,
            }
        }
    })
    .await;
    Ok(())
}

/// What a failed handshake means for whoever reads the log; `None` if it means nothing much.
pub fn meaning(error: &io::Error) -> Option<String> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match error {
        Error::InvalidCertificate(why) => match why {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "its certificate has expired: a node joins again with a token, an administrator takes the admin.kubeconfig of the \
                 server's data directory"
                    .into()
            }
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                "its certificate is not good yet: is this machine's clock right?".into()
            }
            CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                "its certificate is of another CA than this cluster's".into()
            }
            other => format!("its certificate is not taken: {other:?}"),
        },
        Error::AlertReceived(
            alert @ (AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateExpired),
        ) => {
            format!(
                "it does not take this server's certificate ({alert:?}): it knows another CA, or reaches the server by a name or \
                 address that the certificate does not hold (--tls-san), or its clock is wrong"
            )
        }
        _ => return None,
    })
}
