//! Rules that let our traffic through, in the words of whoever owns the firewall.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::{
    packet::{TCP, UDP},
    ruleset::{Expr, Family, Hook, Rule, Table, Verdict},
    traffic::{Ours, Traffic},
};

/// Comment of every rule of ours in a table of others.
pub const COMMENT: &str = "minisvc";
/// The chain that Docker leaves to its users.
pub const DOCKER_USER: &str = "DOCKER-USER";

/// One accept rule: exactly so much of our traffic. What is absent may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pass {
    /// From here.
    pub source: Option<Ipv4Net>,
    /// To there.
    pub destination: Option<Ipv4Net>,
    /// Protocol; with a source or a destination port.
    pub protocol: Option<u8>,
    /// Source port.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
}

fn protocol_name(number: u8) -> &'static str {
    if number == TCP { "tcp" } else { "udp" }
}

impl Pass {
    /// As `nft` writes it, with the verdict.
    pub fn nft(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.source.map(|net| format!("ip saddr {}", short(net))));
        words.extend(self.destination.map(|net| format!("ip daddr {}", short(net))));
        let protocol = self.protocol.map_or("tcp", protocol_name);
        words.extend(self.sport.map(|port| format!("{protocol} sport {port}")));
        words.extend(self.dport.map(|port| format!("{protocol} dport {port}")));
        words.push("counter accept".into());
        words.join(" ")
    }

    /// As iptables writes it, with the target.
    pub fn iptables(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.source.map(|net| format!("-s {}", short(net))));
        words.extend(self.destination.map(|net| format!("-d {}", short(net))));
        words.extend(self.protocol.map(|p| format!("-p {}", protocol_name(p))));
        words.extend(self.sport.map(|port| format!("--sport {port}")));
        words.extend(self.dport.map(|port| format!("--dport {port}")));
        words.push("-j ACCEPT".into());
        words.join(" ")
    }

    /// As ufw writes it, behind `ufw allow` or `ufw route allow`.
    fn ufw(&self) -> String {
        let net = |net: Option<Ipv4Net>| net.map_or("any".into(), short);
        let mut words = Vec::new();
        words.extend(self.protocol.map(|p| format!("proto {}", protocol_name(p))));
        words.push(format!("from {}", net(self.source)));
        words.extend(self.sport.map(|port| format!("port {port}")));
        words.push(format!("to {}", net(self.destination)));
        words.extend(self.dport.map(|port| format!("port {port}")));
        words.join(" ")
    }

    /// The rule as others see it.
    pub fn rule(&self, family: Family) -> Rule {
        let r = 0;
        let mut expressions = Vec::new();
        if family == Family::Inet && (self.source.is_some() || self.destination.is_some()) {
            // The bytes of an IPv4 address are something else in an IPv6 packet.
            expressions.push(Expr::Meta { key: 15, to: r });
            expressions.push(Expr::Cmp { from: r, op: 0, data: vec![Family::Ip.number()] });
        }
        for (net, offset) in [(self.source, 12), (self.destination, 16)] {
            let Some(net) = net else { continue };
            expressions.push(Expr::Payload { base: 1, offset, len: 4, to: r });
            if net.prefix_len() < 32 {
                let mask = net.netmask().octets().to_vec();
                expressions.push(Expr::Bitwise { from: r, to: r, mask, xor: vec![0; 4] });
            }
            expressions.push(Expr::Cmp { from: r, op: 0, data: net.network().octets().to_vec() });
        }
        if let Some(protocol) = self.protocol {
            expressions.push(Expr::Meta { key: 16, to: r });
            expressions.push(Expr::Cmp { from: r, op: 0, data: vec![protocol] });
        }
        for (port, offset) in [(self.sport, 0), (self.dport, 2)] {
            let Some(port) = port else { continue };
            expressions.push(Expr::Payload { base: 2, offset, len: 2, to: r });
            expressions.push(Expr::Cmp { from: r, op: 0, data: port.to_be_bytes().to_vec() });
        }
        expressions.push(Expr::Passive);
        expressions.push(Expr::Verdict(Verdict::Accept));
        Rule { handle: 0, comment: COMMENT.into(), expressions }
    }
}

fn short(net: Ipv4Net) -> String {
    if net.prefix_len() == 32 { net.network().to_string() } else { net.to_string() }
}

