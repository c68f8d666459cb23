//! Exec streams: a WebSocket over an HTTP/1.1 upgrade.

use http::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use reqwest::StatusCode;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{client::generate_key, derive_accept_key},
        protocol::Role,
    },
};

use super::{Client, ClientError};

/// The subprotocol of Kubernetes' exec.
pub const SUBPROTOCOL: &str = "v5.channel.k8s.io";

/// Binary messages whose first byte is the channel: 0 stdin, 1 stdout, 2 stderr, 3 a Status at the end, 255 closes one.
pub type ExecStream = WebSocketStream<reqwest::Upgraded>;

pub(super) async fn connect(client: &Client, path_and_query: &str) -> Result<ExecStream, ClientError> {
    let key = generate_key();
    let request = client
        .http1
        .get(client.url(path_and_query))
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header("Sec-WebSocket-Version", "13")
        .header(SEC_WEBSOCKET_KEY, &key)
        .header(SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    let answer = client.send(request).await?;
    let header = |name: http::HeaderName| answer.headers().get(name).and_then(|v| v.to_str().ok());
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS
        || header(SEC_WEBSOCKET_ACCEPT) != Some(derive_accept_key(key.as_bytes()).as_str())
    {
        return Err(ClientError::Decode("the server did not accept the WebSocket for exec".into()));
    }
    if header(SEC_WEBSOCKET_PROTOCOL) != Some(SUBPROTOCOL) {
        return Err(ClientError::Decode(format!("the server does not speak {SUBPROTOCOL} for exec")));
    }
    let upgraded = answer.upgrade().await.map_err(|e| ClientError::transport(client.server(), &e))?;
    Ok(WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await)
}
