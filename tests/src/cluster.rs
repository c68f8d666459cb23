//! A whole cluster, started by `minisvc up` as a user starts it, in directories of its own.

#![allow(clippy::unwrap_used, reason = "a test kit: what cannot go on fails the test here")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::TcpListener,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
};

use crate::binary::minisvc;

/// What a command said and how it ended.
#[derive(Clone, Debug)]
pub struct Said {
    /// The command, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// What an output says of a command.
    pub fn of(command: String, output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Said { command, status: output.status, out: text(output.stdout), err: text(output.stderr) }
    }

    /// Its output, if it ended well; else the test fails with all it said.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{self}");
        self.out
    }

    /// Its one line of error, if it ended with this code; else the test fails with all it said.
    #[track_caller]
    pub fn refused(self, code: i32) -> String {
        assert_eq!(self.status.code(), Some(code), "{self}");
        assert_eq!(self.err.lines().count(), 1, "one clear line was expected: {self}");
        self.err
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Said { command, status, out, err } = self;
        let end = status.code().map_or_else(|| format!("signal {:?}", status.signal()), |c| c.to_string());
        write!(f, "`{command}` ended with {end}\n--- stdout\n{out}--- stderr\n{err}")
    }
}

/// A running cluster; ends when dropped. A test that fails leaves logs and kernel state in one folder.
pub struct Cluster {
    name: String,
    home: tempfile::TempDir,
    binary: PathBuf,
    api_port: u16,
    links: BTreeSet<String>,
}

impl Cluster {
    /// Starts a cluster and waits until its nodes are Ready.
    pub fn up(name: &str, nodes: u8) -> Self {
        let cluster = Self::prepared(name);
        cluster.start(nodes).ok();
        cluster
    }

    /// A cluster that is not started yet.
    pub fn prepared(name: &str) -> Self {
        let name = format!("{name}-{}", std::process::id());
        let home = tempfile::Builder::new().prefix("minisvc-test").tempdir().unwrap();
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        Cluster { name, home, binary: minisvc().unwrap(), api_port: port, links: links() }
    }

    /// `up --detach`.
    pub fn start(&self, nodes: u8) -> Said {
        let output = self.start_command(nodes).output().unwrap();
        Said::of("minisvc up --detach".to_owned(), output)
    }

    /// `up --detach`, to be started.
    pub fn start_command(&self, nodes: u8) -> Command {
        let mut command = self.command(&self.binary);
        command.args(["up", "--detach", "--name", &self.name, "--nodes", &nodes.to_string()]);
        command.args(["--api-port", &self.api_port.to_string()]);
        command
    }

    /// `down`.
    pub fn stop(&self) -> Said {
        self.run(&["down", "--name", &self.name])
    }

    /// The cluster's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The API's port on 127.0.0.1.
    pub fn api_port(&self) -> u16 {
        self.api_port
    }

    /// The program under test.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// A command in this cluster's environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for key in ["XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"] {
            command.env(key, self.home.path().join(key));
        }
        command.env_remove("MINISVC_CONFIG").env("KUBECONFIG", "/nonexistent").stdin(Stdio::null());
        command
    }

    /// Runs `minisvc`.
    pub fn run(&self, args: &[&str]) -> Said {
        let output = self.command(&self.binary).args(args).output().unwrap();
        Said::of(format!("minisvc {}", args.join(" ")), output)
    }

    /// Runs a line as a user types it, words split at blanks.
    pub fn sh(&self, line: &str) -> Said {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.split_first() {
            Some((&"minisvc", args)) => self.run(args),
            Some((program, args)) => {
                Said::of(line.to_owned(), self.command(program).args(args).output().unwrap())
            }
            None => panic!("an empty line"),
        }
    }

    /// The directory that holds what this cluster writes.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Logs of server, agents and relay.
    pub fn logs(&self) -> PathBuf {
        self.home.path().join("XDG_STATE_HOME/minisvc").join(&self.name)
    }

    /// Sockets, credentials and the lock of a run.
    pub fn run_dir(&self) -> PathBuf {
        self.home.path().join("XDG_RUNTIME_DIR/minisvc").join(&self.name)
    }

    /// What this cluster has on this machine now.
    pub fn footprint(&self) -> Footprint {
        let state = self.run_dir().join("state.json");
        let text = fs::read_to_string(&state).unwrap_or_else(|e| panic!("{}: {e}", state.display()));
        let state: serde_json::Value = serde_json::from_str(&text).unwrap();
        Footprint::of(i32::try_from(state["pid"].as_i64().unwrap()).unwrap())
    }

    /// What is left of an earlier footprint, and what else names this cluster's directories.
    pub fn left_of(&self, before: &Footprint) -> Vec<String> {
        let mut left = before.left();
        let home = self.home.path().to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|l| l.contains(&home)).map(|l| format!("mount {l}")));
        left.extend(links().difference(&self.links).map(|l| format!("link {l}")));
        left
    }

    fn keep_evidence(&self) -> io::Result<PathBuf> {
        let to = std::env::var_os("MINISVC_EVIDENCE")
            .map_or_else(|| std::env::temp_dir().join("minisvc-failed"), PathBuf::from)
            .join(&self.name);
        fs::create_dir_all(&to)?;
        for (file, line) in [
            ("nodes.txt", "minisvc get nodes,pods,services,endpointslices,events -A -o wide"),
            ("objects.yaml", "minisvc get nodes,pods,services,endpointslices,events -A -o yaml"),
        ] {
            fs::write(to.join(file), self.sh(line).to_string())?;
        }
        for node in 1..=3 {
            for (file, line) in [
                ("ruleset", "/usr/sbin/nft list ruleset"),
                ("links", "/usr/sbin/ip addr"),
                ("routes", "/usr/sbin/ip route show table all"),
                ("conntrack", "cat /proc/net/nf_conntrack"),
            ] {
                let said = self.sh(&format!("minisvc node exec node-{node} -- {line}"));
                fs::write(to.join(format!("node-{node}.{file}.txt")), said.to_string())?;
            }
        }
        let listing =
            Command::new("ls").arg("-laR").arg(self.home.path().join("XDG_RUNTIME_DIR")).output()?;
        fs::write(to.join("run-directory.txt"), listing.stdout)?;
        copy_tree(&self.home.path().join("XDG_STATE_HOME"), &to.join("logs"))?;
        Ok(to)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            match self.keep_evidence() {
                Ok(to) => eprintln!("rulesets, links, conntrack and logs are in {}", to.display()),
                Err(e) => eprintln!("the evidence could not be kept: {e}"),
            }
        }
        let down = self.run(&["down", "--purge", "--name", &self.name]);
        assert!(failed || down.status.success(), "{down}");
    }
}

