//! What a container's environment says of services (kubernetes/kubernetes, pkg/kubelet/envvars and kubelet_pods.go): those with an
//! address in the pod's namespace that exist when the container starts, and the API server's always.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, PoisonError, RwLock},
};

use k8s_openapi::api::core::v1::{Pod, Service};
use tokio::sync::watch;

use crate::plan::ServiceKey;

/// Every pod gets the variables of this service: the API server's own.
const ALWAYS: (&str, &str) = ("default", "kubernetes");

/// The services with an address, kept by the loop that follows them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ServiceLinks {
    services: Arc<RwLock<HashMap<String, Namespace>>>,
    listed: watch::Sender<bool>,
}

/// By name, in order.
type Namespace = BTreeMap<String, Link>;

/// What variables are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Link {
    ip: IpAddr,
    /// Name, protocol in lower case, number.
    ports: Vec<(Option<String>, String, u16)>,
}

impl Default for ServiceLinks {
    fn default() -> Self {
        ServiceLinks { services: Arc::default(), listed: watch::Sender::new(false) }
    }
}

impl ServiceLinks {
    /// A service as it is from now on; `None` if it is gone.
    pub fn put(&self, key: &ServiceKey, service: Option<&Service>) {
        let link = service.and_then(link);
        let mut services = self.services.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(link) = link {
            services.entry(key.namespace.clone()).or_default().insert(key.name.clone(), link);
        } else if let Some(namespace) = services.get_mut(&key.namespace) {
            namespace.remove(&key.name);
            if namespace.is_empty() {
                services.remove(&key.namespace);
            }
        }
    }

    /// All services that there are have been put once.
    pub fn complete(&self) {
        self.listed.send_if_modified(|listed| !std::mem::replace(listed, true));
    }

    /// The variables for a pod's containers, as soon as the services are known.
    pub(super) async fn variables(&self, pod: &Pod) -> Vec<(String, String)> {
        // The sender is ours: it does not go away.
        let _ = self.listed.subscribe().wait_for(|listed| *listed).await;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let wanted = pod.spec.as_ref().and_then(|s| s.enable_service_links) != Some(false);
        let services = self.services.read().unwrap_or_else(PoisonError::into_inner);
        let always = services.get(ALWAYS.0).and_then(|s| s.get(ALWAYS.1));
        let mut links: BTreeMap<&str, &Link> = always.map(|l| (ALWAYS.1, l)).into_iter().collect();
        if wanted {
            links.extend(
                services.get(namespace).into_iter().flatten().map(|(name, link)| (name.as_str(), link)),
            );
        }
        links.into_iter().flat_map(|(name, link)| of(name, link)).collect()
    }
}

fn link(service: &Service) -> Option<Link> {
    let spec = service.spec.as_ref()?;
    let ip = spec.cluster_ip.as_deref()?.parse().ok()?;
    let ports = spec.ports.iter().flatten().filter_map(|p| {
        let protocol = p.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
        Some((p.name.clone().filter(|n| !n.is_empty()), protocol, u16::try_from(p.port).ok()?))
    });
    Some(Link { ip, ports: ports.collect() })
}

