//! Services and endpoints in any number.

use std::{net::Ipv4Addr, sync::Arc};

use minisvc_agent::{
    plan::{ServiceKey, ServicePlan, Viewpoint},
    sync::world::World,
};
use minisvc_proto::{Object, Revision};
use serde_json::{Value, json};

/// Services of a big cluster.
pub const SERVICES: u16 = 1000;
/// Services of a very big cluster.
pub const MANY_SERVICES: u16 = 10_000;
/// Addresses that endpoints have: those of different services may share one.
const PODS: u32 = 30_000;
/// Endpoints of each of them.
pub const ENDPOINTS: u16 = 10;
/// Pods' port, and that of their services.
pub const POD_PORT: u16 = 8080;
/// Port of every service.
pub const PORT: u16 = 80;

/// Name of a service.
pub fn name(service: u16) -> String {
    format!("svc-{service:04}")
}

/// ClusterIP of a service: above the addresses that the cluster uses itself.
pub fn cluster_ip(service: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 96, 1, 0)) + u32::from(service))
}

/// Address of an endpoint that nobody has: far from the pods that a bench makes.
pub fn pod_ip(service: u16, endpoint: u16) -> Ipv4Addr {
    let number = (u32::from(service) * u32::from(ENDPOINTS) + u32::from(endpoint)) % PODS;
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 128, 0)) + number)
}

/// A service as the API serves it.
pub fn service(number: u16) -> Value {
    let ip = cluster_ip(number).to_string();
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name(number), "namespace": "default", "resourceVersion": "1",
            "uid": format!("11111111-0000-4000-8000-{number:012}"), "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "selector": {"app": name(number)},
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": POD_PORT}]},
        "status": {"loadBalancer": {}}
    })
}

/// The same with a port on every node.
pub fn door(number: u16, node_port: u16) -> Value {
    let mut service = service(number);
    service["spec"]["type"] = "NodePort".into();
    service["spec"]["externalTrafficPolicy"] = "Cluster".into();
    service["spec"]["ports"][0]["nodePort"] = node_port.into();
    service
}

/// A slice with these endpoints, each with whether it is ready.
pub fn slice(service: u16, revision: u64, port: u16, endpoints: &[(Ipv4Addr, bool)]) -> Value {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .enumerate()
        .map(|(number, (ip, ready))| {
            json!({"addresses": [ip.to_string()], "nodeName": format!("node-{}", number % 3 + 1),
                "conditions": {"ready": ready, "serving": ready, "terminating": false},
                "targetRef": {"kind": "Pod", "namespace": "default", "name": format!("{}-{number}", name(service)),
                    "uid": format!("22222222-0000-4000-8000-{service:06}{number:06}")}})
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": format!("{}-{port}", name(service)), "namespace": "default",
            "resourceVersion": revision.to_string(), "creationTimestamp": "2026-01-01T00:00:00Z",
            "uid": format!("33333333-0000-4000-8000-{service:06}{port:06}"),
            "labels": {"kubernetes.io/service-name": name(service),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"}},
        "ports": [{"name": "http", "protocol": "TCP", "port": port}],
        "endpoints": endpoints
    })
}

/// The slice of a service whose endpoints nobody has.
pub fn idle_slice(service: u16) -> Value {
    let endpoints: Vec<_> = (0..ENDPOINTS).map(|n| (pod_ip(service, n), true)).collect();
    slice(service, 1, POD_PORT, &endpoints)
}

/// As an agent holds it.
pub fn object(value: Value) -> anyhow::Result<Arc<Object>> {
    Ok(Arc::new(serde_json::from_value(value)?))
}

/// What an agent would bring into its kernel.
pub fn plan(
    services: Vec<Value>,
    slices: Vec<Value>,
) -> anyhow::Result<Vec<(ServiceKey, Option<ServicePlan>)>> {
    let objects = |all: Vec<Value>| all.into_iter().map(object).collect::<Result<Vec<_>, _>>();
    let mut world = World::default();
    world.reset_services(Revision(1), objects(services)?);
    world.reset_slices(Revision(1), objects(slices)?);
    Ok(touched(&mut world))
}

/// What an agent would bring into its kernel next.
pub fn touched(world: &mut World) -> Vec<(ServiceKey, Option<ServicePlan>)> {
    let keys = world.take_dirty();
    world.plans(&keys, &Viewpoint::default())
}
