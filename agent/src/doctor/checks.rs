//! The findings, as values of what was observed.

use serde::Serialize;

use super::{
    Taken,
    facts::{FORWARDING6, Facts, Server},
};

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Something may not work.
    Warn,
    /// No node or no server can be here.
    Fail,
}

/// One line of the doctor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found, and what to do about it.
    pub message: String,
}

fn finding(check: &'static str, status: Status, message: impl Into<String>) -> Finding {
    Finding { check, status, message: message.into() }
}

fn ok(check: &'static str, message: impl Into<String>) -> Finding {
    finding(check, Status::Ok, message)
}
fn warn(check: &'static str, message: impl Into<String>) -> Finding {
    finding(check, Status::Warn, message)
}
fn fail(check: &'static str, message: impl Into<String>) -> Finding {
    finding(check, Status::Fail, message)
}

/// The oldest kernel that has all that the rules need.
const KERNEL: (u32, u32) = (5, 14);
/// So far off, certificates, which are back-dated by a day, are not yet or no longer good.
const CLOCK_LIMIT: i64 = 24 * 3600;
/// From here on a clock is worth a word.
const CLOCK_WORD: i64 = 2;
/// 10250 and 7443 are ours where an agent or a server runs.
const API: u16 = crate::config::API_PORT;
const SERVER_PORT: u16 = 7443;
const MTU: u32 = 1280;
/// A connection costs the kernel about this many bytes.
const CONNECTION: u64 = 320;

/// All findings, in the order in which they are worth reading.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut all = vec![kernel(&facts.kernel)];
    all.push(match &facts.features {
        _ if !facts.is_admin => warn("kernel features", "not looked at: run this as root (CAP_NET_ADMIN)"),
        Ok(()) => ok("kernel features", "nf_tables has all that services need"),
        Err(e) => fail("kernel features", format!("{e}; load the module, or use a kernel that has it")),
    });
    all.push(match &facts.vxlan {
        None => {
            warn("vxlan", "not looked at: run this as root; it is needed for nodes on other networks alone")
        }
        Some(Ok(())) => ok("vxlan", "links of type vxlan can be made"),
        Some(Err(e)) => warn(
            "vxlan",
            format!(
                "no vxlan link can be made ({e}): nodes on other networks cannot be reached; `modprobe vxlan`"
            ),
        ),
    });
    all.extend([privileges(facts), namespaces(facts), directories(facts), cgroups(facts)]);
    all.extend(confinement(facts));
    all.extend([forwarding(facts), reverse_path(facts), bridges(facts), local_ports(facts)]);
    all.extend(forwarding6(facts));
    all.extend([conntrack(facts), ports(facts), mtu(facts)]);
    all.extend(ranges(facts));
    all.extend(firewalls(facts));
    all.extend(server(facts.server.as_ref(), facts.url.as_deref()));
    all
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= KERNEL => ok("kernel", format!("Linux {release}")),
        _ => fail("kernel", format!("Linux {release}: minisvc needs 5.14 or newer; upgrade the kernel")),
    }
}

fn privileges(facts: &Facts) -> Finding {
    if facts.is_admin && facts.is_mounter {
        return ok("privileges", "may administer networks and namespaces");
    }
    let lacks = if facts.is_admin { "CAP_SYS_ADMIN" } else { "CAP_NET_ADMIN" };
    warn(
        "privileges",
        format!("{lacks} is missing: an agent needs root (or its capabilities); `minisvc up` does without"),
    )
}