fn of(service: &str, link: &Link) -> Vec<(String, String)> {
    let upper = |text: &str| text.to_ascii_uppercase().replace('-', "_");
    let name = upper(service);
    let ip = link.ip.to_string();
    let Some((_, _, first)) = link.ports.first() else { return Vec::new() };
    let mut out = vec![
        (format!("{name}_SERVICE_HOST"), ip.clone()),
        (format!("{name}_SERVICE_PORT"), first.to_string()),
    ];
    for (port, _, number) in &link.ports {
        out.extend(port.iter().map(|p| (format!("{name}_SERVICE_PORT_{}", upper(p)), number.to_string())));
    }
    // As Docker's links had it.
    for (at, (_, protocol, number)) in link.ports.iter().enumerate() {
        let url = format!("{protocol}://{}", SocketAddr::new(link.ip, *number));
        if at == 0 {
            out.push((format!("{name}_PORT"), url.clone()));
        }
        let prefix = format!("{name}_PORT_{number}_{}", upper(protocol));
        for (suffix, value) in
            [("", url), ("_PROTO", protocol.clone()), ("_PORT", number.to_string()), ("_ADDR", ip.clone())]
        {
            out.push((format!("{prefix}{suffix}"), value));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use serde_json::{Value, json};

    use super::*;

    fn key(namespace: &str, name: &str) -> ServiceKey {
        ServiceKey { namespace: namespace.into(), name: name.into() }
    }

    fn service(spec: Value) -> Service {
        serde_json::from_value(json!({"spec": spec})).unwrap()
    }

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec})).unwrap()
    }

    fn links() -> ServiceLinks {
        let links = ServiceLinks::default();
        let port = |n: u16| json!([{"port": n}]);
        for (namespace, name, spec) in [
            (
                "default",
                "kubernetes",
                json!({"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]}),
            ),
            ("default", "other", json!({"clusterIP": "10.96.0.2", "ports": port(1)})),
            (
                "shop",
                "my-db",
                json!({"clusterIP": "10.96.0.3", "ports":
                [{"name": "sql-main", "port": 5432, "protocol": "TCP"}, {"name": "log", "port": 514, "protocol": "UDP"}]}),
            ),
            ("shop", "v6", json!({"clusterIP": "fd69::7", "ports": port(80)})),
            ("shop", "headless", json!({"clusterIP": "None", "ports": port(1)})),
            ("shop", "alias", json!({"type": "ExternalName", "externalName": "a.example"})),
            ("shop", "new", json!({"ports": port(1)})),
            ("shop", "gone", json!({"clusterIP": "10.96.0.4", "ports": port(1)})),
        ] {
            links.put(&key(namespace, name), Some(&service(spec)));
        }
        links.put(&key("shop", "gone"), None);
        links
    }

    fn lines(links: &ServiceLinks, spec: Value) -> Vec<String> {
        let variables = links.variables(&pod(spec)).now_or_never().unwrap();
        variables.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    const KUBERNETES: [&str; 8] = [
        "KUBERNETES_SERVICE_HOST=10.96.0.1",
        "KUBERNETES_SERVICE_PORT=443",
        "KUBERNETES_SERVICE_PORT_HTTPS=443",
        "KUBERNETES_PORT=tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP=tcp://10.96.0.1:443",
        "KUBERNETES_PORT_443_TCP_PROTO=tcp",
        "KUBERNETES_PORT_443_TCP_PORT=443",
        "KUBERNETES_PORT_443_TCP_ADDR=10.96.0.1",
    ];

    #[test]
    fn a_pod_gets_the_services_of_its_namespace_and_the_api_server() {
        let links = links();
        assert!(links.variables(&pod(json!({}))).now_or_never().is_none(), "not listed yet");
        links.complete();
        let mut want: Vec<&str> = KUBERNETES.into();
        want.extend([
            "MY_DB_SERVICE_HOST=10.96.0.3",
            "MY_DB_SERVICE_PORT=5432",
            "MY_DB_SERVICE_PORT_SQL_MAIN=5432",
            "MY_DB_SERVICE_PORT_LOG=514",
            "MY_DB_PORT=tcp://10.96.0.3:5432",
            "MY_DB_PORT_5432_TCP=tcp://10.96.0.3:5432",
            "MY_DB_PORT_5432_TCP_PROTO=tcp",
            "MY_DB_PORT_5432_TCP_PORT=5432",
            "MY_DB_PORT_5432_TCP_ADDR=10.96.0.3",
            "MY_DB_PORT_514_UDP=udp://10.96.0.3:514",
            "MY_DB_PORT_514_UDP_PROTO=udp",
            "MY_DB_PORT_514_UDP_PORT=514",
            "MY_DB_PORT_514_UDP_ADDR=10.96.0.3",
            "V6_SERVICE_HOST=fd69::7",
            "V6_SERVICE_PORT=80",
            "V6_PORT=tcp://[fd69::7]:80",
            "V6_PORT_80_TCP=tcp://[fd69::7]:80",
            "V6_PORT_80_TCP_PROTO=tcp",
            "V6_PORT_80_TCP_PORT=80",
            "V6_PORT_80_TCP_ADDR=fd69::7",
        ]);
        assert_eq!(lines(&links, json!({})), want);
        assert_eq!(lines(&links, json!({"enableServiceLinks": true})), want);
        assert_eq!(lines(&links, json!({"enableServiceLinks": false})), KUBERNETES);
        // A service of that name in the pod's own namespace is nearer.
        let own = service(json!({"clusterIP": "10.96.0.9", "ports": [{"port": 1}]}));
        links.put(&key("shop", "kubernetes"), Some(&own));
        assert_eq!(lines(&links, json!({}))[0], "KUBERNETES_SERVICE_HOST=10.96.0.9");
        assert_eq!(lines(&links, json!({"enableServiceLinks": false})), KUBERNETES);
    }
}
