//! The thread that owns the node's network.

mod loss;
mod nodes;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use ipnet::IpNet;
use netlink_packet_route::{RouteNetlinkMessage, address::AddressMessage};
use nix::errno::Errno;
use rtnetlink::{
    LinkUnspec, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    sys::SocketAddr,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::Instant,
};

use super::{
    Command, LinkName, NetConfig, NetError, NodeRoute, ROUTE_PROTOCOL, Tell,
    kernel::{Link, Netlink, Refused, block_on, errno, local},
    links,
    pod::host_address,
    routes::{self, Route, Way},
    sysctl,
    tunnel::Tunnel,
    way_back,
};
use crate::source;

/// Index of `lo` in every namespace.
const LO: u32 = 1;

/// Prepares the node, says so, then serves commands until all handles are gone.
pub(super) fn run(
    config: NetConfig,
    mut commands: mpsc::Receiver<Command>,
    tell: Tell,
    started: oneshot::Sender<Result<(), NetError>>,
) {
    // The error is told through `started`.
    let _ = block_on(async {
        let mut worker = match Worker::start(config, tell).await {
            Ok(worker) => worker,
            Err(error) => {
                let _ = started.send(Err(error.clone()));
                return Err(error);
            }
        };
        // A caller that has gone away dropped its handle, too: the loop then ends at once.
        let _ = started.send(Ok(()));
        let mut changes = Changes::listen(worker.config.family6.is_some());
        let mut due: Option<(Instant, Change)> = None;
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => worker.obey(command).await,
                    None => return Ok(()),
                },
                change = changes.next(&worker) => {
                    let (at, before) = due.unwrap_or((Instant::now() + QUIET, change));
                    due = Some((at, before.max(change)));
                }
                () = async { tokio::time::sleep_until(due.map_or_else(Instant::now, |(at, _)| at)).await }, if due.is_some() => {
                    let change = due.map_or(Change::Broken, |(_, change)| change);
                    due = match worker.put_right(change).await {
                        Ok(()) => None,
                        Err(error) => {
                            tracing::warn!(%error, "the node's routes are not all there; trying again");
                            Some((Instant::now() + AGAIN, Change::Broken))
                        }
                    };
                }
            }
        }
    });
}

/// Changes come in swarms: what they broke is put right once they pause.
const QUIET: Duration = Duration::from_millis(50);
/// Between two attempts to put right what somebody else keeps breaking, or what the kernel refuses.
const AGAIN: Duration = Duration::from_secs(1);

/// What somebody else's change may mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    /// The way to a node may be another one.
    Moved,
    /// Something of ours may be gone.
    Broken,
}

/// What somebody else does to links, addresses and routes.
struct Changes(Option<(Multicast, JoinHandle<()>)>);

type Multicast = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

impl Changes {
    fn listen(both: bool) -> Self {
        let mut groups = vec![
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
        ];
        if both {
            groups.extend([MulticastGroup::Ipv6Ifaddr, MulticastGroup::Ipv6Route]);
        }
        match rtnetlink::new_multicast_connection(&groups) {
            Ok((connection, _, messages)) => Changes(Some((messages, tokio::spawn(connection)))),
            Err(error) => {
                tracing::warn!(%error, "changes of links and routes are not followed");
                Changes(None)
            }
        }
    }

    /// Returns at the next change that may concern us.
    async fn next(&mut self, worker: &Worker) -> Change {
        while let Some((messages, _)) = &mut self.0 {
            match messages.next().await {
                Some((message, _)) => {
                    if let Some(change) = worker.change(&message) {
                        return change;
                    }
                }
                None => self.0 = None,
            }
        }
        std::future::pending().await
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        if let Some((_, task)) = &self.0 {
            task.abort();
        }
    }
}

struct Worker {
    config: NetConfig,
    netlink: Netlink,
    node_link: Link,
    /// `None`: nobody has told yet; the routes of an earlier agent stay.
    nodes: Option<Vec<NodeRoute>>,
    pods: BTreeMap<LinkName, Pod>,
    /// The ways to nodes' addresses, of both families, as they were when the kernel was asked last.
    known_ways: BTreeMap<IpAddr, super::Way>,
    tunnel: Option<Tunnel>,
    /// The tunnel is known to be as `tunnel` says, absent included.
    tunnel_is_known: bool,
    /// The routes to other nodes' pods as they were set last.
    routed: BTreeMap<IpNet, Route>,
    /// What is missing and not back yet.
    missing: BTreeSet<String>,
    tell: Tell,
}