/// What must pass at a hook so that these kinds of traffic do.
pub(super) fn passes(ours: &Ours, hook: Hook, kinds: &[Traffic]) -> Vec<Pass> {
    let pods = Some(ours.pod_cidr.trunc());
    let host = |ip: Ipv4Addr| Some(Ipv4Net::from(ip));
    let any = Pass::default;
    let mut out = Vec::new();
    let through = [Traffic::Pods, Traffic::OtherNodes, Traffic::Outside, Traffic::NodePorts];
    let all_pods = kinds.iter().any(|k| through.contains(k));
    if all_pods {
        out.push(Pass { source: pods, ..any() });
    }
    let to_pods = all_pods || (kinds.contains(&Traffic::NodeToPods) && hook != Hook::Input);
    if to_pods {
        out.push(Pass { destination: pods, ..any() });
    }
    let leaves = matches!(hook, Hook::Output | Hook::Postrouting);
    for kind in kinds {
        match kind {
            Traffic::NodeToPods if !all_pods && !leaves => {
                out.push(Pass { source: pods, destination: host(ours.node_ip), ..any() });
            }
            Traffic::Dns if all_pods || (leaves && to_pods) => {}
            Traffic::Dns => {
                for protocol in [UDP, TCP] {
                    let pass = if leaves {
                        Pass { source: host(ours.dns_ip), destination: pods, sport: Some(53), ..any() }
                    } else {
                        Pass { source: pods, destination: host(ours.dns_ip), dport: Some(53), ..any() }
                    };
                    out.push(Pass { protocol: Some(protocol), ..pass });
                }
            }
            Traffic::AgentApi => out.push(Pass {
                source: ours.server.and_then(host),
                protocol: Some(TCP),
                dport: Some(crate::config::API_PORT),
                ..any()
            }),
            Traffic::Vxlan => {
                out.push(Pass { protocol: Some(UDP), dport: Some(ours.vxlan_port), ..any() });
            }
            _ => {}
        }
    }
    out
}

/// Rules to be inserted at the head of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// The table's family.
    pub family: Family,
    /// The table.
    pub table: String,
    /// The chain that gets them: the one that blocks, or Docker's for users.
    pub chain: String,
    /// The rules.
    pub passes: Vec<Pass>,
}

impl Remedy {
    /// Lines for a shell that do it with `nft` alone; they hold until the firewall's owner loads its rules anew.
    pub fn nft(&self) -> Vec<String> {
        let place = format!("{} {} {}", self.family.name(), self.table, self.chain);
        self.passes.iter().map(|p| format!("nft insert rule {place} {}", p.nft())).collect()
    }

    /// Lines for a shell that do it in the way of the firewall's owner. `iptables`: the program that speaks to nf_tables here.
    pub fn commands(&self, table: &Table, hook: Hook, ours: &Ours, iptables: &str) -> Vec<String> {
        let pods = short(ours.pod_cidr.trunc());
        let is_ufw = |name: &str| name.starts_with("ufw-");
        if self.family == Family::Inet && self.table == "firewalld" {
            let add = |what: String| format!("firewall-cmd --permanent {what}");
            let mut lines = Vec::new();
            for pass in &self.passes {
                let line = match (pass.protocol, pass.dport) {
                    (Some(p), Some(port)) if pass.source != Some(ours.pod_cidr.trunc()) => {
                        add(format!("--add-port={port}/{}", protocol_name(p)))
                    }
                    _ => add(format!("--zone=trusted --add-source={pods}")),
                };
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
            lines.push("firewall-cmd --reload".into());
            return lines;
        }
        if table.chains.iter().any(|c| is_ufw(&c.name)) && matches!(hook, Hook::Forward | Hook::Input) {
            let verb = if hook == Hook::Forward { "ufw route allow" } else { "ufw allow" };
            return self.passes.iter().map(|p| format!("{verb} {}", p.ufw())).collect();
        }
        let is_iptables = self.family == Family::Ip
            && ["filter", "mangle", "raw", "nat", "security"].contains(&self.table.as_str())
            && table.chain(hook.builtin()).is_some_and(|c| c.base.is_some());
        if is_iptables {
            let place = if self.table == "filter" { String::new() } else { format!("-t {} ", self.table) };
            let line = |p: &Pass| format!("{iptables} {place}-I {} {}", self.chain, p.iptables());
            return self.passes.iter().map(line).collect();
        }
        self.nft()
    }
}
