//! Machines of their own, as far as one machine can have them: each has a network, a host name and directories of its own, where a
//! server or an agent runs as a user starts it. They are on one LAN, or on two with a router in between that knows nothing of pods.
//! What they share is the kernel, its clock and the rest of the file system.

#![allow(clippy::unwrap_used, reason = "a test kit: what cannot go on fails the test here")]

mod impostor;
mod machine;
mod process;
mod room;

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

pub use self::{
    impostor::{Impostor, OfAnotherCa, WithStolenKey},
    machine::Machine,
    process::Process,
    room::in_room,
};
use minisvc_proto::client::{Kubeconfig, kubeconfig::Credentials};

use nix::unistd::Pid;

use crate::{
    binary::minisvc,
    cluster::{Said, copy_tree},
    netns::{Lan, Namespace},
};

/// Where the server writes the administrator's configuration when it is told nothing.
pub const ADMIN: &str = "/var/lib/minisvc/server/admin.kubeconfig";
/// The machine that the server is on.
pub const SERVER: &str = "server";
const NETWORKS: [[u8; 3]; 2] = [[192, 0, 2], [198, 51, 100]];
const SERVER_PLACE: u8 = 10;

/// The machines of one test. They end when the test ends; a test that fails leaves logs and kernel state in one folder.
pub struct World {
    name: String,
    home: PathBuf,
    binary: PathBuf,
    lans: Vec<Lan>,
    router: Option<Namespace>,
    machines: Vec<Machine>,
    files: AtomicUsize,
}

impl World {
    /// A LAN with a machine for the server and these others: 192.0.2.10, .11 and so on.
    pub fn on_one_network(home: &Path, name: &str, machines: &[&str]) -> Self {
        let lan = Lan::new(address(0, 1)).unwrap();
        let mut world = Self::empty(home, name, vec![lan], None);
        let all = [SERVER].iter().chain(machines);
        all.zip(SERVER_PLACE..).for_each(|(name, last)| world.add(name, 0, last));
        world
    }

    /// Two LANs, 192.0.2.0/24 with the server and `here`, 198.51.100.0/24 with `there` (from .21), and a router in between: it knows
    /// these two networks, and drops what comes from or goes to any other.
    pub fn on_two_networks(home: &Path, name: &str, here: &[&str], there: &[&str]) -> Self {
        let mut lans = vec![Lan::switch(address(0, 1)).unwrap(), Lan::switch(address(1, 1)).unwrap()];
        let router = Namespace::new("router").unwrap();
        for (i, lan) in lans.iter_mut().enumerate() {
            lan.connect(&router, &format!("eth{i}"), address(i, 1)).unwrap();
        }
        router.run("sysctl", &["-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=1"]).unwrap();
        nft(
            &router,
            "table ip router { chain forward { type filter hook forward priority 0; policy drop; \
             ip saddr { 192.0.2.0/24, 198.51.100.0/24 } ip daddr { 192.0.2.0/24, 198.51.100.0/24 } accept; \
             counter comment \"strangers\"; }; }",
        );
        let mut world = Self::empty(home, name, lans, Some(router));
        let all = [SERVER].iter().chain(here);
        all.zip(SERVER_PLACE..).for_each(|(name, last)| world.add(name, 0, last));
        there.iter().zip(21..).for_each(|(name, last)| world.add(name, 1, last));
        world
    }

    fn empty(home: &Path, name: &str, lans: Vec<Lan>, router: Option<Namespace>) -> Self {
        World {
            name: name.replace("::", "-"),
            home: home.to_path_buf(),
            binary: minisvc().unwrap(),
            lans,
            router,
            machines: Vec::new(),
            files: AtomicUsize::new(0),
        }
    }

    fn add(&mut self, name: &str, lan: usize, last: u8) {
        let ip = address(lan, last);
        let net = self.lans[lan].machine(name, ip).unwrap();
        let port = (lan, self.lans[lan].last_port());
        self.machines.push(Machine::new(&self.home, &self.binary, net, ip, port).unwrap());
    }

