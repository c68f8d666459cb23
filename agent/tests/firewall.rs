//! Rulesets of others as machines have them, with real packets: what the judgement says is what packets meet, before and after the
//! commands that it names have been run.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, reason = "shared with the test of packets")]
#[path = "packets/cluster.rs"]
mod cluster;
#[path = "firewall/rulesets.rs"]
mod rulesets;

use std::{collections::BTreeSet, net::Ipv4Addr};

use cluster::{CLIENT, Cluster, POD_PORT, Service, node_ip};
use minisvc_agent::firewall::{Foreign, Judgement, Ours, Traffic, judge};
use minisvc_tests::{
    netns::{Namespace, isolated},
    traffic::{Connection, Flow, SILENCE, Server},
};

const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const API: u16 = 10250;
const VXLAN: u16 = 8473;
const WORLD_PORT: u16 = 7000;

/// Two nodes with everything that a firewall on the first may drop.
struct Stand {
    cluster: Cluster,
    _servers: Vec<Server>,
}

impl Stand {
    fn new() -> anyhow::Result<Self> {
        let mut cluster = Cluster::new(2)?;
        for (node, pod) in [(1, "a"), (1, "b"), (2, "c")] {
            cluster.pod(node, pod)?;
        }
        let here = Service::new(1).node_port(30081).endpoints(&cluster, &["a"]);
        let there = Service::new(2).node_port(30082).endpoints(&cluster, &["c"]);
        cluster.apply([&here, &there])?;
        let servers = vec![
            Server::start(cluster.outside(), WORLD_PORT)?,
            Server::start_on(cluster.node(1), DNS, 53)?,
            Server::start(cluster.node(1), API)?,
            Server::start(cluster.node(1), VXLAN)?,
            Server::start(cluster.node(2), VXLAN)?,
        ];
        Ok(Stand { cluster, _servers: servers })
    }

    fn node(&self) -> &Namespace {
        self.cluster.node(1)
    }

    /// The kinds of traffic that do not all pass.
    fn dropped(&self) -> anyhow::Result<BTreeSet<Traffic>> {
        let c = &self.cluster;
        let pod = |name: &str| (c.ip(name), POD_PORT);
        let (a, node, outside) = (c.ns("a"), c.node(1), c.outside());
        let ways: Vec<(Traffic, &Namespace, (Ipv4Addr, u16), &str)> = vec![
            (Traffic::Pods, a, pod("b"), "tcp udp"),
            (Traffic::OtherNodes, a, pod("c"), "tcp udp"),
            (Traffic::OtherNodes, c.ns("c"), pod("a"), "tcp udp"),
            (Traffic::Outside, a, (CLIENT, WORLD_PORT), "tcp udp"),
            (Traffic::NodePorts, outside, (node_ip(1), 30081), "tcp udp"),
            (Traffic::NodePorts, outside, (node_ip(1), 30082), "tcp udp"),
            (Traffic::NodeToPods, node, pod("a"), "tcp udp"),
            (Traffic::NodeToPods, node, pod("c"), "tcp udp"),
            (Traffic::Dns, a, (DNS, 53), "tcp udp"),
            (Traffic::AgentApi, c.node(2), (node_ip(1), API), "tcp"),
            (Traffic::Vxlan, c.node(2), (node_ip(1), VXLAN), "udp"),
            (Traffic::Vxlan, node, (node_ip(2), VXLAN), "udp"),
        ];
        let passes = |from: &Namespace, to, protocol: &str| {
            from.enter(|| {
                Ok(match protocol {
                    "tcp" => Connection::within(to, SILENCE).is_ok_and(|mut c| c.ask().is_ok()),
                    _ => Flow::open(to)?.ask_within(SILENCE).is_ok(),
                })
            })
        };
        let mut dropped = BTreeSet::new();
        std::thread::scope(|scope| {
            let asked: Vec<_> = ways
                .iter()
                .flat_map(|way| way.3.split(' ').map(move |protocol| (way, protocol)))
                .map(|((kind, from, to, _), protocol)| {
                    (*kind, scope.spawn(move || passes(from, *to, protocol)))
                })
                .collect();
            for (kind, answer) in asked {
                if !answer.join().map_err(|_| anyhow::anyhow!("a client panicked"))?? {
                    dropped.insert(kind);
                }
            }
            anyhow::Ok(())
        })?;
        Ok(dropped)
    }

