//! An agent from its start to its end.

use std::{
    fs::{File, TryLockError},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net};
use minisvc_proto::{NodeName, client::ClientError, join::ClusterInfo, report::NodeReport};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use crate::{
    AgentConfig,
    api::{Api, ApiConfig},
    config::API_PORT,
    dataplane::{self, Dataplane},
    dns::{self, Listeners, SharedZone, Upstream, Zone, ZoneConfig},
    doctor::{self, ObserveError, Ranges, Taken},
    firewall::{Foreign, Ours},
    identity::{self, IdentityError, Membership, renewal},
    net::{self, Family6, Net, NetConfig, NetError},
    nft::NftError,
    runtime::{LocalRuntime, RuntimeConfig, RuntimeError},
    sync::{
        events::Recorder,
        families::Second,
        firewall,
        health_checks::{self, HealthChecks},
        local_health::LocalHealth,
        node_ports::{self, Doors},
        nodes, pods,
        port_claims::{self, Claims},
        readiness::Readiness,
        registration::{Boot, RegisterError, register},
        repairs, reporter, services, source,
        viewpoint::Standpoint,
    },
};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
const DNS_PORT: u16 = 53;

/// Why an agent cannot start, or must end. What is programmed and the pods stay in any case.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The credentials cannot be used.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// This machine is no node.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The server refuses this node.
    #[error("node {node} cannot be registered: {cause}")]
    Register {
        /// Which node.
        node: NodeName,
        /// Why.
        cause: RegisterError,
    },
    /// Links or routes.
    #[error(transparent)]
    Net(#[from] NetError),
    /// Something else has what the cluster needs.
    #[error("this machine cannot be a node of this cluster: {0}")]
    Taken(Taken),
    /// The machine cannot be looked at.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// Rules.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Pods.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// A socket.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// A file.
    #[error("{}: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// Two agents would take each other's pods and rules for their own.
    #[error(
        "another agent runs in {} (--run-dir): stop that one, or give this one a --data-dir, --run-dir and --log-dir of its own",
        .0.display()
    )]
    AlreadyRuns(PathBuf),
    /// A part ended although nobody asked it to.
    #[error("the agent's part {0} ended")]
    Part(String),
    /// The node was removed and came back with another pod range; the pods' addresses are no longer theirs.
    #[error("the server gave this node another pod range: the agent must start anew")]
    MovedRange,
}

