//! Paths of the API, both ways and without I/O.

use std::fmt;

use crate::{
    names::ObjectKey,
    resource::{Resource, by_path},
};

/// What a path of the API names: a collection, an object, or a subresource of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The kind.
    pub resource: &'static Resource,
    /// `None`: cluster-scoped, or a namespaced kind across all namespaces.
    pub namespace: Option<String>,
    /// `None`: the collection.
    pub name: Option<String>,
    /// `status`, `log` …
    pub subresource: Option<String>,
}

impl Target {
    /// A collection; `namespace` is left out for cluster-scoped kinds.
    pub fn collection(resource: &'static Resource, namespace: Option<&str>) -> Self {
        let namespace = namespace.filter(|_| resource.is_namespaced()).map(str::to_owned);
        Target { resource, namespace, name: None, subresource: None }
    }

    /// One object.
    pub fn object(key: &ObjectKey) -> Self {
        Target {
            resource: key.resource,
            namespace: key.namespace.clone(),
            name: Some(key.name.clone()),
            subresource: None,
        }
    }

    /// A subresource of this object.
    pub fn with_subresource(mut self, subresource: &str) -> Self {
        self.subresource = Some(subresource.to_owned());
        self
    }

    /// The key, when the target is an object or a subresource of one.
    pub fn key(&self) -> Option<ObjectKey> {
        let name = self.name.clone()?;
        Some(ObjectKey { resource: self.resource, namespace: self.namespace.clone(), name })
    }

    /// Reads a (percent-decoded) path; `None` if no served kind or subresource is meant.
    pub fn parse(path: &str) -> Option<Target> {
        let mut parts = path.strip_prefix('/')?.trim_end_matches('/').split('/');
        let (group, version) = match parts.next()? {
            "api" => ("", parts.next()?),
            "apis" => (parts.next()?, parts.next()?),
            _ => return None,
        };
        let rest: Vec<&str> = parts.collect();
        if rest.iter().any(|p| p.is_empty()) {
            return None;
        }
        let owned = |s: &&str| (*s).to_owned();
        // `namespaces/NS/PLURAL…` is namespaced, unless PLURAL is a subresource of the namespace itself.
        let (namespace, rest) = match rest.as_slice() {
            ["namespaces", ns, tail @ ..]
                if tail.first().is_some_and(|p| by_path(group, version, p).is_some()) =>
            {
                (Some(owned(ns)), tail)
            }
            all => (None, all),
        };
        let resource = by_path(group, version, rest.first()?)?;
        if namespace.is_some() && !resource.is_namespaced() {
            return None;
        }
        let target =
            Target { resource, namespace, name: rest.get(1).map(owned), subresource: rest.get(2).map(owned) };
        let complete = target.name.is_none() || target.namespace.is_some() || !resource.is_namespaced();
        let known = target.subresource.as_deref().is_none_or(|s| resource.subresources.contains(&s));
        (rest.len() <= 3 && complete && known).then_some(target)
    }
}

impl fmt::Display for Target {
    /// The path. Names are DNS names, so nothing needs escaping.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let r = self.resource;
        if r.group.is_empty() {
            write!(f, "/api/{}", r.version)
        } else {
            write!(f, "/apis/{}/{}", r.group, r.version)
        }?;
        if let Some(ns) = &self.namespace {
            write!(f, "/namespaces/{ns}")?;
        }
        write!(f, "/{}", r.plural)?;
        for part in [&self.name, &self.subresource].into_iter().flatten() {
            write!(f, "/{part}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{NAMESPACES, PODS, SERVICES};

    #[test]
    fn paths_round_trip() {
        for path in [
            "/api/v1/services",
            "/api/v1/namespaces/default/services",
            "/api/v1/namespaces/default/pods/web-1/log",
            "/api/v1/namespaces/default",
            "/api/v1/namespaces/default/status",
            "/api/v1/nodes/node-1/status",
            "/apis/apps/v1/namespaces/default/deployments/web/scale",
        ] {
            assert_eq!(Target::parse(path).expect(path).to_string(), path);
        }
        assert_eq!(Target::parse("/api/v1/namespaces/x").unwrap().resource, &NAMESPACES);
        assert_eq!(Target::collection(&PODS, None).to_string(), "/api/v1/pods");
        assert_eq!(Target::collection(&SERVICES, Some("a")).to_string(), "/api/v1/namespaces/a/services");
    }

    #[test]
    fn what_is_not_served_is_none() {
        for path in [
            "/",
            "/api/v1",
            "/api/v2/pods",
            "/api/v1/widgets",
            "/api/v1/pods/web",
            "/api/v1/namespaces/default/nodes",
            "/api/v1/namespaces/default/pods/a/b",
            "/api/v1/namespaces/default/pods/a/log/x",
            "/api/v1//pods",
        ] {
            assert_eq!(Target::parse(path), None, "{path}");
        }
    }
}
