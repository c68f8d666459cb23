//! The table of kinds. Discovery, routing, the CLI's names and the registry all read this one table.

/// Whether objects of a kind live in a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// In a namespace.
    Namespaced,
    /// Once per cluster.
    Cluster,
}

/// One kind of the API. Compared by identity of group and plural.
#[derive(Debug)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version within the group.
    pub version: &'static str,
    /// `kind` on the wire.
    pub kind: &'static str,
    /// Lower-case plural, the path segment.
    pub plural: &'static str,
    /// Lower-case singular.
    pub singular: &'static str,
    /// Abbreviations that the CLI and discovery offer.
    pub short_names: &'static [&'static str],
    /// `all` and the like.
    pub categories: &'static [&'static str],
    /// Namespaced or not.
    pub scope: Scope,
    /// `status`, `scale`, `log`, `exec`, `binding`.
    pub subresources: &'static [&'static str],
    /// Verbs on the resource itself.
    pub verbs: &'static [&'static str],
}

impl Resource {
    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `services`, `deployments.apps`: as error messages and `-o name` print it.
    pub fn qualified_plural(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `service`, `deployment.apps`: as verbs print what they did.
    pub fn qualified_singular(&self) -> String {
        if self.group.is_empty() {
            self.singular.to_owned()
        } else {
            format!("{}.{}", self.singular, self.group)
        }
    }

    /// Whether objects live in a namespace.
    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.plural) == (other.group, other.plural)
    }
}
impl Eq for Resource {}
impl PartialOrd for Resource {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Resource {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.group, self.plural).cmp(&(other.group, other.plural))
    }
}
impl std::hash::Hash for Resource {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.group, self.plural).hash(state);
    }
}

const ALL_VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

macro_rules! resources {
    ($($(#[$doc:meta])* $name:ident = $group:literal $version:literal $kind:literal $plural:literal $singular:literal
        short $short:tt categories $cat:tt $scope:ident subresources $sub:tt;)*) => {
        $($(#[$doc])* pub static $name: Resource = Resource {
            group: $group, version: $version, kind: $kind, plural: $plural, singular: $singular,
            short_names: &$short, categories: &$cat, scope: Scope::$scope, subresources: &$sub, verbs: ALL_VERBS,
        };)*
        /// Every kind that the server serves.
        pub static RESOURCES: &[&Resource] = &[$(&$name),*];
    };
}

resources! {
    /// Namespaces.
    NAMESPACES = "" "v1" "Namespace" "namespaces" "namespace" short ["ns"] categories [] Cluster subresources ["status"];
    /// Nodes.
    NODES = "" "v1" "Node" "nodes" "node" short ["no"] categories [] Cluster subresources ["status"];
    /// Pods.
    PODS = "" "v1" "Pod" "pods" "pod" short ["po"] categories ["all"] Namespaced subresources ["status", "log", "exec", "binding"];
    /// Services.
    SERVICES = "" "v1" "Service" "services" "service" short ["svc"] categories ["all"] Namespaced subresources ["status"];
    /// Events.
    EVENTS = "" "v1" "Event" "events" "event" short ["ev"] categories [] Namespaced subresources [];
    /// Endpoints: the older form of EndpointSlices.
    ENDPOINTS = "" "v1" "Endpoints" "endpoints" "endpoints" short ["ep"] categories [] Namespaced subresources [];
    /// EndpointSlices.
    ENDPOINT_SLICES = "discovery.k8s.io" "v1" "EndpointSlice" "endpointslices" "endpointslice" short [] categories [] Namespaced subresources [];
    /// Deployments.
    DEPLOYMENTS = "apps" "v1" "Deployment" "deployments" "deployment" short ["deploy"] categories ["all"] Namespaced subresources ["status", "scale"];
    /// ReplicaSets.
    REPLICA_SETS = "apps" "v1" "ReplicaSet" "replicasets" "replicaset" short ["rs"] categories ["all"] Namespaced subresources ["status", "scale"];
    /// Join tokens: what lets a machine become a node.
    JOIN_TOKENS = "minisvc.io" "v1" "JoinToken" "jointokens" "jointoken" short [] categories [] Cluster subresources [];
    /// Node credentials: which identity speaks for a node's name. Another one's certificate is revoked.
    NODE_CREDENTIALS = "minisvc.io" "v1" "NodeCredential" "nodecredentials" "nodecredential" short [] categories [] Cluster subresources [];
}

/// The kind with this group, version and plural, as in a path.
pub fn by_path(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().copied().find(|r| r.group == group && r.version == version && r.plural == plural)
}

/// The kind with this apiVersion and kind, as in an object.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Resource> {
    RESOURCES.iter().copied().find(|r| r.kind == kind && r.api_version() == api_version)
}

/// The kind that a user means by `svc`, `service`, `Services`, `deployments.apps`.
pub fn by_user_name(word: &str) -> Option<&'static Resource> {
    let word = word.to_ascii_lowercase();
    let (name, group) = word.split_once('.').map_or((word.as_str(), None), |(n, g)| (n, Some(g)));
    RESOURCES.iter().copied().find(|r| {
        (r.plural == name || r.singular == name || r.short_names.contains(&name))
            && group.is_none_or(|g| g == r.group || g == format!("{}.{}", r.version, r.group))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_found_by_every_name_it_has() {
        for word in ["svc", "service", "Services"] {
            assert_eq!(by_user_name(word), Some(&SERVICES));
        }
        assert_eq!(by_user_name("deployments.apps"), Some(&DEPLOYMENTS));
        assert_eq!(by_user_name("deployments.extensions"), None);
        assert_eq!(by_kind("apps/v1", "ReplicaSet"), Some(&REPLICA_SETS));
        assert_eq!(by_path("discovery.k8s.io", "v1", "endpointslices"), Some(&ENDPOINT_SLICES));
    }
}