/// A pod that was attached.
struct Pod {
    ip: Ipv4Addr,
    /// Index of the host side of its link.
    link: u32,
    /// To attach it again if somebody takes its link away.
    netns: OwnedFd,
}

fn is_same(a: &OwnedFd, b: &OwnedFd) -> bool {
    let id = |fd: &OwnedFd| nix::sys::stat::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino));
    id(a).is_ok_and(|a| id(b) == Ok(a))
}

impl Worker {
    async fn start(config: NetConfig, tell: Tell) -> Result<Self, NetError> {
        sysctl::forwarding_on()?;
        sysctl::reserve_ports(config.node_port_range);
        let netlink = Netlink::open()?;
        let addresses: Vec<AddressMessage> =
            netlink.handle.address().get().execute().try_collect().await.refused("list", "addresses")?;
        let link_of = |ip: IpAddr| {
            let found = addresses.iter().find(|m| local(m) == Some(ip)).map(|m| m.header.index);
            found.ok_or(NetError::NoNodeLink(ip))
        };
        let node_link = link_of(config.node_ip.into())?;
        if let Some(family) = config.family6 {
            link_of(family.node_ip.into())?;
            sysctl::forwarding6_on()?;
        }
        let node_link = netlink
            .handle
            .link()
            .get()
            .match_index(node_link)
            .execute()
            .try_next()
            .await
            .refused("look up", "the node's link")?
            .ok_or(NetError::NoNodeLink(config.node_ip.into()))?;
        let worker = Worker {
            node_link: Link::from(&node_link),
            config,
            netlink,
            nodes: None,
            pods: BTreeMap::new(),
            known_ways: BTreeMap::new(),
            tunnel: None,
            tunnel_is_known: false,
            routed: BTreeMap::new(),
            missing: BTreeSet::new(),
            tell,
        };

        let lo = LinkUnspec::new_with_index(LO).up().build();
        worker.netlink.handle.link().set(lo).execute().await.refused("set up", "lo")?;
        for old in &addresses {
            // What an agent with other settings left: the service range is ours alone.
            let ip = local(old).filter(|ip| worker.config.is_old_dns(*ip));
            if let (LO, Some(ip)) = (old.header.index, ip) {
                let remove = worker.netlink.handle.address().del(old.clone());
                remove.execute().await.refused("remove from lo", ip)?;
            }
        }
        worker.dns_addresses().await?;
        if let Err(error) = worker.ways_back().await {
            tracing::warn!(%error, "answers do not go back through the node that a connection came by");
        }
        let wanted = worker.own_routes();
        for found in worker.routes().await? {
            // Routes to nodes and pods wait for their owners to say what is right.
            let ours = found.protocol == ROUTE_PROTOCOL;
            let standing = match &found.route {
                Some(Route { way: Way::Unreachable, .. }) => true,
                Some(Route { way: Way::Link { link, .. }, .. }) => {
                    *link == LO || *link == worker.node_link.index
                }
                _ => false,
            };
            if ours && standing && !wanted.iter().any(|r| r.to == found.to) {
                routes::remove(&worker.netlink, &found).await?;
            }
        }
        if worker.config.family6.is_none() {
            worker.forget_family6().await;
        }
        for route in &wanted {
            routes::put(&worker.netlink, route).await?;
        }
        Ok(worker)
    }

    /// Takes away the routes of a second family that this node has no more. A kernel without IPv6 has none.
    async fn forget_family6(&self) {
        let old = routes::list(&self.netlink, Ipv6Addr::UNSPECIFIED).await.unwrap_or_default();
        for found in old.iter().filter(|found| found.protocol == ROUTE_PROTOCOL) {
            if let Err(error) = routes::remove(&self.netlink, found).await {
                tracing::warn!(%error, "a route of an earlier agent stays");
            }
        }
    }

    /// The routes of each family that this node has.
    async fn routes(&self) -> Result<Vec<routes::Found>, NetError> {
        let mut all = routes::list(&self.netlink, self.config.node_ip).await?;
        if let Some(family) = self.config.family6 {
            all.extend(routes::list(&self.netlink, family.node_ip).await?);
        }
        Ok(all)
    }

    /// Those that were missing.
    async fn dns_addresses(&self) -> Result<Vec<IpAddr>, NetError> {
        let second = self.config.family6.map(|family| IpAddr::V6(family.dns_ip));
        let mut missing = Vec::new();
        for ip in [Some(IpAddr::V4(self.config.dns_ip)), second].into_iter().flatten() {
            let mut add = self.netlink.handle.address().add(LO, ip, IpNet::from(ip).prefix_len());
            *add.message_mut() = host_address(LO, ip);
            match add.execute().await {
                Err(error) if errno(&error) == Errno::EEXIST => {}
                other => {
                    other.refused("give lo the DNS address", ip)?;
                    missing.push(ip);
                }
            }
        }
        Ok(missing)
    }

