//! One machine.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::Context;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use super::process::Process;
use crate::{cluster::Said, netns::Namespace};

/// What is bound to a directory of the machine's own, so that programs need not be told of directories.
const OWN: [&str; 3] = ["/var/lib", "/var/log", "/run"];
/// Where programs are found.
const PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// A network, a host name, and directories of its own.
pub struct Machine {
    net: Namespace,
    /// Host name and mounts.
    others: [File; 2],
    ip: Ipv4Addr,
    port: (usize, String),
    home: PathBuf,
    binary: PathBuf,
}

impl Machine {
    /// On a network that is there already. `port` is where the machine is connected: which LAN, and the name of the bridge's port.
    pub(super) fn new(
        home: &Path,
        binary: &Path,
        net: Namespace,
        ip: Ipv4Addr,
        port: (usize, String),
    ) -> anyhow::Result<Self> {
        let home = home.join(net.name());
        fs::create_dir_all(home.join("logs"))?;
        let others = net.enter(|| {
            unshare(CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWNS)?;
            nix::unistd::sethostname(net.name())?;
            let none: Option<&str> = None;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
            for place in OWN {
                let own = home.join(place.trim_start_matches('/'));
                fs::create_dir_all(&own)?;
                mount(Some(&own), place, none, MsFlags::MS_BIND, none).context(place)?;
            }
            Ok([File::open("/proc/thread-self/ns/uts")?, File::open("/proc/thread-self/ns/mnt")?])
        })?;
        Ok(Machine { net, others, ip, port, home, binary: binary.to_path_buf() })
    }

    /// Also its host name.
    pub fn name(&self) -> &str {
        self.net.name()
    }

    /// Its first address.
    pub fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// Its network.
    pub fn net(&self) -> &Namespace {
        &self.net
    }

    /// See [`Machine::new`].
    pub(super) fn port(&self) -> &(usize, String) {
        &self.port
    }

    /// What its processes have said.
    pub(super) fn logs(&self) -> PathBuf {
        self.home.join("logs")
    }

    /// Where a file of the machine is for the test.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.home.join(inside.trim_start_matches('/'))
    }

    /// Starts `minisvc`.
    pub fn start(&self, args: &[&str]) -> Process {
        let mut command = self.command(self.binary.to_str().unwrap(), args);
        let child = self.enter(|| Ok(command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn()?)).unwrap();
        Process::new(child, &format!("minisvc {}", args.join(" ")), &self.logs()).unwrap()
    }

    /// Runs `minisvc` to its end.
    pub fn run(&self, args: &[&str]) -> Said {
        self.program(self.binary.to_str().unwrap(), args)
    }

    /// Runs any program to its end.
    pub fn program(&self, program: &str, args: &[&str]) -> Said {
        let mut command = self.command(program, args);
        let output = self.enter(|| command.output().with_context(|| program.to_owned())).unwrap();
        Said::of(format!("{}: {program} {}", self.name(), args.join(" ")), output)
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null());
        command.env_clear().env("PATH", PATH).env("HOME", self.path("/run"));
        command
    }

    /// Does something on a thread that stands on this machine.
    fn enter<T: Send>(&self, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        self.net.enter(|| {
            // Threads share their root, and may leave it only on their own.
            unshare(CloneFlags::CLONE_FS)?;
            setns(&self.others[0], CloneFlags::CLONE_NEWUTS)?;
            setns(&self.others[1], CloneFlags::CLONE_NEWNS)?;
            work()
        })
    }
}
