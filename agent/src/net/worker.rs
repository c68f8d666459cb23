//! The thread that owns the node's network.

use std::{collections::BTreeMap, net::Ipv4Addr, os::fd::AsFd, time::Duration};

use futures::{StreamExt, TryStreamExt, channel::mpsc::UnboundedReceiver};
use ipnet::Ipv4Net;
use netlink_packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
};
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
    Command, LinkName, NetConfig, NetError, NodeRoute, ROUTE_PROTOCOL,
    kernel::{Link, Netlink, Refused, block_on, errno},
    links,
    pod::host_address,
    routes::{self, Route, Way},
    sysctl,
};

/// Index of `lo` in every namespace.
const LO: u32 = 1;

/// Prepares the node, says so, then serves commands until all handles are gone.
pub(super) fn run(
    config: NetConfig,
    mut commands: mpsc::Receiver<Command>,
    started: oneshot::Sender<Result<(), NetError>>,
) {
    // The error is told through `started`.
    let _ = block_on(async {
        let mut worker = match Worker::start(config).await {
            Ok(worker) => worker,
            Err(error) => {
                let _ = started.send(Err(error.clone()));
                return Err(error);
            }
        };
        // A caller that has gone away dropped its handle, too: the loop then ends at once.
        let _ = started.send(Ok(()));
        let mut changes = Changes::listen();
        let mut due: Option<Instant> = None;
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => worker.obey(command).await,
                    None => return Ok(()),
                },
                () = changes.next(&worker) => due = due.or(Some(Instant::now() + QUIET)),
                () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {
                    due = match worker.restore().await {
                        Ok(()) => None,
                        Err(error) => {
                            tracing::warn!(%error, "the node's routes are not all there; trying again");
                            Some(Instant::now() + AGAIN)
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

/// What somebody else does to links, addresses and routes.
struct Changes(Option<(Multicast, JoinHandle<()>)>);

type Multicast = UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>;

impl Changes {
    fn listen() -> Self {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv4Route];
        match rtnetlink::new_multicast_connection(&groups) {
            Ok((connection, _, messages)) => Changes(Some((messages, tokio::spawn(connection)))),
            Err(error) => {
                tracing::warn!(%error, "changes of links and routes are not followed");
                Changes(None)
            }
        }
    }

    /// Returns at the next change that may have broken something of ours.
    async fn next(&mut self, worker: &Worker) {
        while let Some((messages, _)) = &mut self.0 {
            match messages.next().await {
                Some((message, _)) if worker.may_be_broken_by(&message) => return,
                Some(_) => {}
                None => self.0 = None,
            }
        }
        std::future::pending::<()>().await;
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
    pods: BTreeMap<LinkName, Ipv4Addr>,
}

impl Worker {
    async fn start(config: NetConfig) -> Result<Self, NetError> {
        sysctl::forwarding_on()?;
        sysctl::reserve_ports(config.node_port_range);
        let netlink = Netlink::open()?;
        let addresses: Vec<AddressMessage> =
            netlink.handle.address().get().execute().try_collect().await.refused("list", "addresses")?;
        let of = |message: &AddressMessage| {
            message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Local(std::net::IpAddr::V4(ip)) => Some(*ip),
                _ => None,
            })
        };
        let node_link = addresses
            .iter()
            .find(|m| of(m) == Some(config.node_ip))
            .map(|m| m.header.index)
            .ok_or(NetError::NoNodeLink(config.node_ip))?;
        let node_link = netlink
            .handle
            .link()
            .get()
            .match_index(node_link)
            .execute()
            .try_next()
            .await
            .refused("look up", "the node's link")?
            .ok_or(NetError::NoNodeLink(config.node_ip))?;
        let worker =
            Worker { node_link: Link::from(&node_link), config, netlink, nodes: None, pods: BTreeMap::new() };

        let lo = LinkUnspec::new_with_index(LO).up().build();
        worker.netlink.handle.link().set(lo).execute().await.refused("set up", "lo")?;
        for old in &addresses {
            // What an agent with other settings left: the service range is ours alone.
            let ip =
                of(old).filter(|ip| worker.config.service_cidr.contains(ip) && *ip != worker.config.dns_ip);
            if let (LO, Some(ip)) = (old.header.index, ip) {
                let remove = worker.netlink.handle.address().del(old.clone());
                remove.execute().await.refused("remove from lo", ip)?;
            }
        }
        worker.dns_address().await?;
        let wanted = worker.own_routes();
        for found in routes::list(&worker.netlink).await? {
            // Routes to nodes and pods wait for their owners to say what is right.
            let ours = found.protocol == ROUTE_PROTOCOL;
            let standing = match &found.route {
                Some(Route { way: Way::Unreachable, .. }) => true,
                Some(Route { way: Way::Link { link, .. }, .. }) => *link == LO,
                _ => false,
            };
            if ours && standing && !wanted.iter().any(|r| r.to == found.to) {
                routes::remove(&worker.netlink, &found).await?;
            }
        }
        for route in &wanted {
            routes::put(&worker.netlink, route).await?;
        }
        Ok(worker)
    }

    async fn dns_address(&self) -> Result<(), NetError> {
        let mut add = self.netlink.handle.address().add(LO, self.config.dns_ip.into(), 32);
        *add.message_mut() = host_address(LO, self.config.dns_ip);
        match add.execute().await {
            Err(error) if errno(&error) == Errno::EEXIST => Ok(()),
            other => other.refused("give lo the DNS address", self.config.dns_ip),
        }
    }

    fn own_routes(&self) -> [Route; 2] {
        // A packet that no rule translates ends on lo; without a route the kernel would not even ask the rules.
        let services = Way::Link { link: LO, source: self.config.node_ip };
        [
            Route { to: self.config.service_cidr.trunc(), way: services },
            Route { to: self.config.local_pod_cidr.trunc(), way: Way::Unreachable },
        ]
    }

    async fn obey(&mut self, command: Command) {
        // A caller that has gone away needs no answer.
        match command {
            Command::Attach(link, ip, netns, reply) => {
                let (mtu, node_ip) = (self.node_link.mtu, self.config.node_ip);
                let result = links::attach(&self.netlink, mtu, node_ip, &link, ip, netns.as_fd()).await;
                if result.is_ok() {
                    self.pods.insert(link, ip);
                }
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

    fn may_be_broken_by(&self, message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
        let message = match &message.payload {
            NetlinkPayload::InnerMessage(message) => message,
            // More came than the socket holds: what was lost may be anything.
            NetlinkPayload::Overrun(_) => return true,
            _ => return false,
        };
        match message {
            RouteNetlinkMessage::NewLink(link) => link.header.index == self.node_link.index,
            RouteNetlinkMessage::DelAddress(_) => true,
            RouteNetlinkMessage::DelRoute(route) => u8::from(route.header.protocol) == ROUTE_PROTOCOL,
            _ => false,
        }
    }

    /// Puts back what somebody else has taken away; a link that goes down takes its routes along.
    async fn restore(&mut self) -> Result<(), NetError> {
        self.dns_address().await?;
        let mut result = Ok(());
        for route in self.own_routes() {
            result = result.and(routes::put(&self.netlink, &route).await);
        }
        for (link, ip) in &self.pods {
            if let Some(found) = self.netlink.link(link.as_str()).await? {
                let way = Way::Link { link: found.index, source: self.config.node_ip };
                result = result.and(routes::put(&self.netlink, &Route { to: Ipv4Net::from(*ip), way }).await);
            }
        }
        result.and(self.set_routes().await)
    }

    async fn set_routes(&mut self) -> Result<(), NetError> {
        let Some(nodes) = &self.nodes else { return Ok(()) };
        let mut wanted: BTreeMap<Ipv4Net, Route> = BTreeMap::new();
        for node in nodes.iter().filter(|n| n.ip != self.config.node_ip) {
            let to = node.pod_cidr.trunc();
            wanted.insert(to, Route { to, way: Way::Node { via: node.ip, link: self.node_link.index } });
        }
        let mut result = Ok(());
        for found in routes::list(&self.netlink).await? {
            let Some(Route { way: Way::Node { .. }, .. }) = &found.route else { continue };
            if found.protocol != ROUTE_PROTOCOL {
                continue;
            }
            if wanted.get(&found.to) == found.route.as_ref() {
                wanted.remove(&found.to);
            } else if !wanted.contains_key(&found.to) {
                result = result.and(routes::remove(&self.netlink, &found).await);
            }
        }
        for route in wanted.values() {
            result = result.and(routes::put(&self.netlink, route).await);
        }
        result
    }
}
