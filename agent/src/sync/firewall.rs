//! The Node's condition `ForeignFirewall`: whether rules of others drop this cluster's traffic, and the command that helps.

use std::{net::Ipv4Addr, time::Duration};

use minisvc_proto::{NodeName, Object, client::Client, resource::NODES};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    condition::tell,
    events::{Recorder, Severity},
};
use crate::{
    firewall::{Foreign, Judgement, Ours, judge},
    nft::NftError,
};

/// The condition's type.
pub const CONDITION: &str = "ForeignFirewall";

/// Changes of rules come in swarms: they are looked at once they have settled for so long, and not more often.
const QUIET: Duration = Duration::from_secs(1);
/// What no rule tells of, as iptables-legacy and the Node object itself, is looked at so often.
const AGAIN: Duration = Duration::from_mins(1);

/// What the loop must know.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeName,
    /// Our traffic.
    pub ours: Ours,
    /// `--manage-host-firewall`: accept rules are inserted where traffic is dropped. Without it those of an earlier agent go.
    pub manage: bool,
}

/// Looks at the start and whenever somebody else changed rules, until cancelled.
pub async fn run(
    client: Client,
    config: Config,
    mut changes: watch::Receiver<u64>,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let mut last: Option<Judgement> = None;
    let mut failing = false;
    loop {
        changes.mark_unchanged();
        let (ours, before) = (config.ours.clone(), last.clone());
        let manage = config.manage;
        let looked = tokio::task::spawn_blocking(move || look(&ours, manage, before.as_ref())).await;
        match looked {
            Ok(Ok(judgement)) => {
                failing = false;
                let dropped = |j: &Judgement| !j.blocked.is_empty();
                let turned = last.as_ref().is_some_and(dropped) != dropped(&judgement);
                if turned {
                    let node = Object::new(&NODES, None, config.node.as_str());
                    let (severity, reason) = if judgement.blocked.is_empty() {
                        (Severity::Normal, "FirewallPasses")
                    } else {
                        tracing::warn!("{judgement}");
                        (Severity::Warning, CONDITION)
                    };
                    recorder.event(&node, severity, reason, judgement.to_string());
                }
                let wanted = condition(&judgement);
                last = Some(judgement);
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tell(&client, &config.node, &wanted) => {}
                }
            }
            other => {
                let error = match other {
                    Ok(Err(error)) => error.to_string(),
                    Err(error) => error.to_string(),
                    Ok(Ok(_)) => String::new(),
                };
                if !failing {
                    tracing::warn!(error, "the rules of others cannot be looked at");
                }
                failing = true;
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN) => continue,
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(QUIET) => {}
        }
    }
}

/// Judges the rules that are there now, after our own have been put where they should be. `last`: the judgement before; what
/// inserting did not help is not inserted again and again.
fn look(ours: &Ours, manage: bool, last: Option<&Judgement>) -> Result<Judgement, NftError> {
    let mut foreign = Foreign::open()?;
    let mut rules = foreign.read()?;
    if !manage && foreign.remove(&rules)? > 0 {
        tracing::info!("our rules in chains of others are removed: --manage-host-firewall is not given");
        rules = foreign.read()?;
    }
    let judgement = judge(&rules, ours);
    if !manage || judgement.blocked.is_empty() || last.is_some_and(|l| l.blocked == judgement.blocked) {
        return Ok(judgement);
    }
    let remedies: Vec<_> = judgement.blocked.iter().map(|b| b.remedy.clone()).collect();
    foreign.insert(&rules, &remedies)?;
    for remedy in &remedies {
        let (family, lines) = (remedy.family.name(), remedy.nft().join("; "));
        tracing::info!(
            family,
            table = remedy.table,
            chain = remedy.chain,
            "let our traffic through: {lines}"
        );
    }
    Ok(judge(&foreign.read()?, ours))
}

/// The address in a server's URL; `None`: a name, whose addresses may change.
pub fn address_in(url: &str) -> Option<Ipv4Addr> {
    let authority = url.trim_start_matches("https://").split('/').next()?;
    authority.rsplit_once(':').map_or(authority, |(host, _)| host).parse().ok()
}

fn condition(judgement: &Judgement) -> Value {
    let (status, reason) = if !judgement.blocked.is_empty() {
        ("True", "TrafficDropped")
    } else if !judgement.unclear.is_empty() || !judgement.legacy.is_empty() {
        ("False", "CannotTell")
    } else {
        ("False", "NothingDropped")
    };
    json!({"type": CONDITION, "status": status, "reason": reason, "message": judgement.to_string()})
}