    /// The parts of the pod ranges that are this node's.
    fn own_pods(&self) -> Vec<IpNet> {
        let second = self.config.family6.map(|family| IpNet::V6(family.local_pod_cidr.trunc()));
        [Some(IpNet::V4(self.config.local_pod_cidr.trunc())), second].into_iter().flatten().collect()
    }

    /// The way back by the node's own link; that through the tunnel comes with it. Returns whether it was missing.
    async fn ways_back(&self) -> Result<bool, NetError> {
        way_back::put(&self.netlink, source::Way::Uplink, &self.node_link).await
    }

    fn own_routes(&self) -> Vec<Route> {
        // A packet that no rule translates ends on lo; without a route the kernel would not even ask the rules.
        let services = Way::Link { link: LO, source: self.config.node_ip.into() };
        let first = (IpNet::V4(self.config.service_cidr), services);
        // In IPv6 a route through lo is one that refuses. The rules see what is sent before it leaves by the node's link.
        let second = self.config.family6.map(|family| {
            let services = Way::Link { link: self.node_link.index, source: family.node_ip.into() };
            (IpNet::V6(family.service_cidr), services)
        });
        let services = [Some(first), second].into_iter().flatten();
        let services = services.map(|(range, way)| Route { to: range.trunc(), way });
        let pods = self.own_pods().into_iter().map(|to| Route { to, way: Way::Unreachable });
        services.chain(pods).collect()
    }

    async fn obey(&mut self, command: Command) {
        // A caller that has gone away needs no answer.
        match command {
            Command::Attach(link, ip, netns, reply) => {
                let mtu = self.node_link.mtu;
                let result = links::attach(&self.netlink, mtu, &self.config, &link, ip, netns.as_fd()).await;
                let result = result.map(|index| {
                    // A network has one link: another pod that was thought to have it has lost it.
                    self.pods.retain(|_, other| !is_same(&other.netns, &netns));
                    self.pods.insert(link, Pod { ip, link: index, netns });
                });
                let _ = reply.send(result);
            }
            Command::Detach(link, reply) => {
                self.pods.remove(&link);
                let _ = reply.send(links::detach(&self.netlink, &link).await);
            }
            Command::Links(reply) => {
                let _ = reply.send(links::list(&self.netlink).await);
            }
            Command::Routes(nodes, reply) => {
                self.nodes = Some(nodes);
                let _ = reply.send(self.set_routes().await);
            }
        }
    }

    fn change(&self, message: &NetlinkMessage<RouteNetlinkMessage>) -> Option<Change> {
        let message = match &message.payload {
            NetlinkPayload::InnerMessage(message) => message,
            // More came than the socket holds: what was lost may be anything.
            NetlinkPayload::Overrun(_) => return Some(Change::Broken),
            _ => return None,
        };
        let tunnel = self.tunnel.as_ref().map(|tunnel| tunnel.link);
        let ours = |protocol| u8::from(protocol) == ROUTE_PROTOCOL;
        let is_pods = |index| self.pods.values().any(|pod| pod.link == index);
        let (broken, moved) = match message {
            RouteNetlinkMessage::NewLink(link) => {
                let index = link.header.index;
                (index == self.node_link.index || Some(index) == tunnel, false)
            }
            RouteNetlinkMessage::DelLink(link) => {
                let index = link.header.index;
                (Some(index) == tunnel || is_pods(index), false)
            }
            RouteNetlinkMessage::DelNeighbour(entry) => {
                let index = entry.header.ifindex;
                (Some(index) == tunnel || is_pods(index) || way_back::is_gateway(entry), false)
            }
            RouteNetlinkMessage::DelRule(rule) => (way_back::is_ours(rule), false),
            RouteNetlinkMessage::DelAddress(_) => (true, false),
            RouteNetlinkMessage::NewRoute(route) => (false, !ours(route.header.protocol)),
            RouteNetlinkMessage::DelRoute(route) => {
                (ours(route.header.protocol), !ours(route.header.protocol))
            }
            _ => (false, false),
        };
        broken.then_some(Change::Broken).or(moved.then_some(Change::Moved))
    }

    async fn put_right(&mut self, change: Change) -> Result<(), NetError> {
        match change {
            Change::Broken => self.restore().await,
            Change::Moved => {
                let before = self.known_ways.clone();
                self.ask_ways(true).await?;
                if self.known_ways == before { Ok(()) } else { self.set_routes().await }
            }
        }
    }
}
