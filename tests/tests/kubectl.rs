//! Real kubectls against one `minisvc up`: those that lie beside the one on PATH (`kubectl.1.28` …), or that one alone. Needs kubectl 1.27
//! or newer.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]
#![cfg(target_os = "linux")]

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use minisvc_tests::cluster::{Cluster, Said};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web, set: a}}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: main
        command: [minisvc, echo, --port, "8080"]
        ports: [{containerPort: 8080}]
        env: [{name: A, value: "1"}]
---
apiVersion: v1
kind: Service
metadata: {name: web, labels: {set: a}}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, name: http}]
"#;

/// The kubectls of this machine, the oldest first.
fn kubectls() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join("kubectl")).find(|p| p.exists());
    let found = found.unwrap_or_else(|| panic!("this test needs kubectl 1.27 or newer on PATH"));
    let real = fs::canonicalize(found).unwrap();
    let entries = fs::read_dir(real.parent().unwrap()).unwrap().flatten().map(|e| e.path());
    let minor = |p: &PathBuf| p.file_name()?.to_str()?.strip_prefix("kubectl.1.")?.parse::<u32>().ok();
    let mut all: Vec<(u32, PathBuf)> =
        entries.filter_map(|p| Some((minor(&p)?, p))).filter(|(m, _)| *m >= 27).collect();
    all.sort();
    if all.is_empty() { vec![real] } else { all.into_iter().map(|(_, p)| p).collect() }
}

/// Somebody with one kubectl and a namespace.
struct User<'a> {
    cluster: &'a Cluster,
    kubectl: PathBuf,
    directory: tempfile::TempDir,
    namespace: &'static str,
}

impl<'a> User<'a> {
    fn new(cluster: &'a Cluster, kubectl: &Path, namespace: &'static str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = cluster.run(&["kubeconfig"]).ok();
        fs::write(directory.path().join("config"), config).unwrap();
        fs::write(directory.path().join("web.yaml"), WEB).unwrap();
        let more = WEB
            .replace("value: \"1\"", "value: \"2\"")
            .replace("name: http}", "name: http}, {port: 81, targetPort: 8080, name: more}");
        fs::write(directory.path().join("more.yaml"), more).unwrap();
        let user = User { cluster, kubectl: kubectl.to_owned(), directory, namespace };
        user.sh(&format!("k config set-context --current --namespace={namespace}")).ok();
        user
    }

    /// Runs a line of a shell, in which `k` is this kubectl.
    fn sh(&self, line: &str) -> Said {
        let script = format!("k() {{ {} \"$@\"; }}; {line}", self.kubectl.display());
        let mut command = self.cluster.command("bash");
        command.args(["-c", &script]).current_dir(self.directory.path());
        command.env("KUBECONFIG", self.directory.path().join("config")).env("HOME", self.directory.path());
        Said::of(format!("{}: {line}", self.kubectl.display()), command.output().unwrap())
    }

    #[track_caller]
    fn says(&self, line: &str, expected: &str) {
        let said = self.sh(line);
        let text = format!("{}{}", said.out, said.err).replace(self.namespace, "NS");
        assert_eq!(text.trim_end(), expected, "{said}");
    }
}

#[test]
fn what_users_of_kubectl_do_every_day() {
    let cluster = Cluster::up("kubectl", 1);
    let kubectls = kubectls();
    let mut chosen = vec![(kubectls.last().unwrap(), "newest")];
    if let [oldest, _, ..] = kubectls.as_slice() {
        chosen.push((oldest, "oldest"));
    }
    for (kubectl, namespace) in chosen {
        cluster.run(&["create", "namespace", namespace]).ok();
        let user = User::new(&cluster, kubectl, namespace);
        apply_and_change(&user);
        create_and_delete(&user);
        explain(&user);
        mistake(&user);
    }
}

