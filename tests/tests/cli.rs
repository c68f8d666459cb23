//! What a user types and reads, against a real server without nodes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]

#[path = "cli/rollouts.rs"]
mod rollouts;

use std::{
    fs,
    io::{BufRead, BufReader},
    process::Stdio,
};

use minisvc_proto::join::JoinToken;
use minisvc_tests::server::{Run, Server, unconfigured};

fn done(out: &str) -> Run {
    Run { code: 0, out: out.to_owned(), err: String::new() }
}

#[test]
fn verbs_say_what_kubectl_says() {
    let server = Server::start().unwrap();
    let run = |line: &str| server.run(&line.split(' ').collect::<Vec<_>>()).unwrap();
    assert_eq!(run("create deployment hello --replicas 2 -- true"), done("deployment.apps/hello created\n"));
    assert_eq!(run("create namespace blue"), done("namespace/blue created\n"));
    assert_eq!(run("run job -n blue --restart=Never -- true"), done("pod/job created\n"));
    assert_eq!(run("get pods -n blue -o name"), done("pod/job\n"));
    assert_eq!(
        run("expose deployment hello --port=80 --target-port=8080 --wait=false"),
        done("service/hello exposed\n")
    );
    assert_eq!(run("get deploy,svc hello -o name"), done("deployment.apps/hello\nservice/hello\n"));
    assert_eq!(run("scale deployment hello --replicas=1"), done("deployment.apps/hello scaled\n"));
    assert_eq!(run("wait svc/hello --for=condition=Programmed=false"), done("service/hello condition met\n"));
    let table = run("get svc").out;
    let words = |n: usize| -> Vec<String> {
        table.lines().nth(n).unwrap().split_whitespace().take(2).map(str::to_owned).collect()
    };
    assert_eq!(
        (words(0), words(1)),
        (vec!["NAME".into(), "TYPE".into()], vec!["hello".into(), "ClusterIP".into()])
    );
    assert!(run("get all").out.contains("deployment.apps/hello "), "{:?}", run("get all"));
    assert!(run("get deploy -A").out.starts_with("NAMESPACE   NAME"), "{:?}", run("get deploy -A"));
    assert!(run("describe deployment hello").out.contains("ScalingReplicaSet"));
    assert!(
        run("get svc hello -o yaml")
            .out
            .starts_with("apiVersion: v1\nkind: Service\nmetadata:\n  creationTimestamp: \"2")
    );
    // Waits until it is gone, and what it owned goes after it.
    assert_eq!(run("delete deployment hello"), done("deployment.apps \"hello\" deleted\n"));
    assert_eq!(run("wait --for=delete rs --all"), run("wait --for=delete pod -l app=hello"));
    assert_eq!(run("delete svc/hello -o name"), done("service/hello\n"));
    let nothing = run("get deploy");
    assert_eq!((nothing.code, nothing.err.as_str()), (0, "No resources found in default namespace.\n"));
    assert!(run("version").out.lines().nth(1).unwrap().starts_with("Server Version: v1."));
    assert_eq!(run("kubeconfig").out, fs::read_to_string(server.config()).unwrap());
}

