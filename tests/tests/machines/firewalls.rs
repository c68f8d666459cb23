//! Machines that have a firewall, Docker, or somebody else's networks.

use minisvc_tests::machines::{Machine, World, in_room};

use super::{answers, cluster_ip, hello, join, placed, text};

/// What Docker leaves of the forward chain.
const DOCKER: &str = "iptables -P FORWARD DROP
    iptables -N DOCKER-USER; iptables -N DOCKER-FORWARD; iptables -N DOCKER-CT
    iptables -A FORWARD -j DOCKER-USER; iptables -A FORWARD -j DOCKER-FORWARD; iptables -A DOCKER-FORWARD -j DOCKER-CT
    iptables -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
    iptables -A DOCKER-FORWARD -i docker0 -j ACCEPT";

fn shell(machine: &Machine, script: &str) -> String {
    machine.net().run("sh", &["-e", "-c", script]).unwrap()
}

/// The node's condition and its message, once it has this status.
fn condition(world: &World, node: &str, status: &str) -> String {
    world
        .sh(&format!("minisvc wait --for=condition=ForeignFirewall={status} node/{node} --timeout=60s"))
        .ok();
    // Who writes one condition leaves the others alone. (An agent that has just started is not ready for a moment.)
    world.sh(&format!("minisvc wait --for=condition=Ready node/{node} --timeout=60s")).ok();
    let node = world.object(&format!("node/{node}"));
    let all = node["status"]["conditions"].as_array().unwrap();
    let found = all.iter().find(|c| c["type"] == "ForeignFirewall").unwrap();
    text(&found["message"])
}

/// Whether the node's port is answered.
fn is_answered(world: &World, node: &str) -> bool {
    let url = format!("http://{}:30080/", world.machine(node).ip());
    let script = format!("curl -sS --max-time 2 {url} >/dev/null 2>&1 && echo yes || echo no");
    shell(world.machine("server"), &script).trim() == "yes"
}

/// Status and message of a check in what `doctor -o json` prints.
fn finding(out: &str, check: &str) -> (String, String) {
    let all: serde_json::Value = serde_json::from_str(out).unwrap();
    let found = all["findings"].as_array().unwrap().iter().find(|f| f["check"] == check);
    let found = found.unwrap_or_else(|| panic!("no {check} in {out}"));
    (text(&found["status"]), text(&found["message"]))
}

#[test]
fn the_doctor_knows_the_way_to_the_server_before_and_after_joining() {
    in_room("firewalls::the_doctor_knows_the_way_to_the_server_before_and_after_joining", |home| {
        let world = World::on_one_network(home, "doctor", &["node-1"]);
        let machine = world.machine("node-1");
        let url = world.url();
        let ask = |flags: &[&str]| {
            let said = machine.run(&[&["doctor", "-o", "json"], flags].concat());
            finding(&said.out, "server")
        };
        assert_eq!(ask(&[]).0, "warn");
        let (status, message) = ask(&["--server", &url]);
        assert!(status == "fail" && message.contains("does not answer"), "{message}");
        let _server = world.server(&[]);
        assert_eq!(ask(&["--server", &url]).0, "warn");
        let token = world.token("");
        let (status, message) = ask(&["--server", &url, "--token", &token]);
        assert!(status == "ok" && message.contains("is ready"), "{message}");
        let (_, other) = token.rsplit_once('.').unwrap();
        let wrong = token.replace(other, &"ab".repeat(32));
        assert_eq!(ask(&["--server", &url, "--token", &wrong]).0, "fail");
        shell(machine, "ip route add 10.96.4.0/24 via 192.0.2.1 dev eth0 onlink");
        let said = machine.run(&["doctor", "-o", "json"]);
        let (status, message) = finding(&said.out, "ranges");
        assert!(status == "fail" && message.contains("10.96.4.0/24"), "{message}");
        assert_eq!(said.status.code(), Some(1));
        shell(machine, "ip route del 10.96.4.0/24");

        let _agent = world.join("node-1", &token);
        world.ready(&["node-1"]);
        let said = machine.run(&["doctor", "-o", "json"]);
        for check in ["server", "clock", "ranges", "ports", "firewall", "kernel features"] {
            assert_eq!(finding(&said.out, check).0, "ok", "{said}");
        }
    });
}