fn apply_and_change(user: &User<'_>) {
    user.says("k apply -f web.yaml", "deployment.apps/web created\nservice/web created");
    user.says("k apply -f web.yaml", "deployment.apps/web unchanged\nservice/web unchanged");
    user.says("k diff -f web.yaml", "");
    let difference = user.sh("k diff -f more.yaml");
    assert_eq!(difference.status.code(), Some(1), "{difference}");
    assert!(
        difference.out.contains("+  - name: more") && difference.out.contains("+          value: \"2\""),
        "{difference}"
    );
    user.says(
        "k apply -f more.yaml --dry-run=server",
        "deployment.apps/web configured (server dry run)\nservice/web configured (server dry run)",
    );
    user.says("k apply -f more.yaml", "deployment.apps/web configured\nservice/web configured");
    user.says("k get svc web -o jsonpath='{.spec.ports[*].name}'", "http more");
    user.says("k apply -f web.yaml", "deployment.apps/web configured\nservice/web configured");
    user.says("k get svc web -o jsonpath='{.spec.ports[*].name}'", "http");
    user.says("k patch svc web -p '{\"metadata\":{\"labels\":{\"z\":\"1\"}}}'", "service/web patched");
    user.says(
        "k patch svc web --type=json -p '[{\"op\":\"remove\",\"path\":\"/metadata/labels/z\"}]'",
        "service/web patched",
    );
    user.says("k label svc web x=y", "service/web labeled");
    user.says("k annotate svc web x=y -o name", "service/web");
    user.says("k set env deploy/web B=2", "deployment.apps/web env updated");
    user.says("k get deploy web -o jsonpath='{range .spec.template.spec.containers[0].env[*]}{.name}={.value} {end}'", "A=1 B=2");
    user.says("k set selector svc web app=web,b=c", "service/web selector updated");
    user.says("k scale deploy web --replicas=2", "deployment.apps/web scaled");
    user.says("EDITOR='sed -i s/replicas:.2/replicas:\\ 1/' k edit deploy web", "deployment.apps/web edited");
    user.says("k get deploy web -o jsonpath='{.spec.replicas}'", "1");
    user.says("k rollout pause deploy/web", "deployment.apps/web paused");
    user.says("k rollout resume deploy/web", "deployment.apps/web resumed");
    user.says("k rollout restart deploy/web", "deployment.apps/web restarted");
    user.says("k replace -f web.yaml", "deployment.apps/web replaced\nservice/web replaced");
    user.says(
        "k wait --for=condition=Available deploy/web --timeout=30s",
        "deployment.apps/web condition met",
    );
    user.says(
        "k delete deploy,svc web --cascade=foreground",
        "deployment.apps \"web\" deleted\nservice \"web\" deleted",
    );
}

fn create_and_delete(user: &User<'_>) {
    user.says("k create service clusterip first --tcp=80:8080", "service/first created");
    user.says(
        "k get svc first -o jsonpath='{.spec.ports[0].targetPort} {.spec.type} {.spec.selector.app}'",
        "8080 ClusterIP first",
    );
    user.says("k create namespace other --dry-run=server", "namespace/other created (server dry run)");
    user.says("k create service externalname out --external-name=example.com", "service/out created");
    user.says(
        "k create deployment made --image=host -- minisvc echo --port 8080",
        "deployment.apps/made created",
    );
    user.says("k expose deploy made --port=80", "service/made exposed");
    let refused = user.sh("k create deployment refused --image=x").refused(1);
    assert!(
        refused.contains(
            "spec.template.spec.containers[0].image: Invalid value: \"x\": minisvc pulls no images"
        ),
        "{refused}"
    );
    user.says("k delete svc first --cascade=foreground --wait", "service \"first\" deleted");
    user.says("k delete svc out --cascade=orphan", "service \"out\" deleted");
    user.says("k cordon node-1", "node/node-1 cordoned");
    user.says("k taint nodes node-1 a=b:NoSchedule", "node/node-1 tainted");
    user.says("k taint nodes node-1 a-", "node/node-1 untainted");
    user.says("k uncordon node-1", "node/node-1 uncordoned");
}

fn explain(user: &User<'_>) {
    for (path, field) in [("svc.spec.ports", "nodePort"), ("deploy.spec.strategy", "rollingUpdate")] {
        let explained = user.sh(&format!("k explain {path}")).ok();
        assert!(explained.contains(&format!("  {field}\t<")), "{explained}");
    }
    let whole = user.sh("k explain pod --recursive").ok();
    assert!(whole.contains("containerPort"), "{whole}");
    let absent = user.sh("k explain secrets");
    assert!(!absent.status.success(), "{absent}");
}

fn mistake(user: &User<'_>) {
    let typo = WEB.replace("selector: {app: web}\n", "selektor: {app: web}\n");
    fs::write(user.directory.path().join("typo.yaml"), typo).unwrap();
    let strict = user.sh("k apply -f typo.yaml");
    assert!(strict.err.contains("strict decoding error: unknown field \"spec.selektor\""), "{strict}");
    user.says("k get svc web --ignore-not-found", "");
    let warned = user.sh("k apply -f typo.yaml --validate=warn");
    assert!(warned.err.contains("Warning: unknown field \"spec.selektor\""), "{warned}");
    let patched = user.sh("k patch svc web --type=merge -p '{\"spec\":{\"sesionAffinity\":\"None\"}}'");
    assert!(
        patched.err.contains("Warning: unknown field \"spec.sesionAffinity\"") || !patched.status.success(),
        "{patched}"
    );
    user.sh("k delete -f typo.yaml").ok();
}
