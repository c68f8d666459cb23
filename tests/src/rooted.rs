//! Tests that need root, or a user namespace instead.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test kit: what cannot go on fails the test here"
)]

use std::{path::PathBuf, process::Command, time::Duration};

use minisvc_agent::sys::process::in_user_namespace;

use crate::binary::minisvc;

/// No test waits for anything that takes longer; one that hangs fails by this.
const HANGS: Duration = Duration::from_mins(1);

/// Runs an async test as root, with a directory of its own: directly, or in a user namespace, where this very test is started
/// again. `name` is the test's path as the harness knows it.
pub fn as_root(name: &str, test: impl AsyncFnOnce(PathBuf)) {
    let home = tempfile::tempdir().unwrap();
    if nix::unistd::geteuid().is_root() {
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
