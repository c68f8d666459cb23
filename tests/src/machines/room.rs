//! What a test of machines runs in.

use std::{path::Path, process::Command};

use crate::binary::minisvc;

const HOME: &str = "MINISVC_TEST_ROOM";

/// Runs a test with a directory of its own, in namespaces of its own: this very test is started once more, as a child of the first
/// process of a new process-id namespace. When that process ends, however it does, the kernel ends servers, agents, pods and links.
/// Root of the machine is root inside; anybody else is root of a user namespace. `name` is the test's path as the harness knows it.
pub fn in_room(name: &str, test: impl FnOnce(&Path)) {
    if let Some(home) = std::env::var_os(HOME) {
        return test(Path::new(&home));
    }
    let home = tempfile::Builder::new().prefix("minisvc-machines").tempdir().unwrap();
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--net", "--uts", "--ipc"]);
    // The shell is the first process: it takes in those whose parents have ended.
    command.args(["sh", "-c", "\"$@\" & wait $!", "sh"]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture"]);
    let output = command.env(HOME, home.path()).env("MINISVC_BIN", minisvc().unwrap()).output();
    let output = output.unwrap_or_else(|e| panic!("unshare, of util-linux, is needed: {e}"));
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
