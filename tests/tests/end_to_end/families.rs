//! `up --ipv6`: pods, services, names and nodePorts of both families.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use minisvc_tests::cluster::Cluster;
use serde_json::{Value, json};

use super::{
    answer, answers,
    crashes::{kill_9, pids_with},
    object, pod_names, pod_of,
};

/// A service over the deployment `hello`, TCP and UDP on one port.
fn service(cluster: &Cluster, name: &str, node_port: u16, families: Value) -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 80, "targetPort": 8080, "nodePort": node_port, "protocol": protocol});
    let mut spec = families;
    spec["type"] = "NodePort".into();
    spec["selector"] = json!({"app": "hello"});
    spec["ports"] = json!([port("t", "TCP"), port("u", "UDP")]);
    let object_ = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
    let file = cluster.home().join(format!("{name}.json"));
    std::fs::write(&file, object_.to_string()).unwrap();
    cluster.run(&["create", "-f", file.to_str().unwrap()]).ok();
    cluster.run(&["wait", "--for=condition=Programmed", &format!("service/{name}"), "--timeout=20s"]).ok();
    object(cluster, &format!("service/{name}"))
}

/// Which pods answer, asked 24 times over TCP from somewhere in the cluster.
fn over_tcp(cluster: &Cluster, from: &[&str], url: &str) -> Vec<String> {
    let script = format!("for i in $(seq 24); do curl -sS -g --max-time 5 '{url}'; echo; done");
    let out = cluster.run(&[from, &["--", "sh", "-c", &script]].concat()).ok();
    let seen: BTreeSet<String> = out.lines().filter(|l| !l.is_empty()).map(pod_of).collect();
    seen.into_iter().collect()
}

/// The same over UDP.
fn over_udp(cluster: &Cluster, from: &[&str], ip: &str, port: u16) -> Vec<String> {
    let ask = format!("exec 3<>/dev/udp/{ip}/{port}; echo hi >&3; timeout 5 head -n 1 <&3; exec 3>&-");
    let script = format!("for i in $(seq 24); do {ask}; done");
    let out = cluster.run(&[from, &["--", "bash", "-c", &script]].concat()).ok();
    let pods = pod_names(cluster);
    pods.into_iter().filter(|pod| out.contains(pod.as_str())).collect()
}

