//! Somebody else breaks what a node has set up.

use std::{collections::BTreeSet, time::Duration};

use minisvc_proto::{
    Object,
    client::{Informer, InformerEvent, ListParams},
    path::Target,
    resource::EVENTS,
};
use minisvc_tests::cluster::Cluster;
use serde_json::Value;

use super::{client, hello, listed, object, pod_names};

/// Events by name, and how often each was told.
fn known(cluster: &Cluster) -> BTreeSet<(String, Option<u64>)> {
    listed(cluster, &EVENTS).iter().map(|event| id(event)).collect()
}

fn id(event: &Object) -> (String, Option<u64>) {
    (event.name().to_owned(), event.pointer("/count").and_then(Value::as_u64))
}

/// Waits until the node's events tell of something anew by this reason and with these words.
fn told(cluster: &Cluster, before: &BTreeSet<(String, Option<u64>)>, reason: &str, words: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tells = |event: &Object| {
        !before.contains(&id(event))
            && event.str_at("/reason") == Some(reason)
            && event.str_at("/message").is_some_and(|message| message.contains(words))
            && event.str_at("/involvedObject/name") == Some("node-1")
    };
    runtime.block_on(async {
        let target = Target::collection(&EVENTS, None);
        let mut events = Informer::spawn(client(cluster), target, ListParams::default());
        let wait = async {
            loop {
                match events.recv().await.expect("an informer ends only with a panic") {
                    InformerEvent::Reset(_, all) if all.iter().any(|e| tells(e)) => return,
                    InformerEvent::Changed(change) if tells(&change.object) => return,
                    _ => {}
                }
            }
        };
        let heard = tokio::time::timeout(Duration::from_secs(30), wait).await;
        heard.unwrap_or_else(|_| panic!("no event {reason} about {words:?}"));
    });
}

fn on_node(cluster: &Cluster, command: &str) -> String {
    cluster.run(&["node", "exec", "node-1", "--", "sh", "-c", command]).ok()
}

/// A pod of the node: the host side of its link, and its address; and the pod range of another node.
fn of_node(cluster: &Cluster) -> (String, String, String) {
    let pods = object(cluster, "pods");
    let pod = pods["items"].as_array().unwrap().iter().find(|p| p["spec"]["nodeName"] == "node-1").unwrap();
    let ip = pod["status"]["podIP"].as_str().unwrap().to_owned();
    let routes: Value = serde_json::from_str(&on_node(cluster, "ip -j route show proto 173")).unwrap();
    let find = |what: &dyn Fn(&&Value) -> bool| routes.as_array().unwrap().iter().find(what).unwrap();
    let link = find(&|r| r["dst"] == ip.as_str())["dev"].as_str().unwrap().to_owned();
    let other = find(&|r| r["gateway"].is_string())["dst"].as_str().unwrap().to_owned();
    (link, ip, other)
}

#[test]
fn what_somebody_breaks_is_back_and_the_node_says_what_it_was() {
    let cluster = Cluster::up("healing", 2);
    hello(&cluster, 30_052);
    let pods = pod_names(&cluster);
    let others = "nft 'add table inet others; add set inet others s { type ipv4_addr; flags interval; elements = { 203.0.113.0/24 } }; \
        add chain inet others c { type filter hook forward priority 10; policy accept; }; add rule inet others c ip saddr @s counter drop'";
    on_node(&cluster, others);
    let theirs = on_node(&cluster, "nft list table inet others");
    let (link, ip, other) = of_node(&cluster);
    let works = |after: &str| {
        for pod in &pods {
            let out =
                cluster.run(&["exec", pod, "--", "curl", "-sS", "--max-time", "5", "http://hello/"]).ok();
            assert!(out.contains("hello-"), "{pod} after {after}: {out}");
        }
        on_node(&cluster, &format!("curl -sS --max-time 5 http://{ip}:8080/"));
    };
    for (breaks, reason, words) in [
        ("nft delete table ip minisvc".to_owned(), "RulesRepaired", "nftables' tables minisvc".to_owned()),
        ("nft delete rule ip minisvc forward handle $(nft -a list chain ip minisvc forward | sed -n 's/.*handle //p' | tail -n 1)".to_owned(),
            "RulesRepaired", "nftables' tables minisvc".to_owned()),
        ("nft flush map ip minisvc svc".to_owned(), "RulesRepaired", "elements of nftables' tables minisvc".to_owned()),
        (format!("ip route del {other}"), "NetworkRepaired", format!("route to {other}")),
        (format!("ip neigh del {ip} dev {link}"), "NetworkRepaired", format!("neighbour {ip} on {link}")),
        (format!("ip link del {link}"), "NetworkRepaired", format!("link {link} of the pod {ip}")),
    ] {
        let before = known(&cluster);
        on_node(&cluster, &breaks);
        told(&cluster, &before, reason, &words);
        works(&breaks);
    }
    assert_eq!(on_node(&cluster, "nft list table inet others"), theirs);
    // Somebody who wants all rules gone gets that, but for ours.
    let before = known(&cluster);
    on_node(&cluster, "nft flush ruleset");
    told(&cluster, &before, "RulesRepaired", "nftables' tables minisvc");
    works("a flush");
    let tables = on_node(&cluster, "nft list tables");
    assert!(tables.contains("table ip minisvc") && !tables.contains("others"), "{tables}");
}
