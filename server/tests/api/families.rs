//! A cluster of both families, and how one gets its second.

use minisvc_proto::{Object, client::PatchKind, path::Target, resource::NODES};
use minisvc_server::run::{Cidrs, Server, ServerConfig};
use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Api, SERVICES, config, service};

const PODS: &str = "10.244.0.0/16,fd69:6d69:6e6a::/48";
const ALL_SERVICES: &str = "10.96.0.0/16,fd69:6d69:6e69:ffff::/112";

fn dual(dir: &TempDir, pods: &str, services: &str) -> ServerConfig {
    let cidrs = |text: &str| text.parse::<Cidrs>().unwrap();
    ServerConfig { pod_cidr: cidrs(pods), service_cidr: cidrs(services), ..config(dir) }
}

async fn start(dir: TempDir, pods: &str, services: &str) -> Api {
    let server = Server::open(dual(&dir, pods, services)).await.unwrap();
    Api::serve(dir, server)
}

/// What a server says that does not start with these ranges.
async fn refusal(dir: &TempDir, pods: &str, services: &str) -> String {
    Server::open(dual(dir, pods, services)).await.err().expect("it must not start").to_string()
}

#[tokio::test]
async fn nodes_get_a_part_of_both_ranges_also_when_the_second_comes_later() {
    let api = Api::start().await;
    api.create("/api/v1/nodes", json!({"metadata": {"name": "early"}})).await;
    api.create(SERVICES, service("web")).await;

    let both = start(api.copy(), PODS, ALL_SERVICES).await;
    let get = async |name: &str| {
        both.admin.get(&Target::parse(&format!("/api/v1/nodes/{name}")).unwrap()).await.unwrap()
    };
    let early = get("early").await;
    assert_eq!(early.pointer("/spec/podCIDRs"), Some(&json!(["10.244.0.0/24", "fd69:6d69:6e6a::/64"])));
    assert_eq!(early.str_at("/spec/podCIDR"), Some("10.244.0.0/24"));
    let late = both.create("/api/v1/nodes", json!({"metadata": {"name": "late"}})).await;
    assert_eq!(late.pointer("/spec/podCIDRs"), Some(&json!(["10.244.1.0/24", "fd69:6d69:6e6a:1::/64"])));
    // Nobody else may have it.
    let taken = json!({"metadata": {"name": "third"}, "spec": {"podCIDRs": ["10.244.9.0/24", "fd69:6d69:6e6a:1::/64"]}});
    let mut third = Object::new(&NODES, None, "third");
    third.0.insert("spec".into(), taken["spec"].clone());
    let refused = both.admin.create(&Target::collection(&NODES, None), &third, false).await.unwrap_err();
    let refused = refused.api().unwrap();
    assert_eq!(refused.code, 422);
    assert!(
        refused.message.contains(
            "spec.podCIDRs[1]: Invalid value: \"fd69:6d69:6e6a:1::/64\": is already the pod range of another node"
        ),
        "{}",
        refused.message
    );

    // A machine that joins learns both, and says which addresses it and its pods have.
    let token = both.token(json!({})).await;
    let cluster = both.join("node-1", &token).await.answer.cluster;
    assert_eq!(cluster.pod_cidr6, Some("fd69:6d69:6e6a::/48".parse().unwrap()));
    assert_eq!(cluster.dns_ip6(), Some("fd69:6d69:6e69:ffff::a".parse().unwrap()));
    let node = both.node("node-2").await;
    let made =
        node.create(&Target::collection(&NODES, None), &Object::new(&NODES, None, "node-2"), false).await;
    assert_eq!(made.unwrap().str_at("/spec/podCIDRs/1"), Some("fd69:6d69:6e6a:2::/64"));
    let status = Target::parse("/api/v1/nodes/node-2/status").unwrap();
    let addresses = |ip: &str| {
        let ips = ["192.0.2.9", ip].map(|ip| json!({"type": "InternalIP", "address": ip}));
        json!({"status": {"addresses": ips}})
    };
    node.patch(&status, PatchKind::Merge, &addresses("2001:db8::9")).await.unwrap();
    let of_pods = node.patch(&status, PatchKind::Merge, &addresses("fd69:6d69:6e6a:2::1")).await.unwrap_err();
    assert_eq!(of_pods.api().unwrap().code, 422, "{of_pods}");
    both.end().await;
    api.end().await;
}

#[tokio::test]
async fn ranges_that_do_not_go_together_or_leave_out_what_is_in_use_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (pods, services) = ("10.244.0.0/16", "10.96.0.0/16");
    for (pods, services, says) in [
        (PODS, services, "--service-cidr: a cluster with an IPv6 range of pods needs one of services, too"),
        (pods, ALL_SERVICES, "--pod-cidr: a cluster with an IPv6 range of services needs one of pods, too"),
        ("10.96.4.0/22", services, "--pod-cidr: 10.96.4.0/22 overlaps the range of services, 10.96.0.0/16"),
        (
            "10.244.0.0/16,fd69:6d69:6e69::/48",
            ALL_SERVICES,
            "--pod-cidr: fd69:6d69:6e69::/48 overlaps the range of services, fd69:6d69:6e69:ffff::/112",
        ),
        ("10.244.0.0/16,fd00::/65", ALL_SERVICES, "--pod-cidr: pod range fd00::/65 is too small"),
        (PODS, "10.96.0.0/16,fd00::/126", "--service-cidr: service range fd00::/126 is too small"),
    ] {
        let said = refusal(&dir, pods, services).await;
        assert!(said.starts_with(says), "{said}");
    }

    let api = start(dir, PODS, ALL_SERVICES).await;
    api.create("/api/v1/nodes", json!({"metadata": {"name": "a"}})).await;
    let kept = "which is in no range given here: a cluster keeps its ranges";
    for (pods, services, says) in [
        (pods, services, "--pod-cidr: node a has fd69:6d69:6e6a::/64"),
        ("10.245.0.0/16,fd69:6d69:6e6a::/48", ALL_SERVICES, "--pod-cidr: node a has 10.244.0.0/24"),
        (
            PODS,
            "10.97.0.0/16,fd69:6d69:6e69:ffff::/112",
            "--service-cidr: service default/kubernetes has 10.96.0.1",
        ),
    ] {
        let said = refusal(&api.copy(), pods, services).await;
        assert!(said.starts_with(says) && said.contains(kept), "{said}");
    }
    // A wider one is fine.
    start(api.copy(), "10.244.0.0/15,fd69:6d69:6e6a::/47", ALL_SERVICES).await.end().await;
    api.end().await;
}
