//! The order in which containers come and go, hooks, and probes: with real processes.

use std::{fs, path::PathBuf};

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::StreamBody;
use hyper::{body::Frame, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use minisvc_proto::{
    Object,
    client::ListParams,
    path::Target,
    resource::{EVENTS, PODS},
};
use minisvc_tests::{
    node::{TestNode, condition, container},
    rooted::{as_root, kill_shims},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{READY, streams};

/// A file that containers write a word a line into.
struct Trace(PathBuf);

impl Trace {
    fn new(node: &TestNode) -> Self {
        Trace(node.home.join("run/trace"))
    }

    /// A shell's words for writing one.
    fn say(&self, word: &str) -> String {
        format!("echo {word} >> {}", self.0.display())
    }

    /// A script that says when it starts, and when SIGTERM ends it.
    fn serve(&self, name: &str) -> Value {
        let script = format!(
            "{}; trap '{}; exit 0' TERM; sleep 1000 & wait",
            self.say(name),
            self.say(&format!("{name}-term"))
        );
        json!(["sh", "-c", script])
    }

    fn words(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

fn init(pod: &Object, name: &str) -> Value {
    let mut all =
        pod.pointer("/status/initContainerStatuses").and_then(Value::as_array).into_iter().flatten();
    all.find(|c| c["name"] == name).cloned().unwrap_or_default()
}

/// The word that `get pods` shows.
async fn word(node: &TestNode, name: &str) -> String {
    let params = ListParams::fields(format!("metadata.name={name}"));
    let pods = Target::collection(&PODS, Some("default"));
    let table = node.admin.table(&pods, &params).await.unwrap();
    table.rows[0].cells[2].as_str().unwrap().to_owned()
}

/// Returns when there is an event about a pod with this reason and message.
async fn event(node: &TestNode, pod: &str, reason: &str, message: &str) {
    let target = Target::collection(&EVENTS, Some("default"));
    let params = ListParams::fields(format!("involvedObject.name={pod},reason={reason}"));
    let is_it = |event: &Object| event.str_at("/message") == Some(message);
    let (revision, found) = node.admin.list(&target, &params).await.unwrap();
    let mut told: Vec<_> = found.iter().map(|e| e.str_at("/message").unwrap_or("").to_owned()).collect();
    if found.iter().any(is_it) {
        return;
    }
    let mut events = node.admin.watch(&target, &params, revision).await.unwrap();
    loop {
        let event = events.next().await.unwrap().unwrap().object;
        if is_it(&event) {
            return;
        }
        told.extend(event.str_at("/message").map(str::to_owned));
        // What hangs shows what was told instead.
        eprintln!("{told:?}");
    }
}

#[test]
fn init_containers_come_first_and_sidecars_go_last() {
    as_root("life::init_containers_come_first_and_sidecars_go_last", async |home| {
        let node = TestNode::start(&home, 20).await;
        let trace = Trace::new(&node);
        let go = home.join("run/go");
        let step = |name: &str| json!({"name": name, "command": ["sh", "-c", trace.say(name)]});
        let spec = json!({"initContainers": [
            step("one"),
            {"name": "proxy", "restartPolicy": "Always", "command": trace.serve("proxy"),
             "startupProbe": {"exec": {"command": ["test", "-e", go]}}},
            {"name": "helper", "restartPolicy": "Always", "command": trace.serve("helper")},
            step("two"),
        ], "containers": [{"name": "c", "command": trace.serve("main")}]});
        node.run("web", &[], spec, json!({})).await;
        let pod = node.until("web", |p| init(p, "proxy")["state"].get("running").is_some()).await;
        assert_eq!(init(&pod, "one")["state"]["terminated"]["reason"], "Completed");
        assert_eq!(init(&pod, "proxy")["started"], false);
        assert_eq!(init(&pod, "helper")["state"]["waiting"]["reason"], "PodInitializing");
        assert_eq!(container(&pod)["state"]["waiting"]["reason"], "PodInitializing");
        assert_eq!((condition(&pod, "Initialized"), pod.str_at("/status/phase")), ("False", Some("Pending")));
        assert_eq!(word(&node, "web").await, "Init:1/4");
        assert_eq!(trace.words(), ["one", "proxy"]);
        fs::write(&go, "").unwrap();
        let pod = node.until("web", |p| condition(p, READY) == "True").await;
        assert_eq!(condition(&pod, "Initialized"), "True");
        assert_eq!(word(&node, "web").await, "Running");
        assert_eq!(trace.words(), ["one", "proxy", "helper", "two", "main"]);
        // A sidecar can be entered, and has a log.
        let said = streams::exec_in(&node, "web", "proxy", &["hostname"]).await;
        assert_eq!(said.out, b"web\n");
        assert_eq!(streams::log(&node, "web", &[("container", "two")]).await.unwrap(), "");

        node.delete("web", json!({})).await;
        node.gone("web").await;
        assert_eq!(trace.words()[5..], ["main-term", "helper-term", "proxy-term"]);
        node.end().await;
    });
}

#[test]
fn a_pod_is_over_with_its_main_containers() {
    as_root("life::a_pod_is_over_with_its_main_containers", async |home| {
        let node = TestNode::start(&home, 21).await;
        let trace = Trace::new(&node);
        let spec = json!({"restartPolicy": "Never", "initContainers": [
            {"name": "proxy", "restartPolicy": "Always", "command": trace.serve("proxy")},
        ]});
        let script = format!("{}; exit 0", trace.say("main"));
        node.run("job", &["sh", "-c", &script], spec, json!({})).await;
        let pod = node.until("job", |p| p.str_at("/status/phase") == Some("Succeeded")).await;
        assert_eq!(init(&pod, "proxy")["state"]["terminated"]["exitCode"], 0);
        assert_eq!(trace.words(), ["proxy", "main", "proxy-term"]);
        node.end().await;
    });
}

#[test]
fn an_init_container_that_fails_is_tried_again_or_ends_the_pod() {
    as_root("life::an_init_container_that_fails_is_tried_again_or_ends_the_pod", async |home| {
        let node = TestNode::start(&home, 22).await;
        let flag = home.join("run/flag");
        let script = format!("test -e {0} || {{ touch {0}; exit 3; }}", flag.display());
        let spec = json!({"initContainers": [{"name": "i", "command": ["sh", "-c", script]}]});
        node.run("again", &["sleep", "1000"], spec, json!({})).await;
        let pod =
            node.until("again", |p| init(p, "i")["state"]["waiting"]["reason"] == "CrashLoopBackOff").await;
        assert_eq!(init(&pod, "i")["lastState"]["terminated"]["exitCode"], 3);
        let pod = node.until("again", |p| condition(p, READY) == "True").await;
        assert_eq!(
            (init(&pod, "i")["restartCount"].as_u64(), container(&pod)["restartCount"].as_u64()),
            (Some(1), Some(0))
        );

        let spec = json!({"restartPolicy": "Never", "initContainers": [
            {"name": "i", "command": ["false"]}]});
        node.run("never", &["sleep", "1000"], spec, json!({})).await;
        node.until("never", |p| p.str_at("/status/phase") == Some("Failed")).await;
        assert_eq!(word(&node, "never").await, "Init:Error");
        node.end().await;
    });
}

#[test]
fn init_containers_run_again_when_the_namespaces_are_lost() {
    as_root("life::init_containers_run_again_when_the_namespaces_are_lost", async |home| {
        let node = TestNode::start(&home, 23).await;
        let trace = Trace::new(&node);
        let spec = json!({"initContainers": [
            {"name": "i", "command": ["sh", "-c", trace.say("init")]}]});
        node.run("web", &["sleep", "1000"], spec, json!({})).await;
        let pod = node.until("web", |p| condition(p, READY) == "True").await;
        let dir = home.join("run/pods").join(pod.uid());
        kill_shims(&dir);
        let pod =
            node.until("web", |p| condition(p, READY) == "True" && container(p)["restartCount"] == 1).await;
        assert_eq!(init(&pod, "i")["restartCount"], 1);
        assert_eq!(trace.words(), ["init", "init"]);
        node.end().await;
    });
}

#[test]
fn a_container_that_is_not_well_is_started_again() {
    as_root("life::a_container_that_is_not_well_is_started_again", async |home| {
        let node = TestNode::start(&home, 24).await;
        let trace = Trace::new(&node);
        let well = home.join("run/well");
        let script = format!(
            "touch {}; {}; trap '{}; exit 0' TERM; sleep 1000 & wait",
            well.display(),
            trace.say("up"),
            trace.say("term")
        );
        let more = json!({
            "startupProbe": {"exec": {"command": ["test", "-e", well]}},
            "livenessProbe": {"exec": {"command": ["sh", "-c", format!("test -e {} || {{ echo unwell; exit 1; }}", well.display())]},
                "periodSeconds": 1, "failureThreshold": 1},
            "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", trace.say("hook")]}}},
        });
        // It ends well when it is told to: that is no reason to leave it.
        node.run("web", &["sh", "-c", &script], json!({"restartPolicy": "OnFailure"}), more.clone()).await;
        node.until("web", |p| condition(p, READY) == "True").await;
        fs::remove_file(&well).unwrap();
        let pod =
            node.until("web", |p| container(p)["restartCount"] == 1 && condition(p, READY) == "True").await;
        assert_eq!(container(&pod)["lastState"]["terminated"]["exitCode"], 0);
        event(&node, "web", "Unhealthy", "Liveness probe failed: unwell").await;
        event(&node, "web", "Killing", "Container c failed liveness probe, will be restarted").await;
        assert_eq!(trace.words(), ["up", "hook", "term", "up"]);

        // That the start before was ended says nothing of the next one.
        fs::remove_file(&well).unwrap();
        let ran = home.join("run/ran");
        let script =
            format!("test -e {0} && exit 0; touch {0} {1}; sleep 1000", ran.display(), well.display());
        let more = json!({"startupProbe": more["startupProbe"], "livenessProbe": more["livenessProbe"]});
        node.run("once", &["sh", "-c", &script], json!({"restartPolicy": "OnFailure"}), more).await;
        node.until("once", |p| condition(p, READY) == "True").await;
        fs::remove_file(&well).unwrap();
        let pod = node.until("once", |p| p.str_at("/status/phase") == Some("Succeeded")).await;
        assert_eq!(container(&pod)["restartCount"], 1);
        node.end().await;
    });
}

