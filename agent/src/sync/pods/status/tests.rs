use super::*;

const T: i64 = 1_764_000_000_000;

fn pod() -> Object {
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {"containers": [{"name": "c", "image": "host"}]}}))
    .unwrap()
}

fn exit(code: i32) -> Exit {
    Exit {
        code,
        signal: None,
        not_started: None,
        message: None,
        oom_killed: false,
        started_at: T,
        finished_at: T + 5000,
    }
}

fn running(attempt: u32, previous: Option<Exit>) -> ContainerState {
    ContainerState { attempt, started_at: T, exit: None, previous }
}

fn ended(exit: Exit) -> ContainerState {
    ContainerState { attempt: 2, started_at: T, exit: Some(exit), previous: None }
}

/// All that a status is made from, to be borrowed.
#[derive(Clone, Debug)]
struct Case {
    pod: Object,
    members: Vec<Member>,
    restart: RestartPolicy,
    containers: BTreeMap<String, ContainerState>,
    earlier: BTreeSet<String>,
    health: BTreeMap<String, Health>,
}

impl Case {
    fn new(members: &[(&str, Kind)]) -> Self {
        let members =
            members.iter().map(|(name, kind)| Member { name: (*name).into(), kind: *kind, hook: false });
        Case {
            pod: pod(),
            members: members.collect(),
            restart: RestartPolicy::Always,
            containers: BTreeMap::new(),
            earlier: BTreeSet::new(),
            health: BTreeMap::new(),
        }
    }

    /// With a container that has come so far, and is started and ready or not.
    fn with(mut self, name: &str, state: ContainerState, (started, ready): (bool, bool)) -> Self {
        let health = Health { attempt: state.attempt, started, ready, ..Health::default() };
        self.health.insert(name.into(), health);
        self.containers.insert(name.into(), state);
        self
    }

