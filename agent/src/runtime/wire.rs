//! What agent and shim say to each other: one JSON message a packet. Agents of another version adopt running shims, so names
//! here stay, and unknown fields are let pass.

use serde::{Deserialize, Serialize};

use super::model::{Exit, PodState};

/// The shim's socket in the pod's directory.
pub const SOCKET: &str = "shim.sock";
/// The pod's fixed part.
pub const SETUP: &str = "pod.json";
/// The containers' states, kept by the shim.
pub const STATE: &str = "state.json";
/// What the shim wrote before it was ready, and its panics.
pub const LOG: &str = "shim.log";

/// A container's newest [`super::ContainerSpec`].
pub fn container_file(name: &str) -> String {
    format!("container-{name}.json")
}

/// What a container says about its end.
pub fn termination_file(name: &str) -> String {
    format!("termination-{name}")
}

/// From the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase")]
pub enum Request {
    /// Send the state now and whenever it changes.
    Watch,
    /// Send the network namespace as a file.
    Netns,
    /// Start the container as its file says.
    Start {
        /// Which.
        container: String,
    },
    /// Signal a container's main process.
    Signal {
        /// Which.
        container: String,
        /// The signal's number.
        signal: i32,
    },
    /// Run a program beside the container, on the three files of this message. It is killed when the connection closes.
    Exec {
        /// Which.
        container: String,
        /// Program and arguments.
        argv: Vec<String>,
        /// Standard input is a terminal.
        tty: bool,
    },
    /// Kill everything and end.
    End,
}

/// From the shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// Done.
    Done,
    /// Not done.
    Refused(String),
    /// The state.
    State(PodState),
    /// The program of [`Request::Exec`] ended.
    Exited(Exit),
}