fn namespaces(facts: &Facts) -> Finding {
    let check = "namespaces";
    for (what, key) in [
        ("network", "user/max_net_namespaces"),
        ("mount", "user/max_mnt_namespaces"),
        ("pid", "user/max_pid_namespaces"),
    ] {
        if facts.sysctl(key) == Some(0) {
            let name = key.replace('/', ".");
            return fail(check, format!("{what} namespaces are switched off: run `sysctl -w {name}=15000`"));
        }
    }
    if facts.is_admin {
        return ok(check, "network, mount and pid namespaces are there");
    }
    if facts.sysctl("user/max_user_namespaces") == Some(0) {
        return fail(
            check,
            "user namespaces are switched off: run `sysctl -w user.max_user_namespaces=15000`, or be root",
        );
    }
    if facts.sysctl("kernel/unprivileged_userns_clone") == Some(0) {
        return fail(
            check,
            "user namespaces are root's alone: run `sysctl -w kernel.unprivileged_userns_clone=1`, or be root",
        );
    }
    if facts.sysctl("kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        return fail(
            check,
            "AppArmor keeps user namespaces from ordinary users: run `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`, or be root",
        );
    }
    ok(check, "user namespaces are there: `minisvc up` needs no root")
}

fn directories(facts: &Facts) -> Finding {
    let bad: Vec<&str> = facts.read_only.iter().map(String::as_str).collect();
    if bad.is_empty() {
        return ok("directories", "data, run and log directories can be written");
    }
    let text =
        format!("cannot be written: {}; run as root, or give other directories by flags", bad.join(", "));
    if facts.is_root { fail("directories", text) } else { warn("directories", text) }
}

fn cgroups(facts: &Facts) -> Finding {
    match facts.cgroups {
        Some(kind) => ok("cgroups", format!("{kind}; minisvc sets no limits, so that any will do")),
        None => ok("cgroups", "none are mounted; minisvc needs none"),
    }
}

fn confinement(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(container) = facts.container {
        let text = "an agent needs cap_add NET_ADMIN and SYS_ADMIN, security_opt apparmor=unconfined where there is AppArmor, and net.ipv4.ip_forward=1 by sysctls";
        let is_enough = facts.is_admin && facts.is_mounter;
        let make = if is_enough { ok } else { warn };
        found.push(make("container", format!("inside a container ({container}): {text}")));
    }
    found
}

fn forwarding(facts: &Facts) -> Finding {
    match (facts.sysctl("net/ipv4/ip_forward"), facts.is_sysctl_writable) {
        (Some(0), false) => fail(
            "ip_forward",
            "off, and it cannot be set here: run `sysctl -w net.ipv4.ip_forward=1`, in a container by its sysctls",
        ),
        (Some(0), true) => ok("ip_forward", "off; the agent switches it on"),
        (Some(_), _) => ok("ip_forward", "on"),
        (None, _) => warn("ip_forward", "cannot be read: is /proc mounted?"),
    }
}

/// Of a dual-stack cluster alone.
fn forwarding6(facts: &Facts) -> Option<Finding> {
    facts.ranges.second?;
    let check = "ip6_forward";
    Some(match (facts.sysctl(FORWARDING6), facts.is_sysctl_writable) {
        (Some(0), false) => warn(
            check,
            "off, and it cannot be set here, so that this is a node of IPv4 alone: run `sysctl -w net.ipv6.conf.all.forwarding=1` \
             (where router advertisements give routes, net.ipv6.conf.LINK.accept_ra=2 before), in a container by its sysctls",
        ),
        (Some(0), true) => ok(check, "off; the agent switches it on"),
        (Some(_), _) => ok(check, "on"),
        (None, _) => warn(check, "this kernel has no IPv6: this is a node of IPv4 alone"),
    })
}

fn reverse_path(facts: &Facts) -> Finding {
    let of = |name: &str| facts.sysctl(&format!("net/ipv4/conf/{name}/rp_filter")).unwrap_or(0);
    let (all, default) = (of("all"), of("default"));
    if all == 1 || default == 1 {
        return ok(
            "rp_filter",
            format!(
                "strict (all={all}, default={default}); works, as routes of pods lead both ways by the same link; with several uplinks set 2"
            ),
        );
    }
    ok("rp_filter", format!("all={all}, default={default}"))
}