#[test]
fn a_cluster_of_both_families_answers_in_both() {
    let cluster = Cluster::prepared("families");
    let output = cluster.start_command(2).arg("--ipv6").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    cluster.sh("minisvc create deployment hello --replicas 4 -- minisvc echo --port 8080").ok();
    cluster.sh("minisvc wait --for=condition=Available deployment/hello --timeout=30s").ok();
    cluster.sh("minisvc wait --for=condition=DualStack node/node-1 node/node-2 --timeout=20s").ok();
    let pods = pod_names(&cluster);
    let of_node = |node: &str| {
        let on = |pod: &&String| object(&cluster, &format!("pod/{pod}"))["spec"]["nodeName"] == node;
        pods.iter().find(on).unwrap().clone()
    };
    let (near, far) = (of_node("node-1"), of_node("node-2"));
    let nodes: Vec<Value> =
        pods.iter().map(|pod| object(&cluster, &format!("pod/{pod}"))["spec"]["nodeName"].clone()).collect();
    // At random over four pods, 24 questions reach both nodes but once in ten million times.
    let reaches_both = |seen: &[String], what: &str| {
        let of: BTreeSet<&str> = pods
            .iter()
            .zip(&nodes)
            .filter(|(pod, _)| seen.contains(pod))
            .map(|(_, n)| n.as_str().unwrap())
            .collect();
        assert_eq!(of.into_iter().collect::<Vec<_>>(), ["node-1", "node-2"], "{what}: {seen:?} of {pods:?}");
        assert!(seen.iter().all(|pod| pods.contains(pod)), "{what}: {seen:?} of {pods:?}");
    };

    // From pod to pod, by their own addresses, on one node and across nodes.
    let status = object(&cluster, &format!("pod/{far}"))["status"].clone();
    let ips: Vec<&str> =
        status["podIPs"].as_array().unwrap().iter().map(|ip| ip["ip"].as_str().unwrap()).collect();
    assert!(ips[0].starts_with("10.244.") && ips[1].starts_with("fd69:6d69:6e6a:"), "{ips:?}");
    assert_eq!(status["hostIPs"][1]["ip"], "fd69:6d69:6e68::c");
    for from in [&near, &far] {
        assert_eq!(
            over_tcp(&cluster, &["exec", from], &format!("http://[{}]:8080/", ips[1])),
            std::slice::from_ref(&far)
        );
    }
    let client =
        cluster.run(&["exec", &near, "--", "curl", "-sSg", &format!("http://[{}]:8080/", ips[1])]).ok();
    let own =
        object(&cluster, &format!("pod/{near}"))["status"]["podIPs"][1]["ip"].as_str().unwrap().to_owned();
    assert!(client.contains(&format!("[{own}]")), "a pod is seen by its own address: {client}");

    // A service of both families, one of the second alone, and one that asks for nothing.
    let dual = service(&cluster, "dual", 30_061, json!({"ipFamilyPolicy": "RequireDualStack"}));
    let six = service(&cluster, "six", 30_062, json!({"ipFamilies": ["IPv6"]}));
    let four = service(&cluster, "four", 30_063, json!({}));
    assert_eq!(four["spec"]["ipFamilyPolicy"], "SingleStack");
    assert_eq!(four["spec"]["clusterIPs"].as_array().unwrap().len(), 1);
    assert_eq!(six["spec"]["ipFamilies"], json!(["IPv6"]));
    let ips = |service: &Value| -> Vec<String> {
        let list = service["spec"]["clusterIPs"].as_array().unwrap();
        list.iter().map(|ip| ip.as_str().unwrap().to_owned()).collect()
    };
    let (dual, six) = (ips(&dual), ips(&six));
    assert!(dual[1].starts_with("fd69:6d69:6e69:ffff::") && six[0].starts_with("fd69:6d69:6e69:ffff::"));
    let everywhere = [vec!["exec", &near], vec!["exec", &far], vec!["node", "exec", "node-1"]];
    let of_services = |what: &str| {
        for from in &everywhere {
            for ip in [&dual[0], &dual[1], &six[0]] {
                let url = if ip.contains(':') { format!("http://[{ip}]/") } else { format!("http://{ip}/") };
                reaches_both(&over_tcp(&cluster, from, &url), &format!("{what}: {from:?} {url}"));
                reaches_both(&over_udp(&cluster, from, ip, 80), &format!("{what}: {from:?} {ip} over UDP"));
            }
        }
    };
    of_services("ClusterIP");

    // Names: AAAA where there is an IPv6 address, A where there is one of IPv4.
    let resolved = |family: &str, name: &str| {
        let out = cluster.run(&[
            "exec",
            &near,
            "--",
            "getent",
            family,
            &format!("{name}.default.svc.cluster.local"),
        ]);
        out.out.split_whitespace().next().unwrap_or_default().to_owned()
    };
    assert_eq!(
        (resolved("ahostsv4", "dual"), resolved("ahostsv6", "dual")),
        (dual[0].clone(), dual[1].clone())
    );
    assert_eq!((resolved("ahostsv4", "six"), resolved("ahostsv6", "six")), (String::new(), six[0].clone()));
    let of_both = cluster.run(&["exec", &near, "--", "curl", "-sS6", "http://dual/"]).ok();
    assert!(pods.contains(&pod_of(&of_both)));

    // NodePorts: from another node at both addresses, and from this machine at both loopback addresses.
    for (to, port) in
        [("192.168.77.12", 30_061), ("[fd69:6d69:6e68::c]", 30_061), ("[fd69:6d69:6e68::c]", 30_062)]
    {
        let seen = over_tcp(&cluster, &["node", "exec", "node-1"], &format!("http://{to}:{port}/"));
        reaches_both(&seen, &format!("{to}:{port}"));
    }
    let seen = over_udp(&cluster, &["node", "exec", "node-1"], "fd69:6d69:6e68::c", 30_062);
    reaches_both(&seen, "nodePort over UDP");
    for port in [30_061, 30_062, 30_063] {
        for at in ["127.0.0.1", "[::1]"] {
            let seen: Vec<String> = answers(&format!("http://{at}:{port}/"), 24).into_keys().collect();
            reaches_both(&seen, &format!("{at}:{port}"));
            // On a node, too.
            let url = format!("http://{at}:{port}/");
            let out =
                cluster.run(&["node", "exec", "node-2", "--", "curl", "-sSg", "--max-time", "5", &url]).ok();
            assert!(pods.contains(&pod_of(&out)), "{url} on node-2: {out}");
        }
    }

    // A node that is reached by a router in IPv6, and on the LAN in IPv4: through the tunnel in that family alone.
    let route = "ip -6 route add fd69:6d69:6e68::c/128 via fd69:6d69:6e68::1 dev eth0";
    cluster.run(&["node", "exec", "node-1", "--", "sh", "-c", route]).ok();
    cluster.sh("minisvc wait --for=jsonpath={.status.peers.vxlan[0]}=node-2 node/node-1 --timeout=20s").ok();
    let routes = cluster.sh("minisvc node exec node-1 -- ip -6 route show dev minisvc-vx").ok();
    assert!(routes.contains("fd69:6d69:6e6a:"), "{routes}");
    of_services("through the tunnel");
    let back = route.replace("add", "del");
    cluster.run(&["node", "exec", "node-1", "--", "sh", "-c", &back]).ok();

    // An agent that dies and comes back leaves everything as it is, and goes on.
    let footprint = cluster.footprint();
    let [pid] = pids_with(&footprint, &["agent", "--node-name", "node-1"])[..] else {
        panic!("{footprint:?}")
    };
    kill_9(pid);
    assert!(pods.contains(&answer("http://[::1]:30062/")));
    cluster.sh("minisvc scale deployment hello --replicas 2").ok();
    cluster.sh("minisvc wait --for=jsonpath={.status.replicas}=2 deployment/hello --timeout=30s").ok();
    cluster.sh("minisvc wait --for=condition=Programmed service/six --timeout=20s").ok();
    cluster.sh("minisvc wait --for=condition=Ready node/node-1 --timeout=20s").ok();
    // The new agent of node-1 may have it a moment after what the server still says of the old one.
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let left: BTreeSet<String> = answers("http://[::1]:30062/", 30).into_keys().collect();
        assert!(left.iter().all(|pod| pods.contains(pod)), "{left:?}");
        if left.len() <= 2 {
            break;
        }
        assert!(Instant::now() < patience, "{left:?}");
    }

    // What has both families keeps them, also when the flag is not given again.
    cluster.stop().ok();
    cluster.start(2).ok();
    let again: Vec<String> = ips(&object(&cluster, "service/dual"));
    assert_eq!(again, dual);
    cluster.sh("minisvc wait --for=condition=Available deployment/hello --timeout=30s").ok();
    cluster.sh("minisvc wait --for=condition=Programmed service/six --timeout=20s").ok();
    assert!(pod_names(&cluster).contains(&answer("http://[::1]:30062/")));
}
