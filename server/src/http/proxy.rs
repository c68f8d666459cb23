//! Logs and commands: what the server asks of the agents for its clients. Bytes are passed on as they come; of a WebSocket
//! only its handshake is seen here.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{body::Body, extract::Request, response::Response};
use futures::StreamExt;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri,
    header::{
        CONNECTION, CONTENT_TYPE, HOST, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_EXTENSIONS, SEC_WEBSOCKET_KEY,
        SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
    },
};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use minisvc_proto::{
    ApiError, Object, ObjectKey, Reason,
    path::Target,
    resource::{NODES, PODS},
};
use rustls_pki_types::ServerName;
use serde_json::Value;
use tokio::{io::copy_bidirectional, net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use super::{Edge, User, query::Query};
use crate::pki::node_tls_name;

/// The port of the agents' API, of a node that names no other.
const AGENT_PORT: u16 = 10250;
/// How long a connection to an agent may take, TLS included.
const CONNECT_TIME: Duration = Duration::from_secs(3);
/// How long an agent may take to begin its answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// What passes in a WebSocket's handshake, either way.
const HANDSHAKE: [HeaderName; 7] = [
    CONNECTION,
    UPGRADE,
    SEC_WEBSOCKET_ACCEPT,
    SEC_WEBSOCKET_EXTENSIONS,
    SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION,
];

/// A pod's log, or a command in a pod.
pub async fn pod(
    edge: &Edge,
    target: &Target,
    query: &Query,
    request: Request,
) -> Result<Response, ApiError> {
    let key = target.key().ok_or_else(ApiError::no_such_path)?;
    let pod = edge.registry.get(&key)?;
    let container = container(&pod, query.get("container"))?;
    let node = pod.str_at("/spec/nodeName").filter(|n| !n.is_empty()).ok_or_else(|| {
        ApiError::bad_request(format!(
            "pod {} is on no node yet, so there is nothing to speak with",
            key.name
        ))
    })?;
    let place = format!("{}/{}/{container}", key.namespace.as_deref().unwrap_or("default"), key.name);
    if target.subresource.as_deref() == Some("exec") {
        return exec(edge, node, &format!("/exec/{place}"), query, request).await;
    }
    for flag in ["follow", "previous", "timestamps"] {
        query.flag(flag)?;
    }
    for number in ["tailLines", "limitBytes", "sinceSeconds"] {
        query.number::<u64>(number)?;
    }
    logs(edge, node, &format!("/logs/{place}"), request.uri()).await
}

/// A command on a node itself.
pub async fn node(edge: &Edge, node: &str, query: &Query, request: Request) -> Result<Response, ApiError> {
    exec(edge, node, "/exec-node", query, request).await
}

/// The container that is meant: the one named, init containers included, or the first of the others.
fn container<'a>(pod: &'a Object, wanted: Option<&str>) -> Result<&'a str, ApiError> {
    let list = |pointer: &str| pod.pointer(pointer).and_then(Value::as_array).into_iter().flatten();
    let all = list("/spec/containers").chain(list("/spec/initContainers"));
    let names: Vec<&str> = all.filter_map(|c| c["name"].as_str()).collect();
    match wanted {
        None => names.first().copied().ok_or_else(|| ApiError::not_found(&PODS, pod.name())),
        Some(wanted) => names.iter().find(|n| **n == wanted).copied().ok_or_else(|| {
            let (pod, names) = (pod.name(), names.join(", "));
            ApiError::bad_request(format!("container {wanted} is not valid for pod {pod}; it has {names}"))
        }),
    }
}

async fn logs(edge: &Edge, node: &str, path: &str, uri: &Uri) -> Result<Response, ApiError> {
    let answer = reach(edge, node).await?.ask(path, uri, HeaderMap::new()).await?;
    let code = answer.status();
    let media_type = answer.headers().get(CONTENT_TYPE).cloned();
    // A log that is followed has no end of its own.
    let shutdown = edge.shutdown.clone();
    let bytes = Body::new(answer.into_body()).into_data_stream();
    let bytes = bytes.take_until(shutdown.cancelled_owned()).fuse();
    let mut out = Response::new(Body::from_stream(bytes));
    *out.status_mut() = code;
    out.headers_mut().insert(CONTENT_TYPE, media_type.unwrap_or(HeaderValue::from_static("text/plain")));
    Ok(out)
}

