//! The kernel's rules on a thread of their own, fed through a channel.

mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    rc::Rc,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::errno::Errno;
use tokio::sync::{broadcast, oneshot, watch};

pub use crate::net::NodeRoute;
use crate::{
    conntrack::{Conntrack, Desired},
    net::{Family6, tunnel_address, tunnel_address6},
    nft::{Change, Nft, NftError, Settled, Static},
    plan::{
        Changes, Elements, Families, Family, Key, Op, Ruleset, ServiceKey, ServicePlan, UdpAddress, Value,
        diff,
    },
    source::{Entry, Keep},
};
use source::Entries;
pub use source::Returns;

/// What the dataplane must know before the first service.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address of this node.
    pub node_ip: Ipv4Addr,
    /// Where this node's DNS listens.
    pub dns_ip: Ipv4Addr,
    /// ClusterIPs are from here.
    pub service_cidr: Ipv4Net,
    /// All pods of the cluster are from here.
    pub pod_cidr: Ipv4Net,
    /// Pods of this node are from here.
    pub local_pod_cidr: Ipv4Net,
    /// First and last nodePort.
    pub node_port_range: (u16, u16),
    /// UDP port of VXLAN between nodes.
    pub vxlan_port: u16,
    /// In a dual-stack cluster, the same of IPv6.
    pub family6: Option<Family6>,
}

/// Something that an administrator should hear of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Somebody else changed our table; it is as it should be again.
    Repaired(Settled),
    /// The table cannot be put right; it is tried again.
    Failing(String),
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Notice::Repaired(Settled::Corrected(n)) => {
                write!(f, "somebody changed {n} elements of nftables' tables minisvc; they are put right")
            }
            Notice::Repaired(_) => {
                f.write_str("somebody removed or changed nftables' tables minisvc; they are back")
            }
            Notice::Failing(error) => write!(f, "services cannot be programmed: {error}"),
        }
    }
}

type Reply = oneshot::Sender<Result<(), NftError>>;
type Touched = Vec<(ServiceKey, Option<ServicePlan>)>;

enum Command {
    Apply(Touched, Reply),
    Nodes(Vec<NodeRoute>, Reply),
    Direct(BTreeSet<IpAddr>, Reply),
    Entries(BTreeSet<Entry>, Reply),
    Kept(BTreeSet<Keep>, Reply),
}

/// How often the kernel is asked whether somebody else changed rulesets: our table is back within a second.
const CHECK_EVERY: Duration = Duration::from_millis(200);
/// Notices that wait for a slow listener; older ones are lost to it.
const NOTICES: usize = 16;

/// Starts the thread.
#[derive(Debug)]
pub struct Dataplane;

/// Talks to the thread; it ends when the last handle is gone. The rules stay.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    notices: broadcast::Sender<Notice>,
    others: watch::Receiver<u64>,
    returns: Returns,
}

impl Dataplane {
    /// Starts the thread in the network namespace of the calling thread, if the kernel has what it takes. The first
    /// [`Handle::apply`] should bring all services: the table of an earlier agent is adopted then, and only what differs is
    /// changed, so that traffic never sees a gap and clients with affinity keep their endpoint.
    pub fn start(config: Config) -> Result<Handle, NftError> {
        let mut nft = Nft::open()?;
        nft.probe(Family::V4)?;
        if config.family6.is_some() {
            nft.probe(Family::V6)?;
        }
        let conntrack = Conntrack::open()
            .map_err(|errno| NftError { what: "open the connection tracking table".into(), errno })?;
        let (commands, receiver) = mpsc::channel();
        let (notices, _) = broadcast::channel(NOTICES);
        let (changed, others) = watch::channel(0);
        let (entries, returns) = Entries::new(&mut nft, config.node_ip)?;
        let worker = Worker {
            nft,
            conntrack,
            fixed: Static {
                node_ip: config.node_ip,
                dns_ip: config.dns_ip,
                service_cidr: config.service_cidr,
                pod_cidr: config.pod_cidr,
                local_pod_cidr: config.local_pod_cidr,
                vxlan_port: config.vxlan_port,
                family6: config.family6,
            },
            node_port_range: config.node_port_range,
            nodes: None,
            direct: None,
            entries,
            kept: None,
            waiting: Vec::new(),
            rules: Families { v4: Ruleset::default(), v6: config.family6.map(|_| Ruleset::default()) },
            state: State::New,
            expected: 0,
            notices: notices.clone(),
            others: changed,
        };
        thread::Builder::new().name("dataplane".into()).spawn(move || worker.run(&receiver)).map_err(
            |e| NftError {
                what: "start the dataplane's thread".into(),
                errno: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
            },
        )?;
        Ok(Handle { commands, notices, others, returns })
    }
}

