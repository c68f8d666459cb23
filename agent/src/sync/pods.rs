//! The pods of this node: follows those that are bound to it, runs each by a task of its own, tells the server how they are.

mod decide;
mod environment;
mod handler;
mod ipam;
mod network;
mod probe;
mod spec;
mod status;
mod worker;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use ipnet::Ipv4Net;
use minisvc_proto::{
    NodeName, Object,
    client::{Client, Informer, InformerEvent, ListParams},
    path::Target,
    resource::PODS,
    watch::EventType,
};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use self::{
    environment::ServiceLinks,
    network::{NoNetwork, PodNetwork},
};
use self::{
    ipam::Ipam,
    spec::{Machine, parse_passwd, parse_uid_map},
    worker::Worker,
};
use super::{events::Recorder, local_health::LocalHealth, readiness::Readiness};
use crate::net::Family6;
use crate::runtime::{ContainerState, PodRuntime, PodSetup, bin_dir};

/// The part of [`Readiness`] that this loop answers for.
pub const PART: &str = "pods";

/// What the loop is told.
#[derive(Clone, Debug)]
pub struct PodsConfig {
    /// This node's name.
    pub node: NodeName,
    /// This node's address.
    pub node_ip: Ipv4Addr,
    /// The pods' addresses are from here.
    pub local_pod_cidr: Ipv4Net,
    /// In a dual-stack cluster, where their second ones are from.
    pub family6: Option<Family6>,
    /// Where pods ask for names.
    pub dns_ip: Ipv4Addr,
    /// The cluster's DNS zone.
    pub cluster_domain: String,
    /// Holds `bin/minisvc`.
    pub run_dir: PathBuf,
    /// Logs go to `log_dir/NAMESPACE_POD_UID/CONTAINER/ATTEMPT.log`.
    pub log_dir: PathBuf,
    /// Volumes are in `volume_dir/UID/NAME`.
    pub volume_dir: PathBuf,
    /// The node's own resolv.conf, for pods with dnsPolicy Default.
    pub resolv_conf: PathBuf,
    /// How long a pod that ends waits, at most, until no node leads new connections to it.
    pub withdraw_timeout: Duration,
}

impl PodsConfig {
    /// The addresses of the pod with this first one.
    fn addresses(&self, first: Ipv4Addr) -> Vec<IpAddr> {
        let second = self.family6.map(|family| IpAddr::V6(family.pod_address(first, self.local_pod_cidr)));
        [Some(IpAddr::V4(first)), second].into_iter().flatten().collect()
    }

    /// The addresses of this node.
    fn node_ips(&self) -> Vec<IpAddr> {
        let second = self.family6.map(|family| IpAddr::V6(family.node_ip));
        [Some(IpAddr::V4(self.node_ip)), second].into_iter().flatten().collect()
    }
}

/// A pod as the agent's API needs it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `metadata.uid`.
    pub uid: String,
    /// The containers' names.
    pub containers: Vec<String>,
    /// Holds `CONTAINER/ATTEMPT.log`.
    pub log_dir: PathBuf,
    /// What the containers do, or did last. Ends with the pod.
    pub states: watch::Receiver<Containers>,
}

/// The containers of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Containers {
    /// By name.
    pub states: BTreeMap<String, ContainerState>,
    /// Those that are not started again when they have ended.
    pub over: BTreeSet<String>,
}

/// The pods of this node by namespace and name. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Directory(Arc<RwLock<HashMap<(String, String), Entry>>>);

impl Directory {
    /// The pod of this name, while it is on this node.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Entry> {
        let pods = self.0.read().unwrap_or_else(PoisonError::into_inner);
        pods.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    fn put(&self, namespace: &str, name: &str, entry: Entry) {
        let mut pods = self.0.write().unwrap_or_else(PoisonError::into_inner);
        pods.insert((namespace.to_owned(), name.to_owned()), entry);
    }

    fn remove(&self, uid: &str) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).retain(|_, e| e.uid != uid);
    }
}

/// What all pods' tasks share.
struct Shared<R, N> {
    client: Client,
    config: PodsConfig,
    machine: Machine,
    runtime: Arc<R>,
    network: N,
    recorder: Recorder,
    ipam: Mutex<Ipam>,
    links: ServiceLinks,
    local_health: LocalHealth,
    directory: Directory,
    shutdown: CancellationToken,
}

/// The way to the tasks, and what they come back from.
struct Pods<R, N> {
    shared: Arc<Shared<R, N>>,
    objects: HashMap<String, watch::Sender<Option<Arc<Object>>>>,
    tasks: JoinSet<String>,
    /// Found on this machine, not yet seen on the server.
    adopted: HashMap<String, PodSetup>,
}