/// Processes and namespaces of a cluster, as this machine sees them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Process id and start time, with the command's name.
    pub processes: BTreeMap<(i32, u64), String>,
    /// `net:[4026532000]` and the like.
    pub namespaces: BTreeSet<String>,
    /// When it was taken, in clock ticks since boot.
    at: u64,
}

impl Footprint {
    /// Of a process and all its descendants.
    fn of(first: i32) -> Self {
        let all: Vec<Process> = pids().into_iter().filter_map(Process::read).collect();
        let mut family = BTreeSet::from([first]);
        loop {
            let before = family.len();
            family
                .extend(all.iter().filter(|p| family.contains(&p.parent)).map(|p| p.pid).collect::<Vec<_>>());
            if family.len() == before {
                break;
            }
        }
        let own: BTreeSet<String> = namespaces("self");
        let at = all.iter().map(|p| p.start).max().unwrap_or_default();
        let mut footprint = Footprint { at, ..Footprint::default() };
        for process in all.into_iter().filter(|p| family.contains(&p.pid)) {
            footprint.namespaces.extend(namespaces(&process.pid.to_string()).difference(&own).cloned());
            footprint.processes.insert((process.pid, process.start), process.name);
        }
        footprint
    }

    /// Processes of this footprint that are still there.
    pub fn processes_left(&self) -> Vec<String> {
        let now = pids().into_iter().filter_map(Process::read);
        let left = now.filter_map(|p| self.processes.get_key_value(&(p.pid, p.start)));
        left.map(|((pid, _), name)| format!("process {pid} ({name})")).collect()
    }

    fn left(&self) -> Vec<String> {
        let mut left = self.processes_left();
        // Namespaces of later processes may have got the same numbers again.
        let earlier = pids().into_iter().filter_map(Process::read).filter(|p| p.start <= self.at);
        let alive: BTreeSet<String> = earlier.flat_map(|p| namespaces(&p.pid.to_string())).collect();
        left.extend(self.namespaces.intersection(&alive).map(|n| format!("namespace {n}")));
        left
    }
}

struct Process {
    pid: i32,
    parent: i32,
    start: u64,
    name: String,
}

impl Process {
    /// Of /proc/PID/stat; a zombie is no process any more.
    fn read(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (head, tail) = text.rsplit_once(')')?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        let name = head.split_once('(')?.1.to_owned();
        (fields.first()? != &"Z").then_some(())?;
        Some(Process {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
            name,
        })
    }
}

fn namespaces(of: &str) -> BTreeSet<String> {
    let link = |kind: &&str| fs::read_link(format!("/proc/{of}/ns/{kind}")).ok();
    let kinds = ["net", "mnt", "pid", "uts", "ipc", "user"];
    kinds.iter().filter_map(link).map(|l| l.to_string_lossy().into_owned()).collect()
}

fn links() -> BTreeSet<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

pub(crate) fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let there = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_tree(&entry.path(), &there)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), there)?;
        }
    }
    Ok(())
}