    fn ours(&self) -> anyhow::Result<Ours> {
        let index = self.node().enter(|| Ok(nix::net::if_::if_nametoindex("eth0")?))?;
        Ok(Ours {
            node_ip: node_ip(1),
            uplink: ("eth0".into(), index),
            local_pod_cidr: "10.244.1.0/24".parse()?,
            pod_cidr: "10.244.0.0/16".parse()?,
            service_cidr: "10.96.0.0/16".parse()?,
            dns_ip: DNS,
            vxlan_port: VXLAN,
            server: Some(node_ip(2)),
        })
    }

    fn judged(&self) -> anyhow::Result<Judgement> {
        let ours = self.ours()?;
        self.node().enter(|| Ok(judge(&Foreign::open()?.read()?, &ours)))
    }

    fn shell(&self, script: &str) -> anyhow::Result<()> {
        self.node().run("sh", &["-e", "-c", script]).map(drop)
    }

    fn clear(&self) -> anyhow::Result<()> {
        let listed = self.node().run("nft", &["list", "tables"])?;
        for table in listed.lines().filter(|l| *l != "table ip minisvc") {
            self.shell(&format!("nft delete {table}"))?;
        }
        Ok(())
    }
}

fn kinds(judgement: &Judgement) -> BTreeSet<Traffic> {
    judgement.blocked.iter().flat_map(|b| b.traffic.clone()).collect()
}

#[test]
fn the_judgement_is_what_packets_meet_and_its_commands_help() -> anyhow::Result<()> {
    isolated("the_judgement_is_what_packets_meet_and_its_commands_help", || {
        let stand = Stand::new()?;
        assert_eq!(stand.dropped()?, [].into());
        assert_eq!(stand.judged()?, Judgement::default());
        for ruleset in rulesets::ALL {
            let name = ruleset.name;
            stand.shell(ruleset.load)?;
            let judgement = stand.judged()?;
            let dropped = stand.dropped()?;
            assert_eq!(kinds(&judgement), dropped, "{name}: {judgement}");
            assert_eq!(dropped.is_empty(), ruleset.says.is_empty(), "{name}: {judgement}");
            assert_eq!(judgement.unclear, [], "{name}");
            let text = judgement.to_string();
            for word in ruleset.says {
                assert!(text.contains(word), "{name}: {text:?} lacks {word:?}");
            }
            for blocker in &judgement.blocked {
                // The programs of firewalld and ufw cannot be run here; what nft does in their place is the same rule.
                let foreign = ["firewall-cmd ", "ufw "].iter().any(|p| blocker.commands[0].starts_with(p));
                let commands = if foreign { blocker.remedy.nft() } else { blocker.commands.clone() };
                stand.shell(&commands.join(" && "))?;
            }
            let judgement = stand.judged()?;
            assert_eq!(judgement, Judgement::default(), "{name}: {judgement}");
            assert_eq!(stand.dropped()?, [].into(), "{name}");
            stand.clear()?;
        }
        Ok(())
    })
}