    /// A machine by its name.
    pub fn machine(&self, name: &str) -> &Machine {
        let found = self.machines.iter().find(|m| m.name() == name);
        found.unwrap_or_else(|| panic!("there is no machine {name}"))
    }

    /// The world outside of the cluster, on the server's LAN (with a router in between: the router).
    pub fn outside(&self) -> &Namespace {
        self.router.as_ref().unwrap_or_else(|| self.lans[0].hub())
    }

    /// The router between two LANs.
    pub fn router(&self) -> &Namespace {
        self.router.as_ref().unwrap()
    }

    /// How many packets the router dropped since it does not know where they come from or go to.
    pub fn strangers(&self) -> u64 {
        let rules = self.router().run("nft", &["list", "chain", "ip", "router", "forward"]).unwrap();
        let mut words = rules.split_whitespace().skip_while(|w| *w != "packets");
        words.nth(1).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no counter in {rules}"))
    }

    /// The URL that agents and users reach the server by.
    pub fn url(&self) -> String {
        format!("https://{}:7443", self.machine(SERVER).ip())
    }

    /// `minisvc server` with these flags; returns when it serves.
    pub fn server(&self, flags: &[&str]) -> Process {
        let server = self.machine(SERVER).start(&[&["server"], flags].concat());
        server.until("the API is at");
        server
    }

    /// A command of the administrator, typed on the server's machine; words are split at blanks.
    pub fn sh(&self, line: &str) -> Said {
        self.run(&line.split_whitespace().skip_while(|w| *w == "minisvc").collect::<Vec<_>>())
    }

    /// The same, with words as they are.
    pub fn run(&self, args: &[&str]) -> Said {
        self.machine(SERVER).run(&[&["--config", ADMIN], args].concat())
    }

    /// An object as JSON.
    pub fn object(&self, what: &str) -> serde_json::Value {
        serde_json::from_str(&self.sh(&format!("minisvc get {what} -o json")).ok()).unwrap()
    }

    /// What a node's agent keeps: its certificate and key, and the cluster's CA.
    pub fn credentials_of(&self, node: &str) -> Credentials {
        let file = self.machine(node).path("/var/lib/minisvc/agent/node.kubeconfig");
        Kubeconfig::load(&file).unwrap().credentials().unwrap()
    }

    /// The text of a new join token, made with these flags.
    pub fn token(&self, flags: &str) -> String {
        self.sh(&format!("minisvc token create {flags}")).ok().trim().to_owned()
    }

