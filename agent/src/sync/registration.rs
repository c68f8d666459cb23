//! The node's own object: made at the first start, its addresses and system facts kept right afterwards.

use std::{net::Ipv4Addr, path::Path};

use ipnet::Ipv4Net;
use minisvc_proto::{
    NodeName, Object, ObjectKey,
    client::{Client, ClientError, PatchKind},
    path::Target,
    resource::NODES,
};
use serde_json::{Value, json};

/// Makes the Node if it is absent, writes its status, and returns its pod range.
pub async fn register(client: &Client, node: &NodeName, ip: Ipv4Addr) -> Result<Ipv4Net, RegisterError> {
    let key = ObjectKey::cluster(&NODES, node.as_str());
    let target = Target::object(&key);
    let found = match client.get(&target).await {
        Ok(object) => object,
        Err(ClientError::Api(e)) if e.is_not_found() => {
            let mut object = Object::new(&NODES, None, node.as_str());
            object.metadata_mut().insert("labels".into(), labels(node));
            client.create(&Target::collection(&NODES, None), &object, false).await?
        }
        Err(error) => return Err(error.into()),
    };
    client
        .patch(&target.with_subresource("status"), PatchKind::Merge, &json!({"status": facts(node, ip)}))
        .await?;
    let cidr = found.str_at("/spec/podCIDR").unwrap_or("");
    cidr.parse().map_err(|_| RegisterError::NoPodCidr { node: node.clone(), found: cidr.to_owned() })
}

/// Why a node could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The server refused or did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server gave the node no pod range.
    #[error("node {node}: spec.podCIDR is {found:?}, want an IPv4 range such as 10.244.0.0/24")]
    NoPodCidr {
        /// Which node.
        node: NodeName,
        /// What stands there.
        found: String,
    },
}

fn labels(node: &NodeName) -> Value {
    json!({
        "kubernetes.io/hostname": node.as_str(),
        "kubernetes.io/os": std::env::consts::OS,
        "kubernetes.io/arch": go_arch(),
    })
}

/// The architecture as Go, and so Kubernetes, names it.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn first_line(path: &str) -> String {
    std::fs::read_to_string(Path::new(path)).unwrap_or_default().trim().to_owned()
}

fn os_image() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

/// kB of memory, from /proc/meminfo.
fn memory_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

fn facts(node: &NodeName, ip: Ipv4Addr) -> Value {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let resources = json!({"cpu": cpus.to_string(), "memory": format!("{}Ki", memory_kib()), "pods": "250"});
    json!({
        "addresses": [
            {"type": "InternalIP", "address": ip.to_string()},
            {"type": "Hostname", "address": node.as_str()},
        ],
        "capacity": resources.clone(),
        "allocatable": resources,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": crate::config::API_PORT}},
        "nodeInfo": {
            "architecture": go_arch(),
            "operatingSystem": std::env::consts::OS,
            "kernelVersion": first_line("/proc/sys/kernel/osrelease"),
            "osImage": os_image(),
            "machineID": first_line("/etc/machine-id"),
            "systemUUID": "",
            "bootID": first_line("/proc/sys/kernel/random/boot_id"),
            "containerRuntimeVersion": concat!("minisvc://", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": concat!("v", env!("CARGO_PKG_VERSION")),
            "kubeProxyVersion": concat!("v", env!("CARGO_PKG_VERSION")),
        },
    })
}
