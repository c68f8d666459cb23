//! Real connections through a real kernel, in a network namespace of the test's own.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    process::Command,
    thread,
};

use nix::sched::{CloneFlags, unshare};
use rtnetlink::{LinkUnspec, RouteMessageBuilder};

use super::*;
use crate::plan::{Proto, ServicePort};

const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 20);

async fn addresses(addresses: &[Ipv4Addr]) {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    let task = tokio::spawn(connection);
    handle.link().set(LinkUnspec::new_with_index(1).up().build()).execute().await.unwrap();
    for address in addresses {
        handle.address().add(1, IpAddr::V4(*address), 32).execute().await.unwrap();
    }
    let services = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(Ipv4Addr::new(10, 96, 0, 0), 16)
        .output_interface(1)
        .build();
    handle.route().add(services).execute().await.unwrap();
    task.abort();
}

fn plan(endpoints: &[(Ipv4Addr, u16)]) -> Vec<(ServiceKey, Option<ServicePlan>)> {
    let port = ServicePort {
        cluster_ip: CLUSTER_IP,
        proto: Proto::Tcp,
        port: 80,
        node_port: Some(30080),
        affinity: None,
        endpoints: endpoints.iter().copied().collect(),
    };
    let key = ServiceKey { namespace: "default".into(), name: "web".into() };
    vec![(key, Some(ServicePlan { ports: vec![port] }))]
}

/// The table as Debian's `nft` shows it: users run this, and some shapes of rules make nft 1.0.6 abort.
fn listing() -> String {
    let output = Command::new("nft")
        .args(["list", "table", "ip", "minisvc"])
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .expect("nft is needed: tests/run --install brings it");
    assert!(output.status.success(), "nft {}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn scenario() {
    let pods = [Ipv4Addr::new(10, 244, 0, 2), Ipv4Addr::new(10, 244, 0, 3)];
    addresses(&[NODE, pods[0], pods[1]]).await;
    let listeners = pods.map(|ip| TcpListener::bind((ip, 8080)).unwrap());
    for l in &listeners {
        l.set_nonblocking(true).unwrap();
    }
    let handle = Dataplane::start(Config {
        node_ip: NODE,
        dns_ip: Ipv4Addr::new(10, 96, 0, 10),
        node_port_range: (30000, 32767),
        service_cidr: "10.96.0.0/16".parse().unwrap(),
        pod_cidr: "10.244.0.0/16".parse().unwrap(),
        local_pod_cidr: "10.244.0.0/24".parse().unwrap(),
    })
    .unwrap();
    let accepted = || listeners.each_ref().map(|l| std::iter::from_fn(|| l.accept().ok()).count());

    handle.apply(plan(&pods.map(|ip| (ip, 8080)))).await.unwrap();
    for target in [(CLUSTER_IP, 80), (NODE, 30080)] {
        for _ in 0..64 {
            TcpStream::connect(target).unwrap();
        }
        let counts = accepted();
        assert_eq!(counts.iter().sum::<usize>(), 64, "{target:?}");
        assert!(counts.iter().all(|n| *n > 8), "{target:?} is not spread: {counts:?}");
    }

    let listed = listing();
    assert!(listed.contains("0x00001000 . 0x00000000 : 10.244.0."), "{listed}");

    handle.apply(plan(&[(pods[1], 8080)])).await.unwrap();
    for _ in 0..8 {
        TcpStream::connect((CLUSTER_IP, 80)).unwrap();
    }
    assert_eq!(accepted(), [0, 8]);

    handle.apply(plan(&[])).await.unwrap();
    for target in [(CLUSTER_IP, 80), (CLUSTER_IP, 81), (NODE, 30080)] {
        assert_eq!(
            TcpStream::connect(target).unwrap_err().kind(),
            ErrorKind::ConnectionRefused,
            "{target:?}"
        );
    }

    // More endpoints than there are static chains.
    let many: Vec<_> = (1..=100).map(|n| (pods[0], 9000 + n)).chain([(pods[1], 8080)]).collect();
    handle.apply(plan(&many)).await.unwrap();
}

#[test]
fn services_carry_connections() {
    thread::spawn(|| {
        let mut flags = CloneFlags::CLONE_NEWNET;
        if !nix::unistd::geteuid().is_root() {
            flags |= CloneFlags::CLONE_NEWUSER;
        }
        // A user namespace needs a process of one thread, which a test harness is not.
        unshare(flags).expect("this test needs a network namespace: run it as root");
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(scenario());
    })
    .join()
    .unwrap();
}
