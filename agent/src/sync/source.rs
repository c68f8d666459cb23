//! Clients' own addresses on other nodes: who answers through whom, which nodes are asked whether it works, and the Node's condition
//! that says it. See [`crate::source`].

mod told;

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
    condition::tell_with,
    events::{Recorder, Severity},
};
use crate::{
    config::ExternalSource,
    dataplane::{Handle, Returns},
    net::{Net, mac_of, reverse_path, reverse_path::Hindrance},
    nft::NftError,
    source::{
        Mac, Peer,
        probe::{Failure, Probes, Question},
        socket::{Responder, ask},
    },
};

use self::told::{FIELD, Told};

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
        let mut keeper = Keeper {
            config,
            dataplane,
            probes: Probes::default(),
            entries: None,
            hindrance: None,
            kept: None,
        };
        let mut answering = JoinSet::new();
        let mut asked: JoinSet<(Question, Result<(), Failure>)> = JoinSet::new();
        let mut said: Option<Told> = None;
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
                let told = keeper.told(&known.peers);
                if said.as_ref() != Some(&told) {
                    event(
                        &recorder,
                        &keeper.config.node,
                        said.as_ref().map(|t| &t.condition),
                        &told.condition,
                    );
                    let fields = [(FIELD, &told.nodes)];
                    tell_with(&client, &keeper.config.node, &told.condition, &fields).await;
                    said = Some(told);
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
    /// Somebody's settings drop what goes back through others.
    hindrance: Option<Hindrance>,
    kept: Option<BTreeSet<String>>,
}

impl Keeper {
    /// What this node tells; nothing if it cannot send answers back.
    fn own_mac(&mut self) -> Option<Mac> {
        let hindrance = reverse_path().hindrance();
        if let Some(why) = hindrance.filter(|_| hindrance != self.hindrance) {
            tracing::warn!("pods here see other nodes in the place of clients: {why}");
        }
        self.hindrance = hindrance;
        if self.dataplane.returns() == Returns::Yes && hindrance.is_none() {
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

    fn told(&self, peers: &BTreeMap<String, Peer>) -> Told {
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
        let kept = kept.iter().map(String::as_str).collect();
        told::of(self.config.mode, &kept, &others, self.hindrance)
    }
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
}
