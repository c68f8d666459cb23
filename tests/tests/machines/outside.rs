//! Back-ends that are on no node: a service without a selector gives them a name and an address.

use minisvc_tests::machines::{World, in_room};

use super::{join, pod_of, text, until};

const DATABASE: &str = "database";

#[test]
fn hand_made_endpoints_and_slices_give_a_machine_outside_a_name_and_an_address() {
    in_room("outside::hand_made_endpoints_and_slices_give_a_machine_outside_a_name_and_an_address", |home| {
        let world = World::on_one_network(home, "outside", &["node-1", "node-2", DATABASE]);
        let _server = world.server(&[]);
        let _agents = join(&world, &["node-1", "node-2"]);
        let database = world.machine(DATABASE);
        let _back_end = database.start(&["echo", "--port", "5432"]);
        world.sh("minisvc run client -- sleep 600").ok();
        world.sh("minisvc wait --for=condition=Ready pod/client --timeout=60s").ok();

        let made = world.sh("minisvc create service clusterip db --tcp=5432 --no-selector");
        assert!(
            made.err.contains("selects no pods") && made.err.contains("kubernetes.io/service-name=db"),
            "{made}"
        );
        made.ok();
        let ip = text(&world.object("service/db")["spec"]["clusterIP"]);
        let ask = |host: &str| {
            world.run(&[
                "exec",
                "client",
                "--",
                "curl",
                "-sS",
                "--max-time",
                "5",
                &format!("http://{host}:5432/"),
            ])
        };
        let answers = || {
            // By name and by address, from a pod, and from a node that is not the pod's.
            for host in ["db", "db.default.svc.cluster.local", &ip] {
                assert_eq!(pod_of(&ask(host).ok()), DATABASE, "{host}");
            }
            for node in ["node-1", "node-2"] {
                let url = format!("http://{ip}:5432/");
                let said = world.machine(node).program("curl", &["-sS", "--max-time", "5", &url]);
                assert_eq!(pod_of(&said.ok()), DATABASE, "from {node}");
            }
        };
        let refused = || ask(&ip).status.code() == Some(7);
        until("nobody is behind it", refused);

        let endpoints = world.file(&format!(
            "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: db}}\nsubsets:\n- addresses: [{{ip: {}}}]\n  \
             ports: [{{name: \"5432\", port: 5432}}]\n",
            database.ip()
        ));
        world.run(&["create", "-f", &endpoints]).ok();
        until("the Endpoints are mirrored, and every node has them", || ask("db").status.success());
        world.sh("minisvc wait --for=condition=Programmed service/db --timeout=30s").ok();
        answers();
        let at = format!("{}:5432", database.ip());
        let table = world.sh("minisvc get endpoints").ok();
        assert!(table.lines().any(|l| l.starts_with("db ") && l.contains(&at)), "{table}");
        let page = world.sh("minisvc describe service db").ok();
        assert!(page.lines().any(|l| l.starts_with("Endpoints:") && l.ends_with(&at)), "{page}");
        world.sh("minisvc delete endpoints db").ok();
        until("they are gone, and so is the back-end", refused);

        let slice = world.file(&format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: db-1\n  \
             labels: {{kubernetes.io/service-name: db}}\naddressType: IPv4\nendpoints: [{{addresses: [{}]}}]\n\
             ports: [{{name: \"5432\", port: 5432}}]\n",
            database.ip()
        ));
        world.run(&["create", "-f", &slice]).ok();
        until("every node has the slice", || ask("db").status.success());
        world.sh("minisvc wait --for=condition=Programmed service/db --timeout=30s").ok();
        answers();
    });
}