/// Runs an agent until cancelled. It leaves pods and rules as they are: the next one adopts them. Once it is registered,
/// `progress` gets what the node tells of itself, for whoever started the agent.
pub async fn run(
    mut config: AgentConfig,
    progress: oneshot::Sender<watch::Receiver<NodeReport>>,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    for dir in [&config.data_dir, &config.run_dir, &config.log_dir] {
        std::fs::create_dir_all(dir).map_err(|cause| AgentError::File { path: dir.clone(), cause })?;
    }
    // Until this process ends, whatever ends it.
    let _lock = only_one(&config.run_dir)?;
    let Some(mut member) = identity::establish(&config, &shutdown).await? else { return Ok(()) };
    let mut boot = Boot::read(&config.run_dir);
    let Registered { cluster, local_pod_cidr, second, family6 } = loop {
        match registered(&member, config.node_ip6, &boot, &shutdown).await {
            Ok(None) => return Ok(()),
            Ok(Some(found)) => break found,
            // What is stored is worth nothing any more; a token says that this machine is to come back all the same.
            Err(AgentError::Register { cause, .. }) if cause.is_unauthorized() && config.token.is_some() => {
                tracing::warn!(%cause, "this machine joins anew");
                let Some(anew) = identity::rejoin(&config, &member, &shutdown).await? else { return Ok(()) };
                (member, config.token) = (anew, None);
            }
            Err(error) => return Err(error),
        }
    };
    // From here on the certificate is all it takes.
    config.token = None;
    boot.keep(&config.run_dir).map_err(|cause| AgentError::File { path: config.run_dir.clone(), cause })?;
    let (client, node_name, node_ip) = (member.client.clone(), member.name.clone(), member.ip);
    tracing::info!(node = %node_name, ip = %node_ip, pods = %local_pod_cidr, "registered");

    room_for(&cluster).await?;
    let net = Net::start(NetConfig {
        node_ip,
        local_pod_cidr,
        pod_cidr: cluster.pod_cidr,
        service_cidr: cluster.service_cidr,
        dns_ip: cluster.dns_ip(),
        node_port_range: cluster.node_port_range,
        vxlan_port: cluster.vxlan_port,
        family6,
    })
    .await?;
    let dataplane = Dataplane::start(dataplane::Config {
        node_ip,
        dns_ip: cluster.dns_ip(),
        node_port_range: cluster.node_port_range,
        service_cidr: cluster.service_cidr,
        pod_cidr: cluster.pod_cidr,
        local_pod_cidr,
        vxlan_port: cluster.vxlan_port,
        family6,
    })?;
    let dns_addresses: Vec<SocketAddr> =
        [Some(cluster.dns_ip().into()), family6.map(|family| family.dns_ip.into())]
            .into_iter()
            .flatten()
            .map(|ip: IpAddr| SocketAddr::new(ip, DNS_PORT))
            .collect();
    let zone = SharedZone::new(Zone::new(&ZoneConfig {
        domain: cluster.cluster_domain.clone(),
        servers: dns_addresses.iter().map(SocketAddr::ip).collect(),
        ranges: ranges_of(&cluster),
        fixed: config.host_address.names(node_ip),
    }));
    let dns = Listeners::bind(&dns_addresses).await?;
    let own: Vec<IpAddr> = dns_addresses.iter().map(SocketAddr::ip).collect();
    let upstream = Upstream { resolv_conf: config.resolv_conf.clone(), own: own.clone() };

    // For programs that `node exec` starts.
    let resolv_conf = config.run_dir.join("resolv.conf");
    let text = dns::resolv_conf(&own, &cluster.cluster_domain);
    std::fs::write(&resolv_conf, text)
        .map_err(|cause| AgentError::File { path: resolv_conf.clone(), cause })?;

    let listen = SocketAddr::new(node_ip.into(), API_PORT);
    let api = Api::bind(
        ApiConfig { listen, run_dir: config.run_dir.clone(), resolv_conf: Some(resolv_conf) },
        &member.kubeconfig,
        &member.identity,
    )
    .await?;
    let runtime = Arc::new(LocalRuntime::new(RuntimeConfig::new(&config.run_dir))?);

    let readiness = Readiness::new(&[services::PART, nodes::PART, pods::PART]);
    // Nobody has to listen.
    let _ = progress.send(readiness.subscribe());
    let mut parts = JoinSet::new();
    let (recorder, events) = Recorder::new(client.clone(), node_name.clone(), shutdown.clone());
    let part = |name: &'static str, work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| async move {
        work.await;
        name
    };
    parts.spawn(part("events", Box::pin(events)));
    let stop = shutdown.clone();
    let dns_zone = zone.clone();
    parts.spawn(part(
        "dns",
        Box::pin(async move {
            if let Err(error) = dns.serve(dns_zone, upstream, stop).await {
                tracing::error!(%error, "dns");
            }
        }),
    ));
    let doors = Doors::default();
    let node_ports = node_ports::run(
        node_name.clone(),
        (node_ip, family6.map(|f| f.node_ip)),
        doors.subscribe(),
        recorder.clone(),
        shutdown.clone(),
    );
    parts.spawn(part("node ports", Box::pin(node_ports)));
    let told = repairs::run(
        node_name.clone(),
        dataplane.notices(),
        net.repairs(),
        recorder.clone(),
        shutdown.clone(),
    );
    parts.spawn(part("repairs", Box::pin(told)));
    let claims = Claims::default();
    let taken = port_claims::run(
        client.clone(),
        node_name.clone(),
        claims.subscribe(),
        recorder.clone(),
        shutdown.clone(),
    );
    parts.spawn(part("load balancer ports", Box::pin(taken)));
    let health_checks = HealthChecks::new(node_name.clone());
    let answers = health_checks::run(
        health_checks.subscribe(),
        readiness.subscribe(),
        recorder.clone(),
        shutdown.clone(),
    );
    parts.spawn(part("health checks", Box::pin(answers)));
    let own = [Some(node_ip.into()), family6.map(|family| family.node_ip.into())];
    let standpoint = Standpoint::new(node_name.clone(), own.into_iter().flatten().collect());
    let links = pods::ServiceLinks::default();
    let local_health = LocalHealth::default();
    let outputs = services::Outputs {
        dataplane: dataplane.clone(),
        zone: zone.clone(),
        doors,
        claims,
        health_checks,
        node: node_name.clone(),
        local_health: local_health.clone(),
        here: standpoint.subscribe(),
        links: links.clone(),
        readiness: readiness.clone(),
    };
    parts.spawn(part("services", Box::pin(services::run(client.clone(), outputs, shutdown.clone()))));
    let (sources, world) = watch::channel(source::World::default());
    let routes = nodes::run(
        client.clone(),
        node_name.clone(),
        (net.clone(), dataplane.clone()),
        standpoint,
        readiness.clone(),
        sources,
        shutdown.clone(),
    );
    parts.spawn(part("routes", Box::pin(routes)));
    let settings = source::Config {
        node: node_name.clone(),
        node_ip,
        pod_cidr: cluster.pod_cidr,
        local_pod_cidr,
        mode: config.external_source,
    };
    let keeps = source::run(
        client.clone(),
        settings,
        (net.clone(), dataplane.clone()),
        world,
        recorder.clone(),
        shutdown.clone(),
    );
    parts.spawn(part("sources", Box::pin(keeps)));
    if let Some(uplink) = net::link_of(node_ip) {
        let server = member.kubeconfig.server().ok().and_then(firewall::address_in);
        let ours = Ours {
            node_ip,
            uplink,
            local_pod_cidr,
            pod_cidr: cluster.pod_cidr,
            service_cidr: cluster.service_cidr,
            dns_ip: cluster.dns_ip(),
            vxlan_port: cluster.vxlan_port,
            server,
        };
        let settings =
            firewall::Config { node: node_name.clone(), ours, manage: config.manage_host_firewall };
        let changes = dataplane.changes_of_others();
        let looks = firewall::run(client.clone(), settings, changes, recorder.clone(), shutdown.clone());
        parts.spawn(part("firewall", Box::pin(looks)));
    }
    let pods_config = pods::PodsConfig {
        node: node_name.clone(),
        node_ip,
        local_pod_cidr,
        family6,
        dns_ip: cluster.dns_ip(),
        cluster_domain: cluster.cluster_domain.clone(),
        run_dir: config.run_dir.clone(),
        log_dir: config.log_dir.clone(),
        volume_dir: config.data_dir.join("volumes"),
        resolv_conf: config.resolv_conf.clone(),
        withdraw_timeout: config.withdraw_timeout,
    };
    tokio::spawn(second.tell(client.clone(), node_name.clone(), shutdown.clone()));
    let directory = pods::Directory::default();
    let work = pods::run(
        client.clone(),
        pods_config,
        (runtime.clone(), net.clone()),
        (recorder, readiness.clone(), links, local_health),
        directory.clone(),
        shutdown.clone(),
    );
    parts.spawn(part("pods", Box::pin(work)));
    let stop = shutdown.clone();
    parts.spawn(part("api", Box::pin(async move { api.serve(runtime, directory, stop).await })));
    let (unregistered, mut lost) = mpsc::channel(1);
    let reports = reporter::run(
        client.clone(),
        node_name.clone(),
        readiness.subscribe(),
        unregistered,
        shutdown.clone(),
    );
    parts.spawn(part("reporter", Box::pin(reports)));
    parts.spawn(part("certificate", Box::pin(renewal::run(member.clone(), shutdown.clone()))));

    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(()) = lost.recv() => {
                tracing::warn!("the server does not know this node; registering again");
                let again = registered(&member, config.node_ip6, &boot, &shutdown).await?;
                let same = |r: &Registered| {
                    r.local_pod_cidr == local_pod_cidr
                        && family6.is_none_or(|family| r.family6.is_some_and(|now| now.local_pod_cidr == family.local_pod_cidr))
                };
                if again.is_some_and(|r| !same(&r)) {
                    return Err(AgentError::MovedRange);
                }
            }
            Some(ended) = parts.join_next() => {
                if shutdown.is_cancelled() {
                    break;
                }
                let name = ended.map_or_else(|e| e.to_string(), str::to_owned);
                return Err(AgentError::Part(name));
            }
        }
    }
    while parts.join_next().await.is_some() {}
    Ok(())
}