fn bridges(facts: &Facts) -> Finding {
    match facts.sysctl("net/bridge/bridge-nf-call-iptables") {
        Some(1) => ok(
            "bridge-nf-call",
            "on (as Docker sets it): pods here have no bridge, so that it does not matter to them",
        ),
        Some(_) => ok("bridge-nf-call", "off"),
        None => ok("bridge-nf-call", "br_netfilter is not loaded"),
    }
}

fn local_ports(facts: &Facts) -> Finding {
    let (first, last) = facts.node_ports;
    match facts.local_ports {
        Some((low, high)) if low <= last && high >= first && !facts.is_admin => warn(
            "local ports",
            format!(
                "net.ipv4.ip_local_port_range {low}-{high} overlaps nodePorts {first}-{last}; the agent reserves them if it may"
            ),
        ),
        Some((low, high)) => {
            ok("local ports", format!("{low}-{high}; the agent reserves nodePorts {first}-{last} in it"))
        }
        None => warn("local ports", "net.ipv4.ip_local_port_range cannot be read"),
    }
}

fn conntrack(facts: &Facts) -> Finding {
    let check = "conntrack";
    let Some(most) = facts.sysctl("net/netfilter/nf_conntrack_max") else {
        return ok(check, "not loaded yet: the agent's rules load it");
    };
    let used = facts.sysctl("net/netfilter/nf_conntrack_count").unwrap_or(0);
    if most > 0 && used * 10 >= most * 8 {
        return fail(
            check,
            format!(
                "{used} of {most} connections are tracked: run `sysctl -w net.netfilter.nf_conntrack_max={}`",
                most * 4
            ),
        );
    }
    // One per 32 KiB of memory, as the kernel itself chooses at a start, is what a machine can bear easily.
    let bearable = (facts.memory_kib / 32).clamp(16_384, 262_144);
    if most < bearable / 2 {
        return warn(
            check,
            format!(
                "room for {most} connections is little for this machine: run `sysctl -w net.netfilter.nf_conntrack_max={bearable}` ({} MiB)",
                (bearable * CONNECTION) >> 20
            ),
        );
    }
    ok(check, format!("{used} of {most} connections"))
}

fn ports(facts: &Facts) -> Finding {
    let check = "ports";
    let (first, last) = facts.node_ports;
    let taken = |udp: bool, port: u16| facts.listening.iter().any(|l| l.is_udp == udp && l.port == port);
    if facts.has_agent {
        return ok(check, "an agent runs here and has its ports");
    }
    if taken(false, API) {
        return fail(
            check,
            format!(
                "port {API}/tcp, the agent's, is taken: `ss -ltnp 'sport = :{API}'` says by whom; end that"
            ),
        );
    }
    if taken(true, facts.vxlan_port) {
        let port = facts.vxlan_port;
        return warn(
            check,
            format!(
                "port {port}/udp, VXLAN's, is taken: end what has it, or give the server another --vxlan-port"
            ),
        );
    }
    if facts.listening.iter().any(|l| !l.is_udp && l.port == 53 && l.is_everywhere) {
        return fail(
            check,
            "port 53 of all addresses is taken by another DNS server: let it listen on its own addresses alone (bind-interfaces of dnsmasq)",
        );
    }
    let inside: Vec<String> = facts
        .listening
        .iter()
        .filter(|l| (first..=last).contains(&l.port))
        .map(|l| format!("{}/{}", l.port, if l.is_udp { "udp" } else { "tcp" }))
        .collect();
    if !inside.is_empty() {
        return warn(
            check,
            format!(
                "{} of the nodePorts are taken; a service with one of them takes precedence",
                inside.join(", ")
            ),
        );
    }
    let server = if taken(false, SERVER_PORT) { "; 7443 is taken (a server runs here?)" } else { "" };
    ok(check, format!("{API}, {}, 53 and the nodePorts are free{server}", facts.vxlan_port))
}