#[test]
fn tokens_are_printed_once_listed_and_revoked() {
    let server = Server::start().unwrap();
    let run = |line: &str| server.run(&line.split(' ').collect::<Vec<_>>()).unwrap();
    let made = run("token create --uses 2 --description rack-3");
    assert_eq!((made.code, made.err.as_str(), made.out.lines().count()), (0, "", 1));
    let token: JoinToken = made.out.parse().unwrap();
    let rows = |run: &Run| -> Vec<Vec<String>> {
        run.out
            .lines()
            .map(|l| l.split("   ").map(|w| w.trim().to_owned()).filter(|w| !w.is_empty()).collect())
            .collect()
    };
    let listed = run("token list");
    let table = rows(&listed);
    assert_eq!(table[0], ["ID", "USES", "EXPIRES", "AGE", "DESCRIPTION"]);
    assert_eq!(
        (&table[1][0], &table[1][1], &table[1][4]),
        (&token.id, &"0/2".to_owned(), &"rack-3".to_owned())
    );
    assert!(table[1][2].starts_with("in 2"), "{table:?}");
    let endless: JoinToken = run("token create --ttl 0").out.parse().unwrap();
    let line = |id: &str| rows(&run("get jointokens")).into_iter().find(|row| row[0] == id).unwrap();
    assert_eq!(line(&endless.id)[1..3], ["0", "never"]);
    for shown in
        [listed.out, run("get jointokens -o yaml").out, run(&format!("describe jointoken {}", token.id)).out]
    {
        assert!(shown.contains(&token.id) && !shown.contains(&token.secret), "{shown}");
    }

    // The whole token names itself; its secret is not printed.
    assert_eq!(run(&format!("token revoke {token}")), done(&format!("join token {} revoked\n", token.id)));
    let again = run(&format!("token revoke {} {}", token.id, endless.id));
    assert_eq!((again.code, again.out), (1, format!("join token {} revoked\n", endless.id)));
    assert_eq!(
        again.err,
        format!("Error from server (NotFound): jointokens.minisvc.io \"{}\" not found\n", token.id)
    );
    let none = run("token list");
    assert_eq!((none.code, none.err.as_str()), (0, "No join tokens: `minisvc token create` makes one\n"));
    for (line, says) in [
        ("token revoke ../x", "this is neither a token's id"),
        ("token create --ttl 9999999h", "spec.ttlSeconds: Invalid value: 35999996400"),
        ("node remove node-9", "Error from server (NotFound): nodes \"node-9\" not found"),
        ("node remove Node_9", "node \"Node_9\": a lowercase RFC 1123 subdomain"),
    ] {
        let refused = run(line);
        assert_eq!((refused.code, refused.err.lines().count()), (1, 1), "{line}: {}", refused.err);
        assert!(refused.err.contains(says), "{line}: {}", refused.err);
    }
}

#[test]
fn a_service_waits_for_what_it_selects() {
    let server = Server::start().unwrap();
    let run = |line: &str| server.run(&line.split(' ').collect::<Vec<_>>()).unwrap();
    let nothing = run("create service clusterip nothing --tcp=80");
    assert_eq!((nothing.code, nothing.out.as_str()), (0, "service/nothing created\n"));
    assert!(
        nothing.err.starts_with("note: the selector of service \"nothing\" matches no pod"),
        "{}",
        nothing.err
    );
    run("create deployment hello -- true");
    // Nowhere to run, so never Ready.
    run("wait deployment hello --for=jsonpath={.status.replicas}=1");
    let late = run("create service nodeport hello --tcp=80 --timeout=1s");
    assert_eq!((late.code, late.out.as_str()), (1, "service/hello created\n"));
    assert!(
        late.err.contains("these are late: pod hello-") && late.err.contains("no node is Ready"),
        "{}",
        late.err
    );
    assert_eq!(late.err.lines().count(), 1);
}

#[test]
fn services_of_every_type_are_made_shown_and_waited_for() {
    let server = Server::start().unwrap();
    let run = |line: &str| server.run(&line.split(' ').collect::<Vec<_>>()).unwrap();
    // Nothing of it goes into a kernel: nothing is waited for.
    assert_eq!(
        run("create service externalname web --external-name www.example.com"),
        done("service/web created\n")
    );
    let outside = run("create service clusterip db --tcp=5432 --no-selector");
    assert_eq!((outside.code, outside.out.as_str()), (0, "service/db created\n"));
    assert!(
        outside.err.starts_with("note: service \"db\" selects no pods; its back-ends are"),
        "{}",
        outside.err
    );
    let bare = run("create service clusterip bare --clusterip=None");
    assert_eq!((bare.code, bare.out.as_str(), bare.err.lines().count()), (0, "service/bare created\n", 1));

    let pending = run("create service loadbalancer first --tcp=80 --timeout=1s");
    assert_eq!((pending.code, pending.out.as_str()), (1, "service/first created\n"));
    let late = "error: service \"first\" is there, but after 1s it has no address: no node can answer";
    assert_eq!(pending.err.lines().last(), Some(late));
    let second = run("create service lb second --tcp=80");
    let refused = "error: service \"second\" is there, but has no address: TCP port 80 of the nodes belongs to the load balancer default/first";
    assert_eq!((second.code, second.err.lines().last()), (1, Some(refused)));
    let theirs = run(
        "create service loadbalancer theirs --tcp=80 --load-balancer-class=example.com/x --no-node-ports",
    );
    assert_eq!(theirs.code, 0, "{theirs:?}");
    assert!(
        theirs.err.contains("note: its addresses come from the load balancer example.com/x"),
        "{}",
        theirs.err
    );
    let portless = run("create service clusterip x --clusterip=10.96.0.9");
    let says = "error: --tcp, --udp or --sctp: only a service with --clusterip=None may have no port\n";
    assert_eq!((portless.code, portless.err.as_str()), (1, says));

    let page = run("describe svc web").out;
    let has = |line: &str| page.lines().any(|l| l.split_whitespace().eq(line.split_whitespace()));
    assert!(
        has("Type: ExternalName") && has("External Name: www.example.com") && !page.contains("Programmed"),
        "{page}"
    );
    let page = run("describe svc second").out;
    assert!(
        page.contains("PortsAllocated  False   PortConflict") && page.contains("Warning  PortConflict"),
        "{page}"
    );
    run("wait --for=create endpoints/bare");
    let table = run("get ep").out;
    let rows: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().take(2).collect()).collect();
    assert_eq!(rows[..2], [["NAME", "ENDPOINTS"], ["bare", "<none>"]], "{table}");
    assert!(run("describe endpoints bare").out.contains("Subsets:"));
}

