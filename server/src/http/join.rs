//! How a machine becomes a node and stays one: tokens are made, certificates given, and each request of a node is looked at for
//! whether its certificate still speaks for it.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use axum::{extract::Request, response::Response};
use http::{HeaderMap, header::AUTHORIZATION};
use jiff::Timestamp;
use minisvc_proto::{
    ApiError, NodeName, Object, ObjectKey, Reason,
    digest::hex,
    join::{CertificateAnswer, CertificateRequest, ClusterInfo, JoinToken},
    path::Target,
    resource::{JOIN_TOKENS, NODE_CREDENTIALS, NODES},
};
use serde_json::Value;

use super::{
    Edge, User,
    access::{self, Question},
    answer, body, unauthorized,
};
use crate::{
    conditions,
    pki::{self, Pki, RequestError, Validity},
    registry::{
        WriteOptions,
        join::revoked,
        join_token,
        node_credential::{self, Grant},
    },
    sparse::Sparse,
};

/// Largest body of a request for a certificate.
const MAX_BODY: usize = 2 * pki::request::MAX_REQUEST;

/// What is needed to make nodes of machines.
pub struct Joining {
    /// The CA.
    pub pki: Arc<Pki>,
    /// What all nodes must agree on.
    pub cluster: ClusterInfo,
    /// How long a node's certificate is good for.
    pub lifetime: Duration,
    /// Who was refused, as it is said in the log.
    pub refusals: Sparse,
    /// One machine at a time: many that use one token at once would only be in each other's way.
    turn: tokio::sync::Mutex<()>,
}

impl Joining {
    /// See the fields.
    pub fn new(pki: Arc<Pki>, cluster: ClusterInfo, lifetime: Duration) -> Self {
        Joining { pki, cluster, lifetime, refusals: Sparse::default(), turn: tokio::sync::Mutex::default() }
    }
}

/// 401 if this is a node's certificate that speaks for the node no more. A look-up in memory.
pub fn check_identity(edge: &Edge, user: &User) -> Result<(), ApiError> {
    let Some(node) = user.node() else { return Ok(()) };
    if user.identity.is_some() && user.identity == edge.registry.identity(node) {
        return Ok(());
    }
    Err(node.parse().map_or_else(|_| unauthorized(), |node| revoked(&node)))
}

/// Makes a token. Its text is in this answer and nowhere else.
pub async fn create_token(
    edge: &Edge,
    target: &Target,
    asked: Object,
    options: WriteOptions,
) -> Result<Object, ApiError> {
    let bytes: [u8; 32] = rand::random();
    let id = format!("{:010x}", rand::random::<u64>() >> 24);
    let token = JoinToken { id, secret: hex(&bytes), ca_hash: edge.joining.pki.ca_hash().to_owned() };
    let stored = join_token::issue(&asked, &token.id, &token.secret, Timestamp::now())
        .map_err(|faults| ApiError::invalid(&JOIN_TOKENS, "", faults))?;
    let mut made = (*edge.registry.create(target, stored, options).await?).clone();
    if !options.dry_run {
        made.status_mut().insert("token".into(), token.to_string().into());
        tracing::info!(token = token.id, "a join token was made");
    }
    Ok(made)
}

/// Who asks for a certificate.
enum Asker {
    /// A machine with a token.
    Token { id: String, secret: String },
    /// The node itself, with the certificate that it has.
    Node { identity: String },
}

