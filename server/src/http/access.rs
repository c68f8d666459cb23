//! Who may do what. Pure, but for the look-ups that a node's rights on its own pods and events need.

pub mod writes;

use std::time::{Duration, SystemTime};

use minisvc_proto::{ApiError, ObjectKey, path::Target};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{call::Verb, query::Query};
use crate::pki::{MASTERS, NODE_PREFIX, NODES};

/// Who asks, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The certificate's common name.
    pub name: String,
    /// The certificate's organisations.
    pub groups: Vec<String>,
    /// The certificate's organisational unit: which machine of a node's name it is.
    pub identity: Option<String>,
    /// The certificate's end.
    pub until: Option<SystemTime>,
}

impl User {
    /// Somebody without a certificate.
    pub fn anonymous() -> Self {
        User {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            identity: None,
            until: None,
        }
    }

    /// Whom a certificate (DER) names; `None` if it cannot be read. Whether it is good is for TLS to say.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|o| Some(o.as_str().ok()?.to_owned())).collect();
        let identity = subject.iter_organizational_unit().next();
        let identity = identity.and_then(|ou| Some(ou.as_str().ok()?.to_owned()));
        // The second that the certificate names still belongs to it. [RFC 5280, 4.1.2.5]
        let end = u64::try_from(certificate.validity().not_after.timestamp()).ok()?.saturating_add(1);
        let until = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(end));
        Some(User { name, groups, identity, until })
    }

    /// Whether there was no certificate.
    pub fn is_anonymous(&self) -> bool {
        self.is_in("system:unauthenticated")
    }

    /// The node that this is.
    pub fn node(&self) -> Option<&str> {
        self.name.strip_prefix(NODE_PREFIX).filter(|_| self.is_in(NODES))
    }

    fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What somebody wants to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// Something with a kind. A create names the object that is made. `on` is the node whose pods alone a read selects.
    Resource {
        /// What is done.
        verb: Verb,
        /// To what.
        target: &'a Target,
        /// `spec.nodeName` in the field selector.
        on: Option<String>,
    },
    /// Report a node's progress.
    Report(&'a str),
    /// Read a service's progress.
    Progress,
    /// Read whether a pod gets no new connections any more.
    Withdrawal(&'a ObjectKey),
    /// Run a command on a node.
    NodeExec(&'a str),
    /// Get a newer certificate for a node.
    Certificate(&'a str),
    /// Read what all nodes must agree on.
    Cluster,
    /// Read everything at once.
    Backup,
}

impl<'a> Question<'a> {
    /// A verb on a kind.
    pub fn of(verb: Verb, target: &'a Target, query: &Query) -> Self {
        Question::Resource { verb, target, on: query.selected_node() }
    }
}

/// 403 if the user may not. `node_of` answers which node a pod is bound to.
pub fn check(
    user: &User,
    question: &Question<'_>,
    node_of: impl Fn(&ObjectKey) -> Option<String>,
) -> Result<(), ApiError> {
    let allowed = user.is_in(MASTERS)
        || match (question, user.node()) {
            (_, None) | (Question::NodeExec(_) | Question::Backup, _) => false,
            (Question::Progress | Question::Cluster, Some(_)) => true,
            (Question::Report(name) | Question::Certificate(name), Some(me)) => *name == me,
            (Question::Withdrawal(pod), Some(me)) => node_of(pod).is_some_and(|node| node == me),
            (Question::Resource { verb, target, on }, Some(me)) => {
                node_may(me, *verb, target, on.as_deref(), node_of)
            }
        };
    if allowed { Ok(()) } else { Err(refusal(user, question)) }
}

/// What an agent does: it reads what traffic and routes are made of and its own pods, makes its own Node and keeps its status, tells
/// events, writes its own pods' status, and takes them away when they have ended. What it writes is looked at once more, see
/// [`writes`].
fn node_may(
    me: &str,
    verb: Verb,
    target: &Target,
    on: Option<&str>,
    node_of: impl Fn(&ObjectKey) -> Option<String>,
) -> bool {
    let own_pod = || target.key().and_then(|k| node_of(&k)).is_some_and(|n| n == me);
    let own_name = target.name.as_deref() == Some(me);
    match (target.resource.kind, target.subresource.as_deref(), verb) {
        (
            "Node" | "Service" | "EndpointSlice",
            None | Some("status"),
            Verb::Get | Verb::List | Verb::Watch,
        )
        | ("Event", None, Verb::Create | Verb::Update | Verb::Patch) => true,
        ("Pod", None, Verb::List | Verb::Watch) => on == Some(me),
        ("Pod", None | Some("status"), Verb::Get)
        | ("Pod", Some("status"), Verb::Update | Verb::Patch)
        | ("Pod", None, Verb::Delete) => own_pod(),
        ("Node", None, Verb::Create) | ("Node", Some("status"), Verb::Update | Verb::Patch) => own_name,
        _ => false,
    }
}

fn refusal(user: &User, question: &Question<'_>) -> ApiError {
    let name = &user.name;
    match question {
        Question::Resource { verb, target, .. } => {
            let done = match verb {
                Verb::Get => "get",
                Verb::List => "list",
                Verb::Watch => "watch",
                Verb::Create | Verb::Connect => "create",
                Verb::Update => "update",
                Verb::Patch => "patch",
                Verb::Delete => "delete",
            };
            let mut what = target.resource.plural.to_owned();
            if let Some(sub) = &target.subresource {
                what = format!("{what}/{sub}");
            }
            let mut why = format!("User \"{name}\" cannot {done} resource \"{what}\"");
            if let (Some(me), "Pod", Verb::List | Verb::Watch) = (user.node(), target.resource.kind, verb) {
                why = format!("{why} of all nodes: fieldSelector=spec.nodeName={me} would be right");
            }
            ApiError::forbidden(target.resource, target.name.as_deref().unwrap_or(""), &why)
        }
        Question::Report(node) | Question::NodeExec(node) | Question::Certificate(node) => {
            let why = format!("User \"{name}\" may not speak for or to node {node}");
            ApiError::forbidden(&minisvc_proto::resource::NODES, node, &why)
        }
        Question::Backup => {
            let why = format!("User \"{name}\" cannot read everything at once");
            ApiError::forbidden(&minisvc_proto::resource::NODES, "", &why)
        }
        Question::Withdrawal(pod) => {
            let why = format!("User \"{name}\" cannot ask about pods of other nodes");
            ApiError::forbidden(&minisvc_proto::resource::PODS, &pod.name, &why)
        }
        Question::Progress | Question::Cluster => {
            let why = format!("User \"{name}\" cannot read progress or the cluster's ranges");
            ApiError::forbidden(&minisvc_proto::resource::SERVICES, "", &why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, group: &str) -> User {
        User { name: name.into(), groups: vec![group.into()], identity: None, until: None }
    }

    #[test]
    fn the_table_of_rights() {
        let admin = user("minisvc-admin", MASTERS);
        let node = user("system:node:n1", NODES);
        // Each half alone is nothing.
        let pretender = user("system:node:n1", "people");
        let nameless = user("n1", NODES);
        let bound = |pod: &ObjectKey| Some(if pod.name == "mine" { "n1" } else { "n2" }.to_owned());
        for (verb, path, may) in [
            (Verb::List, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", true),
            (Verb::Watch, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1,status.phase%3DRunning", true),
            (Verb::List, "/api/v1/pods", false),
            (Verb::Watch, "/api/v1/namespaces/a/pods", false),
            (Verb::List, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn2", false),
            (Verb::List, "/api/v1/pods?fieldSelector=spec.nodeName!%3Dn1", false),
            (Verb::List, "/api/v1/pods?labelSelector=spec.nodeName%3Dn1", false),
            (Verb::Get, "/api/v1/namespaces/a/pods/mine", true),
            (Verb::Get, "/api/v1/namespaces/a/pods/other", false),
            (Verb::Watch, "/api/v1/namespaces/a/pods/mine", false),
            (Verb::Watch, "/api/v1/services", true),
            (Verb::List, "/api/v1/nodes", true),
            (Verb::Get, "/api/v1/nodes/n2", true),
            (Verb::List, "/apis/discovery.k8s.io/v1/endpointslices", true),
            (Verb::List, "/api/v1/endpoints", false),
            (Verb::Create, "/apis/discovery.k8s.io/v1/namespaces/a/endpointslices/b", false),
            (Verb::Get, "/apis/apps/v1/namespaces/a/deployments/b", false),
            (Verb::List, "/apis/apps/v1/replicasets", false),
            (Verb::List, "/api/v1/namespaces", false),
            (Verb::List, "/api/v1/events", false),
            (Verb::Get, "/api/v1/namespaces/a/events/e", false),
            (Verb::List, "/apis/minisvc.io/v1/jointokens", false),
            (Verb::Get, "/apis/minisvc.io/v1/jointokens/0123456789", false),
            (Verb::Create, "/apis/minisvc.io/v1/jointokens", false),
            (Verb::Delete, "/apis/minisvc.io/v1/jointokens/0123456789", false),
            (Verb::Get, "/apis/minisvc.io/v1/nodecredentials/n1", false),
            (Verb::Watch, "/apis/minisvc.io/v1/nodecredentials", false),
            (Verb::Patch, "/apis/minisvc.io/v1/nodecredentials/n1", false),
            (Verb::Create, "/api/v1/nodes/n1", true),
            (Verb::Create, "/api/v1/nodes/n2", false),
            (Verb::Patch, "/api/v1/nodes/n1", false),
            (Verb::Update, "/api/v1/nodes/n1", false),
            (Verb::Patch, "/api/v1/nodes/n1/status", true),
            (Verb::Update, "/api/v1/nodes/n2/status", false),
            (Verb::Delete, "/api/v1/nodes/n1", false),
            (Verb::Patch, "/api/v1/namespaces/a/pods/mine/status", true),
            (Verb::Patch, "/api/v1/namespaces/a/pods/other/status", false),
            (Verb::Patch, "/api/v1/namespaces/a/pods/mine", false),
            (Verb::Delete, "/api/v1/namespaces/a/pods/mine", true),
            (Verb::Delete, "/api/v1/namespaces/a/pods/other", false),
            (Verb::Create, "/api/v1/namespaces/a/pods/new", false),
            (Verb::Create, "/api/v1/namespaces/a/pods/mine/binding", false),
            (Verb::Connect, "/api/v1/namespaces/a/pods/mine/exec", false),
            (Verb::Connect, "/api/v1/namespaces/a/pods/mine/log", false),
            (Verb::Create, "/api/v1/namespaces/a/events/e", true),
            (Verb::Patch, "/api/v1/namespaces/a/events/e", true),
            (Verb::Delete, "/api/v1/namespaces/a/events/e", false),
            (Verb::Create, "/api/v1/namespaces/a/services/s", false),
            (Verb::Update, "/api/v1/namespaces/a/services/s/status", false),
        ] {
            let (place, query) = path.split_once('?').unwrap_or((path, ""));
            let (target, query) = (Target::parse(place).unwrap(), Query::parse(query).unwrap());
            let asks = |who: &User| check(who, &Question::of(verb, &target, &query), bound);
            assert!(asks(&admin).is_ok(), "{verb:?} {path}");
            assert_eq!(asks(&node).is_ok(), may, "{verb:?} {path}");
            for other in [&pretender, &nameless, &User::anonymous()] {
                assert_eq!(asks(other).unwrap_err().code, 403, "{verb:?} {path}");
            }
        }
        let pod = |name| ObjectKey::namespaced(&minisvc_proto::resource::PODS, "a", name);
        for (question, may) in [
            (Question::Report("n1"), true),
            (Question::Report("n2"), false),
            (Question::Progress, true),
            (Question::Withdrawal(&pod("mine")), true),
            (Question::Withdrawal(&pod("other")), false),
            (Question::NodeExec("n1"), false),
            (Question::Certificate("n1"), true),
            (Question::Certificate("n2"), false),
            (Question::Cluster, true),
        ] {
            assert!(check(&admin, &question, bound).is_ok());
            assert_eq!(check(&node, &question, bound).is_ok(), may, "{question:?}");
            assert!(check(&pretender, &question, bound).is_err());
        }
    }
}
