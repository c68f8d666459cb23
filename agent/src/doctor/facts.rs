//! What the doctor looks at. Nothing is changed; what may not be looked at is left out.

use std::{
    collections::BTreeMap,
    fs,
    net::{Ipv4Addr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use ipnet::{IpNet, Ipv4Net};
use minisvc_proto::{
    client::Client,
    join::{ClusterInfo, JoinToken, VXLAN_PORT},
};
use nix::unistd::{AccessFlags, access, geteuid};

use super::{Machine, Ranges, Route, Taken, observe, owners, taken};
use crate::{
    firewall::{Foreign, Judgement, Ours, judge},
    identity::Stored,
    net::link_of,
    nft::Nft,
    plan::Family,
    sync::firewall::address_in,
};

/// What somebody wants to know about.
#[derive(Clone, Debug)]
pub struct Asked {
    /// URL of the server; `None`: the one that this machine joined.
    pub server: Option<String>,
    /// A token, whose CA hash the server is known by where nothing is stored.
    pub token: Option<JoinToken>,
    /// The agent's data directory.
    pub data_dir: PathBuf,
}

/// A socket that waits for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listener {
    /// UDP rather than TCP.
    pub is_udp: bool,
    /// Its port.
    pub port: u16,
    /// At all addresses.
    pub is_everywhere: bool,
}

/// How far the way to the server leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// Its name has no address.
    NoName,
    /// Nobody takes the connection.
    NoConnection(String),
    /// Somebody does; nothing is known by which to trust him.
    Listening,
    /// It is not the right one, or does not take us.
    Refused(String),
    /// It is ready.
    Ready {
        /// From question to answer.
        round_trip_ms: u128,
        /// Seconds by which this machine's clock is ahead of the server's, within a second.
        offset: Option<i64>,
    },
}

/// All that was observed.
#[derive(Debug)]
pub struct Facts {
    pub(super) kernel: String,
    pub(super) features: Result<(), String>,
    pub(super) vxlan: Option<Result<(), String>>,
    pub(super) is_root: bool,
    pub(super) is_admin: bool,
    pub(super) is_mounter: bool,
    pub(super) container: Option<&'static str>,
    pub(super) cgroups: Option<&'static str>,
    pub(super) read_only: Vec<String>,
    pub(super) is_sysctl_writable: bool,
    pub(super) sysctls: BTreeMap<String, u64>,
    pub(super) local_ports: Option<(u16, u16)>,
    pub(super) memory_kib: u64,
    pub(super) listening: Vec<Listener>,
    pub(super) has_agent: bool,
    pub(super) node_ports: (u16, u16),
    pub(super) vxlan_port: u16,
    pub(super) ranges: Ranges,
    pub(super) uplink: Option<(String, u32)>,
    pub(super) taken: Vec<Taken>,
    pub(super) owners: Vec<(&'static str, String)>,
    pub(super) judgement: Option<Result<Judgement, String>>,
    pub(super) url: Option<String>,
    pub(super) server: Option<Server>,
}

/// Whether IPv6 is forwarded.
pub(super) const FORWARDING6: &str = "net/ipv6/conf/all/forwarding";
const SYSCTLS: [&str; 14] = [
    "net/ipv4/ip_forward",
    FORWARDING6,
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/bridge/bridge-nf-call-iptables",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
    "user/max_user_namespaces",
    "user/max_net_namespaces",
    "user/max_mnt_namespaces",
    "user/max_pid_namespaces",
    "kernel/unprivileged_userns_clone",
    "kernel/apparmor_restrict_unprivileged_userns",
    "kernel/pid_max",
];
/// Where server and agent keep things, unless they are told otherwise.
const DIRECTORIES: [&str; 3] = ["/var/lib/minisvc", "/run/minisvc", "/var/log/minisvc"];
/// Linux' `CAP_NET_ADMIN` and `CAP_SYS_ADMIN`.
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const PATIENCE: Duration = Duration::from_secs(5);

impl Facts {
    pub(super) fn sysctl(&self, name: &str) -> Option<u64> {
        self.sysctls.get(name).copied()
    }

