//! Volumes of a pod, as values.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What the containers of a pod may mount. The pod's first process has it at `volume_dir/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Unique in the pod.
    pub name: String,
    /// What it is.
    pub source: VolumeSource,
}

/// Where the files of a volume are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VolumeSource {
    /// A directory on the node's disk that is empty when the pod comes and goes with it.
    Empty,
    /// The same in memory, with at most so many bytes; the kernel's default is half of the machine's memory.
    Memory {
        /// Bytes.
        limit: Option<i64>,
    },
    /// Files of the node.
    Host {
        /// Where.
        path: PathBuf,
        /// What has to be there.
        kind: HostPathType,
    },
}

/// `hostPath.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostPathType {
    /// Anything that is there.
    #[default]
    Any,
    /// A directory.
    Directory,
    /// A directory, which is made with mode 0755 if nothing is there.
    DirectoryOrCreate,
    /// A regular file.
    File,
    /// A regular file, which is made with mode 0644 if nothing is there; its directory is not.
    FileOrCreate,
}

/// Where a container sees a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The volume's name.
    pub volume: String,
    /// Where.
    pub path: PathBuf,
    /// The part of the volume; all of it when empty. A directory is made there if nothing is.
    pub sub_path: PathBuf,
    /// The container cannot write to it.
    pub read_only: bool,
}
