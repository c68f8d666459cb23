//! The shim: PID 1 of a pod. One thread, no async runtime.

mod isolate;
mod log;
mod process;
mod serve;
mod termination;
mod volumes;

use std::{
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, unshare},
    unistd::{ForkResult, setsid},
};

use super::{model::PodSetup, wire};
use crate::sys::process::{close_inherited, fork};

/// Why a pod's first process could not be what it should.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// No right to make namespaces.
    #[error(
        "the kernel refuses namespaces ({0}): pods need root, or a user namespace as `minisvc up` makes one for an ordinary user"
    )]
    Namespaces(Errno),
    /// A file of the pod.
    #[error("{path}: {why}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        why: String,
    },
    /// A mount.
    #[error("mounting {path}: {why}", path = path.display())]
    Mount {
        /// Where.
        path: PathBuf,
        /// What the system said.
        why: Errno,
    },
    /// Another system call.
    #[error("{what}: {why}")]
    System {
        /// Which.
        what: &'static str,
        /// What the system said.
        why: Errno,
    },
    /// The pod's first process said why.
    #[error("{0}")]
    First(String),
}

const READY: &[u8] = b"ready";

fn system(what: &'static str) -> impl FnOnce(Errno) -> ShimError {
    move |why| ShimError::System { what, why }
}

/// Makes the namespaces of the pod whose directory this is, and becomes its first process. Returns in two processes: in the
/// one that was called as soon as the pod is there, and in the pod's first process at the end of the pod.
pub fn run(dir: &Path) -> Result<(), ShimError> {
    close_inherited().map_err(system("closing inherited files"))?;
    // A terminal's Ctrl-C is not for pods. Fails for a leader of a session, which is as good.
    let _ = setsid();
    let file = dir.join(wire::SETUP);
    let bad = |why: String| ShimError::File { path: file.clone(), why };
    let text = fs::read(&file).map_err(|e| bad(e.to_string()))?;
    let setup: PodSetup = serde_json::from_slice(&text).map_err(|e| bad(e.to_string()))?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC,
    )
    .map_err(ShimError::Namespaces)?;
    let pipe = |e: std::io::Error| ShimError::First(format!("pipe: {e}"));
    let (mut reader, mut writer) = std::io::pipe().map_err(pipe)?;
    match fork().map_err(system("fork"))? {
        ForkResult::Child => {
            drop(reader);
            let started = isolate::isolate(dir, &setup).and_then(|()| serve::Pod::start(dir, setup));
            let word = match &started {
                Ok(_) => READY.to_vec(),
                Err(e) => e.to_string().into_bytes(),
            };
            // The reader can be gone only if it was killed; the pod is made all the same, and adopted later.
            let _ = writer.write_all(&word);
            drop(writer);
            // An error is the other process's to say: two that write at once are not to be read.
            started.map_or(Ok(()), serve::Pod::run)
        }
        ForkResult::Parent { .. } => {
            drop(writer);
            let mut word = Vec::new();
            reader.read_to_end(&mut word).map_err(pipe)?;
            match word.as_slice() {
                READY => Ok(()),
                [] => Err(ShimError::First("the pod's first process was killed".into())),
                why => Err(ShimError::First(String::from_utf8_lossy(why).into_owned())),
            }
        }
    }
}
