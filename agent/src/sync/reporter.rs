//! Tells the server how far this node is: at once when something is programmed, and as a heartbeat.

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
    let mut reachable = true;
    loop {
        let mut report = reports.borrow_and_update().clone();
        sequence += 1;
        report.sequence = sequence;
        match client.post_report(&node, &report).await {
            Ok(answer) => {
                if !reachable {
                    tracing::info!("the server answers again");
                }
                reachable = true;
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
                if reachable {
                    tracing::warn!(%error, "the server does not answer; what is programmed stays");
                }
                reachable = false;
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