    /// A file of mode 0600 with this text, which all machines can read.
    pub fn file(&self, text: &str) -> String {
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        let path = self.home.join(format!("file-{number}"));
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Starts an agent that joins with a token.
    pub fn join(&self, machine: &str, token: &str) -> Process {
        self.machine(machine).start(&["agent", "--server", &self.url(), "--token-file", &self.file(token)])
    }

    /// Runs an agent that is refused: its one line of error. The agent's log may say things before, never the error twice.
    pub fn refused(&self, machine: &str, flags: &[&str]) -> String {
        self.machine(machine).start(&[&["agent"], flags].concat()).refused()
    }

    /// The first process of a pod that runs. All processes of a room see each other, so that it is found by its variables.
    pub fn process_of(&self, pod: &str) -> Pid {
        let wanted = format!("MINISVC_POD={pod}");
        let is_its = |environ: Vec<u8>| environ.split(|b| *b == 0).any(|v| v == wanted.as_bytes());
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut its = pids.filter(|pid: &i32| fs::read(format!("/proc/{pid}/environ")).is_ok_and(is_its));
        Pid::from_raw(its.next().unwrap_or_else(|| panic!("no process of pod {pod} runs")))
    }

    /// The network of a pod that runs.
    pub fn pod(&self, pod: &str) -> Namespace {
        Namespace::open(pod, Path::new(&format!("/proc/{}/ns/net", self.process_of(pod)))).unwrap()
    }

    /// Returns when these nodes are Ready.
    pub fn ready(&self, nodes: &[&str]) {
        for node in nodes {
            self.sh(&format!("minisvc wait --for=create node/{node} --timeout=60s")).ok();
            self.sh(&format!("minisvc wait --for=condition=Ready node/{node} --timeout=60s")).ok();
        }
    }

    /// Pulls the machine's cable.
    pub fn cut(&self, machine: &str) {
        self.set_port(machine, "down");
    }

    /// Puts it back.
    pub fn heal(&self, machine: &str) {
        self.set_port(machine, "up");
    }

    fn set_port(&self, machine: &str, state: &str) {
        let (lan, port) = self.machine(machine).port();
        self.lans[*lan].hub().run("ip", &["link", "set", port, state]).unwrap();
    }

    /// From now on, of a hundred frames that a machine sends to its LAN so many are lost at random, whatever is in them.
    pub fn lose(&self, percent: u8) {
        for (lan, hub) in self.lans.iter().map(Lan::hub).enumerate() {
            nft(hub, "table netdev loss; delete table netdev loss");
            for (i, (_, port)) in self.machines.iter().map(Machine::port).filter(|p| p.0 == lan).enumerate() {
                nft(
                    hub,
                    &format!(
                        "table netdev loss {{ chain c{i} {{ type filter hook ingress device \"{port}\" priority 0; \
                         numgen random mod 100 < {percent} counter drop; }}; }}"
                    ),
                );
            }
        }
    }

    /// How many frames were lost by [`World::lose`] so far.
    pub fn lost(&self) -> u64 {
        let rules = |lan: &Lan| lan.hub().run("nft", &["list", "table", "netdev", "loss"]).unwrap();
        let count = |text: String| -> u64 {
            let words: Vec<&str> = text.split_whitespace().collect();
            words.windows(2).filter(|w| w[0] == "packets").map(|w| w[1].parse::<u64>().unwrap()).sum()
        };
        self.lans.iter().map(rules).map(count).sum()
    }

    fn keep_evidence(&self) -> io::Result<PathBuf> {
        let to = std::env::var_os("MINISVC_EVIDENCE")
            .map_or_else(|| std::env::temp_dir().join("minisvc-failed"), PathBuf::from)
            .join(&self.name);
        fs::create_dir_all(&to)?;
        let what = "nodes,pods,services,endpointslices,events,jointokens,nodecredentials";
        for format in ["wide", "yaml"] {
            let said = self.sh(&format!("minisvc get {what} -A -o {format}"));
            fs::write(to.join(format!("objects.{format}.txt")), said.to_string())?;
        }
        let namespaces = self.machines.iter().map(Machine::net).chain(&self.router);
        for namespace in namespaces.chain(self.lans.iter().map(Lan::hub)) {
            for (file, program, args) in [
                ("ruleset", "nft", &["list", "ruleset"][..]),
                ("links", "ip", &["-d", "-s", "address"]),
                ("routes", "ip", &["route", "show", "table", "all"]),
                ("neighbours", "ip", &["neighbour"]),
                ("forwarding", "bridge", &["fdb"]),
                ("conntrack", "cat", &["/proc/net/nf_conntrack"]),
            ] {
                let said = namespace.run(program, args).unwrap_or_else(|e| format!("{e:#}"));
                fs::write(to.join(format!("{}.{file}.txt", namespace.name())), said)?;
            }
        }
        for machine in &self.machines {
            copy_tree(&machine.logs(), &to.join(machine.name()))?;
        }
        Ok(to)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            match self.keep_evidence() {
                Ok(to) => eprintln!("rulesets, links, conntrack and logs are in {}", to.display()),
                Err(e) => eprintln!("the evidence could not be kept: {e}"),
            }
        }
    }
}

/// The address of a place on a LAN.
fn address(lan: usize, last: u8) -> Ipv4Addr {
    let [a, b, c] = NETWORKS[lan];
    Ipv4Addr::new(a, b, c, last)
}

fn nft(at: &Namespace, rules: &str) {
    at.run("nft", &[rules]).unwrap();
}
