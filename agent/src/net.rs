//! The node's side of the cluster's network: links of pods, routes, forwarding. A thread of its own speaks to the kernel, so
//! that changes of one link never overtake each other.
//!
//! What belongs to us is marked: links are named `vp` and twelve hex digits and stand in link group [`LINK_GROUP`], routes
//! carry protocol number [`ROUTE_PROTOCOL`], the tunnel to nodes on other networks is called [`TUNNEL`]. What an earlier agent left
//! is adopted or put right; nothing else is touched.

mod address6;
mod family6;
mod kernel;
mod links;
mod peers;
mod pod;
pub mod reverse_path;
mod routes;
mod sysctl;
mod tunnel;
mod way_back;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::OwnedFd,
    str::FromStr,
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net};
use nix::errno::Errno;
use sha2::{Digest, Sha256};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::source::Mac;

pub use address6::address6;
pub use family6::{Family6, NodeRoute6, tunnel_address6};
pub(crate) use kernel::local;

/// `rtm_protocol` of every route that is ours (`ip route show proto 173`).
pub const ROUTE_PROTOCOL: u8 = 173;
/// Link group of the host side of every pod's link: the packet rules know pods by it, not by a name that others may have too.
pub const LINK_GROUP: u32 = 173;
/// The VXLAN link to nodes on other networks.
pub const TUNNEL: &str = "minisvc-vx";
/// Its link group: the packet rules know it by this, whether it is there or not.
pub const TUNNEL_GROUP: u32 = 174;
/// What pods use as their gateway of IPv6, as [`GATEWAY`].
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// What pods use as their gateway: on-link, the same everywhere, answered by permanent neighbour entries.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Commands that wait for the thread; more make callers wait.
const QUEUE: usize = 64;
/// Repairs that wait for a slow listener; older ones are lost to it.
const REPAIRS: usize = 16;
/// So many things are named where more are missing.
const NAMED: usize = 5;

/// What the node's network must know before the first pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    /// Address of this node; the link that has it carries the traffic to other nodes.
    pub node_ip: Ipv4Addr,
    /// Pods of this node are from here.
    pub local_pod_cidr: Ipv4Net,
    /// All pods of the cluster are from here.
    pub pod_cidr: Ipv4Net,
    /// ClusterIPs are from here.
    pub service_cidr: Ipv4Net,
    /// The agent's DNS listens here.
    pub dns_ip: Ipv4Addr,
    /// First and last nodePort: reserved, so that no client's own port falls into them.
    pub node_port_range: (u16, u16),
    /// UDP port of VXLAN between nodes.
    pub vxlan_port: u16,
    /// In a dual-stack cluster, the same of IPv6.
    pub family6: Option<Family6>,
}

impl NetConfig {
    /// Whether an address is one of the service ranges' that an agent with other settings gave to `lo`.
    fn is_old_dns(&self, ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => self.service_cidr.contains(&ip) && ip != self.dns_ip,
            IpAddr::V6(ip) => self.family6.is_some_and(|f| f.service_cidr.contains(&ip) && ip != f.dns_ip),
        }
    }

    /// The second address of the pod with this one, in a dual-stack cluster.
    pub fn pod_address6(&self, first: Ipv4Addr) -> Option<Ipv6Addr> {
        self.family6.map(|family| family.pod_address(first, self.local_pod_cidr))
    }
}

/// Another node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRoute {
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its part of the pod range.
    pub pod_cidr: Ipv4Net,
    /// It says that it reaches this node through VXLAN, whatever this node thinks.
    pub tunnels: bool,
    /// In a dual-stack cluster, the same of IPv6.
    pub family6: Option<NodeRoute6>,
}

/// The address of a node in the tunnel, as source of what is not a pod's own: the first of its part of the pod range, which no pod
/// has.
pub fn tunnel_address(pod_cidr: Ipv4Net) -> Ipv4Addr {
    pod_cidr.network()
}

/// The settings of the calling thread's namespace that decide whether pods can answer through other nodes.
pub fn reverse_path() -> reverse_path::ReversePath {
    sysctl::reverse_path()
}

/// The link address of a node in the tunnel.
pub fn tunnel_mac(node_ip: Ipv4Addr) -> Mac {
    tunnel::mac(node_ip)
}

