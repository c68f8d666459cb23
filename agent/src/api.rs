//! The agent's own API, for the server alone: logs and exec. HTTPS with the node's certificate; who comes must show the
//! server's.

mod exec;
mod logs;
mod streams;
mod tls;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use axum::{
    Router,
    extract::{Path, Query, Request, State, WebSocketUpgrade},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use minisvc_proto::{
    ApiError, Reason,
    client::{ClientError, Identity, Kubeconfig, SUBPROTOCOL},
    resource::PODS,
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    runtime::{ExecSpec, PodRuntime},
    sync::pods::{Directory, Entry},
};

/// The only one who may ask, and the group that it must be in.
const SERVER: &str = "minisvc-server";
const MASTERS: &str = "system:masters";
/// The longest message of an exec stream.
const LONGEST: usize = 1 << 20;

/// What the API is told.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Where to listen: the node's address, port 10250.
    pub listen: SocketAddr,
    /// Holds `bin/minisvc`, which comes first on the PATH of what runs on the node.
    pub run_dir: PathBuf,
    /// By this resolv.conf programs on the node find names; by the machine's own if absent.
    pub resolv_conf: Option<PathBuf>,
}

/// The API, listening but not yet answering.
#[derive(Debug)]
pub struct Api {
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    config: ApiConfig,
}

struct Context<R> {
    runtime: Arc<R>,
    directory: Directory,
    config: ApiConfig,
    shutdown: CancellationToken,
}

impl Api {
    /// Listens. Shows the node's identity as it is at each connection; the CA of the kubeconfig says who may come.
    pub async fn bind(
        config: ApiConfig,
        kubeconfig: &Kubeconfig,
        identity: &Arc<Identity>,
    ) -> Result<Self, ClientError> {
        let tls = tls::server_config(&kubeconfig.credentials()?.ca, identity.clone())?;
        let listener = TcpListener::bind(config.listen).await.map_err(|e| {
            ClientError::Config(format!("cannot listen on {} for logs and exec: {e}", config.listen))
        })?;
        Ok(Api { listener, tls, config })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until cancelled; what is under way is cut then.
    pub async fn serve<R: PodRuntime>(
        self,
        runtime: Arc<R>,
        directory: Directory,
        shutdown: CancellationToken,
    ) {
        let context = Context { runtime, directory, config: self.config, shutdown: shutdown.clone() };
        let router = Router::new()
            .route("/logs/{namespace}/{pod}/{container}", get(read_logs::<R>))
            .route("/exec/{namespace}/{pod}/{container}", get(exec_in_pod::<R>))
            .route("/exec-node", get(exec_on_node::<R>))
            .fallback(async || refuse(&ApiError::no_such_path()))
            .layer(axum::middleware::from_fn(only_the_server))
            .with_state(Arc::new(context));
        tls::serve(self.listener, self.tls, router, shutdown).await;
    }
}

fn refuse(error: &ApiError) -> Response {
    let code = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, axum::Json(error)).into_response()
}

async fn only_the_server(request: Request, next: axum::middleware::Next) -> Response {
    let peer = request.extensions().get::<tls::Peer>().cloned().unwrap_or_default();
    match peer.0 {
        Some(subject) if subject.name == SERVER && subject.groups.iter().any(|g| g == MASTERS) => {
            next.run(request).await
        }
        Some(other) => {
            let why = format!("{} may not ask an agent: only {SERVER} may", other.name);
            refuse(&ApiError::new(Reason::Forbidden, why))
        }
        None => {
            let why = format!("a client certificate is required: that of {SERVER}");
            refuse(&ApiError::new(Reason::Unauthorized, why))
        }
    }
}

type Pairs = Query<Vec<(String, String)>>;
type Place = Path<(String, String, String)>;

fn flag(pairs: &Pairs, name: &str) -> bool {
    pairs.iter().any(|(k, v)| k == name && matches!(v.as_str(), "true" | "1" | ""))
}

fn find(
    directory: &Directory,
    (namespace, pod, container): &(String, String, String),
) -> Result<Entry, ApiError> {
    let entry = directory.get(namespace, pod).ok_or_else(|| ApiError::not_found(&PODS, pod))?;
    if entry.containers.iter().any(|c| c == container) {
        return Ok(entry);
    }
    let names = entry.containers.join(", ");
    Err(ApiError::bad_request(format!("container {container} is not valid for pod {pod}; it has {names}")))
}

async fn read_logs<R: PodRuntime>(
    State(context): State<Arc<Context<R>>>,
    Path(place): Place,
    pairs: Pairs,
) -> Response {
    let answer = find(&context.directory, &place)
        .and_then(|entry| Ok((entry, logs::Options::parse(&pairs)?)))
        .and_then(|(entry, options)| logs::stream(&entry, &place.1, &place.2, options, &context.shutdown));
    answer.unwrap_or_else(|e| refuse(&e))
}

async fn exec_in_pod<R: PodRuntime>(
    State(context): State<Arc<Context<R>>>,
    Path(place): Place,
    pairs: Pairs,
    upgrade: WebSocketUpgrade,
) -> Response {
    let wanted =
        find(&context.directory, &place).and_then(|entry| Ok((entry, streams::Wanted::parse(&pairs)?)));
    let (entry, wanted) = match wanted {
        Ok(found) => found,
        Err(e) => return refuse(&e),
    };
    let shutdown = context.shutdown.clone();
    upgrade.max_message_size(LONGEST).protocols([SUBPROTOCOL]).on_upgrade(async move |socket| {
        let work = streams::run(socket, wanted.clone(), async |stdio| {
            let spec = ExecSpec { container: place.2, argv: wanted.argv, tty: wanted.tty };
            let session = context.runtime.exec(&entry.uid, spec, stdio).await;
            session.map(exec::Program::InPod).map_err(|e| e.to_string())
        });
        tokio::select! { () = work => {}, () = shutdown.cancelled() => {} }
    })
}

async fn exec_on_node<R: PodRuntime>(
    State(context): State<Arc<Context<R>>>,
    pairs: Pairs,
    upgrade: WebSocketUpgrade,
) -> Response {
    let wanted = match streams::Wanted::parse(&pairs) {
        Ok(wanted) => wanted,
        Err(e) => return refuse(&e),
    };
    let shutdown = context.shutdown.clone();
    upgrade.max_message_size(LONGEST).protocols([SUBPROTOCOL]).on_upgrade(async move |socket| {
        let work = streams::run(socket, wanted.clone(), async |stdio| {
            let config = &context.config;
            exec::on_node(&wanted.argv, wanted.tty, &config.run_dir, config.resolv_conf.as_deref(), stdio)
        });
        tokio::select! { () = work => {}, () = shutdown.cancelled() => {} }
    })
}
