//! What the guides to services and to workloads say, line by line.

use minisvc_tests::cluster::Cluster;

use super::pod_of;

/// The commands of a guide, in order.
fn lines(guide: &str) -> Vec<String> {
    let blocks = guide.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.flat_map(str::lines).map(str::to_owned).collect()
}

/// A line as a user's shell runs it.
fn shell(cluster: &Cluster, line: &str) -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", cluster.binary().parent().unwrap().display());
    let output = cluster.command("bash").args(["-c", line]).env("PATH", path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {}\n{said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_command_of_the_guide_to_services_works_as_it_stands() {
    let cluster = Cluster::up("guide", 3);
    cluster.sh("minisvc create deployment web --replicas 4 -- minisvc echo --port 8080").ok();
    let lines = lines(include_str!("../../../docs/services.md"));
    assert!(lines.len() >= 30, "{lines:?}");
    let mut stays = Vec::new();
    for line in &lines {
        let out = shell(&cluster, line);
        if line.contains("healthCheckNodePort") {
            assert!(out.contains("localEndpoints"), "{line}: {out}");
        } else if line.contains("curl") {
            assert!(pod_of(&out).starts_with("web-"), "{line}: {out}");
        }
        if line.contains("http://sticky/") {
            stays.push(pod_of(&out));
        }
        if line.contains("/dev/udp/") {
            assert!(out.contains("web-"), "{line}: {out}");
        }
    }
    assert_eq!(stays.len(), 2);
    assert_eq!(stays[0], stays[1]);
}

#[test]
fn every_command_of_the_guide_to_workloads_works_as_it_stands() {
    let cluster = Cluster::up("workloads", 1);
    let lines = lines(include_str!("../../../docs/workloads.md"));
    assert!(lines.len() >= 15, "{lines:?}");
    let mut histories = Vec::new();
    for line in &lines {
        let out = shell(&cluster, line);
        if line.contains("rollout status") {
            assert!(out.ends_with("deployment \"web\" successfully rolled out\n"), "{line}: {out}");
        } else if line.ends_with("rollout history deployment/web") {
            let words = out.lines().skip(2).filter_map(|l| l.split_whitespace().next());
            histories.push(words.map(str::to_owned).collect::<Vec<_>>());
        }
    }
    assert_eq!(histories, [["1", "2"], ["2", "3"]]);
    let pods = cluster.sh("minisvc get pods -o name").ok();
    assert_eq!(pods.lines().count(), 6, "{pods}");
}
