//! The kernel's rules on a thread of their own, fed through a channel.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use nix::errno::Errno;
use tokio::sync::{broadcast, oneshot, watch};

pub use crate::net::NodeRoute;
use crate::{
    conntrack::{Conntrack, Desired},
    net::{Family6, tunnel_address},
    nft::{Nft, NftError, Settled, Static},
    plan::{Elements, Key, Ruleset, ServiceKey, ServicePlan, UdpAddress, Value},
};

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
                write!(f, "somebody changed {n} elements of nftables' table ip minisvc; they are put right")
            }
            Notice::Repaired(_) => {
                f.write_str("somebody removed or changed nftables' table ip minisvc; it is back")
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
    Direct(BTreeSet<Ipv4Addr>, Reply),
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
}

impl Dataplane {
    /// Starts the thread in the network namespace of the calling thread, if the kernel has what it takes. The first
    /// [`Handle::apply`] should bring all services: the table of an earlier agent is adopted then, and only what differs is
    /// changed, so that traffic never sees a gap and clients with affinity keep their endpoint.
    pub fn start(config: Config) -> Result<Handle, NftError> {
        let mut nft = Nft::open()?;
        nft.probe()?;
        let conntrack = Conntrack::open()
            .map_err(|errno| NftError { what: "open the connection tracking table".into(), errno })?;
        let (commands, receiver) = mpsc::channel();
        let (notices, _) = broadcast::channel(NOTICES);
        let (changed, others) = watch::channel(0);
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
            waiting: Vec::new(),
            rules: Ruleset::default(),
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
        Ok(Handle { commands, notices, others })
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
    pub async fn set_direct(&self, nodes: BTreeSet<Ipv4Addr>) -> Result<(), NftError> {
        self.ask(|reply| Command::Direct(nodes, reply)).await
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
    /// `None`: nobody has told yet; those of an earlier agent stay.
    nodes: Option<BTreeSet<Ipv4Addr>>,
    /// As `nodes`.
    direct: Option<BTreeSet<Ipv4Addr>>,
    /// Who told of nodes before there were rules.
    waiting: Vec<Reply>,
    rules: Ruleset,
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
                        Command::Direct(nodes, reply) => (self.set_direct(nodes), reply),
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
            self.rules = Ruleset::adopting(&kernel);
            let own = self.fixed.node_ip;
            let nodes = kernel.keys().filter_map(|k| if let Key::Node(ip) = k { as_v4(*ip) } else { None });
            self.nodes.get_or_insert_with(|| nodes.chain([own]).collect());
            let direct =
                kernel.keys().filter_map(|k| if let Key::Direct(ip) = k { as_v4(*ip) } else { None });
            self.direct.get_or_insert_with(|| direct.chain([own]).collect());
            self.rules.update(touched);
            self.state = State::Unknown;
            self.settle()?;
            return Ok(());
        }
        let changes = self.rules.update(touched);
        if self.state == State::Settled {
            match self.nft.apply(&changes.ops, &changes.forgotten) {
                Ok(()) => {
                    if !changes.stale_udp.is_empty() {
                        self.clean_udp(Some(&changes.stale_udp));
                    }
                    if self.nft.is_cluttered() {
                        self.nft.collect(&self.rules.affinities())?;
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

    fn set_nodes(&mut self, nodes: &[NodeRoute]) -> Result<(), NftError> {
        let inside = nodes.iter().map(|n| tunnel_address(n.pod_cidr));
        let wanted: BTreeSet<_> =
            nodes.iter().map(|n| n.ip).chain(inside).chain([self.fixed.node_ip]).collect();
        let before = self.nodes.replace(wanted.clone()).unwrap_or_default();
        self.change_set(&before, &wanted, Key::Node)
    }

    fn set_direct(&mut self, mut wanted: BTreeSet<Ipv4Addr>) -> Result<(), NftError> {
        wanted.insert(self.fixed.node_ip);
        let before = self.direct.replace(wanted.clone()).unwrap_or_default();
        self.change_set(&before, &wanted, Key::Direct)
    }

    fn change_set(
        &mut self,
        before: &BTreeSet<Ipv4Addr>,
        wanted: &BTreeSet<Ipv4Addr>,
        key: fn(IpAddr) -> Key,
    ) -> Result<(), NftError> {
        match self.state {
            State::New => Ok(()),
            State::Settled => {
                let elements = |ips: &BTreeSet<Ipv4Addr>| -> Elements {
                    ips.iter().map(|ip| (key((*ip).into()), Value::Present)).collect()
                };
                let ops = crate::plan::diff(&elements(before), &elements(wanted));
                self.nft.apply(&ops, &BTreeSet::new()).or_else(|error| {
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
                Ok(())
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
        let mut wanted = self.rules.elements();
        wanted.extend(self.nodes.iter().flatten().map(|ip| (Key::Node((*ip).into()), Value::Present)));
        wanted.extend(self.direct.iter().flatten().map(|ip| (Key::Direct((*ip).into()), Value::Present)));
        let how = self.nft.settle(&self.fixed, &wanted)?;
        self.state = State::Settled;
        self.clean_udp(None);
        Ok(how)
    }

    /// Deletes UDP flows that lead to where they should not; of all addresses, or of some.
    fn clean_udp(&mut self, only: Option<&BTreeSet<UdpAddress>>) {
        let local = local_addresses();
        // Many flows share few addresses.
        let known = std::cell::RefCell::new(BTreeMap::new());
        let desired = Desired {
            service_cidr: self.fixed.service_cidr,
            pod_cidr: self.fixed.pod_cidr,
            node_port_range: self.node_port_range,
            local: &local,
            endpoints: |address| {
                let mut known = known.borrow_mut();
                known.entry(address).or_insert_with(|| self.rules.udp_endpoints(address)).clone()
            },
        };
        let wrong = self.conntrack.delete_udp(|flow| {
            desired.address(flow).is_some_and(|a| only.is_none_or(|some| some.contains(&a)))
                && desired.is_wrong(flow)
        });
        match wrong {
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

fn as_v4(ip: IpAddr) -> Option<Ipv4Addr> {
    if let IpAddr::V4(ip) = ip { Some(ip) } else { None }
}

fn local_addresses() -> BTreeSet<Ipv4Addr> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    all.filter_map(|a| Some(a.address?.as_sockaddr_in()?.ip())).collect()
}
