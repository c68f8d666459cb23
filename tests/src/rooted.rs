//! Tests that need root, or a user namespace instead.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test kit: what cannot go on fails the test here"
)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use minisvc_agent::sys::process::in_user_namespace;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::binary::minisvc;

/// No test waits for anything that takes longer; one that hangs fails by this.
const HANGS: Duration = Duration::from_mins(1);

/// Runs an async test as root, with a directory of its own: directly, or in a user namespace, where this very test is started
/// again. `name` is the test's path as the harness knows it.
pub fn as_root(name: &str, test: impl AsyncFnOnce(PathBuf)) {
    let home = tempfile::tempdir().unwrap();
    let _shims = Shims(home.path().to_path_buf());
    if nix::unistd::geteuid().is_root() {
        // What the test starts may have to be built first, which takes longer than any test.
        minisvc().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
        let ended =
            runtime.block_on(async { tokio::time::timeout(HANGS, test(home.path().to_path_buf())).await });
        // Threads that still wait for something must not keep a failed test from failing.
        runtime.shutdown_background();
        ended.expect("the test hangs");
        return;
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args(["--exact", name, "--nocapture"]).env("MINISVC_BIN", minisvc().unwrap());
    in_user_namespace(&mut again);
    let output = again.output().expect("this test needs root or a user namespace");
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The shims of the pods below a directory. A test that fails leaves them running: they end here, and their pods with them.
struct Shims(PathBuf);

impl Drop for Shims {
    fn drop(&mut self) {
        kill_shims(&self.0);
    }
}

/// Kills the shims of the pods below a directory, or that of the one pod whose directory it is.
pub fn kill_shims(below: &Path) {
    let below = below.as_os_str().as_encoded_bytes();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let command = command_line(&process.path());
        let words: Vec<&[u8]> = command.split(|b| *b == 0).collect();
        if words.contains(&&b"shim"[..]) && words.iter().any(|w| w.starts_with(below)) {
            // One that ended by itself meanwhile needs no signal.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// What a process was started with. The kernel lets the parent go on before the new program's words are in place: until then they
/// are empty, while the program itself is known already.
fn command_line(process: &Path) -> Vec<u8> {
    loop {
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        // A kernel's thread, and a process that has ended, have no program.
        if !words.is_empty() || fs::read_link(process.join("exe")).is_err() {
            return words;
        }
        std::thread::yield_now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_test_leaves_no_shim() {
        let home = tempfile::tempdir().unwrap();
        // Stands for a shim: what counts is its command line.
        let dir = home.path().join("run/pods/1");
        let mut child = Command::new("sh")
            .args(["-c", "read forever", "shim", "--dir"])
            .arg(&dir)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        drop(Shims(home.path().to_path_buf()));
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
}
