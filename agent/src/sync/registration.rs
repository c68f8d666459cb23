//! The node's own object: made at the first start, its addresses and system facts kept right afterwards.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use ipnet::{Ipv4Net, Ipv6Net};
use minisvc_proto::{
    NodeName, Object, ObjectKey,
    client::{Client, ClientError, ListParams, PatchKind},
    path::Target,
    resource::{NODES, PODS},
};
use serde_json::{Value, json};

/// One life of the machine, as far as pods are concerned: the run directory is empty when it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// `status.nodeInfo.bootID`.
    pub id: String,
    /// No agent of this life has registered yet, so no pod runs here.
    pub is_new: bool,
}

/// File of the run directory that holds the id.
const BOOT_ID: &str = "boot-id";

impl Boot {
    /// The present life.
    pub fn read(run_dir: &Path) -> Self {
        let known = fs::read_to_string(run_dir.join(BOOT_ID)).map(|text| text.trim().to_owned());
        match known {
            Ok(id) if !id.is_empty() => Boot { id, is_new: false },
            _ => Boot { id: uuid::Uuid::new_v4().to_string(), is_new: true },
        }
    }

    /// Keeps the id, once the server knows of it.
    pub fn keep(&mut self, run_dir: &Path) -> io::Result<()> {
        fs::write(run_dir.join(BOOT_ID), &self.id)?;
        self.is_new = false;
        Ok(())
    }
}

/// Makes the Node if it is absent, writes its status, and returns its parts of the pod ranges. In a new life of the machine the node and its
/// pods are not ready, whatever stands on the server.
pub async fn register(
    client: &Client,
    node: &NodeName,
    ips: (Ipv4Addr, Option<Ipv6Addr>),
    boot: &Boot,
) -> Result<(Ipv4Net, Option<Ipv6Net>), RegisterError> {
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
    let mut status = facts(node, ips, boot);
    if boot.is_new {
        status["conditions"] =
            json!([not_ready("AgentStarting", "The machine has started; its agent is starting")]);
    }
    client.patch(&target.with_subresource("status"), PatchKind::Merge, &json!({"status": status})).await?;
    if boot.is_new {
        forget_readiness(client, node).await?;
    }
    let cidr = found.str_at("/spec/podCIDR").unwrap_or("");
    let first = cidr.parse();
    let first = first.map_err(|_| RegisterError::NoPodCidr { node: node.clone(), found: cidr.to_owned() })?;
    Ok((first, found.str_at("/spec/podCIDRs/1").and_then(|cidr| cidr.parse().ok())))
}

/// What ran on this machine before it started anew serves nobody.
async fn forget_readiness(client: &Client, node: &NodeName) -> Result<(), ClientError> {
    let params = ListParams::fields(format!("spec.nodeName={node}"));
    let (_, pods) = client.list(&Target::collection(&PODS, None), &params).await?;
    let writes = pods.iter().filter_map(|pod| {
        let mut conditions = pod.pointer("/status/conditions")?.as_array()?.clone();
        let ready = conditions.iter_mut().find(|c| c["type"] == "Ready" && c["status"] == "True")?;
        *ready = not_ready("NodeRestarted", "The pod's node has started anew");
        let target = Target::object(&pod.key()?).with_subresource("status");
        let patch = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": conditions}});
        Some(async move { client.patch(&target, PatchKind::Merge, &patch).await })
    });
    for written in futures::future::join_all(writes).await {
        match written {
            Err(e) if e.is_not_found() => {}
            other => drop(other?),
        }
    }
    Ok(())
}

fn not_ready(reason: &str, message: &str) -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    json!({"type": "Ready", "status": "False", "reason": reason, "message": message, "lastTransitionTime": now})
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

impl RegisterError {
    /// Whether the server does not take the node's certificate any more.
    pub fn is_unauthorized(&self) -> bool {
        matches!(self, RegisterError::Client(ClientError::Api(e)) if e.code == 401)
    }
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

fn facts(node: &NodeName, (first, second): (Ipv4Addr, Option<Ipv6Addr>), boot: &Boot) -> Value {
    let ips = [Some(IpAddr::V4(first)), second.map(IpAddr::V6)].into_iter().flatten();
    let mut addresses: Vec<Value> =
        ips.map(|ip| json!({"type": "InternalIP", "address": ip.to_string()})).collect();
    addresses.push(json!({"type": "Hostname", "address": node.as_str()}));
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let resources = json!({"cpu": cpus.to_string(), "memory": format!("{}Ki", memory_kib()), "pods": "250"});
    json!({
        "addresses": addresses,
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
            "bootID": boot.id,
            "containerRuntimeVersion": concat!("minisvc://", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": concat!("v", env!("CARGO_PKG_VERSION")),
            "kubeProxyVersion": concat!("v", env!("CARGO_PKG_VERSION")),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_ends_with_the_run_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut boot = Boot::read(dir.path());
        assert!(boot.is_new && Boot::read(dir.path()).is_new);
        boot.keep(dir.path()).unwrap();
        assert_eq!(Boot::read(dir.path()), Boot { is_new: false, ..boot.clone() });
        let next = tempfile::tempdir().unwrap();
        assert_ne!(Boot::read(next.path()).id, boot.id);
    }
}