    /// Looks at this machine, from the network namespace of the calling thread.
    pub async fn look(asked: &Asked) -> Facts {
        // A file that cannot be read is as good as none: ordinary users may not read it.
        let stored = Stored::load(&asked.data_dir).ok().flatten();
        let url = asked.server.clone().or_else(|| stored.as_ref().map(|s| s.facts.server.clone()));
        let (server, cluster) = match &url {
            Some(url) => {
                let (server, cluster) = way_to(url, stored.as_ref(), asked.token.as_ref()).await;
                (Some(server), cluster)
            }
            None => (None, None),
        };
        let cluster = cluster.unwrap_or_else(default_cluster);
        let ranges = Ranges::from(&cluster);
        let machine = observe().await.unwrap_or_default();
        let capabilities = capabilities();
        let may = |bit: u32| capabilities & (1 << bit) != 0;
        let is_admin = may(NET_ADMIN);
        let rules = is_admin.then(|| Foreign::open().and_then(|mut f| f.read()));
        let node_ip = node_ip(url.as_deref(), &machine);
        let link = node_ip.and_then(link_of);
        let judgement = rules.as_ref().zip(node_ip.zip(link.clone())).map(|(rules, (node_ip, uplink))| {
            let ours = Ours {
                node_ip,
                uplink,
                local_pod_cidr: local_range(&machine, ranges.pods),
                pod_cidr: ranges.pods,
                service_cidr: ranges.services,
                dns_ip: cluster.dns_ip(),
                vxlan_port: cluster.vxlan_port,
                server: url.as_deref().and_then(address_in),
            };
            rules.as_ref().map(|rules| judge(rules, &ours)).map_err(ToString::to_string)
        });
        let empty = crate::firewall::Ruleset::default();
        let known = rules.as_ref().and_then(|r| r.as_ref().ok()).unwrap_or(&empty);
        let has_agent = machine.routes.iter().any(|r| r.protocol == crate::net::ROUTE_PROTOCOL);
        Facts {
            kernel: read("/proc/sys/kernel/osrelease"),
            features: if is_admin {
                Nft::open().and_then(|mut nft| nft.probe(Family::V4)).map_err(|e| e.to_string())
            } else {
                Ok(())
            },
            vxlan: (is_admin && may(SYS_ADMIN)).then(can_vxlan),
            is_root: geteuid().is_root(),
            is_admin,
            is_mounter: may(SYS_ADMIN),
            container: container(),
            cgroups: cgroups(),
            read_only: DIRECTORIES
                .iter()
                .filter(|d| !is_writable(Path::new(d)))
                .map(|d| (*d).to_owned())
                .collect(),
            is_sysctl_writable: access("/proc/sys/net/ipv4/ip_forward", AccessFlags::W_OK).is_ok(),
            sysctls: SYSCTLS.into_iter().filter_map(sysctl).collect(),
            local_ports: pair(&read("/proc/sys/net/ipv4/ip_local_port_range")),
            memory_kib: memory_kib(),
            listening: listening(),
            has_agent,
            node_ports: cluster.node_port_range,
            vxlan_port: cluster.vxlan_port,
            ranges,
            uplink: link.map(|(name, _)| {
                let mtu = read(&format!("/sys/class/net/{name}/mtu")).parse().unwrap_or(0);
                (name, mtu)
            }),
            taken: taken(ranges, &machine, known),
            owners: owners(&machine),
            judgement,
            url,
            server,
        }
    }

    #[cfg(test)]
    pub(super) fn sound() -> Facts {
        let cluster = default_cluster();
        Facts {
            kernel: "6.1.0-25-amd64".into(),
            features: Ok(()),
            vxlan: Some(Ok(())),
            is_root: true,
            is_admin: true,
            is_mounter: true,
            container: None,
            cgroups: Some("v2"),
            read_only: Vec::new(),
            is_sysctl_writable: true,
            sysctls: [
                ("net/ipv4/ip_forward".to_owned(), 1),
                ("net/netfilter/nf_conntrack_max".to_owned(), 262_144),
            ]
            .into(),
            local_ports: Some((32768, 60999)),
            memory_kib: 8 << 20,
            listening: Vec::new(),
            has_agent: false,
            node_ports: cluster.node_port_range,
            vxlan_port: cluster.vxlan_port,
            ranges: Ranges::from(&cluster),
            uplink: Some(("eth0".into(), 1500)),
            taken: Vec::new(),
            owners: Vec::new(),
            judgement: Some(Ok(Judgement::default())),
            url: Some("https://server:7443".into()),
            server: Some(Server::Ready { round_trip_ms: 1, offset: Some(0) }),
        }
    }

