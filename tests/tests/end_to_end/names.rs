//! Names, as the resolvers that users have ask for them: glibc, musl, BIND's tools, busybox; from pods and from nodes.

use std::{
    fs::File,
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use minisvc_tests::cluster::{Cluster, Said};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{crashes::pids_with, object};

/// Programs that ask, with Debian's packages of them.
const TOOLS: [(&str, &str); 5] = [
    ("dig", "bind9-dnsutils"),
    ("nslookup", "bind9-dnsutils"),
    ("busybox", "busybox"),
    ("musl-gcc", "musl-tools"),
    ("getent", "libc-bin"),
];

const OBJECTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: dgram, port: 53, targetPort: 8080, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: None
  selector: {app: web}
  ports: [{name: sql, port: 5432, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: alias}
spec: {type: ExternalName, externalName: web.default.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: idle}
spec: {clusterIP: None, selector: {app: nobody}, ports: [{port: 1}]}
---
apiVersion: v1
kind: Service
metadata: {name: big}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, labels: {app: web}}
spec:
  hostname: web-0
  subdomain: db
  containers: [{name: main, command: [minisvc, echo, --port, '8080'], ports: [{containerPort: 8080}]}]
";

/// Asks as any program does: both families, for a stream.
const ASK: &str = r#"
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
int main(int argc, char **argv) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *all;
    int error = getaddrinfo(argv[1], "80", &hints, &all);
    if (error) { puts(gai_strerror(error)); return 1; }
    for (; all; all = all->ai_next) {
        char text[64];
        if (!getnameinfo(all->ai_addr, all->ai_addrlen, text, sizeof text, 0, 0, NI_NUMERICHOST)) puts(text);
    }
    return 0;
}
"#;

fn demand_tools() {
    for (tool, package) in TOOLS {
        let found = ["/usr/bin", "/bin", "/usr/sbin"].iter().any(|d| PathBuf::from(d).join(tool).exists());
        assert!(found, "{tool} is missing: apt-get install {package}");
    }
}

/// A cluster with [`OBJECTS`], and 200 endpoints for `big`.
fn cluster(name: &str) -> Cluster {
    let cluster = Cluster::up(name, 1);
    let slice = |number: u8| {
        let endpoints: String =
            (1..=100).map(|n| format!("{{addresses: [192.0.{number}.{n}]}}")).collect::<Vec<_>>().join(", ");
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: big-{number}, labels: \
             {{kubernetes.io/service-name: big}}}}\naddressType: IPv4\nports: [{{name: http, port: 80}}]\nendpoints: [{endpoints}]\n"
        )
    };
    let text = [OBJECTS, &slice(2), &slice(3)].concat();
    let file = cluster.home().join("objects.yaml");
    std::fs::write(&file, text).unwrap();
    cluster.run(&["create", "-f", file.to_str().unwrap()]).ok();
    cluster.sh("minisvc wait --for=condition=Ready pod/web-0 --timeout=60s").ok();
    for service in ["web", "db", "big"] {
        cluster.sh(&format!("minisvc wait --for=condition=Programmed service/{service} --timeout=60s")).ok();
    }
    // Started when the services are there.
    cluster.sh("minisvc run asker -- sleep 3600").ok();
    cluster.sh("minisvc wait --for=condition=Ready pod/asker --timeout=60s").ok();
    cluster
}

fn ip(cluster: &Cluster, what: &str, pointer: &str) -> String {
    let object = object(cluster, what);
    object.pointer(pointer).and_then(|v| v.as_str()).unwrap_or_else(|| panic!("{object}")).to_owned()
}

