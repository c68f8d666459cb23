//! Clients' own addresses on other nodes: who answers through whom, which nodes are asked whether it works, and the Node's condition
//! that says it. See [`crate::source`].

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use ipnet::Ipv4Net;
use minisvc_proto::{
    NodeName, Object, ObjectKey,
    client::{Client, PatchKind},
    path::Target,
    resource::NODES,
};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    condition::tell,
    events::{Recorder, Severity},
};
use crate::{
    config::ExternalSource,
    dataplane::{Handle, Returns},
    net::{Net, drops_marked_answers, mac_of},
    nft::NftError,
    source::{
        Mac, Peer,
        probe::{Failure, Probes, Question},
        socket::{Responder, ask},
    },
};

/// The condition's type.
pub const CONDITION: &str = "ExternalSourceKept";

/// Names of nodes in a message.
const MOST_NAMES: usize = 16;
/// The rules and the server are told again after a failure, and the node's own link is looked at.
const AGAIN: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_secs(10);
/// Probes that wait for their answers at a time.
const MOST_ASKED: usize = 64;

/// The other nodes, and what the server knows of this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// By name.
    pub peers: BTreeMap<String, Peer>,
    /// The link address that the own object tells.
    pub told: Option<Mac>,
}

/// What the loop must know.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeName,
    /// Its address.
    pub node_ip: Ipv4Addr,
    /// All pods of the cluster are from here.
    pub pod_cidr: Ipv4Net,
    /// Pods of this node are from here.
    pub local_pod_cidr: Ipv4Net,
    /// `--external-source`.
    pub mode: ExternalSource,
}

/// `status.linkAddress`: packets of the node come from there on its network. A node tells it if it can send answers back through others.
pub fn link_address(node: &Object) -> Option<Mac> {
    let text = node.str_at("/status/linkAddress")?;
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16)).collect::<Result<_, _>>().ok()?;
    // A group's address is nobody's.
    Mac::try_from(bytes).ok().filter(|mac| mac[0] & 1 == 0)
}