#[test]
fn a_startup_probe_holds_back_the_others_and_may_fail() {
    as_root("life::a_startup_probe_holds_back_the_others_and_may_fail", async |home| {
        let mut node = TestNode::start(&home, 25).await;
        let (up, seen) = (home.join("run/up"), home.join("run/seen"));
        let more = json!({
            "startupProbe": {"exec": {"command": ["test", "-e", up]}, "failureThreshold": 30, "periodSeconds": 1},
            "readinessProbe": {"exec": {"command": ["touch", seen]}, "periodSeconds": 1},
            "livenessProbe": {"exec": {"command": ["test", "-e", up]}, "periodSeconds": 1, "failureThreshold": 1},
        });
        node.run("slow", &["sleep", "1000"], json!({}), more).await;
        let why = "Startup probe failed: command \"test\" exited with 1";
        event(&node, "slow", "Unhealthy", why).await;
        let pod = node.until("slow", |p| container(p)["state"].get("running").is_some()).await;
        assert_eq!((&container(&pod)["started"], condition(&pod, READY)), (&json!(false), "False"));
        assert!(!seen.exists(), "readiness is not asked yet");
        fs::write(&up, "").unwrap();
        let before = node.until("slow", |p| condition(p, READY) == "True").await;
        assert_eq!(
            (&container(&before)["started"], &container(&before)["restartCount"]),
            (&json!(true), &json!(0))
        );
        // What is started stays so under another agent.
        node.stop_agent().await;
        node.start_agent().await;
        let more = json!({"startupProbe": {"exec": {"command": ["false"]}, "failureThreshold": 1, "periodSeconds": 1,
            "terminationGracePeriodSeconds": 1}});
        node.run("never", &["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], json!({}), more).await;
        let pod = node.until("never", |p| container(p)["restartCount"] == 1).await;
        assert_eq!(
            container(&pod)["lastState"]["terminated"]["signal"],
            9,
            "as soon as its own grace period is over"
        );
        event(&node, "never", "Killing", "Container c failed startup probe, will be restarted").await;
        let after = node.until("slow", |_| true).await;
        assert_eq!(after.str_at("/metadata/resourceVersion"), before.str_at("/metadata/resourceVersion"));
        node.end().await;
    });
}

#[test]
fn a_health_check_over_grpc_says_who_is_ready() {
    as_root("life::a_health_check_over_grpc_says_who_is_ready", async |home| {
        let node = TestNode::start(&home, 26).await;
        let probe = json!({"readinessProbe": {"grpc": {"port": 9000, "service": "web"}, "periodSeconds": 1, "failureThreshold": 1}});
        node.run("rpc", &["sleep", "1000"], json!({}), probe).await;
        let pod = node.until("rpc", |p| container(p)["started"] == true).await;
        // The test answers in the pod's place, at its address.
        let ip = pod.str_at("/status/podIP").unwrap().to_owned();
        let listener = TcpListener::bind((ip.as_str(), 9000)).await.unwrap();
        let (status, mine) = tokio::sync::watch::channel(2_u8);
        let serving = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let mine = mine.clone();
                let service = service_fn(move |_: hyper::Request<hyper::body::Incoming>| {
                    let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, *mine.borrow()]);
                    let mut trailers = hyper::HeaderMap::new();
                    trailers.insert("grpc-status", "0".parse().unwrap());
                    let frames =
                        [Ok::<_, std::io::Error>(Frame::data(message)), Ok(Frame::trailers(trailers))];
                    let body = StreamBody::new(futures::stream::iter(frames));
                    async { Ok::<_, std::io::Error>(hyper::Response::new(body)) }
                });
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
            }
        });
        status.send_replace(1);
        node.until("rpc", |p| condition(p, READY) == "True").await;
        status.send_replace(2);
        node.until("rpc", |p| condition(p, READY) == "False").await;
        let why = "Readiness probe failed: service unhealthy (responded with \"NOT_SERVING\")";
        event(&node, "rpc", "Unhealthy", why).await;
        serving.abort();
        node.end().await;
    });
}