#[test]
fn every_resolver_finds_every_name() {
    demand_tools();
    let cluster = cluster("names");
    let web = ip(&cluster, "service/web", "/spec/clusterIP");
    let pod = ip(&cluster, "pod/web-0", "/status/podIP");
    let in_pod = |line: &str| cluster.run(&["exec", "asker", "--", "sh", "-c", line]);
    let on_node = |line: &str| cluster.run(&["node", "exec", "node-1", "--", "sh", "-c", line]);
    let places: [&dyn Fn(&str) -> Said; 2] = [&in_pod, &on_node];
    for ask in places {
        let lines = |line: &str| {
            let mut lines: Vec<String> = ask(line).ok().lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        // glibc: the search path, both families at a time.
        for name in ["web", "web.default", "WEB.default.svc", "web.default.svc.cluster.local.", "alias"] {
            let said = ask(&format!("getent ahosts {name}")).ok();
            assert!(
                said.lines().all(|l| l.starts_with(&format!("{web} "))) && !said.is_empty(),
                "{name}: {said}"
            );
        }
        assert!(ask("getent hosts db").ok().starts_with(&pod));
        assert!(ask("getent hosts web-0.db").ok().starts_with(&pod));
        assert!(ask(&format!("getent hosts {web}")).ok().contains("web.default.svc.cluster.local"));
        assert_eq!(ask("getent hosts idle").status.code(), Some(2), "no endpoint, no name");
        assert_eq!(ask("getent hosts nobody").status.code(), Some(2));
        // 200 addresses do not fit into a datagram: it comes again over TCP.
        assert_eq!(ask("getent ahosts big | grep -c STREAM").ok().trim(), "200");

        // BIND's tools: one question in all its shapes.
        for options in
            ["", "+tcp", "+noedns", "+bufsize=512", "+dnssec", "+nocookie", "+norecurse", "+qr +subnet=0/0"]
        {
            let said = lines(&format!(
                "dig +short {options} web.default.svc.cluster.local | grep -v '^;' | tail -1"
            ));
            assert_eq!(said, [web.as_str()], "{options}");
        }
        assert_eq!(lines("dig +search +short web"), [web.as_str()]);
        let case = ask("dig wEb.DeFault.svc.cluster.local").ok();
        assert!(case.contains("wEb.DeFault.svc.cluster.local. 5 IN\tA"), "{case}");
        assert_eq!(
            lines("dig +short SRV _http._tcp.web.default.svc.cluster.local"),
            ["0 100 80 web.default.svc.cluster.local."]
        );
        assert_eq!(
            lines("dig +short SRV _dgram._udp.web.default.svc.cluster.local"),
            ["0 100 53 web.default.svc.cluster.local."]
        );
        assert_eq!(
            lines("dig +short SRV _sql._tcp.db.default.svc.cluster.local"),
            ["0 100 8080 web-0.db.default.svc.cluster.local."]
        );
        assert_eq!(lines(&format!("dig +short -x {web}")), ["web.default.svc.cluster.local."]);
        assert_eq!(lines(&format!("dig +short -x {pod}")), ["web-0.db.default.svc.cluster.local."]);
        assert_eq!(lines("dig +short TXT dns-version.cluster.local"), ["\"1.1.0\""]);
        assert_eq!(
            lines("dig +short alias.default.svc.cluster.local"),
            [&web, "web.default.svc.cluster.local."]
        );
        assert_eq!(lines("dig +short kubernetes.default.svc.cluster.local"), ["10.96.0.1"]);
        let status = |line: &str| {
            let said = ask(line).ok();
            let at = said.find("status: ").unwrap_or_else(|| panic!("{line}: {said}")) + 8;
            said[at..].split(',').next().unwrap().to_owned()
        };
        assert_eq!(status("dig nobody.default.svc.cluster.local"), "NXDOMAIN");
        assert_eq!(status("dig AAAA web.default.svc.cluster.local"), "NOERROR");
        assert_eq!(status("dig +edns=1 +noednsneg web.default.svc.cluster.local"), "BADVERS");
        assert_eq!(status("dig -x 10.96.255.254"), "NXDOMAIN");
        assert_eq!(status("dig CH TXT version.bind"), "REFUSED");
        let cut = ask("dig +ignore big.default.svc.cluster.local").ok();
        assert!(cut.contains(" tc ") && cut.contains("192.0."), "{cut}");
        assert_eq!(lines("dig +short big.default.svc.cluster.local").len(), 200);
        let said = ask("nslookup web").ok();
        assert!(said.contains(&format!("Address: {web}")), "{said}");
        let said = ask(&format!("nslookup {web}")).ok();
        assert!(said.contains("name = web.default.svc.cluster.local."), "{said}");
        let said = ask("busybox nslookup web.default.svc.cluster.local").ok();
        assert!(said.contains(&web), "{said}");
    }
    // musl: a program that brings its own C library, and with it another resolver.
    let (source, program) = (cluster.home().join("ask.c"), cluster.home().join("ask"));
    std::fs::write(&source, ASK).unwrap();
    let compiled =
        Command::new("musl-gcc").args(["-static", "-o"]).args([&program, &source]).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    for name in ["web", "web.default", "alias", "web.default.svc.cluster.local"] {
        let script = format!("cat > /tmp/ask && chmod 755 /tmp/ask && /tmp/ask {name}");
        let output = cluster
            .command(cluster.binary())
            .args(["exec", "-i", "asker", "--", "sh", "-c", &script])
            .stdin(Stdio::from(File::open(&program).unwrap()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.trim(), web, "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
    // What was laid over on the node is for such programs alone.
    assert!(on_node("cat /etc/resolv.conf").ok().contains("nameserver 10.96.0.10"));
    assert!(!std::fs::read_to_string("/etc/resolv.conf").unwrap().contains("10.96.0.10"));
}

#[test]
fn variables_name_the_services_that_were_there() {
    let cluster = cluster("variables");
    let web = ip(&cluster, "service/web", "/spec/clusterIP");
    let environment = |pod: &str| {
        cluster.run(&["exec", pod, "--", "sh", "-c", "tr '\\0' '\\n' < /proc/$(pgrep -o sleep)/environ"]).ok()
    };
    let said = environment("asker");
    for want in [
        format!("WEB_SERVICE_HOST={web}"),
        "WEB_SERVICE_PORT=80".into(),
        "WEB_SERVICE_PORT_DGRAM=53".into(),
        format!("WEB_PORT_53_UDP=udp://{web}:53"),
        "KUBERNETES_SERVICE_HOST=10.96.0.1".into(),
    ] {
        assert!(said.lines().any(|l| l == want), "{want} is not in {said}");
    }
    assert!(!said.contains("DB_SERVICE_HOST") && !said.contains("ALIAS_"), "{said}");
    let file = cluster.home().join("plain.yaml");
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: plain}\nspec:\n  enableServiceLinks: false\n  \
               containers: [{name: main, command: [sleep, '3600']}]\n";
    std::fs::write(&file, pod).unwrap();
    cluster.run(&["create", "-f", file.to_str().unwrap()]).ok();
    cluster.sh("minisvc wait --for=condition=Ready pod/plain --timeout=60s").ok();
    let said = environment("plain");
    assert!(!said.contains("WEB_") && said.contains("KUBERNETES_SERVICE_PORT=443"), "{said}");
}

/// Goes on when the test does.
struct Stopped(Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

#[test]
fn names_are_found_while_the_server_is_down() {
    let cluster = cluster("alone");
    let script = "while :; do getent hosts web || echo missing; sleep 0.05; done";
    cluster.run(&["run", "watcher", "--", "sh", "-c", script]).ok();
    cluster.sh("minisvc wait --for=condition=Ready pod/watcher --timeout=60s").ok();
    let logs = cluster.logs().join("node-1");
    let of_watcher = |e: &std::fs::DirEntry| e.file_name().to_string_lossy().starts_with("default_watcher_");
    let folder = std::fs::read_dir(&logs).unwrap().flatten().find(of_watcher).unwrap().path();
    let container = std::fs::read_dir(&folder).unwrap().flatten().next().unwrap().path();
    let read = || std::fs::read_to_string(container.join("0.log")).unwrap_or_default();
    let footprint = cluster.footprint();
    let [server] = pids_with(&footprint, &["server", "--advertise"])[..] else { panic!("{footprint:?}") };
    kill(Pid::from_raw(server), Signal::SIGSTOP).unwrap();
    let _stopped = Stopped(Pid::from_raw(server));
    let before = read().lines().count();
    let end = Instant::now() + Duration::from_mins(1);
    while read().lines().count() < before + 40 {
        assert!(Instant::now() < end, "the pod says nothing any more: {}", read());
        std::thread::yield_now();
    }
    let said = read();
    assert!(said.contains("web.default.svc.cluster.local") && !said.contains("missing"), "{said}");
}
