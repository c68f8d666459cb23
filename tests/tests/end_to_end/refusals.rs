//! Bad input: one clear line each, nothing half-made.

use minisvc_tests::cluster::Cluster;

#[test]
fn every_refusal_is_one_line_that_helps() {
    let cluster = Cluster::up("refusals", 1);
    super::hello(&cluster, 30_041);
    let write = |name: &str, text: &str| {
        let path = cluster.home().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let service =
        |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: x}}\nspec: {{{spec}}}\n");
    let broken = write("broken.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: x\n");
    let unknown = write("unknown.yaml", "apiVersion: v1\nkind: Widget\nmetadata: {name: x}\n");
    let json = write("broken.json", "{\"apiVersion\": \"v1\", \"kind\": ");
    let taken_ip = write("ip.yaml", &service("clusterIP: 10.96.0.1, ports: [{port: 80}]"));
    let link_local = write("ext.yaml", &service("externalIPs: [169.254.1.1], ports: [{port: 80}]"));
    let dual = write("dual.yaml", &service("ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]"));
    let image = write(
        "image.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a, image: nginx, command: [a]}]}\n",
    );
    let volume = write(
        "volume.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containers: [{name: a, command: [a]}], volumes: [{name: v, nfs: {server: a, path: /}}]}\n",
    );
    for (args, code, parts) in [
        (&["create", "deployment", "Hello", "--", "x"][..], 1, &["Hello", "lowercase"][..]),
        (
            &["create", "service", "nodeport", "a", "--tcp=80", "--node-port=29999"],
            1,
            &["30000-32767", "nodePort"],
        ),
        (
            &["create", "service", "nodeport", "a", "--tcp=80", "--node-port=30041"],
            1,
            &["already allocated", "30041"],
        ),
        (&["create", "service", "nodeport", "a", "--tcp=0"], 2, &["0"]),
        (&["create", "service", "nodeport", "hello", "--tcp=80"], 1, &["already exists"]),
        (&["create", "-f", &broken], 1, &["broken.yaml", "line"]),
        (&["create", "-f", &json], 1, &["broken.json", "line"]),
        (&["create", "-f", &unknown], 1, &["Widget"]),
        (&["create", "-f", &taken_ip], 1, &["10.96.0.1", "already allocated"]),
        (&["create", "-f", &link_local], 1, &["spec.externalIPs[0]", "link-local range"]),
        (&["create", "-f", &dual], 1, &["spec.ipFamilyPolicy", "not configured for dual-stack services"]),
        (&["create", "-f", &image], 1, &["spec.containers[0].image", "nginx"]),
        (&["create", "-f", &volume], 1, &["spec.volumes[0].nfs: Forbidden", "only emptyDir and hostPath"]),
        (&["create", "-f", "/nonexistent.yaml"], 1, &["/nonexistent.yaml"]),
        (&["get", "widgets"], 1, &["widgets"]),
        (&["get", "pod", "nope"], 1, &["nope", "not found"]),
        (&["-n", "nowhere", "create", "service", "clusterip", "a", "--tcp=80"], 1, &["nowhere", "not found"]),
        (&["exec", "nope", "--", "true"], 1, &["nope"]),
        (&["node", "exec", "node-9", "--", "true"], 1, &["node-9"]),
        (&["logs", "nope"], 1, &["nope"]),
        (&["scale", "service", "hello", "--replicas=1"], 1, &["scale"]),
    ] {
        let said = cluster.run(args);
        assert_eq!(said.status.code(), Some(code), "{said}");
        if code == 1 {
            assert_eq!(said.err.trim_end().lines().count(), 1, "{said}");
        }
        for part in parts {
            assert!(said.err.contains(part), "no {part} in {said}");
        }
    }
    assert!(
        !cluster.sh("minisvc get services").ok().lines().any(|l| l.starts_with("a ") || l.starts_with("x "))
    );

    // A second cluster of the same name, and one on a port that is in use.
    let second = cluster.start(1).refused(1);
    assert!(second.contains(cluster.name()) && second.contains("down"), "{second}");
    let port = cluster.api_port().to_string();
    let other = cluster.run(&["up", "--detach", "--name", "other", "--api-port", &port]).refused(1);
    assert!(other.contains(&port) && other.contains("--api-port"), "{other}");
    cluster.run(&["down", "--purge", "--name", "other"]).ok();
}

#[test]
fn a_command_without_a_cluster_says_how_to_get_one() {
    let cluster = Cluster::prepared("none");
    let error = cluster.sh("minisvc get pods").refused(1);
    assert!(error.contains("minisvc up") && error.contains("--config"), "{error}");
}