fn mtu(facts: &Facts) -> Finding {
    match &facts.uplink {
        Some((link, mtu)) if *mtu < MTU => warn(
            "mtu",
            format!(
                "{mtu} on {link}: less than {MTU} leaves little for VXLAN; run `ip link set {link} mtu 1500`"
            ),
        ),
        Some((link, mtu)) => ok("mtu", format!("{mtu} on {link}, {} through VXLAN", mtu - 50)),
        None => warn("mtu", "no link with a default route: give the node an address with --node-ip"),
    }
}

fn ranges(facts: &Facts) -> Vec<Finding> {
    let mut found: Vec<Finding> = (facts.taken.iter())
        .map(|t| fail(if matches!(t, Taken::KubeProxy(_)) { "kube-proxy" } else { "ranges" }, t.to_string()))
        .collect();
    if !found.iter().any(|f| f.check == "ranges") {
        let (pods, services) = (facts.ranges.pods, facts.ranges.services);
        found.push(ok("ranges", format!("pods {pods} and services {services} overlap nothing")));
    }
    for (name, link) in &facts.owners {
        found.push(warn(
            "other networks",
            format!(
                "{name} is here (link {link}): it may stay, if its ranges and its rules do not meet ours"
            ),
        ));
    }
    found
}

fn firewalls(facts: &Facts) -> Vec<Finding> {
    let check = "firewall";
    match &facts.judgement {
        None if facts.is_admin => {
            vec![warn(check, "not looked at: this machine has no default route; give --server URL")]
        }
        None => vec![warn(check, "not looked at: run this as root (CAP_NET_ADMIN)")],
        Some(Err(e)) => vec![warn(check, format!("{e}: look with `nft list ruleset`"))],
        Some(Ok(judgement)) => {
            let make = if !judgement.blocked.is_empty() {
                fail
            } else if judgement.unclear.is_empty() && judgement.legacy.is_empty() {
                ok
            } else {
                warn
            };
            vec![make(check, judgement.to_string())]
        }
    }
}

fn server(seen: Option<&Server>, url: Option<&str>) -> Vec<Finding> {
    let Some(url) = url else {
        return vec![warn(
            "server",
            "not asked: no credentials of a node can be read here; give --server URL",
        )];
    };
    match seen {
        None | Some(Server::NoName) => {
            vec![fail("server", format!("{url}: its name has no address; correct the URL, or the resolver"))]
        }
        Some(Server::NoConnection(e)) => {
            vec![fail(
                "server",
                format!("{url} does not answer ({e}): is it running, is its port open on the way?"),
            )]
        }
        Some(Server::Listening) => {
            vec![warn(
                "server",
                format!("{url} takes connections; who it is cannot be told without credentials or a token"),
            )]
        }
        Some(Server::Refused(e)) => vec![fail("server", format!("{url}: {e}"))],
        Some(Server::Ready { round_trip_ms, offset }) => {
            let mut found = vec![ok("server", format!("{url} is ready, {round_trip_ms} ms away"))];
            found.push(match offset {
                None => warn("clock", "the server did not say its time"),
                Some(s) if s.abs() >= CLOCK_LIMIT => fail(
                    "clock",
                    format!("{}: certificates do not hold; set it (`timedatectl set-ntp true`)", off(*s)),
                ),
                Some(s) if s.abs() > CLOCK_WORD => {
                    warn("clock", format!("{}: tolerated; set it (`timedatectl set-ntp true`)", off(*s)))
                }
                Some(_) => ok("clock", "as the server's"),
            });
            found
        }
    }
}

