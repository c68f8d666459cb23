//! The HTTP edge: turns requests into calls of the registry, and what comes back into answers. It knows paths and media types,
//! and nothing about kinds.

mod accept;
mod access;
mod answer;
mod backup;
mod body;
mod call;
mod discovery;
mod field_validation;
mod join;
mod nodes;
mod openapi;
mod protobuf;
mod proxy;
mod query;
mod verbs;
mod watch;

use std::{net::SocketAddr, sync::Arc, time::Instant};

use axum::{
    Extension, Router,
    extract::{Request, State},
    response::Response,
};
use minisvc_proto::{ApiError, Reason};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use self::{
    access::Question,
    call::{Call, Verb},
    query::Query,
};
pub use self::{access::User, join::Joining};
use crate::{progress::Progress, registry::Registry};

/// What the edge needs of the rest of the server.
pub struct Edge {
    /// All objects.
    pub registry: Registry,
    /// What the nodes said last.
    pub progress: Arc<Progress>,
    /// How to speak with the agents.
    pub agents: Arc<rustls::ClientConfig>,
    /// How machines become nodes.
    pub joining: Joining,
    /// Ends watches and other answers without an end.
    pub shutdown: CancellationToken,
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// The whole API as one service. The [`User`] of a request is in its extensions; without one it is anonymous.
pub fn router(edge: Arc<Edge>) -> Router {
    Router::new()
        .fallback(handle)
        .with_state(edge)
        .layer(CatchPanicLayer::custom(|_| answer::status(&ApiError::internal("a handler panicked"))))
}

async fn handle(
    State(edge): State<Arc<Edge>>,
    user: Option<Extension<Arc<User>>>,
    peer: Option<Extension<Peer>>,
    request: Request,
) -> Response {
    let user = user.map_or_else(|| Arc::new(User::anonymous()), |Extension(user)| user);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answer = dispatch(&edge, &user, request).await.unwrap_or_else(|error| {
        if error.code >= 500 {
            tracing::warn!(%method, %path, user = %user.name, %error, "a request failed");
        }
        // Whoever sits before the server wants to know of machines that knock in vain.
        if error.code != 404
            && path.ends_with("/certificate")
            && let Some(left_out) = edge.joining.refusals.may(Instant::now())
        {
            let peer = peer.map(|Extension(Peer(address))| address);
            tracing::warn!(?peer, %path, user = %user.name, left_out, "no certificate was given: {error}");
        }
        answer::status(&error)
    });
    tracing::debug!(%method, %path, user = %user.name, status = answer.status().as_u16());
    answer
}

async fn dispatch(edge: &Arc<Edge>, user: &User, request: Request) -> Result<Response, ApiError> {
    let query = Query::parse(request.uri().query().unwrap_or(""))?;
    let call = match Call::parse(request.method(), request.uri().path(), &query) {
        Ok(call) => call,
        // Who may see nothing does not learn which paths there are.
        Err(error) => return Err(if user.is_anonymous() { unauthorized() } else { error }),
    };
    if let Call::Certificate(node) = &call {
        return join::certificate(edge, user, node, request).await;
    }
    if user.is_anonymous() && !call.is_public() {
        return Err(unauthorized());
    }
    join::check_identity(edge, user)?;
    match call {
        Call::Health => Ok(answer::text("ok")),
        Call::Version => Ok(answer::json(&discovery::version())),
        Call::Document(document) => Ok(answer::json(&document)),
        Call::OpenApi if accept::wants_openapi_protobuf(request.headers()) => {
            Ok(answer::openapi_protobuf(openapi::second_in_protobuf()))
        }
        Call::OpenApi => Ok(answer::json(&openapi::second())),
        Call::Report(node) => {
            access::check(user, &Question::Report(&node), |_| None)?;
            nodes::report(edge, &node, request).await
        }
        Call::NodeExec(node) => {
            access::check(user, &Question::NodeExec(&node), |_| None)?;
            proxy::node(edge, &node, &query, request).await
        }
        // Answered above: a token will do.
        Call::Certificate(_) => Err(unauthorized()),
        Call::Cluster => {
            access::check(user, &Question::Cluster, |_| None)?;
            Ok(answer::json(&edge.joining.cluster))
        }
        Call::Backup => {
            access::check(user, &Question::Backup, |_| None)?;
            Ok(backup::answer(edge))
        }
        Call::Progress { namespace, name } => {
            access::check(user, &Question::Progress, |_| None)?;
            nodes::progress(edge, &namespace, &name, &query).await
        }
        Call::Withdrawal(pod) => {
            access::check(user, &Question::Withdrawal(&pod), |pod| edge.node_of(pod))?;
            nodes::withdrawal(edge, &pod, &query).await
        }
        Call::Resource(target, verb) => {
            // A new object's name is known when its body has been read.
            if verb != Verb::Create {
                access::check(user, &Question::of(verb, &target, &query), |pod| edge.node_of(pod))?;
            }
            verbs::run(edge, user, verb, target, query, request).await
        }
    }
}

fn unauthorized() -> ApiError {
    ApiError::new(Reason::Unauthorized, "Unauthorized: a client certificate of this cluster's CA is needed")
}

impl Edge {
    /// The node that a pod runs on.
    fn node_of(&self, pod: &minisvc_proto::ObjectKey) -> Option<String> {
        self.registry.get(pod).ok()?.str_at("/spec/nodeName").map(str::to_owned)
    }
}