#[test]
fn rules_of_ours_in_chains_of_others_come_and_go_and_touch_nothing_else() -> anyhow::Result<()> {
    isolated("rules_of_ours_in_chains_of_others_come_and_go_and_touch_nothing_else", || {
        let stand = Stand::new()?;
        let listed = || stand.node().run("sh", &["-c", "iptables-save; nft list ruleset"]);
        // Counters count, and services' clients come and go.
        let stable = |text: String| {
            let (others, _) = text.split_once("table ip minisvc").unwrap_or((&text, ""));
            let words = others
                .split_whitespace()
                .filter(|w| !w.contains(|c: char| c.is_ascii_digit()) || w.contains('.'));
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        for ruleset in rulesets::ALL.iter().filter(|r| !r.says.is_empty()) {
            let name = ruleset.name;
            stand.shell(ruleset.load)?;
            let before = stable(listed()?);
            let blocked = stand.judged()?.blocked;
            let remedies: Vec<_> = blocked.iter().map(|b| b.remedy.clone()).collect();
            // The second time takes the place of the first.
            for _ in 0..2 {
                stand.node().enter(|| {
                    let mut foreign = Foreign::open()?;
                    let rules = foreign.read()?;
                    Ok(foreign.insert(&rules, &remedies)?)
                })?;
            }
            assert_eq!(stand.judged()?, Judgement::default(), "{name}");
            assert_eq!(stand.dropped()?, [].into(), "{name}");
            let found = stand.node().run("nft", &["list", "ruleset"])?;
            for remedy in &remedies {
                let is_iptables = remedy.chain.chars().all(|c| c.is_ascii_uppercase() || c == '-');
                for pass in &remedy.passes {
                    // Counters have counted meanwhile.
                    let matching = pass.nft().replace("counter accept", "counter packets ");
                    let line = found.lines().find(|l| l.trim().starts_with(&matching));
                    let line = line.ok_or_else(|| anyhow::anyhow!("{name}: no {matching} in {found}"))?;
                    assert!(line.ends_with("accept comment \"minisvc\""), "{name}: {line}");
                    if is_iptables {
                        let rules =
                            stand.node().run("iptables", &["-t", &remedy.table, "-S", &remedy.chain])?;
                        let ours =
                            rules.lines().filter(|l| l.ends_with("-m comment --comment minisvc -j ACCEPT"));
                        assert_eq!(ours.count(), remedy.passes.len(), "{name}: {rules}");
                    }
                }
            }
            let removed = stand.node().enter(|| {
                let mut foreign = Foreign::open()?;
                let rules = foreign.read()?;
                Ok(foreign.remove(&rules)?)
            })?;
            assert_eq!(removed, remedies.iter().map(|r| r.passes.len()).sum::<usize>(), "{name}");
            assert_eq!(stable(listed()?), before, "{name}");
            assert_eq!(stand.judged()?.blocked, blocked, "{name}");
            stand.clear()?;
        }
        Ok(())
    })
}

#[test]
fn what_cannot_be_told_is_no_alarm() -> anyhow::Result<()> {
    isolated("what_cannot_be_told_is_no_alarm", || {
        let stand = Stand::new()?;
        // Who may pass depends on the hour.
        stand.shell(
            "nft -f - <<'END'
table inet hours {
  chain forward { type filter hook forward priority 0; policy accept; meta hour \"01:00\"-\"02:00\" drop; }
}
END",
        )?;
        let judgement = stand.judged()?;
        assert_eq!((judgement.blocked.len(), judgement.unclear.len()), (0, 1), "{judgement}");
        assert!(
            judgement.to_string().starts_with("it cannot be told whether table inet hours, chain forward")
        );
        stand.clear()?;
        // A mark that somebody writes is a mark that anything may depend on; one that nobody writes is none.
        stand.shell("iptables -P FORWARD DROP; iptables -A FORWARD -m mark --mark 0x1 -j ACCEPT")?;
        assert_eq!(stand.judged()?.blocked.len(), 1);
        stand.shell("iptables -t mangle -A PREROUTING -i tailscale0 -j MARK --set-mark 0x1")?;
        assert_eq!(stand.judged()?.blocked.len(), 1, "nothing of ours comes in by that link");
        stand.shell("iptables -t mangle -A PREROUTING -m length --length 0:100 -j MARK --set-mark 0x1")?;
        let judgement = stand.judged()?;
        assert_eq!((judgement.blocked.len(), judgement.unclear.len()), (0, 1), "{judgement}");
        stand.clear()?;
        // Rules of iptables-legacy are not to be seen.
        stand.shell("iptables-legacy -A FORWARD -s 198.51.100.1 -j DROP")?;
        let judgement = stand.judged()?;
        assert_eq!((judgement.legacy.as_slice(), judgement.blocked.len()), (&["filter".to_owned()][..], 0));
        assert!(judgement.to_string().contains("iptables-legacy-save"), "{judgement}");
        Ok(())
    })
}