fn off(seconds: i64) -> String {
    let way = if seconds > 0 { "ahead of" } else { "behind" };
    format!("{} s {way} the server's", seconds.abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::facts::Listener;

    fn found(change: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        let mut facts = Facts::sound();
        change(&mut facts);
        findings(&facts)
    }

    #[test]
    fn a_sound_machine_has_nothing_to_say() {
        let all = found(|_| {});
        assert!(all.iter().all(|f| f.status == Status::Ok), "{all:#?}");
    }

    #[test]
    fn each_fault_is_one_line_that_says_what_to_do() {
        type Change = fn(&mut Facts);
        let cases: &[(&str, Status, &str, Change)] = &[
            ("kernel", Status::Fail, "upgrade", |f| f.kernel = "5.10.0-33-amd64".into()),
            ("kernel features", Status::Fail, "load the module", |f| {
                f.features = Err("lacks nft_fib".into());
            }),
            ("vxlan", Status::Warn, "modprobe vxlan", |f| f.vxlan = Some(Err("EOPNOTSUPP".into()))),
            ("privileges", Status::Warn, "CAP_SYS_ADMIN", |f| f.is_mounter = false),
            ("namespaces", Status::Fail, "sysctl -w user.max_net_namespaces", |f| {
                f.set("user/max_net_namespaces", 0);
            }),
            ("directories", Status::Fail, "/var/lib/minisvc", |f| {
                f.read_only = vec!["/var/lib/minisvc".into()];
            }),
            ("ip_forward", Status::Fail, "sysctl -w net.ipv4.ip_forward=1", |f| {
                f.set("net/ipv4/ip_forward", 0);
                f.is_sysctl_writable = false;
            }),
            ("ip6_forward", Status::Warn, "sysctl -w net.ipv6.conf.all.forwarding=1", |f| {
                f.ranges.second = Some(("fd00::/48".parse().unwrap(), "fd01::/112".parse().unwrap()));
                f.set("net/ipv6/conf/all/forwarding", 0);
                f.is_sysctl_writable = false;
            }),
            ("conntrack", Status::Fail, "nf_conntrack_max=1048576", |f| {
                f.set("net/netfilter/nf_conntrack_count", 250_000);
            }),
            ("conntrack", Status::Warn, "nf_conntrack_max=262144", |f| {
                f.set("net/netfilter/nf_conntrack_max", 1000);
            }),
            ("ports", Status::Fail, "10250", |f| {
                f.listening.push(Listener { is_udp: false, port: 10250, is_everywhere: true });
            }),
            ("ports", Status::Fail, "bind-interfaces", |f| {
                f.listening.push(Listener { is_udp: false, port: 53, is_everywhere: true });
            }),
            ("ports", Status::Warn, "30080/tcp", |f| {
                f.listening.push(Listener { is_udp: false, port: 30080, is_everywhere: true });
            }),
            ("mtu", Status::Warn, "mtu 1500", |f| f.uplink = Some(("eth0".into(), 576))),
            ("kube-proxy", Status::Fail, "--cleanup", |f| {
                f.taken = vec![Taken::KubeProxy("table ip kube-proxy".into())];
            }),
            ("other networks", Status::Warn, "cilium_host", |f| {
                f.owners = vec![("Cilium", "cilium_host".into())];
            }),
            ("firewall", Status::Warn, "iptables-legacy-save", |f| {
                f.judgement = Some(Ok(crate::firewall::Judgement {
                    legacy: vec!["filter".into()],
                    ..Default::default()
                }));
            }),
            ("server", Status::Fail, "its name has no address", |f| f.server = Some(Server::NoName)),
            ("server", Status::Warn, "give --server", |f| f.url = None),
            ("clock", Status::Warn, "3600 s behind the server's", |f| {
                f.server = Some(Server::Ready { round_trip_ms: 1, offset: Some(-3600) });
            }),
            ("clock", Status::Fail, "certificates do not hold", |f| {
                f.server = Some(Server::Ready { round_trip_ms: 1, offset: Some(100_000) });
            }),
        ];
        for (check, status, says, change) in cases {
            let all = found(change);
            let line = all.iter().find(|f| f.check == *check && f.status != Status::Ok);
            let line = line.unwrap_or_else(|| panic!("{check} finds nothing"));
            assert_eq!(line.status, *status, "{line:?}");
            assert!(line.message.contains(says) && !line.message.contains('\n'), "{line:?}");
        }
    }
}