/// The Ethernet address of the link that has an address of this machine.
pub fn mac_of(ip: Ipv4Addr) -> Option<Mac> {
    let (name, _) = link_of(ip)?;
    let all = nix::ifaddrs::getifaddrs().ok()?;
    let mut macs = all.filter(|a| a.interface_name == name).filter_map(|a| a.address?.as_link_addr()?.addr());
    macs.find(|mac| *mac != [0; 6])
}

/// How another node's pods are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// The node is a neighbour on the network of this node's link.
    Direct,
    /// There is a router in between, which knows nothing of pods.
    Vxlan,
    /// It would take VXLAN, which this kernel lacks or refuses.
    Unreachable,
}

/// The ways to all other nodes, by name.
pub type Ways = Arc<BTreeMap<String, Way>>;

/// The link of this machine that has an address, with its index.
pub fn link_of(ip: Ipv4Addr) -> Option<(String, u32)> {
    let mut all = nix::ifaddrs::getifaddrs().ok()?;
    let found = all.find(|a| a.address.and_then(|s| Some(s.as_sockaddr_in()?.ip())) == Some(ip))?;
    let index = nix::net::if_::if_nametoindex(found.interface_name.as_str()).ok()?;
    Some((found.interface_name, index))
}

/// The host side of a pod's link: `vp` and twelve hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkName(String);

const PREFIX: &str = "vp";
const DIGITS: usize = 12;

impl LinkName {
    /// The name for the pod with this `metadata.uid`; always the same for the same pod.
    pub fn of_pod(uid: &str) -> Self {
        let digest = Sha256::digest(uid.as_bytes());
        let number = digest[..DIGITS / 2].iter().fold(0u64, |n, byte| (n << 8) | u64::from(*byte));
        LinkName(format!("{PREFIX}{number:0DIGITS$x}"))
    }

    /// As the kernel knows it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is no name that [`LinkName::of_pod`] gives.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no link of a pod: want vp and twelve hex digits")]
pub struct NotAPodLink(String);

impl FromStr for LinkName {
    type Err = NotAPodLink;

    fn from_str(text: &str) -> Result<Self, NotAPodLink> {
        let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        match text.strip_prefix(PREFIX) {
            Some(rest) if rest.len() == DIGITS && rest.bytes().all(hex) => Ok(LinkName(text.to_owned())),
            _ => Err(NotAPodLink(text.to_owned())),
        }
    }
}

/// Why the node's network is not as wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetError {
    /// The kernel refused.
    #[error("network: cannot {operation} {object}: {errno}")]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// The kernel's reason.
        errno: Errno,
    },
    /// No link has the node's address.
    #[error(
        "no link of this machine has the node address {0}: give it to one, or name another with --node-ip"
    )]
    NoNodeLink(IpAddr),
    /// Packets are not forwarded, and that cannot be changed from here.
    #[error(
        "IPv4 forwarding is off and cannot be switched on here ({0}): run `sysctl -w net.ipv4.ip_forward=1` on this node"
    )]
    ForwardingOff(Errno),
    /// IPv6 packets are not forwarded, and that cannot be changed from here.
    #[error(
        "IPv6 forwarding is off and cannot be switched on here ({0}): run `sysctl -w net.ipv6.conf.all.forwarding=1` on this \
         node; where router advertisements give it its routes, `sysctl -w net.ipv6.conf.LINK.accept_ra=2` before"
    )]
    ForwardingOff6(Errno),
    /// The kernel has no IPv6, or it is switched off.
    #[error(
        "this machine has no IPv6: its kernel lacks it, or it is disabled (net.ipv6.conf.all.disable_ipv6)"
    )]
    NoIpv6,
    /// The node's link has no address of IPv6 that others can use.
    #[error(
        "the link {0} has no IPv6 address that other nodes reach (global or unique local): give it one, or name one with --node-ip IPV4,IPV6"
    )]
    NoAddress6(String),
    /// Somebody else routes the same destination.
    #[error(
        "the route to {destination} is not ours (protocol {protocol}): remove it, or choose another range for the cluster"
    )]
    RouteTaken {
        /// The destination both want.
        destination: IpNet,
        /// `rtm_protocol` of the route that is there.
        protocol: u8,
    },
    /// The thread is gone; only a panic does that.
    #[error("the network's thread has ended")]
    Ended,
}

type Reply<T> = oneshot::Sender<Result<T, NetError>>;

/// Whom the thread tells of what it finds.
struct Tell {
    /// By family.
    ways: [watch::Sender<Ways>; 2],
    repairs: broadcast::Sender<Repaired>,
}