#[test]
fn the_command_in_the_condition_lets_traffic_through_dockers_chains() {
    in_room("firewalls::the_command_in_the_condition_lets_traffic_through_dockers_chains", |home| {
        let nodes = ["node-1", "node-2"];
        let world = World::on_one_network(home, "docker", &nodes);
        let _server = world.server(&[]);
        let _agents = join(&world, &nodes);
        hello(&world, 4);
        assert_eq!(condition(&world, "node-1", "False"), "no rule of others drops this cluster's traffic");
        assert!(is_answered(&world, "node-1"));

        let machine = world.machine("node-1");
        shell(machine, DOCKER);
        let message = condition(&world, "node-1", "True");
        assert!(
            message.starts_with("table ip filter, chain FORWARD (policy drop) drops pod to pod, "),
            "{message}"
        );
        assert!(!is_answered(&world, "node-1"));
        let described = world.sh("minisvc describe node node-1").ok();
        assert!(described.contains("ForeignFirewall") && described.contains("DOCKER-USER"), "{described}");
        // The other machine has no Docker.
        condition(&world, "node-2", "False");

        let (_, command) = message.split_once("; run: ").unwrap();
        let doctor = machine.run(&["doctor"]);
        assert_eq!(doctor.status.code(), Some(1), "{doctor}");
        let line = doctor.out.lines().find(|l| l.starts_with("firewall ")).unwrap();
        assert!(line.contains("FAIL") && line.ends_with(command), "{line}");
        assert!(command.starts_with("iptables -I DOCKER-USER -s 10.244.0.0/16 -j ACCEPT"), "{command}");
        shell(machine, command);
        condition(&world, "node-1", "False");
        let doctor = finding(&machine.run(&["doctor", "-o", "json"]).out, "firewall");
        assert_eq!(
            (doctor.0.as_str(), doctor.1.as_str()),
            ("ok", "no rule of others drops this cluster's traffic")
        );
        let pods: std::collections::BTreeSet<String> = placed(&world).into_keys().collect();
        for url in [format!("http://{}/", cluster_ip(&world)), format!("http://{}:30080/", machine.ip())] {
            assert_eq!(answers(machine, &url, 40), pods);
        }
        assert_eq!(answers(world.machine("server"), &format!("http://{}:30080/", machine.ip()), 40), pods);
    });
}

#[test]
fn a_firewall_that_the_agent_may_manage_is_opened_and_closed_again() {
    in_room("firewalls::a_firewall_that_the_agent_may_manage_is_opened_and_closed_again", |home| {
        let world = World::on_one_network(home, "managed", &["node-1", "node-2"]);
        let _server = world.server(&[]);
        let machine = world.machine("node-1");
        shell(machine, DOCKER);
        let before = shell(machine, "iptables -S");
        let (url, token) = (world.url(), world.file(&world.token("")));
        let flags = ["agent", "--server", &url, "--token-file", &token];
        let agent = machine.start(&[&flags[..], &["--manage-host-firewall"]].concat());
        let _other = world.machine("node-2").start(&flags);
        world.ready(&["node-1", "node-2"]);
        hello(&world, 4);
        condition(&world, "node-1", "False");
        assert!(is_answered(&world, "node-1"));
        let added = |now: &str| now.matches("-m comment --comment minisvc -j ACCEPT").count();
        let now = shell(machine, "iptables -S");
        assert_eq!(added(&now), 2, "{now}");
        let others: Vec<&str> = now.lines().filter(|l| !l.contains("minisvc")).collect();
        assert_eq!(others, before.lines().collect::<Vec<_>>());

        // Docker starts anew.
        shell(machine, "iptables -F DOCKER-USER");
        super::until("the rules are back", || added(&shell(machine, "iptables -S")) == 2);
        assert!(is_answered(&world, "node-1"));

        // Without the flag the next agent takes them back.
        agent.stop();
        let _agent = machine.start(&["agent"]);
        condition(&world, "node-1", "True");
        assert_eq!(shell(machine, "iptables -S"), before);
    });
}

