//! Programs of a pod: finding them, starting them, killing what they leave behind.

use std::{
    fs::{self, File},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::super::model::ContainerSpec;
use crate::sys::process::{contain, join};

/// Starts a program with the environment, directory and user of a container, in the cgroups whose files these are. The error is
/// one line for the user.
pub fn spawn(
    argv: &[String],
    spec: &ContainerSpec,
    stdio: [Stdio; 3],
    terminal: bool,
    cgroup: Vec<File>,
) -> Result<Pid, String> {
    let name =
        argv.first().filter(|n| !n.is_empty()).ok_or("command: required, a program and its arguments")?;
    if !spec.cwd.is_dir() {
        return Err(format!("workingDir: \"{}\" is no directory on this node", spec.cwd.display()));
    }
    let path = spec.env.iter().find(|(k, _)| k == "PATH").map_or("", |(_, v)| v.as_str());
    let program = find(name, path, &spec.cwd)?;
    let [stdin, stdout, stderr] = stdio;
    let mut command = Command::new(program);
    command.arg0(name).args(&argv[1..]).env_clear().envs(spec.env.iter().map(|(k, v)| (k, v)));
    if terminal && !spec.env.iter().any(|(k, _)| k == "TERM") {
        command.env("TERM", "xterm");
    }
    command.current_dir(&spec.cwd).stdin(stdin).stdout(stdout).stderr(stderr);
    if let Some(user) = spec.user {
        command.uid(user.uid).gid(user.gid);
    }
    join(&mut command, cgroup);
    contain(&mut command, terminal);
    // Its end is noticed by pid, as that of every other child of a first process.
    let child = command.spawn().map_err(|e| format!("exec: \"{name}\": {}", reason(&e)))?;
    Ok(Pid::from_raw(child.id().cast_signed()))
}

/// What the system said, without Rust's `(os error N)`.
fn reason(e: &std::io::Error) -> String {
    match e.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory (or its interpreter is missing)".into(),
        Some(libc::ENOEXEC) => {
            "exec format error: no program for this machine, or a script without #!".into()
        }
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => e.to_string(),
    }
}

/// The file that a program's name means: itself when it holds a slash, else the first in PATH that can be executed.
fn find(name: &str, path: &str, cwd: &Path) -> Result<PathBuf, String> {
    if name.contains('/') {
        return Ok(cwd.join(name));
    }
    let mut denied = false;
    for dir in path.split(':').filter(|d| !d.is_empty()) {
        let file = cwd.join(dir).join(name);
        match fs::metadata(&file) {
            Ok(m) if m.is_file() && m.permissions().mode() & 0o111 != 0 => return Ok(file),
            Ok(m) => denied |= m.is_file(),
            Err(_) => {}
        }
    }
    let why = if denied { "found in PATH, but not executable" } else { "not found in PATH" };
    Err(format!("exec: \"{name}\": {why}"))
}

/// Kills everything else in the pod.
pub fn kill_all() {
    // Fails only when there is nothing to kill.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
}

/// Kills the processes of a session: what a container or an exec leaves behind. One that made itself a session of its own
/// lives on until the pod ends.
pub fn kill_session(leader: Pid) {
    let _ = nix::sys::signal::killpg(leader, Signal::SIGKILL);
    let Ok(entries) = fs::read_dir("/proc") else { return };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids.filter(|pid| *pid > 1).map(Pid::from_raw) {
        if nix::unistd::getsid(Some(pid)) == Ok(leader) {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_in_path_or_the_message_says_why_not() {
        let home = tempfile::tempdir().unwrap();
        let file = |name: &str, mode| {
            let path = home.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (good, _) = (file("good", 0o755), file("plain", 0o644));
        let path = format!("/nowhere:{}", home.path().display());
        assert_eq!(find("good", &path, Path::new("/")), Ok(good));
        assert_eq!(find("./x", &path, Path::new("/d")), Ok(PathBuf::from("/d/./x")));
        assert_eq!(find("foo", &path, Path::new("/")), Err("exec: \"foo\": not found in PATH".into()));
        assert!(find("plain", &path, Path::new("/")).unwrap_err().contains("not executable"));
    }
}