impl Handle {
    /// Brings the named services (`None`: gone) into the kernel; returns once the kernel has them.
    pub async fn apply(&self, touched: Touched) -> Result<(), NftError> {
        self.ask(|reply| Command::Apply(touched, reply)).await
    }

    /// Tells who the nodes are: they may reach pods, and send through the tunnel. Returns once the kernel knows, which is not before
    /// the first [`Handle::apply`].
    pub async fn set_nodes(&self, nodes: Vec<NodeRoute>) -> Result<(), NftError> {
        self.ask(|reply| Command::Nodes(nodes, reply)).await
    }

    /// Tells which nodes' addresses are reached without a router: pods' packets to them are not masqueraded. Returns as
    /// [`Handle::set_nodes`] does.
    pub async fn set_direct(&self, nodes: BTreeSet<IpAddr>) -> Result<(), NftError> {
        self.ask(|reply| Command::Direct(nodes, reply)).await
    }

    /// Tells through which nodes connections enter that are served here: their answers go back through them, whatever their source. Those
    /// of a node that is not told, or of a kernel of which [`Handle::returns`] says no, are answered directly. Returns as
    /// [`Handle::set_nodes`] does.
    pub async fn set_entries(&self, entries: BTreeSet<Entry>) -> Result<(), NftError> {
        self.ask(|reply| Command::Entries(entries, reply)).await
    }

    /// Tells which nodes' pods see the sources of what enters here; towards others they are masqueraded. Returns as
    /// [`Handle::set_nodes`] does.
    pub async fn set_kept(&self, nodes: BTreeSet<Keep>) -> Result<(), NftError> {
        self.ask(|reply| Command::Kept(nodes, reply)).await
    }

    /// Whether this node can send answers back through other nodes.
    pub fn returns(&self) -> Returns {
        self.returns
    }

    /// What an administrator should hear of, from now on.
    pub fn notices(&self) -> broadcast::Receiver<Notice> {
        self.notices.subscribe()
    }

    /// Changes when somebody else may have changed rules of nf_tables, whosever they are.
    pub fn changes_of_others(&self) -> watch::Receiver<u64> {
        self.others.clone()
    }

    async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), NftError> {
        let gone = || NftError { what: "reach the dataplane's thread".into(), errno: Errno::EPIPE };
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// What we know of the kernel's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No services have come yet: the table of an earlier agent goes on serving.
    New,
    /// The kernel has what the rules say.
    Settled,
    /// A change failed half-way or was refused.
    Unknown,
}

struct Worker {
    nft: Nft,
    conntrack: Conntrack,
    fixed: Static,
    node_port_range: (u16, u16),
    /// Their addresses, of both families. `None`: nobody has told yet; those of an earlier agent stay.
    nodes: Option<BTreeSet<IpAddr>>,
    /// As `nodes`.
    direct: Option<BTreeSet<IpAddr>>,
    entries: Entries,
    /// As `nodes`.
    kept: Option<Elements>,
    /// Who told of nodes before there were rules.
    waiting: Vec<Reply>,
    rules: Families<Ruleset>,
    state: State,
    /// The kernel's generation if nobody else changes anything.
    expected: u32,
    notices: broadcast::Sender<Notice>,
    others: watch::Sender<u64>,
}

