//! The same pod for the same client.

use std::collections::BTreeSet;

use minisvc_tests::cluster::Cluster;

use super::{hello, pod_of};

#[test]
fn a_client_keeps_its_pod_while_the_service_grows() {
    let cluster = Cluster::up("affinity", 2);
    hello(&cluster, 30_031);
    let file = cluster.home().join("patch.yaml");
    std::fs::write(
        &file,
        "apiVersion: v1\nkind: Service\nmetadata: {name: sticky}\nspec:\n  selector: {app: hello}\n  sessionAffinity: ClientIP\n  \
         ports: [{port: 80, targetPort: 8080}]\n",
    )
    .unwrap();
    cluster.run(&["create", "-f", file.to_str().unwrap()]).ok();
    cluster.sh("minisvc wait --for=condition=Programmed service/sticky --timeout=30s").ok();
    cluster.sh("minisvc run client -- minisvc echo --port 9090").ok();
    cluster.sh("minisvc wait --for=condition=Ready pod/client --timeout=30s").ok();
    let ask = |times: usize| -> BTreeSet<String> {
        let script = format!("for i in $(seq {times}); do curl -sS --max-time 5 http://sticky/; echo; done");
        let out = cluster.run(&["exec", "client", "--", "sh", "-c", &script]).ok();
        out.lines().filter(|l| !l.is_empty()).map(pod_of).collect()
    };
    let first = ask(20);
    assert_eq!(first.len(), 1, "{first:?}");
    cluster.sh("minisvc scale deployment hello --replicas 9").ok();
    cluster.sh("minisvc wait --for=condition=Available deployment/hello --timeout=60s").ok();
    cluster.sh("minisvc wait --for=condition=Programmed service/sticky --timeout=30s").ok();
    assert_eq!(ask(20), first);
}
