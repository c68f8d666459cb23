//! Services that prefer pods which are near: whom a client's connections and datagrams reach, by where client and pods are.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
};

use minisvc_proto::{
    ObjectKey,
    client::{Client, Kubeconfig, PatchKind},
    path::Target,
    resource::{NODES as NODE, SERVICES},
};
use minisvc_tests::{
    machines::{ADMIN, SERVER, World, in_room},
    netns::Namespace,
};
use serde_json::{Value, json};

use super::{NODES, PATIENCE, cluster_ip, join, until};

/// Of three pods each is missed by so many questions with a probability below 1e-6.
const QUESTIONS: usize = 40;
const ZONE: &str = "topology.kubernetes.io/zone";

fn patch(world: &World, key: &ObjectKey, change: &Value) {
    let config = Kubeconfig::load(&world.machine(SERVER).path(ADMIN)).unwrap();
    let patched = world.machine(SERVER).net().block_on(async || {
        let client = Client::from_kubeconfig(&config)?;
        Ok(client.patch(&Target::object(key), PatchKind::Merge, change).await?)
    });
    patched.unwrap();
}

/// Puts a node into a zone, or into none.
fn zone(world: &World, node: &str, zone: Option<&str>) {
    patch(world, &ObjectKey::cluster(&NODE, node), &json!({"metadata": {"labels": {ZONE: zone}}}));
}

fn prefer(world: &World, how: &str) {
    let key = ObjectKey::namespaced(&SERVICES, "default", "hello");
    patch(world, &key, &json!({"spec": {"trafficDistribution": how}}));
}

/// Makes pods on the nodes of their numbers, and waits until they are Ready.
fn pods(world: &World, pods: &[(&str, usize)], labels: &Value, command: &Value) {
    for (pod, number) in pods {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": labels}, "spec": {
            "nodeName": NODES[number - 1], "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "it", "command": command}]}});
        world.run(&["create", "-f", &world.file(&pod.to_string())]).ok();
    }
    for (pod, _) in pods {
        world.sh(&format!("minisvc wait --for=condition=Ready pod/{pod} --timeout=60s")).ok();
    }
}

fn servers(world: &World, places: &[(&str, usize)]) {
    pods(world, places, &json!({"app": "hello"}), &json!(["minisvc", "echo", "--port", "8080"]));
}

/// The pod that answers a new connection. Every question must be answered, also while endpoints change.
fn by_tcp(to: (Ipv4Addr, u16)) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to.into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.trim_end_matches(" ?").to_owned())
}

/// The pod that answers a new flow. A port that an earlier flow had would make it that one again, as long as the kernel remembers it,
/// and the pod that it leads to is only less near, so that it keeps it.
fn by_udp(to: (Ipv4Addr, u16)) -> anyhow::Result<String> {
    static PORT: AtomicU16 = AtomicU16::new(11_000);
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT.fetch_add(1, Ordering::Relaxed)))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"?")?;
    let mut answer = [0; 256];
    let length = socket.recv(&mut answer)?;
    Ok(std::str::from_utf8(&answer[..length])?.trim_end_matches(" ?").to_owned())
}

type Ask = fn((Ipv4Addr, u16)) -> anyhow::Result<String>;

fn answering(from: &Namespace, to: (Ipv4Addr, u16), ask: Ask) -> BTreeSet<String> {
    let answers = || (0..QUESTIONS).map(|_| ask(to)).collect::<anyhow::Result<_>>();
    from.enter(answers).unwrap()
}

/// A client in a pod and the programs of each node, and who asks the nodePort of each node from outside, reach the pods that are
/// `wanted` there, in the nodes' order: waits until the pods' clients do, and then asks in every way.
fn reach(world: &World, clients: &[Namespace; 3], what: &str, wanted: [&[&str]; 3]) {
    let service = (cluster_ip(world).parse().unwrap(), 80);
    let wanted = wanted.map(|pods| pods.iter().map(|pod| (*pod).to_owned()).collect::<BTreeSet<_>>());
    for (client, wanted) in clients.iter().zip(&wanted) {
        until(&format!("{what}: {}", client.name()), || answering(client, service, by_tcp) == *wanted);
    }
    for ((node, client), wanted) in NODES.iter().zip(clients).zip(&wanted) {
        let machine = world.machine(node);
        let ways = [(client, service), (machine.net(), service), (world.outside(), (machine.ip(), 30080))];
        for (from, to) in ways {
            for ask in [by_tcp, by_udp] {
                let seen = answering(from, to, ask);
                assert_eq!(&seen, wanted, "{what}: {} to {to:?}", from.name());
            }
        }
    }
}

#[test]
fn traffic_stays_in_its_zone_or_on_its_node_as_long_as_somebody_answers_there() {
    in_room("nearness::traffic_stays_in_its_zone_or_on_its_node_as_long_as_somebody_answers_there", |home| {
        let world = World::on_one_network(home, "nearness", &NODES);
        let _server = world.server(&[]);
        let _agents = join(&world, &NODES);
        pods(&world, &[("x1", 1), ("x2", 2), ("x3", 3)], &json!({}), &json!(["sleep", "600"]));
        let clients = ["x1", "x2", "x3"].map(|pod| world.pod(pod));
        servers(&world, &[("a", 1), ("b", 2), ("c", 3)]);
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "hello"}, "spec": {
            "type": "NodePort", "selector": {"app": "hello"}, "trafficDistribution": "PreferSameZone", "ports": [
                {"name": "tcp", "port": 80, "targetPort": 8080, "nodePort": 30080},
                {"name": "udp", "port": 80, "targetPort": 8080, "nodePort": 30080, "protocol": "UDP"}]}});
        world.run(&["create", "-f", &world.file(&service.to_string())]).ok();
        world.sh("minisvc wait --for=condition=Programmed service/hello --timeout=60s").ok();
        let check = |what: &str, wanted: [&[&str]; 3]| reach(&world, &clients, what, wanted);
        let (all, east): (&[&str], &[&str]) = (&["a", "b", "c"], &["a", "b"]);

        zone(&world, "node-1", Some("east"));
        zone(&world, "node-2", Some("east"));
        check("a pod whose node is in no zone", [all; 3]);
        zone(&world, "node-3", Some("west"));
        check("two zones", [east, east, &["c"]]);
        world.sh("minisvc delete pod c").ok();
        check("nobody in the zone west", [east; 3]);
        servers(&world, &[("c", 3)]);
        check("somebody in the zone west again", [east, east, &["c"]]);
        zone(&world, "node-2", Some("west"));
        check("a node has moved to another zone", [&["a"], &["b", "c"], &["b", "c"]]);
        zone(&world, "node-2", Some("east"));

        prefer(&world, "PreferSameNode");
        check("the same node", [&["a"], &["b"], &["c"]]);
        world.sh("minisvc delete pod b").ok();
        check("nobody on node-2, somebody in its zone", [&["a"], &["a"], &["c"]]);
        world.sh("minisvc delete pod a").ok();
        check("nobody in the zone east", [&["c"]; 3]);
        servers(&world, &[("b", 2)]);
        check("somebody on node-2 again", [&["b"], &["b"], &["c"]]);
        zone(&world, "node-1", None);
        check("a client whose node is in no zone", [&["b", "c"], &["b"], &["c"]]);
    });
}