    fn status(&self) -> Value {
        render(&Seen {
            pod: &self.pod,
            members: &self.members,
            restart: self.restart,
            containers: &self.containers,
            earlier: &self.earlier,
            health: &self.health,
            failures: &BTreeMap::from([("c".to_owned(), 3)]),
            waiting: &BTreeMap::new(),
            ips: &["10.244.1.2", "fd00:1::2"].map(|ip| ip.parse().unwrap()),
            node_ips: &["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()),
        })
    }
}

fn status(pod: &Object, restart: RestartPolicy, state: Option<ContainerState>, ready: bool) -> Value {
    let mut case = Case { pod: pod.clone(), restart, ..Case::new(&[("c", Kind::Main)]) };
    if let Some(state) = state {
        case = case.with("c", state, (true, ready));
    }
    case.status()
}

/// Phase, Ready, the container's state as one word, its restarts.
fn short(status: &Value) -> String {
    let ready = status["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "Ready").unwrap();
    let container = &status["containerStatuses"][0];
    let (kind, state) = container["state"].as_object().unwrap().iter().next().unwrap();
    let reason = state["reason"].as_str().unwrap_or("-");
    format!(
        "{} {} {kind}:{reason} {}",
        status["phase"].as_str().unwrap(),
        ready["status"].as_str().unwrap(),
        container["restartCount"]
    )
}

#[test]
fn the_phases_of_a_life() {
    use RestartPolicy::{Always, Never, OnFailure};
    let missing = Exit { not_started: Some("exec: \"foo\": not found in PATH".into()), ..exit(128) };
    let cases = [
        (Always, None, false, "Pending False waiting:ContainerCreating 0"),
        (Always, Some(running(0, None)), false, "Running False running:- 0"),
        (Always, Some(running(0, None)), true, "Running True running:- 0"),
        (Always, Some(ended(exit(0))), true, "Running False waiting:CrashLoopBackOff 2"),
        (Always, Some(ended(missing.clone())), false, "Running False waiting:CrashLoopBackOff 2"),
        (OnFailure, Some(ended(exit(0))), false, "Succeeded False terminated:Completed 2"),
        (Never, Some(ended(exit(3))), false, "Failed False terminated:Error 2"),
        (Never, Some(ended(missing)), false, "Failed False terminated:StartError 2"),
    ];
    for (restart, state, ready, want) in cases {
        assert_eq!(short(&status(&pod(), restart, state.clone(), ready)), want, "{restart:?} {state:?}");
    }
    let mut going = pod();
    going.metadata_mut().insert("deletionTimestamp".into(), "2026-11-25T00:00:00Z".into());
    assert_eq!(
        short(&status(&going, Always, Some(ended(exit(0))), false)),
        "Running False terminated:Completed 2"
    );
}

/// Phase, Initialized, Ready; then each container: state, whether it is started (s) and ready (r).
fn line(case: &Case) -> String {
    let status = case.status();
    let is = |kind: &str| {
        let all = status["conditions"].as_array().unwrap().iter();
        all.clone().find(|c| c["type"] == kind).unwrap()["status"] == "True"
    };
    let list = |field: &str| status[field].as_array().cloned().unwrap_or_default();
    let containers = [list("initContainerStatuses"), list("containerStatuses")].concat();
    let words = containers.iter().map(|c| {
        let (kind, state) = c["state"].as_object().unwrap().iter().next().unwrap();
        let state = state["reason"].as_str().unwrap_or(kind);
        let flag = |field: &str, letter| if c[field] == true { letter } else { "" };
        format!("{}={state}:{}{}", c["name"].as_str().unwrap(), flag("started", "s"), flag("ready", "r"))
    });
    let words = words.collect::<Vec<_>>().join(" ");
    let flag = |kind, letter| if is(kind) { letter } else { "-" };
    format!(
        "{} {}{} {words}",
        status["phase"].as_str().unwrap(),
        flag("Initialized", "I"),
        flag("Ready", "R")
    )
}

#[test]
fn init_containers_and_sidecars_are_told() {
    let new = || Case::new(&[("i", Kind::Init), ("s", Kind::Sidecar), ("c", Kind::Main)]);
    let (no, started, ready) = ((false, false), (true, false), (true, true));
    let end = |code| ContainerState { attempt: 0, ..ended(exit(code)) };
    let i = || new().with("i", end(0), started);
    let c = || i().with("s", running(0, None), ready).with("c", running(0, None), ready);
    let never = |case: Case| Case { restart: RestartPolicy::Never, ..case };
    for (case, want) in [
        (new(), "Pending -- i=PodInitializing: s=PodInitializing: c=PodInitializing:"),
        (
            new().with("i", running(0, None), started),
            "Pending -- i=running:s s=PodInitializing: c=PodInitializing:",
        ),
        (
            new().with("i", end(1), started),
            "Pending -- i=CrashLoopBackOff: s=PodInitializing: c=PodInitializing:",
        ),
        (never(new().with("i", end(1), started)), "Failed -- i=Error: s=PodInitializing: c=PodInitializing:"),
        (i().with("s", running(0, None), no), "Pending -- i=Completed:r s=running: c=PodInitializing:"),
        (i().with("s", running(0, None), ready), "Pending I- i=Completed:r s=running:sr c=PodInitializing:"),
        (c(), "Running IR i=Completed:r s=running:sr c=running:sr"),
        // A sidecar counts for the pod's readiness, and not for its initialization once that is over.
        (c().with("s", running(0, None), started), "Running I- i=Completed:r s=running:s c=running:sr"),
        (c().with("s", end(2), started), "Running I- i=Completed:r s=CrashLoopBackOff: c=running:sr"),
        (c().with("c", running(0, None), no), "Running I- i=Completed:r s=running:sr c=running:"),
        // The main container is done, its sidecar not yet.
        (never(c().with("c", end(0), started)), "Running I- i=Completed:r s=running:sr c=Completed:"),
        (
            never(c().with("c", end(0), started).with("s", end(137), started)),
            "Succeeded I- i=Completed:r s=Error: c=Completed:",
        ),
        // New namespaces: all begins anew.
        (
            Case { earlier: ["i", "s", "c"].map(str::to_owned).into(), ..c() }
                .with("s", end(137), started)
                .with("c", end(137), started),
            "Pending -- i=PodInitializing: s=PodInitializing: c=PodInitializing:",
        ),
    ] {
        assert_eq!(line(&case), want, "{case:?}");
    }
    let told = c().with("s", running(0, None), no).status();
    assert_eq!(told["conditions"][3]["message"], "containers with unready status: [s]");
    let told = i().status();
    assert_eq!(told["conditions"][1]["message"], "containers with incomplete status: [s]");
    assert_eq!(told["conditions"][1]["reason"], "ContainersNotInitialized");
}

#[test]
fn what_was_ended_for_its_own_good_is_not_over() {
    let case = || Case::new(&[("c", Kind::Main)]).with("c", ended(exit(0)), (true, true));
    let mut condemned = Case { restart: RestartPolicy::OnFailure, ..case() };
    condemned.health.get_mut("c").unwrap().condemned = Some(1);
    assert_eq!(line(&condemned), "Running I- c=CrashLoopBackOff:");
    assert_eq!(line(&Case { restart: RestartPolicy::Never, ..condemned }), "Succeeded I- c=Completed:");
}

#[test]
fn details_are_those_of_kubernetes() {
    let killed = Exit { code: 137, signal: Some(9), ..exit(0) };
    let status = status(&pod(), RestartPolicy::Always, Some(running(3, Some(killed))), true);
    assert_eq!((&status["podIP"], &status["podIPs"][0]["ip"]), (&"10.244.1.2".into(), &"10.244.1.2".into()));
    assert_eq!(status["podIPs"][1]["ip"], "fd00:1::2");
    assert_eq!(status["hostIP"], "192.0.2.1");
    assert_eq!(status["hostIPs"][1]["ip"], "2001:db8::1");
    assert_eq!(status["qosClass"], "BestEffort");
    let container = &status["containerStatuses"][0];
    assert_eq!(container["containerID"], "minisvc://u1/c/3");
    assert_eq!(container["image"], "host");
    let last = &container["lastState"]["terminated"];
    assert_eq!(
        (&last["exitCode"], &last["signal"], &last["reason"]),
        (&137.into(), &9.into(), &"Error".into())
    );
    assert_eq!(last["startedAt"], time(T));
    k8s_openapi::serde_json::from_value::<k8s_openapi::api::core::v1::PodStatus>(
        merge(None, &status, "2026-11-25T00:00:00Z").unwrap(),
    )
    .unwrap();
}

#[test]
fn last_words_are_told_and_read_back() {
    let exit = Exit { message: Some("because".into()), ..exit(1) };
    let mut stored = pod();
    stored.0.insert("status".into(), status(&stored, RestartPolicy::Never, Some(ended(exit)), false));
    let told = stored.pointer("/status/containerStatuses/0/state/terminated/message");
    assert_eq!(told, Some(&"because".into()));
    let read = read_back(&stored, T)["c"].exit.clone().unwrap();
    assert_eq!((read.message.as_deref(), read.not_started), (Some("because"), None));
}

#[test]
fn why_a_container_waits_is_told() {
    let why = "exec: \"foo\": not found in PATH";
    let missing = Exit { not_started: Some(why.into()), ..exit(128) };
    let status = status(&pod(), RestartPolicy::Always, Some(ended(missing)), false);
    let container = &status["containerStatuses"][0];
    let message = container["state"]["waiting"]["message"].as_str().unwrap();
    assert_eq!(
        message,
        format!(
            "back-off 4s restarting failed container=c pod=web_default(u1): next start at {}; last end: {why}",
            time(T + 9000)
        )
    );
    assert_eq!(container["lastState"]["terminated"]["message"], why);
}

#[test]
fn a_status_is_written_when_it_differs_and_times_stay() {
    let want = status(&pod(), RestartPolicy::Always, Some(running(0, None)), true);
    let first = merge(None, &want, "T1").unwrap();
    assert_eq!(first["startTime"], "T1");
    assert_eq!(merge(Some(&first), &want, "T2"), None, "it stands already");
    // The server took readiness away, somebody added a condition.
    let mut stored = first.clone();
    stored["conditions"][3]["status"] = "False".into();
    stored["conditions"][3]["lastTransitionTime"] = "T2".into();
    stored["conditions"].as_array_mut().unwrap().push(json!({"type": "Other", "status": "True"}));
    let again = merge(Some(&stored), &want, "T3").unwrap();
    let conditions = again["conditions"].as_array().unwrap();
    assert_eq!(
        (conditions[3]["status"].as_str(), conditions[3]["lastTransitionTime"].as_str()),
        (Some("True"), Some("T3"))
    );
    assert_eq!(conditions[2]["lastTransitionTime"], "T1");
    assert_eq!(conditions[4]["type"], "Other");
    assert_eq!(again["startTime"], "T1");
    assert_eq!(merge(Some(&again), &want, "T4"), None);
    // A server that leaves nulls out is no reason to write again and again.
    let mut stored = again.clone();
    for condition in stored["conditions"].as_array_mut().unwrap() {
        condition.as_object_mut().unwrap().remove("lastProbeTime");
    }
    assert_eq!(merge(Some(&stored), &want, "T4"), None);
    // The address is gone.
    let mut bare = want.clone();
    bare.as_object_mut().unwrap().remove("podIP");
    assert_eq!(merge(Some(&again), &bare, "T5").unwrap()["podIP"], Value::Null);
}

#[test]
fn after_a_restart_of_the_machine_the_stored_status_tells_what_was() {
    let mut stored = pod();
    let want = status(&pod(), RestartPolicy::Always, Some(running(3, None)), true);
    stored.0.insert("status".into(), merge(None, &want, "T").unwrap());
    let back = read_back(&stored, T + 9000);
    let exit = back["c"].exit.clone().unwrap();
    assert_eq!((back["c"].attempt, exit.code, exit.started_at, exit.finished_at), (3, 137, T, T + 9000));
    assert!(ended_with_machine(&back["c"], T + 9000));
    let missing = Exit { not_started: Some("why".into()), ..self::exit(128) };
    let want = status(&pod(), RestartPolicy::Always, Some(ended(missing.clone())), true);
    stored.0.insert("status".into(), want);
    let back = read_back(&stored, T + 9000);
    assert!(!ended_with_machine(&back["c"], T + 9000));
    assert_eq!(back["c"].exit, Some(missing));
    assert!(read_back(&pod(), T).is_empty());
    let mut again = Case::new(&[("i", Kind::Init), ("c", Kind::Main)]);
    again = again.with("i", ended(self::exit(0)), (true, true)).with("c", running(1, None), (true, true));
    stored.0.insert("status".into(), again.status());
    let back = read_back(&stored, T + 9000);
    assert_eq!((back["i"].exit.as_ref().unwrap().code, back["c"].exit.as_ref().unwrap().code), (0, 137));
    assert_eq!(ready_starts(&stored), BTreeMap::from([("i".into(), 2), ("c".into(), 1)]));
    assert_eq!(started_starts(&stored), BTreeMap::from([("c".into(), 1)]));
}