fn written(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Answers other nodes' probes, and probes them, until cancelled.
pub async fn run(
    client: Client,
    config: Config,
    (net, dataplane): (Net, Handle),
    mut world: watch::Receiver<World>,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let work = async {
        let mut keeper =
            Keeper { config, dataplane, probes: Probes::default(), entries: None, warned: false, kept: None };
        let mut answering = JoinSet::new();
        let mut asked: JoinSet<(Question, Result<(), Failure>)> = JoinSet::new();
        let mut said: Option<Value> = None;
        loop {
            let known = world.borrow_and_update().clone();
            if answering.is_empty() && keeper.dataplane.returns() == Returns::Yes {
                match Responder::start(&net, keeper.config.local_pod_cidr).await {
                    Ok(responder) => drop(answering.spawn(responder.run())),
                    Err(error) => {
                        tracing::warn!(%error, "other nodes' probes are not answered; trying again");
                    }
                }
            }
            let own = keeper.own_mac();
            let mut again = own.is_some() && answering.is_empty();
            again |= known.told != own && tell_mac(&client, &keeper.config.node, own).await.is_err();
            keeper.probes.set(Instant::now(), &known.peers);
            let room = MOST_ASKED.saturating_sub(asked.len());
            for question in keeper.probes.take_due(Instant::now(), room) {
                asked.spawn(async move {
                    let result = ask(question.peer.pod_cidr).await;
                    (question, result)
                });
            }
            if let Err(error) = keeper.program(&known.peers, own.is_some()).await {
                tracing::error!(%error, "the rules do not know whose sources stay; trying again");
                again = true;
            }
            if keeper.kept.is_some() {
                let condition = keeper.condition(&known.peers);
                if said.as_ref() != Some(&condition) {
                    event(&recorder, &keeper.config.node, said.as_ref(), &condition);
                    tell(&client, &keeper.config.node, &condition).await;
                    said = Some(condition);
                }
            }
            // With no room, an answer or its absence makes some.
            let due = keeper.probes.next_due().filter(|_| asked.len() < MOST_ASKED);
            let due = due.map_or(LOOK, |due| due.saturating_duration_since(Instant::now()));
            let wait = due.min(if again { AGAIN } else { LOOK });
            tokio::select! {
                changed = world.changed() => if changed.is_err() { return },
                Some(done) = asked.join_next() => if let Ok((question, result)) = done {
                    keeper.probes.result(Instant::now(), &question, result);
                },
                () = tokio::time::sleep(wait) => {}
            }
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = work => {}
    }
}

struct Keeper {
    config: Config,
    dataplane: Handle,
    probes: Probes,
    /// In the rules.
    entries: Option<BTreeMap<String, Peer>>,
    /// Somebody's settings would drop what goes back through others: this was said.
    warned: bool,
    kept: Option<BTreeSet<String>>,
}

impl Keeper {
    /// What this node tells; nothing if it cannot send answers back.
    fn own_mac(&mut self) -> Option<Mac> {
        let is_dropped = drops_marked_answers();
        if is_dropped && !self.warned {
            tracing::warn!(
                "net.ipv4.conf.*.rp_filter is 1 and src_valid_mark is 1: pods here see other nodes in the place of clients; \
                 set rp_filter to 2"
            );
        }
        self.warned = is_dropped;
        if self.dataplane.returns() == Returns::Yes && !is_dropped {
            mac_of(self.config.node_ip)
        } else {
            None
        }
    }

    /// The nodes whose pods see clients' own addresses.
    fn wanted(&self, peers: &BTreeMap<String, Peer>) -> Option<BTreeSet<String>> {
        match self.config.mode {
            ExternalSource::Masquerade => Some(BTreeSet::new()),
            ExternalSource::Keep => {
                let reached = peers.iter().filter(|(_, peer)| peer.way.is_some());
                Some(reached.map(|(name, _)| name.clone()).collect())
            }
            // What an earlier agent found out holds until every node has been asked.
            ExternalSource::Auto if self.kept.is_none() && !self.probes.is_settled() => None,
            ExternalSource::Auto => Some(self.probes.kept().into_iter().map(str::to_owned).collect()),
        }
    }

    /// `can_answer`: through other nodes.
    async fn program(&mut self, peers: &BTreeMap<String, Peer>, can_answer: bool) -> Result<(), NftError> {
        let through = if can_answer { peers.clone() } else { BTreeMap::new() };
        if self.entries.as_ref() != Some(&through) {
            let entries = through.values().filter_map(|peer| peer.entry(self.config.pod_cidr)).collect();
            self.dataplane.set_entries(entries).await?;
            self.entries = Some(through);
        }
        let Some(wanted) = self.wanted(peers) else { return Ok(()) };
        if self.kept.as_ref() != Some(&wanted) {
            let keeps = wanted.iter().filter_map(|name| Some(peers.get(name)?.keep())).collect();
            self.dataplane.set_kept(keeps).await?;
            self.kept = Some(wanted);
        }
        Ok(())
    }

    fn condition(&self, peers: &BTreeMap<String, Peer>) -> Value {
        let kept = self.kept.clone().unwrap_or_default();
        let failing = self.probes.failing();
        let others = peers.keys().filter(|name| !kept.contains(*name));
        let others: BTreeMap<&str, String> = others
            .map(|name| {
                let why = match self.config.mode {
                    ExternalSource::Masquerade => "--external-source masquerade".to_owned(),
                    _ => failing.get(name.as_str()).map_or_else(String::new, ToString::to_string),
                };
                (name.as_str(), why)
            })
            .collect();
        describe(self.config.mode, &kept.iter().map(String::as_str).collect(), &others)
    }
}

/// The condition for nodes whose pods see clients' addresses, and the others with the reasons. Pure.
fn describe(mode: ExternalSource, kept: &BTreeSet<&str>, others: &BTreeMap<&str, String>) -> Value {
    let list = |names: &[&str]| {
        let more = names.len().saturating_sub(MOST_NAMES);
        let shown = names[..names.len() - more].join(", ");
        if more > 0 { format!("{shown} and {more} more") } else { shown }
    };
    let (status, reason) = match mode {
        _ if others.is_empty() && kept.is_empty() => ("True", "NoOtherNodes"),
        ExternalSource::Masquerade => ("False", "Masquerade"),
        _ if others.is_empty() => ("True", "Kept"),
        _ => ("False", "MasqueradedTowardsSome"),
    };
    let mut parts = Vec::new();
    if !kept.is_empty() {
        let names: Vec<&str> = kept.iter().copied().collect();
        parts.push(format!("Clients that call this node are seen by their own address on {}", list(&names)));
    }
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, why) in others {
        by_reason.entry(why).or_default().push(name);
    }
    for (why, names) in by_reason {
        parts.push(format!("Pods on {} see this node instead: {why}", list(&names)));
    }
    if parts.is_empty() {
        parts.push("There is no other node".to_owned());
    }
    json!({"type": CONDITION, "status": status, "reason": reason, "message": parts.join(". ")})
}

fn event(recorder: &Recorder, node: &NodeName, before: Option<&Value>, now: &Value) {
    let message = now["message"].as_str().unwrap_or_default().to_owned();
    let was = before.map_or("True", |c| c["status"].as_str().unwrap_or_default());
    if was == now["status"] {
        return;
    }
    let (severity, reason) = if now["status"] == "True" {
        (Severity::Normal, "ExternalSourceKept")
    } else if now["reason"] == "Masquerade" {
        return;
    } else {
        (Severity::Warning, "ExternalSourceMasqueraded")
    };
    recorder.event(&Object::new(&NODES, None, node.as_str()), severity, reason, message);
}

/// Says where packets of this node come from.
async fn tell_mac(client: &Client, node: &NodeName, mac: Option<Mac>) -> Result<(), ()> {
    let target = Target::object(&ObjectKey::cluster(&NODES, node.as_str())).with_subresource("status");
    let patch = json!({"status": {"linkAddress": mac.map(written)}});
    match client.patch(&target, PatchKind::Merge, &patch).await {
        Ok(_) => Ok(()),
        Err(error) => {
            tracing::info!(%error, "the server does not know this node's link address");
            Err(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_address_is_read_as_it_is_told() {
        let node = |text: &str| {
            let mut node = Object::new(&NODES, None, "a");
            node.status_mut().insert("linkAddress".into(), text.into());
            link_address(&node)
        };
        let mac = [0x02, 0, 0xab, 3, 4, 0xff];
        assert_eq!(node(&written(mac)), Some(mac));
        // Not six bytes, no bytes, a group's.
        for wrong in ["", "02:00:ab:03:04", "02:00:ab:03:04:05:06", "02:00:ab:03:04:zz", "01:00:5e:00:00:01"]
        {
            assert_eq!(node(wrong), None, "{wrong}");
        }
        assert_eq!(link_address(&Object::new(&NODES, None, "a")), None);
    }

    #[test]
    fn the_condition_names_nodes_and_reasons() {
        let told = |mode, kept: &[&str], others: &[(&str, Failure)]| {
            let others = others.iter().map(|(name, why)| (*name, why.to_string())).collect();
            let c = describe(mode, &kept.iter().copied().collect(), &others);
            let text = |field: &str| c[field].as_str().unwrap().to_owned();
            (text("status"), text("reason"), text("message"))
        };
        let (auto, silent) = (ExternalSource::Auto, Failure::Silent);
        assert_eq!(told(auto, &[], &[]).0, "True");
        let (status, reason, message) = told(auto, &["b", "c"], &[]);
        assert_eq!((status.as_str(), reason.as_str()), ("True", "Kept"));
        assert!(message.ends_with("on b, c"), "{message}");
        let (status, reason, message) = told(auto, &["b"], &[("c", silent), ("d", silent)]);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "MasqueradedTowardsSome"));
        assert!(message.contains("on b. Pods on c, d see this node instead: a datagram"), "{message}");
        assert_eq!(told(ExternalSource::Masquerade, &[], &[("c", silent)]).1, "Masquerade");
        let names: Vec<String> = (0..1000).map(|n| format!("node-{n:04}")).collect();
        let many: Vec<&str> = names.iter().map(String::as_str).collect();
        let message = told(auto, &many, &[]).2;
        assert!(message.contains("and 984 more") && message.len() < 400, "{message}");
    }
}
