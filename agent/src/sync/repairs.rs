//! What somebody else broke and this node put right, as Events on the Node.

use minisvc_proto::{NodeName, Object, resource::NODES};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::events::{Recorder, Severity};
use crate::{dataplane::Notice, net::Repaired};

/// Records what rules and network tell until cancelled.
pub async fn run(
    node: NodeName,
    mut rules: broadcast::Receiver<Notice>,
    mut network: broadcast::Receiver<Repaired>,
    recorder: Recorder,
    shutdown: CancellationToken,
) {
    let node = Object::new(&NODES, None, node.as_str());
    loop {
        let word = tokio::select! {
            () = shutdown.cancelled() => return,
            notice = rules.recv() => notice.map(|notice| {
                let reason = match &notice {
                    Notice::Repaired(_) => "RulesRepaired",
                    Notice::Failing(_) => "RulesFailing",
                };
                (reason, notice.to_string())
            }),
            repaired = network.recv() => repaired.map(|repaired| ("NetworkRepaired", repaired.to_string())),
        };
        match word {
            Ok((reason, message)) => recorder.event(&node, Severity::Warning, reason, message),
            Err(RecvError::Lagged(_)) => {}
            // The thread that told is gone: its part ends the agent.
            Err(RecvError::Closed) => return shutdown.cancelled().await,
        }
    }
}