#[test]
fn hooks_run_after_the_start_and_before_the_end() {
    as_root("life::hooks_run_after_the_start_and_before_the_end", async |home| {
        let node = TestNode::start(&home, 27).await;
        let trace = Trace::new(&node);
        let hook = |word: &str| json!({"exec": {"command": ["sh", "-c", trace.say(word)]}});
        let more = json!({"lifecycle": {"postStart": hook("post"), "preStop": hook("pre")}});
        let spec = json!({"containers": [{"name": "c", "command": trace.serve("main"), "lifecycle": more["lifecycle"]}]});
        node.run("web", &[], spec, json!({})).await;
        node.until("web", |p| condition(p, READY) == "True").await;
        let mut started = trace.words();
        started.sort();
        assert_eq!(started, ["main", "post"], "both run at the same time");
        node.delete("web", json!({})).await;
        node.gone("web").await;
        assert_eq!(trace.words()[2..], ["pre", "main-term"]);

        // A hook that does not end has the grace period, and not more.
        let more = json!({"lifecycle": {"preStop": {"exec": {"command": ["sleep", "1000"]}}}});
        let spec = json!({"containers": [{"name": "c", "command": trace.serve("late"), "lifecycle": more["lifecycle"]}]});
        node.run("late", &[], spec, json!({})).await;
        node.until("late", |p| condition(p, READY) == "True").await;
        node.delete("late", json!({"gracePeriodSeconds": 1})).await;
        node.gone("late").await;
        assert_eq!(trace.words()[4..], ["late", "late-term"]);
        event(&node, "late", "FailedPreStopHook", "PreStopHook failed: not completed in grace period").await;
        node.end().await;
    });
}