#[test]
fn a_machine_that_has_what_the_cluster_needs_is_refused() {
    in_room("firewalls::a_machine_that_has_what_the_cluster_needs_is_refused", |home| {
        let world = World::on_one_network(home, "taken", &["node-1"]);
        let _server = world.server(&[]);
        let (url, token) = (world.url(), world.file(&world.token("")));
        let flags = ["--server", url.as_str(), "--token-file", &token];
        let machine = world.machine("node-1");
        for (make, undo, says) in [
            (
                "ip route add 10.244.128.0/17 via 192.0.2.1 dev eth0 onlink",
                "ip route del 10.244.128.0/17",
                "the pod range 10.244.0.0/16 overlaps the route to 10.244.128.0/17 by eth0: give the server another --pod-cidr, or remove the route",
            ),
            (
                "ip link add other type bridge; ip addr add 10.96.7.1/24 dev other",
                "ip link del other",
                "the service range 10.96.0.0/16 overlaps address 10.96.7.1/24 of link other: give the server another --service-cidr",
            ),
            (
                "nft add table ip kube-proxy",
                "nft delete table ip kube-proxy",
                "a kube-proxy owns the services of this machine (table ip kube-proxy): end it and run `kube-proxy --cleanup`",
            ),
            (
                "iptables -t nat -N KUBE-SERVICES",
                "iptables -t nat -X KUBE-SERVICES",
                "(chain KUBE-SERVICES of table ip nat)",
            ),
        ] {
            shell(machine, make);
            let line = world.refused("node-1", &flags);
            assert!(line.contains("this machine cannot be a node of this cluster: "), "{line}");
            assert!(line.contains(says), "{line}");
            shell(machine, undo);
        }
        let _agent = machine.start(&[&["agent"], &flags[..]].concat());
        world.ready(&["node-1"]);
    });
}

/// The rules of wg-quick and of Tailscale, with a link in the place of theirs.
const MARKERS: &str = "ip link add wg0 type veth peer name wg0-peer; ip link set wg0 up; ip addr add 198.51.100.2/32 dev wg0
    ip route add default dev wg0 table 51820
    ip rule add not fwmark 0xca6c table 51820
    ip rule add table main suppress_prefixlength 0
    ip rule add priority 5210 fwmark 0x80000/0xff0000 table main
    ip rule add priority 5250 fwmark 0x80000/0xff0000 type unreachable
    ip rule add priority 5270 table 52
    nft -f - <<'END'
table ip wg-quick-wg0 {
  chain preraw { type filter hook prerouting priority raw; iifname != \"wg0\" ip daddr 198.51.100.2 fib saddr type != local drop; }
  chain premangle { type filter hook prerouting priority mangle; meta l4proto udp meta mark set ct mark; }
  chain postmangle { type filter hook postrouting priority mangle; meta l4proto udp meta mark 0xca6c ct mark set meta mark; }
}
END
    iptables -N ts-input; iptables -N ts-forward; iptables -A INPUT -j ts-input; iptables -A FORWARD -j ts-forward
    iptables -A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP
    iptables -A ts-forward -i tailscale0 -j MARK --set-xmark 0x40000/0xff0000
    iptables -A ts-forward -m mark --mark 0x40000/0xff0000 -j ACCEPT
    iptables -A ts-forward -s 100.64.0.0/10 -o tailscale0 -j DROP
    iptables -A ts-forward -o tailscale0 -j ACCEPT";

#[test]
fn rules_about_marks_neither_mislead_us_nor_are_touched() {
    in_room("firewalls::rules_about_marks_neither_mislead_us_nor_are_touched", |home| {
        let nodes = ["node-1", "node-2"];
        let world = World::on_one_network(home, "marks", &nodes);
        let _server = world.server(&[]);
        for node in nodes {
            shell(world.machine(node), MARKERS);
        }
        let theirs = |node: &str| {
            // Ours carry our protocol's number.
            let lines = "ip rule | grep -v 'proto 173'; ip route show table 51820; nft list table ip wg-quick-wg0; iptables -S";
            shell(world.machine(node), lines)
        };
        let before = nodes.map(theirs);
        let _agents = join(&world, &nodes);
        hello(&world, 4);
        let pods: std::collections::BTreeSet<String> = placed(&world).into_keys().collect();
        let ip = cluster_ip(&world);
        for node in nodes {
            let machine = world.machine(node);
            assert_eq!(answers(machine, &format!("http://{ip}/"), 40), pods, "from {node}");
            let url = format!("http://{}:30080/", machine.ip());
            assert_eq!(answers(world.machine("server"), &url, 40), pods, "through {node}");
            assert_eq!(condition(&world, node, "False"), "no rule of others drops this cluster's traffic");
        }
        for pod in &pods {
            assert_eq!(super::answers_to_pod(&world, pod, "http://hello/", 40), pods, "from {pod}");
        }
        assert_eq!(nodes.map(theirs), before);
    });
}