impl Worker {
    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        let mut check = Instant::now() + CHECK_EVERY;
        let mut failing: Option<String> = None;
        loop {
            match commands.recv_timeout(check.saturating_duration_since(Instant::now())) {
                Ok(command) => {
                    let (result, reply) = match command {
                        Command::Apply(touched, reply) => (self.apply(&touched), reply),
                        Command::Nodes(nodes, reply) => (self.set_nodes(&nodes), reply),
                        Command::Direct(nodes, reply) => (self.set_direct(&nodes), reply),
                        Command::Entries(entries, reply) => (self.set_entries(&entries), reply),
                        Command::Kept(nodes, reply) => (self.set_kept(&nodes), reply),
                    };
                    // A caller that has gone away needs no answer.
                    if self.state == State::New && result.is_ok() {
                        self.waiting.push(reply);
                    } else {
                        let _ = reply.send(result);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.state == State::Settled {
                for reply in self.waiting.drain(..) {
                    let _ = reply.send(Ok(()));
                }
            }
            if Instant::now() >= check {
                let now = self.check().err().map(|error| error.to_string());
                // What lasts is told once, not five times a second.
                if let Some(error) = now.as_ref().filter(|_| now != failing) {
                    tracing::error!(%error, "the table cannot be checked");
                    self.tell(Notice::Failing(error.clone()));
                }
                failing = now;
                check = Instant::now() + CHECK_EVERY;
            }
        }
    }

    fn apply(&mut self, touched: &Touched) -> Result<(), NftError> {
        if self.state == State::New {
            let kernel = self.nft.planned()?;
            for family in [Family::V4, Family::V6] {
                if let (Some(rules), Some(elements)) = (self.rules.get_mut(family), kernel.get(family)) {
                    *rules = Ruleset::adopting(elements);
                }
            }
            let keys = || kernel.iter().flat_map(|(_, elements)| elements.keys());
            let nodes = keys().filter_map(|k| if let Key::Node(ip) = k { Some(*ip) } else { None });
            let own = self.own();
            self.nodes.get_or_insert_with(|| nodes.chain(own.clone()).collect());
            let direct = keys().filter_map(|k| if let Key::Direct(ip) = k { Some(*ip) } else { None });
            self.direct.get_or_insert_with(|| direct.chain(own).collect());
            self.adopt_source(&kernel.v4);
            self.plan(touched);
            self.state = State::Unknown;
            self.settle()?;
            return Ok(());
        }
        let changes = self.plan(touched);
        if self.state == State::Settled {
            let change = |_, c: &Changes| Change { ops: c.ops.clone(), forgotten: c.forgotten.clone() };
            match self.nft.apply(&changes.map(change)) {
                Ok(()) => {
                    let stale: BTreeSet<_> =
                        changes.iter().flat_map(|(_, c)| &c.stale_udp).copied().collect();
                    if !stale.is_empty() {
                        self.clean_udp(Some(&stale));
                    }
                    if self.nft.is_cluttered() {
                        self.nft.collect(&self.rules.map(|_, rules| rules.affinities()))?;
                    }
                    return Ok(());
                }
                // The table is not what we left, or the change is too large: compare, and write what differs.
                Err(error) => tracing::warn!(%error, "a change was refused; comparing with the kernel"),
            }
        }
        self.state = State::Unknown;
        self.repair()
    }

    /// Every family plans the ports that are of it.
    fn plan(&mut self, touched: &Touched) -> Families<Changes> {
        let of = |family| -> Touched {
            let ports = |plan: &ServicePlan| ServicePlan {
                ports: (plan.ports.iter().filter(|p| Family::of(p.cluster_ip) == family).cloned()).collect(),
            };
            touched.iter().map(|(key, plan)| (key.clone(), plan.as_ref().map(ports))).collect()
        };
        let v6 = self.rules.v6.as_mut().map(|rules| rules.update(&of(Family::V6)));
        Families { v4: self.rules.v4.update(&of(Family::V4)), v6 }
    }

    /// This node's addresses.
    fn own(&self) -> Vec<IpAddr> {
        let v6 = self.fixed.family6.map(|six| six.node_ip.into());
        std::iter::once(self.fixed.node_ip.into()).chain(v6).collect()
    }

    fn set_nodes(&mut self, nodes: &[NodeRoute]) -> Result<(), NftError> {
        let mut wanted: BTreeSet<IpAddr> = self.own().into_iter().collect();
        for node in nodes {
            wanted.extend([node.ip, tunnel_address(node.pod_cidr)].map(IpAddr::V4));
            if let Some(six) = &node.family6 {
                wanted.extend([six.ip, tunnel_address6(six.pod_cidr)].map(IpAddr::V6));
            }
        }
        let before = self.nodes.replace(wanted.clone()).unwrap_or_default();
        self.change_set(&before, &wanted, Key::Node)
    }

    fn set_direct(&mut self, direct: &BTreeSet<IpAddr>) -> Result<(), NftError> {
        let wanted: BTreeSet<IpAddr> = self.own().into_iter().chain(direct.iter().copied()).collect();
        let before = self.direct.replace(wanted.clone()).unwrap_or_default();
        self.change_set(&before, &wanted, Key::Direct)
    }

    fn change_set(
        &mut self,
        before: &BTreeSet<IpAddr>,
        wanted: &BTreeSet<IpAddr>,
        key: fn(IpAddr) -> Key,
    ) -> Result<(), NftError> {
        self.change(|family| diff(&present(before, family, key), &present(wanted, family, key)))
    }

    /// Changes elements that are not of services.
    fn change(&mut self, ops: impl Fn(Family) -> Vec<Op>) -> Result<(), NftError> {
        match self.state {
            State::New => Ok(()),
            State::Settled => {
                let change = |family, _: &Ruleset| Change { ops: ops(family), forgotten: BTreeSet::new() };
                self.nft.apply(&self.rules.map(change)).or_else(|error| {
                    tracing::warn!(%error, "a change was refused; comparing with the kernel");
                    self.state = State::Unknown;
                    self.repair()
                })
            }
            State::Unknown => self.repair(),
        }
    }

    /// Puts right what somebody else changed, or what was refused before.
    fn check(&mut self) -> Result<(), NftError> {
        match self.state {
            State::New => Ok(()),
            State::Settled if self.nft.generation()? == self.expected.wrapping_add(self.nft.commits()) => {
                self.follow_tunnel()
            }
            State::Settled | State::Unknown => self.repair(),
        }
    }

    fn repair(&mut self) -> Result<(), NftError> {
        match self.settle()? {
            Settled::AsWanted => {}
            how => {
                tracing::warn!(?how, "somebody else changed the table; it is put right");
                self.tell(Notice::Repaired(how));
            }
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<Settled, NftError> {
        self.others.send_modify(|changes| *changes += 1);
        // Taken before the comparison: a change that comes while we compare is looked at again.
        let generation = self.nft.generation()?;
        self.expected = generation.wrapping_sub(self.nft.commits());
        let mut wanted = self.rules.map(|family, rules| {
            let mut wanted = rules.elements();
            wanted.extend(self.nodes.iter().flat_map(|ips| present(ips, family, Key::Node)));
            wanted.extend(self.direct.iter().flat_map(|ips| present(ips, family, Key::Direct)));
            wanted
        });
        wanted.v4.extend(self.entries.elements.clone().unwrap_or_default());
        wanted.v4.extend(self.kept.clone().unwrap_or_default());
        // What leads to an entry comes after it.
        let returning = self.settle_egress()?;
        let how = self.nft.settle(&self.fixed, &wanted)?;
        self.state = State::Settled;
        self.clean_udp(None);
        Ok(if how == Settled::AsWanted { returning } else { how })
    }

    /// Deletes UDP flows that lead to where they should not; of all addresses, or of some.
    fn clean_udp(&mut self, only: Option<&BTreeSet<UdpAddress>>) {
        let local = local_addresses();
        let nodes = self.nodes.clone().unwrap_or_default();
        let six = self.fixed.family6;
        let ranges = |v4: Ipv4Net, v6: Option<Ipv6Net>| {
            std::iter::once(v4.into()).chain(v6.map(IpNet::from)).collect::<Vec<_>>()
        };
        let service_cidrs = ranges(self.fixed.service_cidr, six.map(|six| six.service_cidr));
        let pod_cidrs = ranges(self.fixed.pod_cidr, six.map(|six| six.pod_cidr));
        let mut deleted: Result<usize, Errno> = Ok(0);
        for (family, rules) in self.rules.iter() {
            // Many flows share few addresses.
            let known = std::cell::RefCell::new(BTreeMap::new());
            let desired = Desired {
                service_cidrs: &service_cidrs,
                pod_cidrs: &pod_cidrs,
                node_port_range: self.node_port_range,
                local: &local,
                nodes: &nodes,
                reach: |address| {
                    let mut known = known.borrow_mut();
                    known.entry(address).or_insert_with(|| rules.udp_reach(address).map(Rc::new)).clone()
                },
            };
            let some = self.conntrack.delete_udp(family, |flow| {
                only.is_none_or(|some| desired.addresses(flow).any(|address| some.contains(&address)))
                    && desired.is_wrong(flow)
            });
            deleted = deleted.and_then(|n| Ok(n + some?));
        }
        match deleted {
            Ok(0) => {}
            Ok(n) => tracing::debug!("{n} UDP flows begin anew"),
            Err(errno) => {
                tracing::warn!(%errno, "UDP flows to endpoints that are gone cannot be deleted: they end after their timeout");
            }
        }
    }

    fn tell(&self, notice: Notice) {
        // Nobody may be listening.
        let _ = self.notices.send(notice);
    }
}

/// A set of addresses, as elements of one family's table.
fn present(ips: &BTreeSet<IpAddr>, family: Family, key: fn(IpAddr) -> Key) -> Elements {
    let ips = ips.iter().filter(|ip| Family::of(**ip) == family);
    ips.map(|ip| (key(*ip), Value::Present)).collect()
}

fn local_addresses() -> BTreeSet<IpAddr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten().filter_map(|a| a.address);
    all.filter_map(|a| match (a.as_sockaddr_in(), a.as_sockaddr_in6()) {
        (Some(v4), _) => Some(IpAddr::V4(v4.ip())),
        (_, v6) => Some(IpAddr::V6(v6?.ip())),
    })
    .collect()
}
