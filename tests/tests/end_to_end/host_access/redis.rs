//! A real database of this machine, with its own client in a pod.

use super::*;

/// A Redis of the test's own on this machine's loopback address.
struct Redis {
    port: u16,
    _server: Background,
    _data: tempfile::TempDir,
}

impl Redis {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut command = Command::new("redis-server");
        command.args([
            "--bind",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
        ]);
        command.arg(data.path()).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut server =
            command.spawn().unwrap_or_else(|e| panic!("redis-server: {e}; tests/run --install brings it"));
        let said = BufReader::new(server.stdout.take().unwrap());
        let redis = Redis { port, _server: Background(server), _data: data };
        let mut lines = said.lines().map_while(Result::ok);
        assert!(lines.any(|l| l.contains("Ready to accept connections")), "redis-server ended");
        // It may go on talking.
        thread::spawn(move || lines.for_each(drop));
        redis
    }
}

/// A name and an address of the cluster for what listens on this machine: a service without a selector, and its endpoint.
fn database(port: u16) -> String {
    format!(
        r"
apiVersion: v1
kind: Service
metadata: {{name: db}}
spec:
  ports: [{{name: redis, port: 6379, targetPort: {port}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: db-this-machine
  labels: {{kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{{addresses: [{ADDRESS}]}}]
ports: [{{name: redis, port: {port}, protocol: TCP}}]
"
    )
}

#[test]
fn a_pod_uses_a_redis_of_this_machine_by_its_name_and_as_a_service() {
    let redis = Redis::start();
    let cluster = Cluster::up("redis", 2);
    two_pods(&cluster);
    let pods = pod_names(&cluster);
    let cli = |pod: &str, host: &str, port: u16, words: &[&str]| {
        let port = port.to_string();
        let place = ["exec", pod, "--", "redis-cli", "-h", host, "-p", &port];
        cluster.run(&[&place[..], words].concat()).ok().trim().to_owned()
    };
    assert_eq!(cli(&pods[0], NAME, redis.port, &["set", "greeting", "hello"]), "OK");
    assert_eq!(cli(&pods[1], NAME, redis.port, &["get", "greeting"]), "hello");

    let manifest = cluster.home().join("db.yaml");
    std::fs::write(&manifest, database(redis.port)).unwrap();
    cluster.run(&["create", "-f", manifest.to_str().unwrap()]).ok();
    cluster.sh("minisvc wait --for=condition=Programmed service/db --timeout=30s").ok();
    for pod in &pods {
        assert_eq!(cli(pod, "db", 6379, &["get", "greeting"]), "hello");
        let visits = cli(pod, "db.default.svc.cluster.local", 6379, &["incr", "visits"]);
        assert!(visits.parse::<u32>().is_ok(), "{visits}");
    }
    assert_eq!(cli(&pods[0], NAME, redis.port, &["get", "visits"]), "2");
    // Fifty clients with four questions on their way each.
    let bench = ["redis-benchmark", "-h", "db", "-t", "set,get", "-n", "4000", "-c", "50", "-P", "4", "-q"];
    let said = cluster.run(&[&["exec", &pods[0], "--"], &bench[..]].concat()).ok();
    assert!(said.contains("GET:") && !said.to_lowercase().contains("error"), "{said}");
}
