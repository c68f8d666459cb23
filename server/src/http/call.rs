//! What a request asks for, from its method, path and query alone.

use http::Method;
use minisvc_proto::{ApiError, ObjectKey, Reason, path::Target, resource::PODS};
use serde_json::Value;

use super::{discovery, openapi, query::Query};

/// A request, understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Call {
    /// Whether the server lives: `/healthz`, `/livez`, `/readyz`.
    Health,
    /// `/version`.
    Version,
    /// What there is to ask for.
    Document(Value),
    /// `/openapi/v2`, which has two forms.
    OpenApi,
    /// A node's report.
    Report(String),
    /// How far a service has come.
    Progress {
        /// The service's namespace.
        namespace: String,
        /// The service's name.
        name: String,
    },
    /// Whether a pod gets no new connections any more.
    Withdrawal(ObjectKey),
    /// A command on a node itself.
    NodeExec(String),
    /// A certificate for a node.
    Certificate(String),
    /// What all nodes must agree on.
    Cluster,
    /// Everything, for a backup.
    Backup,
    /// A verb on a kind's collection, object or subresource.
    Resource(Target, Verb),
}

/// What is done with a [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Reads one object.
    Get,
    /// Reads a collection.
    List,
    /// Follows a collection, or one object.
    Watch,
    /// Makes an object, or posts to a subresource (binding).
    Create,
    /// Replaces one.
    Update,
    /// Changes one.
    Patch,
    /// Removes one.
    Delete,
    /// Speaks with the node that the pod runs on: log, exec.
    Connect,
}

impl Call {
    /// Understands a request, or 404, or 405.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Result<Call, ApiError> {
        let reads = method == Method::GET || method == Method::HEAD;
        let fixed = match path {
            "/healthz" | "/livez" | "/readyz" => Some(Call::Health),
            "/version" | "/version/" => Some(Call::Version),
            "/openapi/v2" => Some(Call::OpenApi),
            _ => discovery::document(path).or_else(|| openapi::document(path)).map(Call::Document),
        };
        if let Some(call) = fixed {
            return if reads { Ok(call) } else { Err(not_allowed()) };
        }
        if let Some(call) = path.strip_prefix("/apis/minisvc.io/v1/").and_then(|own| own_call(method, own)) {
            return call;
        }
        // Names are DNS names: nothing that is served needs an escape.
        let target = Target::parse(path).ok_or_else(ApiError::no_such_path)?;
        let verb = verb(method, &target, query)?;
        Ok(Call::Resource(target, verb))
    }

    /// Whether anybody may ask.
    pub fn is_public(&self) -> bool {
        matches!(self, Call::Health | Call::Version)
    }
}

/// What Kubernetes has no path for.
fn own_call(method: &Method, path: &str) -> Option<Result<Call, ApiError>> {
    let parts: Vec<&str> = path.split('/').collect();
    let (allowed, call) = match parts.as_slice() {
        ["nodes", node, "report"] => (Method::POST, Call::Report((*node).to_owned())),
        ["nodes", node, "certificate"] => (Method::POST, Call::Certificate((*node).to_owned())),
        ["cluster"] => (Method::GET, Call::Cluster),
        ["backup"] => (Method::GET, Call::Backup),
        ["nodes", node, "exec"] => (Method::GET, Call::NodeExec((*node).to_owned())),
        ["namespaces", namespace, "services", name, "progress"] => {
            let (namespace, name) = ((*namespace).to_owned(), (*name).to_owned());
            (Method::GET, Call::Progress { namespace, name })
        }
        ["namespaces", namespace, "pods", name, "withdrawal"] => {
            (Method::GET, Call::Withdrawal(ObjectKey::namespaced(&PODS, namespace, name)))
        }
        _ => return None,
    };
    Some(if *method == allowed { Ok(call) } else { Err(not_allowed()) })
}

fn verb(method: &Method, target: &Target, query: &Query) -> Result<Verb, ApiError> {
    let watch = query.flag("watch")?;
    Ok(match (method.as_str(), target.name.is_some(), target.subresource.as_deref()) {
        ("GET", _, Some("log")) | ("GET" | "POST", _, Some("exec")) => Verb::Connect,
        ("POST", _, Some("binding")) => Verb::Create,
        (_, _, Some("log" | "exec" | "binding")) => return Err(not_allowed()),
        ("GET", _, None) if watch => Verb::Watch,
        ("GET", true, _) => Verb::Get,
        ("GET", false, _) => Verb::List,
        // An object of a namespaced kind is made in its namespace.
        ("POST", false, _) if target.namespace.is_some() || !target.resource.is_namespaced() => Verb::Create,
        ("PUT", true, _) => Verb::Update,
        ("PATCH", true, _) => Verb::Patch,
        ("DELETE", true, None) => Verb::Delete,
        _ => return Err(not_allowed()),
    })
}

fn not_allowed() -> ApiError {
    ApiError::new(Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn method_and_path_give_the_verb_or_404_or_405() {
        for (request, expected) in [
            ("GET /api/v1/pods", Ok(Verb::List)),
            ("GET /api/v1/pods?watch=1", Ok(Verb::Watch)),
            ("GET /api/v1/pods?watch=false", Ok(Verb::List)),
            ("GET /api/v1/pods?watch=maybe", Err(400)),
            ("GET /api/v1/namespaces/a/pods/b", Ok(Verb::Get)),
            ("GET /api/v1/namespaces/a/pods/b?watch=true", Ok(Verb::Watch)),
            ("GET /api/v1/namespaces/a/pods/b/status", Ok(Verb::Get)),
            ("GET /api/v1/namespaces/a/pods/b/log", Ok(Verb::Connect)),
            ("GET /api/v1/namespaces/a/pods/b/exec", Ok(Verb::Connect)),
            ("POST /api/v1/namespaces/a/pods/b/binding", Ok(Verb::Create)),
            ("GET /api/v1/namespaces/a/pods/b/binding", Err(405)),
            ("POST /api/v1/namespaces/a/pods", Ok(Verb::Create)),
            ("POST /api/v1/pods", Err(405)),
            ("POST /api/v1/nodes", Ok(Verb::Create)),
            ("PUT /api/v1/nodes/n/status", Ok(Verb::Update)),
            ("PATCH /api/v1/nodes/n", Ok(Verb::Patch)),
            ("DELETE /api/v1/nodes/n", Ok(Verb::Delete)),
            ("DELETE /api/v1/nodes/n/status", Err(405)),
            ("DELETE /api/v1/nodes", Err(405)),
            ("PUT /api/v1/nodes", Err(405)),
            ("HEAD /api/v1/nodes", Err(405)),
            ("GET /api/v1/widgets", Err(404)),
            ("GET /", Err(404)),
        ] {
            let (method, uri) = request.split_once(' ').unwrap();
            let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
            let got = Query::parse(query).and_then(|q| Call::parse(&method.parse().unwrap(), path, &q));
            let got = got.map(|call| match call {
                Call::Resource(_, verb) => verb,
                other => panic!("{request}: {other:?}"),
            });
            assert_eq!(got.map_err(|e| e.code), expected, "{request}");
        }
    }
}
