//! The kernel's rules on a thread of their own, fed through a channel.

use std::{net::Ipv4Addr, sync::mpsc, thread};

use ipnet::Ipv4Net;
use nix::errno::Errno;
use tokio::sync::oneshot;

pub use crate::net::NodeRoute;
use crate::{
    nft::{Nft, NftError, Static},
    plan::{Ruleset, ServiceKey, ServicePlan},
};

/// What the dataplane must know before the first service.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address of this node.
    pub node_ip: Ipv4Addr,
    /// ClusterIPs are from here.
    pub service_cidr: Ipv4Net,
    /// All pods of the cluster are from here.
    pub pod_cidr: Ipv4Net,
    /// Pods of this node are from here.
    pub local_pod_cidr: Ipv4Net,
}

type Reply = oneshot::Sender<Result<(), NftError>>;
type Touched = Vec<(ServiceKey, Option<ServicePlan>)>;

enum Command {
    Apply(Touched, Reply),
    Nodes(Vec<NodeRoute>, Reply),
}

/// Starts the thread.
#[derive(Debug)]
pub struct Dataplane;

/// Talks to the thread; it ends when the last handle is gone. The rules stay.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Command>);

impl Dataplane {
    /// Starts the thread in the process's network namespace. The first [`Handle::apply`] should bring all services:
    /// it replaces whatever table an earlier agent left, in one transaction, so that traffic never sees a gap.
    pub fn start(config: Config) -> Result<Handle, NftError> {
        let nft = Nft::open()?;
        let fixed = Static {
            service_cidr: config.service_cidr,
            pod_cidr: config.pod_cidr,
            local_pod_cidr: config.local_pod_cidr,
            node_ips: [config.node_ip].into(),
        };
        let (sender, receiver) = mpsc::channel();
        let worker =
            Worker { nft, node_ip: config.node_ip, fixed, rules: Ruleset::default(), installed: false };
        thread::Builder::new().name("dataplane".into()).spawn(move || worker.run(&receiver)).map_err(
            |e| NftError {
                what: "start the dataplane's thread".into(),
                errno: Errno::from_raw(e.raw_os_error().unwrap_or(0)),
            },
        )?;
        Ok(Handle(sender))
    }
}

impl Handle {
    /// Brings the named services (`None`: gone) into the kernel; returns once the kernel has them.
    pub async fn apply(&self, touched: Touched) -> Result<(), NftError> {
        self.ask(|reply| Command::Apply(touched, reply)).await
    }

    /// Tells who the nodes are: they may reach pods, and pods reach them unmasqueraded.
    pub async fn set_nodes(&self, nodes: Vec<NodeRoute>) -> Result<(), NftError> {
        self.ask(|reply| Command::Nodes(nodes, reply)).await
    }

    async fn ask(&self, command: impl FnOnce(Reply) -> Command) -> Result<(), NftError> {
        let gone = || NftError { what: "the dataplane's thread has ended".into(), errno: Errno::EPIPE };
        let (reply, answer) = oneshot::channel();
        self.0.send(command(reply)).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

struct Worker {
    nft: Nft,
    node_ip: Ipv4Addr,
    fixed: Static,
    rules: Ruleset,
    installed: bool,
}

impl Worker {
    fn run(mut self, commands: &mpsc::Receiver<Command>) {
        while let Ok(command) = commands.recv() {
            let (result, reply) = match command {
                Command::Apply(touched, reply) => (self.apply(&touched), reply),
                Command::Nodes(nodes, reply) => (self.nodes(&nodes), reply),
            };
            // A caller that has gone away needs no answer.
            let _ = reply.send(result);
        }
    }

    fn apply(&mut self, touched: &Touched) -> Result<(), NftError> {
        let changes = self.rules.update(touched);
        if self.installed && self.nft.apply(&changes.ops).is_ok() {
            return Ok(());
        }
        // Not installed yet, or the table is not what we left (somebody flushed it): write all of it.
        self.install()
    }

    fn nodes(&mut self, nodes: &[NodeRoute]) -> Result<(), NftError> {
        let mut ips: std::collections::BTreeSet<_> = nodes.iter().map(|n| n.ip).collect();
        ips.insert(self.node_ip);
        if ips == self.fixed.node_ips {
            return Ok(());
        }
        self.fixed.node_ips = ips;
        // Before the first services the table of an earlier agent goes on serving.
        if self.installed { self.install() } else { Ok(()) }
    }

    fn install(&mut self) -> Result<(), NftError> {
        self.installed = false;
        self.nft.install(&self.fixed, &self.rules.elements())?;
        self.installed = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