/// Gives a node a certificate.
pub async fn certificate(
    edge: &Edge,
    user: &User,
    node: &str,
    request: Request,
) -> Result<Response, ApiError> {
    // Before the body is read: who may not ask costs no more than this.
    let asker = asker(edge, user, node, request.headers())?;
    let name: NodeName =
        node.parse().map_err(|e| ApiError::bad_request(format!("{node:?} is no name of a node: {e}")))?;
    let asked: CertificateRequest = body::small_json(request, MAX_BODY).await?;
    let request = pki::Request::from_pem(&asked.csr).map_err(|e| match e {
        RequestError::Malformed(_) => ApiError::bad_request(e.to_string()),
        RequestError::Refused(_) => ApiError::new(Reason::Invalid, e.to_string()),
    })?;
    let _turn = edge.joining.turn.lock().await;
    let now = SystemTime::now();
    let validity = Validity::at(now, edge.joining.lifetime);
    let time = |t: SystemTime| Timestamp::try_from(t).map_err(ApiError::internal);
    let mut grant = Grant {
        node: name.clone(),
        identity: String::new(),
        key_hash: request.key_hash(),
        issued_at: time(now)?,
        expires: time(validity.not_after)?,
    };
    let sign = |identity: &str| {
        edge.joining.pki.sign_node(&request, &name, identity, validity).map_err(ApiError::internal)
    };
    let certificate = match &asker {
        Asker::Node { identity } => {
            grant.identity.clone_from(identity);
            let certificate = sign(identity)?;
            edge.registry.renew(&grant).await?;
            tracing::info!(%node, "a node's certificate was renewed");
            certificate
        }
        Asker::Token { id, secret } => {
            grant.identity = repeated(edge, &grant, id).unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
            let certificate = sign(&grant.identity)?;
            edge.registry
                .join(id, &grant, |token| {
                    join_token::judge(id, token, secret, Timestamp::now())?;
                    check_free(edge, &name)
                })
                .await?;
            tracing::info!(%node, token = %id, identity = grant.identity, "a machine joined as a node");
            certificate
        }
    };
    Ok(answer::json(&CertificateAnswer {
        certificate,
        ca: edge.joining.pki.ca_pem().to_owned(),
        cluster: edge.joining.cluster.clone(),
    }))
}

/// Who asks, if that may. A token goes before a certificate: who shows one wants to join anew.
fn asker(edge: &Edge, user: &User, node: &str, headers: &HeaderMap) -> Result<Asker, ApiError> {
    if let Some(header) = headers.get(AUTHORIZATION) {
        let text = header.to_str().unwrap_or("");
        let (id, secret) =
            text.strip_prefix("Bearer ").and_then(JoinToken::parse_bearer).ok_or_else(|| {
                let why = "the Authorization header holds no join token: \"Bearer ID.SECRET\" would be right";
                ApiError::new(Reason::Unauthorized, why)
            })?;
        let token = edge.registry.get(&ObjectKey::cluster(&JOIN_TOKENS, id)).ok();
        join_token::authenticate(id, token.as_deref(), secret)?;
        return Ok(Asker::Token { id: id.to_owned(), secret: secret.to_owned() });
    }
    if user.is_anonymous() {
        let why =
            "a join token is needed (Authorization: Bearer ID.SECRET), or the node's present certificate";
        return Err(ApiError::new(Reason::Unauthorized, why));
    }
    access::check(user, &Question::Certificate(node), |_| None)?;
    check_identity(edge, user)?;
    match (user.node(), &user.identity) {
        (Some(_), Some(identity)) => Ok(Asker::Node { identity: identity.clone() }),
        _ => Err(ApiError::bad_request(
            "only a node renews a certificate, with the one that it has; a machine joins with a token",
        )),
    }
}

/// The identity that this very key got with this token before: the answer was lost, and the machine asks again.
fn repeated(edge: &Edge, grant: &Grant, token: &str) -> Option<String> {
    let known = edge.registry.get(&ObjectKey::cluster(&NODE_CREDENTIALS, grant.node.as_str())).ok()?;
    let same = known.str_at("/spec/keyHash") == Some(grant.key_hash.as_str())
        && known.str_at("/spec/joinedWith") == Some(token);
    same.then(|| node_credential::identity(&known).to_owned())
}

/// 409 while another machine is at work under this name.
fn check_free(edge: &Edge, name: &NodeName) -> Result<(), ApiError> {
    let Ok(node) = edge.registry.get(&ObjectKey::cluster(&NODES, name.as_str())) else { return Ok(()) };
    if !conditions::is_true(&node, "Ready") {
        return Ok(());
    }
    let heard = match edge.progress.last_seen(name) {
        Some(at) => {
            let ago = Instant::now().saturating_duration_since(at);
            format!("last heard {:.1} s ago", ago.as_secs_f64())
        }
        None => "not heard yet since the server started".to_owned(),
    };
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array);
    let address = addresses
        .and_then(|all| all.iter().find(|a| a["type"] == "InternalIP")?["address"].as_str())
        .unwrap_or("unknown");
    Err(ApiError::new(
        Reason::Conflict,
        format!(
            "node {name} is Ready (address {address}, {heard}): a name is for one machine; give this one another with \
             --node-name, or stop the agent of the other one or `minisvc node remove {name}` first"
        ),
    ))
}
