//! The other side: one question over HTTP, so that a demonstration needs no curl.

use std::time::Duration;

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const LIMIT: Duration = Duration::from_secs(5);
/// An answer of ours is far smaller.
const LONGEST: u64 = 64 * 1024;

/// The body that HOST:PORT answers to `GET /`, within 5 s.
pub async fn ask(address: &str) -> anyhow::Result<String> {
    let answer = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.take(LONGEST).read_to_string(&mut text).await?;
        Ok::<_, std::io::Error>(text)
    };
    let text = tokio::time::timeout(LIMIT, answer)
        .await
        .with_context(|| format!("http://{address}/ gives no answer within {LIMIT:?}"))?
        .with_context(|| format!("http://{address}/"))?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else { bail!("http://{address}/ answers no HTTP") };
    if head.split(' ').nth(1) != Some("200") {
        bail!("http://{address}/ answers {}", head.lines().next().unwrap_or_default());
    }
    Ok(body.to_owned())
}