async fn exec(
    edge: &Edge,
    node: &str,
    path: &str,
    query: &Query,
    mut request: Request,
) -> Result<Response, ApiError> {
    if query.get("command").is_none() {
        return Err(ApiError::bad_request("command: there must be one at least"));
    }
    for flag in ["stdin", "stdout", "stderr", "tty"] {
        query.flag(flag)?;
    }
    // Before the protocol is looked at: a client that falls back to another one shows its user the last refusal only.
    let agent = reach(edge, node).await?;
    if !is_websocket(request.headers()) {
        return Err(ApiError::bad_request(
            "exec is served over WebSocket alone (subprotocol v5.channel.k8s.io, HTTP/1.1)",
        ));
    }
    let mut answer = agent.ask(path, request.uri(), handshake(request.headers())).await?;
    let code = answer.status();
    if code != StatusCode::SWITCHING_PROTOCOLS {
        let mut refusal = Response::new(());
        *refusal.status_mut() = code;
        if let Some(media_type) = answer.headers().get(CONTENT_TYPE) {
            refusal.headers_mut().insert(CONTENT_TYPE, media_type.clone());
        }
        return Ok(refusal.map(|()| Body::new(answer.into_body())));
    }
    let mut accepted = Response::new(Body::empty());
    *accepted.status_mut() = code;
    *accepted.headers_mut() = handshake(answer.headers());
    let (client, agent) = (hyper::upgrade::on(&mut request), hyper::upgrade::on(&mut answer));
    tokio::spawn(relay(client, agent, edge.shutdown.clone()));
    Ok(accepted)
}

fn is_websocket(headers: &HeaderMap) -> bool {
    let holds = |name: &HeaderName, word: &str| {
        let value = headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("");
        value.split(',').any(|v| v.trim().eq_ignore_ascii_case(word))
    };
    holds(&UPGRADE, "websocket") && holds(&CONNECTION, "upgrade")
}

fn handshake(headers: &HeaderMap) -> HeaderMap {
    HANDSHAKE.iter().filter_map(|name| Some((name.clone(), headers.get(name)?.clone()))).collect()
}

/// Passes bytes both ways until one side ends, or the server does.
async fn relay(
    client: hyper::upgrade::OnUpgrade,
    agent: hyper::upgrade::OnUpgrade,
    shutdown: CancellationToken,
) {
    let passed = async {
        let (client, agent) = tokio::try_join!(client, agent).map_err(io::Error::other)?;
        copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(agent)).await
    };
    tokio::select! {
        passed = passed => if let Err(error) = passed {
            tracing::debug!(%error, "an exec stream broke off");
        },
        () = shutdown.cancelled() => {}
    }
}

/// A connection to a node's agent.
struct Agent<'a> {
    node: &'a str,
    address: SocketAddr,
    stream: TlsStream<TcpStream>,
}

/// Connects to a node's agent.
async fn reach<'a>(edge: &Edge, node: &'a str) -> Result<Agent<'a>, ApiError> {
    let object = edge.registry.get(&ObjectKey::cluster(&NODES, node))?;
    let address = address(&object).ok_or_else(|| unavailable(node, "has no address yet"))?;
    let stream = timeout(CONNECT_TIME, connect(&edge.agents, node, address))
        .await
        .map_err(|_| silent(node, address, &"no answer in time"))?
        .map_err(|e| silent(node, address, &e))?;
    // The name alone would let a machine answer whose certificate was revoked.
    let agent = stream.get_ref().1.peer_certificates().and_then(<[_]>::first).and_then(|c| User::read(c));
    if let Some(why) = agent_fault(node, agent.as_ref(), edge.registry.identity(node).as_deref()) {
        return Err(silent(node, address, &why));
    }
    Ok(Agent { node, address, stream })
}

