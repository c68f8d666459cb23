//! `minisvc server` as a service of a machine: settings files, variables, the service manager's socket, and the units.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails here")]
#![cfg(target_os = "linux")]

use std::{
    fs,
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use minisvc_tests::binary::minisvc;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// No test waits for anything that takes longer.
const HANGS: Duration = Duration::from_secs(30);

/// `minisvc` without anything of this machine's in its environment.
fn command(args: &[&str]) -> Command {
    let mut command = Command::new(minisvc().unwrap());
    command.args(args).env_clear().env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

fn said(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Ends with the test, however that ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The service manager's end of the socket.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(HANGS)).unwrap();
        Manager(socket)
    }

    fn hears(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    /// The first message that begins so.
    fn waits_for(&self, start: &str) -> String {
        std::iter::repeat_with(|| self.hears()).find(|m| m.starts_with(start)).unwrap()
    }
}

#[test]
fn a_server_tells_its_manager_that_it_serves_lives_and_ends() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let settings = format!("listen = \"127.0.0.1:0\"\ndata-dir = \"{}\"\n", at("of-the-file").display());
    fs::write(at("server.toml"), settings).unwrap();
    let manager = Manager::at(&at("notify"));
    let mut server = command(&["server"]);
    server.env("MINISVC_SETTINGS", at("server.toml")).env("MINISVC_DATA_DIR", at("of-the-variable"));
    server.env("NOTIFY_SOCKET", at("notify")).env("WATCHDOG_USEC", "100000").stderr(Stdio::null());
    let mut server = Running(server.spawn().unwrap());

    let ready = manager.hears();
    let address = ready.strip_prefix("READY=1\nSTATUS=serving https://").unwrap_or_else(|| panic!("{ready}"));
    TcpStream::connect(address).unwrap();
    // The variable is nearer than the file, and what only the file says counts.
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    assert!(at("of-the-variable").join("store").exists() && !at("of-the-file").exists());
    for _ in 0..3 {
        assert_eq!(manager.hears(), "WATCHDOG=1");
    }
    kill(Pid::from_raw(server.0.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(manager.waits_for("STOPPING=1"), "STOPPING=1\nSTATUS=stopping");
    assert!(server.0.wait().unwrap().success());
}

#[test]
fn a_server_that_cannot_start_is_never_ready() {
    let home = tempfile::tempdir().unwrap();
    let manager = Manager::at(&home.path().join("notify"));
    fs::write(home.path().join("file"), "").unwrap();
    let mut server = command(&["server", "--listen", "127.0.0.1:0", "--settings", "/dev/null", "--data-dir"]);
    server.arg(home.path().join("file")).env("NOTIFY_SOCKET", home.path().join("notify"));
    let (code, error) = said(&server.output().unwrap());
    assert_eq!((code, error.lines().count()), (1, 1), "{error}");
    manager.0.set_nonblocking(true).unwrap();
    assert!(manager.0.recv(&mut [0; 64]).is_err(), "it told something");
}

#[test]
fn wrong_settings_are_usage_errors_on_one_line() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("settings.toml");
    let shown = file.display();
    for (name, text, says) in [
        (
            "agent",
            "node-ip = 'here'",
            "1: node-ip: \"here\": \"here\" is no IPv4 address, with one of IPv6 after a comma or without; \
             192.0.2.10 or 192.0.2.10,2001:db8::10 would be right",
        ),
        ("server", "# of the server\nlisten_ = ''", "2: listen_: unknown key; \"listen\" would be right"),
        ("server", "listen", "1: this is no TOML"),
    ] {
        fs::write(&file, text).unwrap();
        let (code, error) = said(&command(&[name, "--settings"]).arg(&file).output().unwrap());
        assert_eq!((code, error.lines().count()), (2, 1), "{text}: {error}");
        assert!(error.starts_with(&format!("error: {shown}:{says}")), "{text}: {error}");
    }
    let (code, error) = said(&command(&["server"]).env("MINISVC_LISTEN", "7443").output().unwrap());
    let expected =
        "error: MINISVC_LISTEN=\"7443\": invalid socket address syntax; 0.0.0.0:7443 would be right\n";
    assert_eq!((code, error.as_str()), (2, expected));
}

/// The units as they are in the repository, by name.
fn units() -> Vec<(PathBuf, String)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd");
    let files = fs::read_dir(dir).unwrap().map(|f| f.unwrap().path());
    let units: Vec<_> = files.map(|f| (f.clone(), fs::read_to_string(f).unwrap())).collect();
    assert_eq!(units.len(), 2);
    units
}

fn value<'u>(unit: &'u str, key: &str) -> &'u str {
    unit.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default()
}

#[test]
fn the_units_start_what_there_is_and_leave_pods_alone() {
    for (path, unit) in units() {
        let words: Vec<_> = value(&unit, "ExecStart").split(' ').collect();
        let [program, args @ ..] = words.as_slice() else { panic!("{}: no ExecStart", path.display()) };
        assert_eq!(*program, "/usr/local/bin/minisvc");
        assert!(path.ends_with(format!("minisvc-{}.service", args[0])));
        // clap looks at all flags before it helps.
        let help = command(args).arg("--help").output().unwrap();
        assert!(help.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&help.stderr));
        assert_eq!((value(&unit, "Type"), value(&unit, "RestartPreventExitStatus")), ("notify", "2"));
        assert!(value(&unit, "EnvironmentFile").starts_with('-'), "{}: it may be missing", path.display());
        if args[0] == "agent" {
            assert_eq!((value(&unit, "KillMode"), value(&unit, "Delegate")), ("process", "yes"));
            for inherited in ["NoNewPrivileges", "PrivateTmp", "ProtectSystem", "RuntimeDirectory"] {
                assert_eq!(value(&unit, inherited), "", "{inherited} would change what pods may do");
            }
        }
    }
}

#[test]
fn systemd_has_nothing_to_say_about_the_units() {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = minisvc().unwrap();
    for (path, unit) in units() {
        let here = home.path().join(path.file_name().unwrap());
        fs::write(&here, unit.replace("/usr/local/bin/minisvc", binary.to_str().unwrap())).unwrap();
        let verified = Command::new("systemd-analyze").arg("verify").arg(&here).output();
        let verified = verified.expect("systemd-analyze (Debian: systemd) is there");
        assert_eq!(said(&verified), (0, String::new()), "{}", path.display());
    }
}
