//! What a node tells the server about its progress. None of it is stored: it lives in the server's memory.
//!
//! `POST /apis/minisvc.io/v1/nodes/NAME/report` with a [`NodeReport`], at once when a revision is programmed and at least
//! every [`HEARTBEAT_PERIOD`]; the answer is a [`ReportAnswer`].
//! `GET /apis/minisvc.io/v1/namespaces/NS/services/NAME/progress?timeoutSeconds=N` answers a [`ServiceProgress`] as soon as
//! it is complete, or the one that stands when the time is over.
//! `GET /apis/minisvc.io/v1/namespaces/NS/pods/NAME/withdrawal?timeoutSeconds=N` answers a [`PodWithdrawal`] in the same way.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::names::Revision;

/// How often a node speaks when nothing happens.
pub const HEARTBEAT_PERIOD: Duration = Duration::from_secs(1);
/// How long a node may be silent, by the server's monotonic clock, before it is NotReady.
pub const NODE_SILENCE_LIMIT: Duration = Duration::from_secs(4);

/// A node's heartbeat and progress.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeReport {
    /// Random for each start of an agent: a report of an earlier life that comes late is told apart.
    pub boot_id: String,
    /// Counts up within one life of the agent.
    pub sequence: u64,
    /// Every Service change up to here is in the kernel.
    pub services: Revision,
    /// Every EndpointSlice change up to here is in the kernel.
    pub endpoint_slices: Revision,
    /// Ready to run pods and to forward: false while starting, or with the reason while degraded.
    pub ready: bool,
    /// Why not ready; empty otherwise.
    #[serde(default)]
    pub message: String,
}

/// The server's answer to a report.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReportAnswer {
    /// False when no such node is registered: the agent registers again.
    pub registered: bool,
}

/// How far a service has come: into every ready node's kernel, with every pod that its selector matches now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceProgress {
    /// Nothing is late: every matched pod is Ready and in the slices, and every ready node has programmed them.
    pub complete: bool,
    /// The selector matches this many pods (terminating and ended ones do not count).
    pub pods: usize,
    /// Matched pods that are not Ready, or not yet in an EndpointSlice, each with the reason: `hello-1: not Ready (Pending)`.
    pub late_pods: Vec<String>,
    /// Ready nodes that have not programmed it yet.
    pub late_nodes: Vec<String>,
    /// Ready nodes in all.
    pub ready_nodes: usize,
}

/// Whether a pod that ends gets no new connections any more: every ready node's kernel knows that it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodWithdrawal {
    /// No service leads new connections to it, except one that has no other pod left.
    pub complete: bool,
    /// Ready nodes that have not programmed it yet; none while EndpointSlices do not say yet that it ends.
    pub late_nodes: Vec<String>,
}