#[test]
fn a_container_whose_start_hook_fails_is_started_again() {
    as_root("life::a_container_whose_start_hook_fails_is_started_again", async |home| {
        let node = TestNode::start(&home, 28).await;
        let flag = home.join("run/flag");
        let script = format!("test -e {0} || {{ touch {0}; echo no cache; exit 1; }}", flag.display());
        let more = json!({"lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", script]}}}});
        node.run("web", &["sleep", "1000"], json!({}), more).await;
        let pod = node.until("web", |p| condition(p, READY) == "True").await;
        assert_eq!(container(&pod)["restartCount"], 1);
        event(&node, "web", "FailedPostStartHook", "PostStartHook failed: no cache").await;
        event(&node, "web", "Killing", "FailedPostStartHook").await;
        node.end().await;
    });
}

/// Takes one request, and tells its path; the answer is the caller's.
async fn asked(listener: &TcpListener) -> (String, TcpStream) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut buffer = [0; 1024];
    let n = stream.read(&mut buffer).await.unwrap();
    let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
    (text.split(' ').nth(1).unwrap_or("").to_owned(), stream)
}

#[test]
fn hooks_may_ask_over_http_and_a_pod_that_ends_is_asked_whether_it_is_ready() {
    as_root("life::hooks_may_ask_over_http_and_a_pod_that_ends_is_asked_whether_it_is_ready", async |home| {
        let node = TestNode::start(&home, 29).await;
        let trace = Trace::new(&node);
        let well = home.join("run/well");
        fs::write(&well, "").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let get = |path: &str| json!({"httpGet": {"host": "127.0.0.1", "port": port, "path": path}});
        let spec = json!({"containers": [{"name": "c", "command": trace.serve("main"),
            "lifecycle": {"postStart": get("/post"), "preStop": get("/pre")},
            "readinessProbe": {"exec": {"command": ["test", "-e", well]}, "periodSeconds": 1, "failureThreshold": 1}}]});
        node.run("web", &[], spec, json!({})).await;
        let (path, mut stream) = asked(&listener).await;
        assert_eq!(path, "/post");
        let pod = node.until("web", |p| container(p)["state"].get("running").is_some()).await;
        assert_eq!((&container(&pod)["started"], condition(&pod, READY)), (&json!(false), "False"));
        // Any answer is one.
        stream.write_all(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        node.until("web", |p| condition(p, READY) == "True").await;

        node.delete("web", json!({})).await;
        let (path, mut stream) = asked(&listener).await;
        assert_eq!(path, "/pre");
        fs::remove_file(&well).unwrap();
        let pod = node.until("web", |p| condition(p, READY) == "False").await;
        assert!(pod.deletion_timestamp().is_some());
        assert!(container(&pod)["state"].get("running").is_some());
        assert_eq!(trace.words(), ["main"], "SIGTERM waits for the hook");
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        node.gone("web").await;
        assert_eq!(trace.words(), ["main", "main-term"]);
        node.end().await;
    });
}

#[test]
fn a_probes_command_that_takes_too_long_is_killed() {
    as_root("life::a_probes_command_that_takes_too_long_is_killed", async |home| {
        let node = TestNode::start(&home, 30).await;
        let fifo = home.join("run/held");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let script = format!("exec 3> {}; sleep 1000; true", fifo.display());
        let probe =
            json!({"readinessProbe": {"exec": {"command": ["sh", "-c", script]}, "failureThreshold": 1}});
        node.run("stuck", &["sleep", "1000"], json!({}), probe).await;
        // Nobody writes into it; its end says that the command and its child hold it no more.
        let end = tokio::task::spawn_blocking(move || fs::read(fifo)).await.unwrap().unwrap();
        assert!(end.is_empty());
        event(&node, "stuck", "Unhealthy", "Readiness probe failed: no answer within 1s").await;
        let pod = node.until("stuck", |p| container(p)["started"] == true).await;
        assert_eq!((condition(&pod, READY), &container(&pod)["restartCount"]), ("False", &json!(0)));
        node.end().await;
    });
}