impl Agent<'_> {
    /// Asks; the query is passed on as the client wrote it.
    async fn ask(
        self,
        path: &str,
        uri: &Uri,
        headers: HeaderMap,
    ) -> Result<hyper::Response<Incoming>, ApiError> {
        let failed = |error: hyper::Error| silent(self.node, self.address, &error);
        let (mut sender, connection) = http1::handshake(TokioIo::new(self.stream)).await.map_err(failed)?;
        // Ends with the answer, or with the streams that it became.
        tokio::spawn(connection.with_upgrades());
        let query = uri.query().unwrap_or("");
        let mut request = hyper::Request::new(Body::empty());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = format!("{path}?{query}").parse().map_err(ApiError::internal)?;
        *request.headers_mut() = headers;
        request.headers_mut().insert(HOST, self.node.parse().map_err(ApiError::internal)?);
        timeout(ANSWER_TIME, sender.send_request(request))
            .await
            .map_err(|_| silent(self.node, self.address, &"no answer in time"))?
            .map_err(failed)
    }
}

/// What is wrong with whoever answers at a node's address; `None` if it is the machine that joined last under the node's name.
fn agent_fault(node: &str, agent: Option<&User>, current: Option<&str>) -> Option<String> {
    let Some(agent) = agent else { return Some("its certificate cannot be read".into()) };
    if agent.node() != Some(node) {
        return Some(format!("{} answers there", agent.name));
    }
    let is_current = agent.identity.is_some() && agent.identity.as_deref() == current;
    (!is_current).then(|| {
        "a machine answers there whose certificate was revoked: the node was removed, or another one joined under its name".into()
    })
}

fn silent(node: &str, address: SocketAddr, why: &dyn std::fmt::Display) -> ApiError {
    unavailable(node, &format!("does not answer at {address}: {why}"))
}

async fn connect(
    tls: &Arc<rustls::ClientConfig>,
    node: &str,
    address: SocketAddr,
) -> io::Result<TlsStream<TcpStream>> {
    let name = ServerName::try_from(node_tls_name(node)).map_err(io::Error::other)?;
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    TlsConnector::from(tls.clone()).connect(name, tcp).await
}

/// Where the agent's API is.
fn address(node: &Object) -> Option<SocketAddr> {
    let all = node.pointer("/status/addresses").and_then(Value::as_array)?;
    let ip: IpAddr = all.iter().find(|a| a["type"] == "InternalIP")?["address"].as_str()?.parse().ok()?;
    let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    Some(SocketAddr::new(ip, port.and_then(|p| p.try_into().ok()).unwrap_or(AGENT_PORT)))
}

fn unavailable(node: &str, why: &str) -> ApiError {
    ApiError::new(Reason::ServiceUnavailable, format!("node {node} {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{NODE_PREFIX, NODES as GROUP};

    #[test]
    fn only_the_machine_that_joined_last_answers_for_a_node() {
        let agent = |name: &str, identity: Option<&str>| User {
            name: format!("{NODE_PREFIX}{name}"),
            groups: vec![GROUP.into()],
            identity: identity.map(str::to_owned),
            until: None,
        };
        for (agent, current, says) in [
            (Some(agent("n1", Some("a"))), Some("a"), None),
            (Some(agent("n1", Some("a"))), Some("b"), Some("revoked")),
            (Some(agent("n1", Some("a"))), None, Some("revoked")),
            (Some(agent("n1", None)), Some("b"), Some("revoked")),
            (Some(agent("n1", None)), None, Some("revoked")),
            (Some(agent("n2", Some("a"))), Some("a"), Some("system:node:n2 answers there")),
            (None, Some("a"), Some("cannot be read")),
        ] {
            let fault = agent_fault("n1", agent.as_ref(), current);
            assert_eq!(fault.is_some(), says.is_some(), "{fault:?}");
            assert!(fault.unwrap_or_default().contains(says.unwrap_or_default()));
        }
    }
}