#[test]
fn every_refusal_is_one_clear_line() {
    let server = Server::start().unwrap();
    server.run(&["create", "service", "nodeport", "taken", "--tcp=80", "--node-port=30081"]).unwrap();
    for (line, says) in [
        ("get pod x", "Error from server (NotFound): pods \"x\" not found"),
        ("get widgets", "error: the server doesn't have a resource type \"widgets\""),
        ("get pods x -A", "error: a resource cannot be retrieved by name across all namespaces"),
        ("get pods -l a==b==c", "Error from server (BadRequest): "),
        ("get pods -n A_b", "error: --namespace: \"A_b\": "),
        ("create namespace A_b", "The Namespace \"A_b\" is invalid: metadata.name: Invalid value: \"A_b\": "),
        ("create deployment A_b -- true", "The Deployment.apps \"A_b\" is invalid: [metadata.name: "),
        (
            "create deployment x --image nginx -- true",
            "The Deployment.apps \"x\" is invalid: spec.template.spec.containers[0].image: ",
        ),
        (
            "create deployment x -n nowhere -- true",
            "Error from server (NotFound): namespaces \"nowhere\" not found",
        ),
        (
            "create service nodeport x --tcp=80 --node-port=80",
            "The Service \"x\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range",
        ),
        (
            "create service nodeport x --tcp=80 --node-port=30081",
            "The Service \"x\" is invalid: spec.ports[0].nodePort: Invalid value: 30081: provided port is already allocated",
        ),
        (
            "create service clusterip x --tcp=80 --clusterip=10.96.0.1",
            "The Service \"x\" is invalid: spec.clusterIPs: Invalid value: ",
        ),
        (
            "create service clusterip x --tcp=80 --clusterip=10.1.2.3",
            "The Service \"x\" is invalid: spec.clusterIPs: Invalid value: ",
        ),
        (
            "create service clusterip taken --tcp=80",
            "Error from server (AlreadyExists): services \"taken\" already exists",
        ),
        ("expose deployment x --port=80", "Error from server (NotFound): deployments.apps \"x\" not found"),
        ("expose node x --port=80", "error: nodes cannot be exposed"),
        ("scale deployment x --replicas=1", "Error from server (NotFound): deployments.apps \"x\" not found"),
        ("scale pod x --replicas=1", "error: pods cannot be scaled"),
        ("delete pods", "error: which of the pods?"),
        ("delete pod x", "Error from server (NotFound): pods \"x\" not found"),
        ("logs x", "Error from server (NotFound): pods \"x\" not found"),
        ("exec x -- true", "Error from server (NotFound): pods \"x\" not found"),
        ("node exec x -- true", "Error from server (NotFound): nodes \"x\" not found"),
        ("wait pod/x --for=condition=Ready", "Error from server (NotFound): pods \"x\" not found"),
        ("wait pods --for=condition=Ready -l a=b", "error: no matching resources found"),
        (
            "wait svc/taken --for=condition=Ready --timeout=0",
            "error: timed out waiting for the condition on services/taken",
        ),
        ("describe svc x", "Error from server (NotFound): services \"x\" not found"),
        ("create -f nowhere.yaml", "error: cannot read nowhere.yaml: No such file or directory"),
        ("kubeconfig --merge", "error: --merge: "),
    ] {
        let got = server.run(&line.split(' ').collect::<Vec<_>>()).unwrap();
        assert_eq!(got.code, 1, "{line}: {got:?}");
        assert!(got.err.starts_with(says), "{line}: {}", got.err);
        assert_eq!(got.err.lines().count(), 1, "{line}: {}", got.err);
        assert_eq!(got.out, "", "{line}");
    }
    // Nothing half-made remains.
    assert_eq!(server.run(&["get", "all", "-o", "name"]).unwrap().out, "service/kubernetes\nservice/taken\n");
}