    #[cfg(test)]
    pub(super) fn set(&mut self, name: &str, value: u64) {
        self.sysctls.insert(name.to_owned(), value);
    }
}

/// What a server has that is told nothing else.
fn default_cluster() -> ClusterInfo {
    let net = |a, b| Ipv4Net::new_assert(Ipv4Addr::new(10, a, b, 0), 16);
    ClusterInfo {
        pod_cidr: net(244, 0),
        service_cidr: net(96, 0),
        pod_cidr6: None,
        service_cidr6: None,
        node_port_range: (30000, 32767),
        vxlan_port: VXLAN_PORT,
        cluster_domain: "cluster.local".into(),
    }
}

async fn way_to(
    url: &str,
    stored: Option<&Stored>,
    token: Option<&JoinToken>,
) -> (Server, Option<ClusterInfo>) {
    let authority = url.trim_start_matches("https://").split('/').next().unwrap_or_default().to_owned();
    let with_port = if authority.contains(':') { authority } else { format!("{authority}:443") };
    let resolved = tokio::task::spawn_blocking(move || with_port.to_socket_addrs().map(Vec::from_iter)).await;
    let Ok(Ok(addresses)) = resolved else { return (Server::NoName, None) };
    match tokio::time::timeout(PATIENCE, tokio::net::TcpStream::connect(addresses.as_slice())).await {
        Err(_) => return (Server::NoConnection("timed out".into()), None),
        Ok(Err(e)) => return (Server::NoConnection(e.to_string()), None),
        Ok(Ok(_)) => {}
    }
    let client = match (stored, token) {
        (Some(stored), _) => Client::from_kubeconfig(&stored.moved_to(url).kubeconfig),
        (None, Some(token)) => Client::pinned(url, &token.ca_hash),
        (None, None) => return (Server::Listening, None),
    };
    let asked = Instant::now();
    let health = match client {
        Ok(client) => client.health().await.map(|date| (client, date)),
        Err(e) => Err(e),
    };
    match health {
        Ok((client, date)) => {
            let round_trip = asked.elapsed();
            let offset = date.as_deref().and_then(offset);
            let cluster = if stored.is_some() { client.cluster().await.ok() } else { None };
            (Server::Ready { round_trip_ms: round_trip.as_millis(), offset }, cluster)
        }
        Err(e) => (Server::Refused(e.to_string()), None),
    }
}

/// Seconds by which our clock is ahead of a `Date` header.
fn offset(date: &str) -> Option<i64> {
    let theirs = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
    Some(jiff::Timestamp::now().as_second() - theirs.as_second())
}

/// The address that speaks to the server, else the first that is not loopback's or ours.
fn node_ip(url: Option<&str>, machine: &Machine) -> Option<Ipv4Addr> {
    let towards = url.and_then(|url| crate::identity::towards(url).ok());
    let first = || {
        let is_default = |to: IpNet| to.addr().is_ipv4() && to.prefix_len() == 0;
        let default = machine.routes.iter().find(|r| is_default(r.to)).map(|r| r.link.as_str());
        let mut addresses = machine.addresses.iter().filter(|a| Some(a.link.as_str()) == default);
        addresses.find_map(|a| if let IpNet::V4(net) = a.net { Some(net.addr()) } else { None })
    };
    towards.or_else(first)
}

/// This node's pods, if an agent has run here; else what a first node gets.
fn local_range(machine: &Machine, pods: Ipv4Net) -> Ipv4Net {
    let is_ours = |r: &Route| r.protocol == crate::net::ROUTE_PROTOCOL && r.link.is_empty();
    let mut ours = machine.routes.iter().filter(|r| is_ours(r));
    let found = ours.find_map(|r| match r.to {
        IpNet::V4(to) if pods.contains(&to.network()) => Some(to),
        _ => None,
    });
    found.unwrap_or_else(|| Ipv4Net::new(pods.network(), 24.max(pods.prefix_len())).unwrap_or(pods))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn sysctl(name: &str) -> Option<(String, u64)> {
    Some((name.to_owned(), read(&format!("/proc/sys/{name}")).parse().ok()?))
}

fn pair(text: &str) -> Option<(u16, u16)> {
    let (low, high) = text.split_once(char::is_whitespace)?;
    Some((low.trim().parse().ok()?, high.trim().parse().ok()?))
}

fn memory_kib() -> u64 {
    let text = read("/proc/meminfo");
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok()).unwrap_or(0)
}

fn capabilities() -> u64 {
    let status = read("/proc/self/status");
    let line = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    line.and_then(|l| u64::from_str_radix(l.trim(), 16).ok()).unwrap_or(0)
}

fn container() -> Option<&'static str> {
    if Path::new("/.dockerenv").exists() {
        return Some("Docker");
    }
    if Path::new("/run/.containerenv").exists() { Some("Podman") } else { None }
}

fn cgroups() -> Option<&'static str> {
    let at = Path::new("/sys/fs/cgroup");
    if at.join("cgroup.controllers").exists() {
        return Some("v2");
    }
    if at.join("unified").exists() {
        return Some("hybrid (v1 controllers, an empty v2 tree)");
    }
    at.join("memory").exists().then_some("v1")
}

/// Whether the directory, or the nearest one above it that is there, can be written.
fn is_writable(dir: &Path) -> bool {
    let there = dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
    access(there, AccessFlags::W_OK).is_ok()
}

fn listening() -> Vec<Listener> {
    let files = [("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")];
    let mut found = Vec::new();
    for (file, state) in files {
        for line in read(&format!("/proc/net/{file}")).lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, local, _, now, ..] = words.as_slice() else { continue };
            let Some((address, port)) = local.split_once(':').filter(|_| *now == state) else { continue };
            let Ok(port) = u16::from_str_radix(port, 16) else { continue };
            let is_everywhere = address.chars().all(|c| c == '0');
            found.push(Listener { is_udp: file.starts_with("udp"), port, is_everywhere });
        }
    }
    found
}

/// Makes a link in a network namespace of its own, which goes with its thread.
fn can_vxlan() -> Result<(), String> {
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|e| e.to_string())?.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().map_err(|e| e.to_string())?;
            let task = tokio::spawn(connection);
            let link = rtnetlink::LinkVxlan::new("probe", 1).port(VXLAN_PORT).build();
            let made = handle.link().add(link).execute().await.map_err(|e| e.to_string());
            task.abort();
            made
        })
    });
    thread.join().map_err(|_| "the probe's thread ended".to_owned())?
}