enum Command {
    Attach(LinkName, Ipv4Addr, OwnedFd, Reply<()>),
    Detach(LinkName, Reply<()>),
    Links(Reply<Vec<LinkName>>),
    Routes(Vec<NodeRoute>, Reply<()>),
}

/// What somebody else took away, and is back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// Names of links, routes, neighbours and addresses, in order.
    pub missing: BTreeSet<String>,
}

impl fmt::Display for Repaired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("missing, and put back: ")?;
        for (n, name) in self.missing.iter().take(NAMED).enumerate() {
            write!(f, "{}{name}", if n == 0 { "" } else { ", " })?;
        }
        match self.missing.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Talks to the thread; it ends when the last handle is gone. Links and routes stay.
#[derive(Clone, Debug)]
pub struct Net {
    commands: mpsc::Sender<Command>,
    ways: watch::Receiver<Ways>,
    ways6: watch::Receiver<Ways>,
    repairs: broadcast::Sender<Repaired>,
}

impl Net {
    /// Makes the network namespace of the calling thread a node's: forwarding on, a route for the service range with the
    /// node's own address as source, the DNS address on `lo`, and the own pod range unreachable but for its pods.
    pub async fn start(config: NetConfig) -> Result<Net, NetError> {
        let (sender, commands) = mpsc::channel(QUEUE);
        let (started, result) = oneshot::channel();
        let (decided, ways) = watch::channel(Ways::default());
        let (decided6, ways6) = watch::channel(Ways::default());
        let (repairs, _) = broadcast::channel(REPAIRS);
        let tell = Tell { ways: [decided, decided6], repairs: repairs.clone() };
        // A new thread stands in the namespace of the thread that starts it.
        std::thread::Builder::new()
            .name("network".into())
            .spawn(move || worker::run(config, commands, tell, started))
            .map_err(|e| kernel::io("start", "the network's thread", &e))?;
        result.await.map_err(|_| NetError::Ended)??;
        Ok(Net { commands: sender, ways, ways6, repairs })
    }

    /// Connects a pod: a veth pair with `link` here and `eth0` with `ip` in `netns`, routes both ways. A link that is right
    /// already stays untouched, traffic included; a wrong one is replaced.
    pub async fn attach(&self, link: LinkName, ip: Ipv4Addr, netns: OwnedFd) -> Result<(), NetError> {
        self.ask(|reply| Command::Attach(link, ip, netns, reply)).await
    }

    /// Removes a pod's link with its routes; one that is not there is fine.
    pub async fn detach(&self, link: LinkName) -> Result<(), NetError> {
        self.ask(|reply| Command::Detach(link, reply)).await
    }

    /// The links of pods that are there now, an earlier agent's included.
    pub async fn links(&self) -> Result<Vec<LinkName>, NetError> {
        self.ask(Command::Links).await
    }

    /// Routes the pod ranges of exactly these nodes to them, by the ways that [`Net::ways`] tells. All are tried; the first failure
    /// is returned. The rules must know the nodes by then: the tunnel is open when this returns.
    pub async fn set_routes(&self, nodes: Vec<NodeRoute>) -> Result<(), NetError> {
        self.ask(|reply| Command::Routes(nodes, reply)).await
    }

    /// How the nodes of the last [`Net::set_routes`] are reached, now and whenever the machine's own routes change that.
    pub fn ways(&self) -> watch::Receiver<Ways> {
        self.ways.clone()
    }

    /// The same of IPv6: of the nodes that have it, if this one has.
    pub fn ways6(&self) -> watch::Receiver<Ways> {
        self.ways6.clone()
    }

    /// What somebody else took away, once it is back, from now on.
    pub fn repairs(&self) -> broadcast::Receiver<Repaired> {
        self.repairs.subscribe()
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, NetError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| NetError::Ended)?;
        answer.await.map_err(|_| NetError::Ended)?
    }
}

#[cfg(test)]
mod tests {
    use super::LinkName;

    #[test]
    fn a_link_name_fits_the_kernel_and_is_read_back() {
        let name = LinkName::of_pod("3b0c8f0e-6a52-4c1e-9b1c-0f3f3f0d7a11");
        assert_eq!(name.as_str().len(), 14);
        assert_eq!(name.as_str().parse::<LinkName>().unwrap(), name);
        assert_ne!(name, LinkName::of_pod("another"));
        for other in ["vpn0", "vp", "vp0123456789aB", "vp0123456789abc", "eth0"] {
            other.parse::<LinkName>().unwrap_err();
        }
    }
}
