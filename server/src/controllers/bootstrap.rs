//! What every cluster has: the namespace `default`, and the API server as the service `kubernetes`.

use std::net::SocketAddr;

use minisvc_proto::{
    ApiError, Object, ObjectKey, Resource,
    path::Target,
    resource::{ENDPOINT_SLICES, ENDPOINTS, NAMESPACES, SERVICES},
};
use serde_json::json;

use super::{
    mirroring,
    slices::{MANAGED_BY, SERVICE_NAME},
};
use crate::registry::{Part, Registry, WriteOptions};

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";
/// Who writes the API server's own slice.
const MANAGER: &str = "bootstrap.minisvc.io";

/// Makes what is missing and mends what is different: `advertise` is where the API server is reached from the nodes. To be
/// called at each start, before anybody else writes.
pub async fn bootstrap(registry: &Registry, advertise: SocketAddr) -> Result<(), ApiError> {
    ensure(registry, &NAMESPACES, Object::new(&NAMESPACES, None, NAMESPACE)).await?;

    let mut service = Object::new(&SERVICES, Some(NAMESPACE), NAME);
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    service.metadata_mut().insert("labels".into(), labels);
    let port = |number: u16| json!({"name": "https", "port": number, "protocol": "TCP"});
    let mut service_port = port(443);
    service_port["targetPort"] = advertise.port().into();
    let ip = registry.ranges().services.api_server().to_string();
    let spec = json!({"type": "ClusterIP", "clusterIP": ip, "ports": [service_port]});
    service.0.insert("spec".into(), spec);
    ensure(registry, &SERVICES, service).await?;

    let mut slice = Object::new(&ENDPOINT_SLICES, Some(NAMESPACE), NAME);
    let labels = json!({SERVICE_NAME: NAME, MANAGED_BY: MANAGER});
    slice.metadata_mut().insert("labels".into(), labels);
    let family = if advertise.is_ipv4() { "IPv4" } else { "IPv6" };
    let conditions = json!({"ready": true, "serving": true, "terminating": false});
    let endpoint = json!({"addresses": [advertise.ip().to_string()], "conditions": conditions});
    slice.0.insert("addressType".into(), family.into());
    // An address that means another machine to each pod is no endpoint: the service answers nobody then.
    let own = advertise.ip().is_loopback() || advertise.ip().is_unspecified();
    slice.0.insert("endpoints".into(), if own { json!([]) } else { json!([endpoint]) });
    slice.0.insert("ports".into(), json!([port(advertise.port())]));
    ensure(registry, &ENDPOINT_SLICES, slice).await?;

    let mut endpoints = Object::new(&ENDPOINTS, Some(NAMESPACE), NAME);
    endpoints.metadata_mut().insert("labels".into(), json!({mirroring::SKIP: "true"}));
    let subset =
        json!({"addresses": [{"ip": advertise.ip().to_string()}], "ports": [port(advertise.port())]});
    endpoints.0.insert("subsets".into(), if own { json!([]) } else { json!([subset]) });
    ensure(registry, &ENDPOINTS, endpoints).await
}

/// Creates the object, or gives the one that is there the wanted content.
async fn ensure(registry: &Registry, resource: &'static Resource, wanted: Object) -> Result<(), ApiError> {
    let key = ObjectKey {
        resource,
        namespace: wanted.namespace().map(str::to_owned),
        name: wanted.name().to_owned(),
    };
    if registry.get(&key).is_err() {
        let target = Target::collection(resource, key.namespace.as_deref());
        return registry.create(&target, wanted, WriteOptions::default()).await.map(drop);
    }
    let change = |object: &mut Object| {
        for field in ["endpoints", "ports", "subsets"] {
            if let Some(value) = wanted.0.get(field) {
                object.0.insert(field.into(), value.clone());
            }
        }
        if let Some(ports) = wanted.pointer("/spec/ports") {
            object.spec_mut().insert("ports".into(), ports.clone());
        }
        Ok(true)
    };
    registry.modify(&key, Part::Main, change).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::testing;

    #[tokio::test]
    async fn it_makes_what_is_missing_once_and_follows_the_servers_address() {
        let registry = testing::registry();
        bootstrap(&registry, "10.0.0.1:7443".parse().unwrap()).await.unwrap();
        let made = registry.revision();
        bootstrap(&registry, "10.0.0.1:7443".parse().unwrap()).await.unwrap();
        assert_eq!(registry.revision(), made, "nothing changed, so nothing was written");
        let slice_key = ObjectKey::namespaced(&ENDPOINT_SLICES, "default", "kubernetes");
        bootstrap(&registry, "127.0.0.1:7443".parse().unwrap()).await.unwrap();
        assert_eq!(registry.get(&slice_key).unwrap().pointer("/endpoints"), Some(&json!([])));
        bootstrap(&registry, "10.0.0.2:8443".parse().unwrap()).await.unwrap();
        let service = registry.get(&ObjectKey::namespaced(&SERVICES, "default", "kubernetes")).unwrap();
        assert_eq!(service.str_at("/spec/clusterIP"), Some("10.96.0.1"));
        assert_eq!(service.pointer("/spec/ports/0/targetPort"), Some(&8443.into()));
        let slice = registry.get(&slice_key).unwrap();
        assert_eq!(slice.str_at("/endpoints/0/addresses/0"), Some("10.0.0.2"));
    }
}
