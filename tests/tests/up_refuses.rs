//! What `up` and `down` refuse, in the words that the user sees.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]
#![cfg(target_os = "linux")]

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

use minisvc_tests::binary::minisvc;

/// Runs `minisvc` with directories of its own.
fn run(home: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(minisvc().unwrap());
    for key in ["XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"] {
        command.env(key, home.join(key));
    }
    command.args(args).output().unwrap()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_taken_api_port_is_one_clear_line_and_leaves_no_cluster() {
    let home = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let up = run(home.path(), &["up", "--detach", "--api-port", &port]);
    assert_eq!(up.status.code(), Some(1), "{}", error(&up));
    assert_eq!(error(&up).lines().count(), 1, "{}", error(&up));
    assert!(error(&up).contains(&port) && error(&up).contains("--api-port"), "{}", error(&up));
    let down = run(home.path(), &["down", "--purge"]);
    assert!(down.status.success(), "{}", error(&down));
    assert!(String::from_utf8_lossy(&down.stdout).contains("does not run"));
    assert!(!home.path().join("XDG_DATA_HOME/minisvc/default").exists());
}

#[test]
fn names_and_numbers_are_usage_errors() {
    let home = tempfile::tempdir().unwrap();
    for args in [["up", "--name", "A_b"], ["up", "--nodes", "0"], ["up", "--api-port", "0"]] {
        let output = run(home.path(), &args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", error(&output));
        assert!(error(&output).contains(args[1]), "{args:?}: {}", error(&output));
    }
}

/// Runs `minisvc up` where no user namespace may be made and no capability can be had: as this user, or looking like root.
fn without_permission(home: &Path, who: &str) -> Output {
    let drop = "setpriv --bounding-set=-all --inh-caps=-all --ambient-caps=-all --no-new-privs";
    let script = format!(
        "echo 0 > /proc/sys/user/max_user_namespaces && exec {drop} \"$0\" up --detach --api-port \"$1\""
    );
    let mut command = Command::new("unshare");
    command.args(["--user", who, "--keep-caps", "sh", "-c", &script]).arg(minisvc().unwrap());
    command.arg(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string());
    for key in ["XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"] {
        command.env(key, home.join(key));
    }
    command.output().unwrap()
}

#[test]
fn a_machine_that_refuses_is_one_line_with_what_to_do_and_nothing_is_left() {
    for (who, refused, advice) in [
        ("--map-user=1000", "the kernel refuses a user namespace", "sysctl user.max_user_namespaces=10000"),
        ("--map-root-user", "the kernel refuses a process-id namespace", "CAP_SYS_ADMIN"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let up = without_permission(home.path(), who);
        let said = error(&up);
        assert_eq!(up.status.code(), Some(1), "{who}: {said}");
        assert_eq!(said.lines().count(), 1, "{who}: {said}");
        assert!(said.contains(refused) && said.contains(advice), "{who}: {said}");
        for key in ["XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"] {
            let left = std::fs::read_dir(home.path().join(key).join("minisvc")).unwrap().count();
            assert_eq!(left, 0, "{who}: {key}");
        }
    }
}
