//! Tells the server how far this node is: at once when something is programmed, and as a heartbeat.

use std::mem::discriminant;

use minisvc_proto::{
    NodeName,
    client::Client,
    report::{HEARTBEAT_PERIOD, NodeReport},
};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Sends the newest report until cancelled. A server that does not answer costs one try per heartbeat; a server that does
/// not know the node is told through `unregistered`.
pub async fn run(
    client: Client,
    node: NodeName,
    mut reports: watch::Receiver<NodeReport>,
    unregistered: mpsc::Sender<()>,
    shutdown: CancellationToken,
) {
    let mut sequence = 0;
    // Silence is said once, and so is what comes after it: a refusal, or another server.
    let mut trouble = None;
    loop {
        let mut report = reports.borrow_and_update().clone();
        sequence += 1;
        report.sequence = sequence;
        match client.post_report(&node, &report).await {
            Ok(answer) => {
                if trouble.take().is_some() {
                    tracing::info!("the server answers again");
                }
                if !answer.registered {
                    // Full means that the word is already on its way.
                    let _ = unregistered.try_send(());
                }
            }
            Err(error) => {
                // Nobody is registered with a certificate that is worth nothing: whoever registers hears why.
                if error.api().is_some_and(|e| e.code == 401) {
                    let _ = unregistered.try_send(());
                }
                let kind = Some(discriminant(&error));
                if trouble != kind {
                    tracing::warn!(%error, "the server does not answer; what is programmed stays");
                }
                trouble = kind;
                // A dead server must not be asked in a tight loop when reports change quickly.
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(HEARTBEAT_PERIOD) => continue,
                }
            }
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = reports.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(HEARTBEAT_PERIOD) => {}
        }
    }
}