/// Refuses a machine where others have what the cluster needs.
async fn room_for(cluster: &ClusterInfo) -> Result<(), AgentError> {
    let rules = Foreign::open()?.read()?;
    let ranges = Ranges::from(cluster);
    match doctor::taken(ranges, &doctor::observe().await?, &rules).into_iter().next() {
        Some(taken) => Err(AgentError::Taken(taken)),
        None => Ok(()),
    }
}

/// Takes the lock of a run directory; the kernel gives it back when the file is closed.
fn only_one(run_dir: &Path) -> Result<File, AgentError> {
    let path = run_dir.join("lock");
    let taken = File::create(&path).and_then(|file| match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(e)) => Err(e),
    });
    match taken {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(AgentError::AlreadyRuns(run_dir.to_path_buf())),
        Err(cause) => Err(AgentError::File { path, cause }),
    }
}

/// The ranges that pods and services have their addresses from.
fn ranges_of(cluster: &ClusterInfo) -> Vec<IpNet> {
    let first = [cluster.service_cidr, cluster.pod_cidr].map(IpNet::V4);
    let second = [cluster.service_cidr6, cluster.pod_cidr6].into_iter().flatten().map(IpNet::V6);
    first.into_iter().chain(second).collect()
}

/// What a node knows once it is registered.
struct Registered {
    cluster: ClusterInfo,
    local_pod_cidr: Ipv4Net,
    second: Second,
    /// What its network has of the second family.
    family6: Option<Family6>,
}