#[test]
fn files_are_checked_whole_before_the_first_object_is_sent() {
    let server = Server::start().unwrap();
    let file = server.home().join("a.yaml");
    let path = file.to_str().unwrap();
    let good = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: blue\n---\n\
        apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: blue}\nspec:\n  ports:\n  - port: 80\n";
    fs::write(&file, format!("{good}---\nkind: [\n")).unwrap();
    let broken = server.run(&["create", "-f", path]).unwrap();
    assert_eq!(broken.code, 1);
    assert!(
        broken.err.starts_with(&format!("error: {path}: ")) && broken.err.contains("line 1"),
        "{}",
        broken.err
    );
    assert_eq!(server.run(&["get", "ns", "blue", "--ignore-not-found"]).unwrap(), done(""));

    fs::write(&file, good).unwrap();
    let dry = server.run(&["create", "-f", path, "--dry-run=client"]).unwrap();
    assert_eq!(dry, done("namespace/blue created (dry run)\nservice/web created (dry run)\n"));
    assert_eq!(
        server.run(&["create", "-f", path]).unwrap(),
        done("namespace/blue created\nservice/web created\n")
    );
    let again = server.run(&["create", "-f", path]).unwrap();
    assert_eq!((again.code, again.err.lines().count()), (1, 2), "{again:?}");
    let place =
        format!("Error from server (AlreadyExists): error when creating \"{path}\" line 6: services \"web\"");
    assert!(again.err.lines().nth(1).unwrap().starts_with(&place), "{}", again.err);
    let deleted = server.run(&["delete", "-f", path]).unwrap();
    assert_eq!(deleted, done("service \"web\" deleted\nnamespace \"blue\" deleted\n"));
}

#[test]
fn a_watch_shows_what_comes_and_ends_when_nobody_reads() {
    let server = Server::start().unwrap();
    let mut watch = server.command(&["get", "pods", "-w"]).unwrap();
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    server.run(&["run", "one", "--", "true"]).unwrap();
    let mut next = || lines.next().unwrap().unwrap();
    assert!(next().starts_with("NAME   READY   STATUS"));
    assert!(next().starts_with("one    0/1     Pending"));
    server.run(&["delete", "pod", "one", "--force"]).unwrap();
    while !next().starts_with("one") {}
    drop(lines);
    server.run(&["run", "two", "--", "true"]).unwrap();
    let end = watch.wait_with_output().unwrap();
    assert_eq!((end.status.code(), String::from_utf8_lossy(&end.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn without_a_configuration_one_line_helps_and_kubeconfig_is_none() {
    let server = Server::start().unwrap();
    let empty = server.home().join("empty");
    let mut command = unconfigured(&empty).unwrap();
    let got = Run::of(&command.env("KUBECONFIG", server.config()).args(["get", "pods"]).output().unwrap());
    let expected = "error: no cluster is configured: start one with \"minisvc up\", or give --config\n";
    assert_eq!(got, Run { code: 1, out: String::new(), err: expected.into() });

    let dry = unconfigured(&empty)
        .unwrap()
        .args(["create", "namespace", "x", "--dry-run=client", "-o", "yaml"])
        .output()
        .unwrap();
    assert_eq!(Run::of(&dry), done("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: x\n"));

    let other = server.home().join("other.yaml");
    for (text, why) in [
        ("garbage: [", "not a kubeconfig: line 1 column 10: "),
        ("apiVersion: v1\nkind: Config\n", "current-context: "),
    ] {
        fs::write(&other, text).unwrap();
        let other = other.to_str().unwrap();
        let got = Run::of(
            &unconfigured(&empty).unwrap().args(["get", "pods", "--config", other]).output().unwrap(),
        );
        assert!(got.code == 1 && got.err.starts_with(&format!("error: {other}: {why}")), "{}", got.err);
        assert_eq!(got.err.lines().count(), 1);
    }

    let config = server.config().to_owned();
    let text = fs::read_to_string(&config).unwrap();
    drop(server);
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("config");
    fs::write(&config, text).unwrap();
    let path = config.to_str().unwrap();
    let gone = Run::of(
        &unconfigured(home.path()).unwrap().args(["get", "pods", "--config", path]).output().unwrap(),
    );
    assert_eq!(gone.code, 1);
    assert!(
        gone.err.starts_with("error: the server https://127.0.0.1:") && gone.err.contains("minisvc up"),
        "{}",
        gone.err
    );
    assert_eq!(gone.err.lines().count(), 1);
}