/// Runs the pods of this node until cancelled; they live on after that. While the server is away everything stays as it is.
pub async fn run<R: PodRuntime, N: PodNetwork>(
    client: Client,
    config: PodsConfig,
    (runtime, network): (Arc<R>, N),
    (recorder, readiness, links, local_health): (Recorder, Readiness, ServiceLinks, LocalHealth),
    directory: Directory,
    shutdown: CancellationToken,
) {
    let mut ipam = Ipam::new(config.local_pod_cidr);
    let adopted: HashMap<String, PodSetup> =
        runtime.adopt().await.into_iter().map(|s| (s.uid.clone(), s)).collect();
    for setup in adopted.values() {
        if !ipam.reserve(setup.ip, &setup.uid) {
            tracing::error!(pod = setup.name, ip = %setup.ip, "an adopted pod has an address that is not this node's");
        }
    }
    let selector = ListParams::fields(format!("spec.nodeName={}", config.node));
    let mut events = Informer::spawn(client.clone(), Target::collection(&PODS, None), selector);
    let shared = Shared {
        machine: machine(&config),
        ipam: Mutex::new(ipam),
        links,
        local_health,
        client,
        config,
        runtime,
        network,
        recorder,
        directory,
        shutdown: shutdown.clone(),
    };
    let mut pods = Pods { shared: Arc::new(shared), objects: HashMap::new(), tasks: JoinSet::new(), adopted };
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            event = events.recv() => match event {
                Some(InformerEvent::Reset(_, objects)) => {
                    pods.reset(objects).await;
                    readiness.works(PART);
                }
                Some(InformerEvent::Changed(event)) => match event.kind {
                    EventType::Added | EventType::Modified => pods.put(Arc::new(event.object)),
                    EventType::Deleted => pods.gone(event.object.uid()),
                    EventType::Bookmark | EventType::Error => {}
                },
                None => break,
            },
            Some(ended) = pods.tasks.join_next() => match ended {
                Ok(uid) => drop(pods.objects.remove(&uid)),
                // Nobody looks after that pod any more: the agent must start anew, and adopt it.
                Err(error) => {
                    tracing::error!(%error, "the task of a pod died");
                    break;
                }
            },
        }
    }
}

fn machine(config: &PodsConfig) -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let default = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let path = std::env::var("PATH").ok().filter(|p| !p.is_empty()).unwrap_or_else(|| default.into());
    Machine {
        node: config.node.as_str().to_owned(),
        node_ips: config.node_ips(),
        path: format!("{}:{path}", bin_dir(&config.run_dir).display()),
        own_uid: nix::unistd::geteuid().as_raw(),
        uids: parse_uid_map(&read("/proc/self/uid_map")),
        users: parse_passwd(&read("/etc/passwd")),
    }
}

impl<R: PodRuntime, N: PodNetwork> Pods<R, N> {
    /// These are all pods of this node: whatever else runs here has to end.
    async fn reset(&mut self, objects: Vec<Arc<Object>>) {
        let uids: BTreeSet<String> = objects.iter().map(|o| o.uid().to_owned()).collect();
        for object in objects {
            self.put(object);
        }
        let gone: Vec<String> = self.objects.keys().filter(|uid| !uids.contains(*uid)).cloned().collect();
        for uid in gone {
            self.gone(&uid);
        }
        for (_, setup) in std::mem::take(&mut self.adopted) {
            tracing::info!(pod = setup.name, "this pod was deleted while no agent ran: it is stopped");
            self.spawn(setup.uid.clone(), Some(setup), None);
        }
        let known: Vec<String> = self.objects.keys().cloned().collect();
        self.shared.network.clean(&known).await;
        remove_old_logs(&self.shared.config.log_dir, &known);
        remove_old_volumes(&self.shared.config.volume_dir, &known);
    }

    fn put(&mut self, object: Arc<Object>) {
        let uid = object.uid().to_owned();
        let here = object.str_at("/spec/nodeName") == Some(self.shared.config.node.as_str());
        if uid.is_empty() || !here {
            return;
        }
        if let Some(task) = self.objects.get(&uid) {
            task.send_replace(Some(object));
        } else {
            let setup = self.adopted.remove(&uid);
            self.spawn(uid, setup, Some(object));
        }
    }

    fn gone(&mut self, uid: &str) {
        if let Some(task) = self.objects.get(uid) {
            task.send_replace(None);
        }
    }

    fn spawn(&mut self, uid: String, setup: Option<PodSetup>, object: Option<Arc<Object>>) {
        let (sender, objects) = watch::channel(object.clone());
        let Some(worker) = Worker::new(self.shared.clone(), setup, object) else { return };
        self.objects.insert(uid.clone(), sender);
        self.tasks.spawn(async move {
            worker.run(objects).await;
            uid
        });
    }
}

/// Volumes of pods that ended while no agent could remove them, as when the machine lost its power.
fn remove_old_volumes(volume_dir: &Path, known: &[String]) {
    for entry in fs::read_dir(volume_dir).into_iter().flatten().flatten() {
        if !known.iter().any(|uid| entry.file_name() == uid.as_str())
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "an old volume cannot be removed");
        }
    }
}

/// Logs stay as long as their pod's object; agents that were killed leave some behind.
fn remove_old_logs(log_dir: &Path, known: &[String]) {
    for entry in fs::read_dir(log_dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // NAMESPACE_POD_UID: other things may lie there too.
        let parts: Vec<&str> = name.split('_').collect();
        if let [_, _, uid] = parts.as_slice()
            && !known.iter().any(|k| k == uid)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(path = %entry.path().display(), %error, "an old log cannot be removed");
        }
    }
}