/// Registers, waiting for a server that does not answer, and learns what all nodes agree on; `None` when cancelled meanwhile.
async fn registered(
    member: &Membership,
    node_ip6: Option<Ipv6Addr>,
    boot: &Boot,
    shutdown: &CancellationToken,
) -> Result<Option<Registered>, AgentError> {
    let mut wait = FIRST_RETRY;
    loop {
        let tried = async {
            let cluster = member.client.cluster().await?;
            let second = match Second::look(&cluster, member.ip, node_ip6).await {
                Ok(second) => second,
                Err(error) => return Ok(Err(error)),
            };
            let ips = (member.ip, second.address());
            let (local_pod_cidr, second_cidr) = register(&member.client, &member.name, ips, boot).await?;
            let family6 = second.family(&cluster, second_cidr);
            Ok(Ok(Registered { cluster, local_pod_cidr, second, family6 }))
        };
        match tried.await {
            Ok(Err(error)) => return Err(error.into()),
            Ok(Ok(found)) => return Ok(Some(found)),
            Err(RegisterError::Client(error))
                if error.api().is_none_or(|e| e.code >= 500 || e.is_conflict()) =>
            {
                tracing::warn!(%error, "the node is not registered yet; trying again in {wait:?}");
            }
            Err(cause) => return Err(AgentError::Register { node: member.name.clone(), cause }),
        }
        tokio::select! {
            () = shutdown.cancelled() => return Ok(None),
            () = tokio::time::sleep(wait) => wait = (wait * 2).min(LAST_RETRY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_directory_is_for_one_agent_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = only_one(dir.path()).unwrap();
        let error = only_one(dir.path()).unwrap_err().to_string();
        assert!(error.contains("another agent runs in") && error.contains("--run-dir"), "{error}");
        drop(first);
        only_one(dir.path()).unwrap();
    }
}
