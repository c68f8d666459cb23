//! kill -9 of an agent in the midst of anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use minisvc_tests::machines::{Machine, World, in_room};
use nix::sys::signal::Signal;

use super::{join, text, until};

/// The moments of the kills follow from it, as far as the machine's own pace lets them.
const SEED: u64 = 20_261_125;

/// SplitMix64: a fixed sequence is all that is asked of it. [Steele, Lea, Flood 2014]
struct Dice(u64);

impl Dice {
    /// One of `0..sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// What the pods of a node take up, as the machine sees it.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    /// Names of links in the node's network.
    links: BTreeSet<String>,
    /// Routes of it, but those that the kernel makes by itself, some of them seconds after a link.
    routes: BTreeSet<String>,
    /// Entries two levels deep in the agent's run directory.
    files: BTreeSet<String>,
    /// Network namespaces that have processes.
    networks: BTreeSet<String>,
    /// Process ids of shims, by the pod's directory.
    shims: BTreeMap<String, usize>,
    /// Processes of pods, by pod.
    pods: BTreeMap<String, usize>,
}

fn lines(machine: &Machine, args: &[&str]) -> BTreeSet<String> {
    machine.net().run("ip", args).unwrap().lines().map(|l| l.trim().to_owned()).collect()
}

fn held(machine: &Machine) -> Held {
    let links = lines(machine, &["-o", "link"])
        .iter()
        .filter_map(|l| Some(l.split_whitespace().nth(1)?.to_owned()))
        .collect();
    let (mut files, mut networks) = (BTreeSet::new(), BTreeSet::new());
    let (mut shims, mut pods) = (BTreeMap::new(), BTreeMap::new());
    let run = machine.path("/run");
    let mut folders = vec![(run.clone(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            files.insert(entry.path().strip_prefix(&run).unwrap().display().to_string());
            if depth < 3 && entry.path().is_dir() {
                folders.push((entry.path(), depth + 1));
            }
        }
    }
    for process in fs::read_dir("/proc").unwrap().flatten().map(|e| e.path()) {
        if let Ok(net) = fs::read_link(process.join("ns/net")) {
            networks.insert(net.display().to_string());
        }
        let words = fs::read(process.join("cmdline")).unwrap_or_default();
        let words: Vec<String> =
            words.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        if words.iter().any(|w| w == "shim") {
            *shims.entry(words.join(" ")).or_default() += 1;
        } else if let Ok(environ) = fs::read(process.join("environ")) {
            let name = environ.split(|b| *b == 0).find_map(|v| v.strip_prefix(b"MINISVC_POD="));
            // The counter sleeps between its lines, in a process of its own.
            if let Some(name) = name.filter(|_| words[0] != "sleep") {
                *pods.entry(String::from_utf8_lossy(name).into_owned()).or_default() += 1;
            }
        }
    }
    let mut routes = lines(machine, &["route", "show", "table", "all"]);
    routes.retain(|r| !r.contains("proto kernel"));
    Held { links, routes, files, networks, shims, pods }
}

/// The pods that the server knows; `None` while one of them ends or is not Ready.
fn settled(world: &World) -> Option<Vec<String>> {
    let list = world.object("pods");
    let pods = list["items"].as_array().unwrap().iter().map(|p| {
        let conditions = p["status"]["conditions"].as_array().into_iter().flatten();
        let ready = conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        (ready && p["metadata"]["deletionTimestamp"].is_null()).then(|| text(&p["metadata"]["name"]))
    });
    pods.collect()
}

#[test]
fn an_agent_that_is_killed_at_any_moment_keeps_doubles_and_leaks_nothing() {
    in_room("agent_faults::an_agent_that_is_killed_at_any_moment_keeps_doubles_and_leaks_nothing", |home| {
        let rounds = if std::env::var_os("MINISVC_LONG").is_some() { 200 } else { 12 };
        let mut dice = Dice(SEED);
        let world = World::on_one_network(home, "agent-faults", &["node-1"]);
        // A slow start of an agent is not what is looked at here.
        let _server = world.server(&["--pod-eviction-timeout", "1h"]);
        let mut agent = join(&world, &["node-1"]).pop().unwrap();
        let machine = world.machine("node-1");
        world.sh("minisvc create deployment hello --replicas 0 -- minisvc echo --port 8080").ok();
        let empty = held(machine);

        let count = "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.02; done";
        world.run(&["run", "counter", "--", "sh", "-c", count]).ok();
        world.sh("minisvc wait --for=condition=Ready pod/counter --timeout=30s").ok();
        let first = text(&world.object("pod/counter")["status"]["containerStatuses"][0]["containerID"]);

        for round in 0..rounds {
            let replicas = dice.roll(6);
            world.sh(&format!("minisvc scale deployment hello --replicas {replicas}")).ok();
            if dice.roll(3) == 0 {
                // May find the agent away.
                let _ = world.run(&["exec", "counter", "--", "true"]);
            }
            // Each look takes some milliseconds: the kill comes somewhere in the midst of starts and ends.
            for _ in 0..dice.roll(12) {
                world.sh("minisvc get pods").ok();
            }
            agent.signal(Signal::SIGKILL);
            agent.ended();
            agent = machine.start(&["agent", "--server", &world.url()]);
            if dice.roll(2) == 0 {
                agent.until("registered");
            }
            eprintln!("round {round}: {replicas} replicas");
        }

        world.sh("minisvc scale deployment hello --replicas 3").ok();
        let mut names = Vec::new();
        until("the counter and three pods are Ready", || {
            names = settled(&world).unwrap_or_default();
            names.len() == 4
        });
        until("each pod has its one process and its one shim, and nobody else has any", || {
            let now = held(machine);
            let pods: BTreeMap<String, usize> = names.iter().map(|n| (n.clone(), 1)).collect();
            now.pods == pods && now.shims.len() == 4 && now.shims.values().all(|n| *n == 1)
        });
        let now = held(machine);
        assert_eq!(now.links.len(), empty.links.len() + 4, "{now:#?} {empty:#?}");
        assert_eq!(now.networks.len(), empty.networks.len() + 4, "{now:#?} {empty:#?}");
        let ips: BTreeSet<String> =
            names.iter().map(|n| text(&world.object(&format!("pod/{n}"))["status"]["podIP"])).collect();
        assert_eq!(ips.len(), 4, "no address twice");

        let counter = world.object("pod/counter");
        assert_eq!(counter["status"]["containerStatuses"][0]["restartCount"], 0, "{counter:#}");
        assert_eq!(text(&counter["status"]["containerStatuses"][0]["containerID"]), first);
        let log = world.sh("minisvc logs counter").ok();
        assert!(log.lines().count() > rounds);
        for (i, line) in log.lines().enumerate() {
            assert_eq!(line, format!("line {i}"), "the log is whole");
        }

        world.sh("minisvc scale deployment hello --replicas 0").ok();
        world.sh("minisvc delete pod counter --grace-period=1").ok();
        let mut last = None;
        until("no pod is left", || settled(&world).is_some_and(|p| p.is_empty()));
        until("nothing of the pods is left on the machine", || {
            let now = held(machine);
            let same = now == empty;
            if !same && last.as_ref() != Some(&now) {
                eprintln!("still there: {:?}", now.files.difference(&empty.files).collect::<Vec<_>>());
                eprintln!(
                    "links {:?}, networks {}",
                    now.links.difference(&empty.links).collect::<Vec<_>>(),
                    now.networks.len()
                );
                eprintln!("routes {:?}", now.routes.symmetric_difference(&empty.routes).collect::<Vec<_>>());
            }
            last = Some(now);
            same
        });
    });
}
