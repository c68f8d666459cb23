//! A typed client on reqwest, kubeconfig files and informers.

mod error;
mod exec;
mod identity;
pub mod informer;
mod join;
pub mod kubeconfig;
mod request;
mod tls;
mod trust;

use std::{fmt::Write as _, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use reqwest::{Method, header::CONTENT_TYPE};
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use self::{
    error::ClientError,
    exec::{ExecStream, SUBPROTOCOL},
    identity::Identity,
    informer::{Informer, InformerEvent},
    join::join,
    kubeconfig::Kubeconfig,
    request::{ListParams, PatchKind, query},
    trust::key_hash,
};
use crate::{
    names::{NodeName, Revision},
    object::Object,
    path::Target,
    report::{NodeReport, PodWithdrawal, ReportAnswer},
    status::ApiError,
    table::Table,
    watch::{EventType, WatchEvent},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);
/// What an answer may take beyond the time that it was asked to wait.
const ANSWER: Duration = Duration::from_millis(250);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const TABLE_ACCEPT: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

/// A connection to one API server; clones share its connections.
#[derive(Clone, Debug)]
pub struct Client {
    server: String,
    http: reqwest::Client,
    /// Upgrades need HTTP/1.1.
    http1: reqwest::Client,
}

impl Client {
    /// A client for the current context of a kubeconfig.
    pub fn from_kubeconfig(config: &Kubeconfig) -> Result<Self, ClientError> {
        let access = config.access()?;
        let identity = access.identity.as_ref().map(|(certificate, key)| Identity::new(certificate, key));
        Self::new(&access, identity.transpose()?.map(Arc::new).as_ref())
    }

    /// The same, but who we are is what `identity` says at each connection.
    pub fn with_identity(config: &Kubeconfig, identity: &Arc<Identity>) -> Result<Self, ClientError> {
        Self::new(&config.access()?, Some(identity))
    }

    fn new(access: &kubeconfig::Access, identity: Option<&Arc<Identity>>) -> Result<Self, ClientError> {
        let build = |alpn: &[&[u8]]| connection(tls::client_config(access, identity, alpn)?);
        Ok(Client {
            server: access.server.clone(),
            http: build(&[b"h2", b"http/1.1"])?,
            http1: build(&[b"http/1.1"])?,
        })
    }

    /// The server's URL, without a slash at its end.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// One object.
    pub async fn get(&self, target: &Target) -> Result<Object, ClientError> {
        self.json(Method::GET, &target.to_string(), None).await
    }

    /// A collection, and the revision it was read at.
    pub async fn list(
        &self,
        target: &Target,
        params: &ListParams,
    ) -> Result<(Revision, Vec<Object>), ClientError> {
        let path = format!("{target}{}", params.query(&[]));
        let mut list: Object = self.json(Method::GET, &path, None).await?;
        let revision = list.revision().ok_or_else(|| {
            ClientError::Decode(format!("the list {path} has no metadata.resourceVersion that is a number"))
        })?;
        let Some(Value::Array(items)) = list.0.remove("items") else {
            return Err(ClientError::Decode(format!("the list {path} has no array \"items\"")));
        };
        let items = items
            .into_iter()
            .map(|item| match item {
                Value::Object(map) => {
                    let mut object = Object(map);
                    object.0.entry("apiVersion").or_insert_with(|| target.resource.api_version().into());
                    object.0.entry("kind").or_insert_with(|| target.resource.kind.into());
                    Ok(object)
                }
                _ => Err(ClientError::Decode(format!("an item of the list {path} is no object"))),
            })
            .collect::<Result<_, _>>()?;
        Ok((revision, items))
    }

    /// Creates an object in a collection (or through a subresource such as `binding`).
    pub async fn create(
        &self,
        target: &Target,
        object: &Object,
        dry_run: bool,
    ) -> Result<Object, ClientError> {
        let query = if dry_run { "?dryRun=All" } else { "" };
        self.json(Method::POST, &format!("{target}{query}"), Some(&Value::Object(object.0.clone()))).await
    }

    /// Replaces an object; its resourceVersion, if set, is an optimistic lock.
    pub async fn update(&self, target: &Target, object: &Object) -> Result<Object, ClientError> {
        self.json(Method::PUT, &target.to_string(), Some(&Value::Object(object.0.clone()))).await
    }

    /// Changes an object.
    pub async fn patch(
        &self,
        target: &Target,
        kind: PatchKind,
        patch: &Value,
    ) -> Result<Object, ClientError> {
        let request = self
            .http
            .patch(self.url(&target.to_string()))
            .header(CONTENT_TYPE, kind.content_type())
            .body(patch.to_string());
        self.decode(request.timeout(REQUEST_TIMEOUT)).await
    }

    /// Deletes an object with DeleteOptions (`{}` for none); answers the object or a Status.
    pub async fn delete(&self, target: &Target, options: &Value) -> Result<Value, ClientError> {
        self.json(Method::DELETE, &target.to_string(), Some(options)).await
    }

    /// A collection or an object as rows; each row carries its whole object.
    pub async fn table(&self, target: &Target, params: &ListParams) -> Result<Table, ClientError> {
        let url = self.url(&format!("{target}{}", params.query(&[("includeObject", "Object")])));
        let request = self.http.get(url).header(reqwest::header::ACCEPT, TABLE_ACCEPT);
        rows(self.decode(request.timeout(REQUEST_TIMEOUT)).await?)
    }

    /// Any request with a JSON answer.
    pub async fn raw(
        &self,
        method: Method,
        path_and_query: &str,
        body: Option<&Value>,
    ) -> Result<Value, ClientError> {
        self.json(method, path_and_query, body).await
    }

    /// Tells the server how far a node has come.
    pub async fn post_report(
        &self,
        node: &NodeName,
        report: &NodeReport,
    ) -> Result<ReportAnswer, ClientError> {
        let path = format!("/apis/minisvc.io/v1/nodes/{node}/report");
        let request = self.http.post(self.url(&path)).json(report);
        self.decode(request.timeout(crate::report::NODE_SILENCE_LIMIT)).await
    }

    /// Answers when a pod that ends gets no new connections any more, or how that stands when the time is over.
    pub async fn pod_withdrawal(
        &self,
        namespace: &str,
        name: &str,
        timeout: Duration,
    ) -> Result<PodWithdrawal, ClientError> {
        let seconds = timeout.as_secs() + u64::from(timeout.subsec_nanos() > 0);
        let path = format!(
            "/apis/minisvc.io/v1/namespaces/{namespace}/pods/{name}/withdrawal?timeoutSeconds={seconds}"
        );
        self.decode(self.http.get(self.url(&path)).timeout(timeout + ANSWER)).await
    }

    /// The changes of a collection after a revision. A 410 in the stream becomes an error; the stream ends with it.
    pub async fn watch(
        &self,
        target: &Target,
        params: &ListParams,
        since: Revision,
    ) -> Result<impl Stream<Item = Result<WatchEvent, ClientError>> + Send + Unpin + use<>, ClientError> {
        let since = since.to_string();
        let query =
            params.query(&[("watch", "true"), ("allowWatchBookmarks", "true"), ("resourceVersion", &since)]);
        let bytes = self.stream(&format!("{target}{query}")).await?;
        Ok(request::lines(bytes).map(|line| event(&line?)))
    }

    /// The same as rows: a table for each change, its revision beside it. The columns stand in the first table only.
    pub async fn watch_table(
        &self,
        target: &Target,
        params: &ListParams,
        since: Revision,
    ) -> Result<impl Stream<Item = Result<(Revision, Table), ClientError>> + Send + Unpin + use<>, ClientError>
    {
        let text = since.to_string();
        let query = params.query(&[
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", &text),
            ("includeObject", "Object"),
        ]);
        let request = self.http.get(self.url(&format!("{target}{query}")));
        let request = request.header(reqwest::header::ACCEPT, TABLE_ACCEPT);
        let bytes = self.body(self.send(request).await?);
        let mut seen = since;
        Ok(request::lines(bytes).map(move |line| {
            let event = event(&line?)?;
            if event.kind == EventType::Bookmark {
                seen = event.object.revision().unwrap_or(seen).max(seen);
                return Ok((seen, Table::default()));
            }
            let unreadable = |e| ClientError::Decode(format!("a watch's table is not readable: {e}"));
            let table = rows(event.object.typed().map_err(unreadable)?)?;
            let revisions = table.rows.iter().filter_map(|r| r.object.as_ref()?.revision());
            seen = revisions.max().unwrap_or(seen).max(seen);
            Ok((seen, table))
        }))
    }

    /// An answer's bytes as they come: logs.
    pub async fn stream(
        &self,
        path_and_query: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + Unpin + use<>, ClientError> {
        Ok(self.body(self.send(self.http.get(self.url(path_and_query))).await?))
    }

    /// An answer's lines as they come, without their ends. A last line that is cut short is left out.
    pub async fn lines(
        &self,
        path_and_query: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, ClientError>> + Send + Unpin + use<>, ClientError> {
        Ok(request::lines(self.stream(path_and_query).await?))
    }

    fn body(
        &self,
        answer: reqwest::Response,
    ) -> impl Stream<Item = Result<Bytes, ClientError>> + Send + Unpin + use<> {
        let server = self.server.clone();
        Box::pin(answer.bytes_stream().map(move |b| b.map_err(|e| ClientError::transport(&server, &e))))
    }

    /// A WebSocket to an exec path, speaking v5.channel.k8s.io.
    pub async fn exec(&self, path_and_query: &str) -> Result<ExecStream, ClientError> {
        exec::connect(self, path_and_query).await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path_and_query: &str,
        body: Option<&Value>,
    ) -> Result<T, ClientError> {
        let mut request = self.http.request(method, self.url(path_and_query)).timeout(REQUEST_TIMEOUT);
        if let Some(body) = body {
            request = request.json(body);
        }
        self.decode(request).await
    }

    async fn decode<T: DeserializeOwned>(&self, request: reqwest::RequestBuilder) -> Result<T, ClientError> {
        let answer = self.send(request).await?;
        let path = answer.url().path().to_owned();
        let body = answer.bytes().await.map_err(|e| ClientError::transport(&self.server, &e))?;
        serde_json::from_slice(&body)
            .map_err(|e| ClientError::Decode(format!("the server's answer to {path} is not readable: {e}")))
    }

    /// Sends, and turns every answer that is not a success into an error.
    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, ClientError> {
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Err(self.cause(error).await),
        };
        if answer.status().is_success() || answer.status() == reqwest::StatusCode::SWITCHING_PROTOCOLS {
            return Ok(answer);
        }
        let status = answer.status();
        let path = answer.url().path().to_owned();
        let body = answer.bytes().await.unwrap_or_default();
        if let Ok(error) = serde_json::from_slice::<ApiError>(&body) {
            return Err(ClientError::Api(error));
        }
        let mut message = format!("the server answered {status} to {path}");
        if let Some(line) = String::from_utf8_lossy(&body).lines().find(|l| !l.is_empty()) {
            let _ = write!(message, ": {line}");
        }
        Err(ClientError::Decode(message))
    }

    /// What a request failed of. A refused certificate ends a connection after the client is through with the handshake (TLS 1.3), and
    /// of that HTTP/2 says no more than that its channel closed: HTTP/1.1 is asked, which tells.
    async fn cause(&self, error: reqwest::Error) -> ClientError {
        let found = ClientError::transport(&self.server, &error);
        if error.is_timeout() || error.is_connect() || matches!(found, ClientError::Tls(_)) {
            return found;
        }
        match self.http1.get(self.url("/version")).timeout(CONNECT_TIMEOUT).send().await {
            Err(error) => match ClientError::transport(&self.server, &error) {
                told @ ClientError::Tls(_) => told,
                _ => found,
            },
            Ok(_) => found,
        }
    }

    fn url(&self, path_and_query: &str) -> String {
        format!("{}{path_and_query}", self.server)
    }
}

fn connection(tls: rustls::ClientConfig) -> Result<reqwest::Client, ClientError> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .http2_keep_alive_timeout(KEEP_ALIVE)
        .build()
        .map_err(|e| ClientError::Tls(error::chain(&e)))
}

/// A line of a watch; one that carries an error is that error.
fn event(line: &[u8]) -> Result<WatchEvent, ClientError> {
    let event: WatchEvent = serde_json::from_slice(line)
        .map_err(|e| ClientError::Decode(format!("a watch event is not readable: {e}")))?;
    if event.kind == EventType::Error {
        let status: ApiError = event
            .object
            .typed()
            .map_err(|e| ClientError::Decode(format!("a watch's error is not readable: {e}")))?;
        return Err(ClientError::Api(status));
    }
    Ok(event)
}

/// A server that knows no tables answers with the objects themselves, which would read as an empty table.
fn rows(table: Table) -> Result<Table, ClientError> {
    if table.kind == "Table" {
        Ok(table)
    } else {
        Err(ClientError::Decode(format!("the server answers a {} where a Table was asked for", table.kind)))
    }
}
