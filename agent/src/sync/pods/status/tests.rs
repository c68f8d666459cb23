use super::*;

const T: i64 = 1_764_000_000_000;

fn pod() -> Object {
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "default", "uid": "u1"},
        "spec": {"containers": [{"name": "c", "image": "host"}]}}))
    .unwrap()
}

fn exit(code: i32) -> Exit {
    Exit { code, signal: None, not_started: None, started_at: T, finished_at: T + 5000 }
}

fn running(attempt: u32, previous: Option<Exit>) -> ContainerState {
    ContainerState { attempt, started_at: T, exit: None, previous }
}

fn ended(exit: Exit) -> ContainerState {
    ContainerState { attempt: 2, started_at: T, exit: Some(exit), previous: None }
}

fn status(pod: &Object, restart: RestartPolicy, state: Option<ContainerState>, ready: bool) -> Value {
    let containers = state.map(|s| ("c".to_owned(), s)).into_iter().collect();
    render(&Seen {
        pod,
        names: &["c".to_owned()],
        restart,
        containers: &containers,
        ready: &BTreeMap::from([("c".to_owned(), ready)]),
        waiting: &BTreeMap::new(),
        ips: &["10.244.1.2", "fd00:1::2"].map(|ip| ip.parse().unwrap()),
        node_ips: &["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()),
    })
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
fn why_a_container_waits_is_told() {
    let why = "exec: \"foo\": not found in PATH";
    let missing = Exit { not_started: Some(why.into()), ..exit(128) };
    let status = status(&pod(), RestartPolicy::Always, Some(ended(missing)), false);
    let container = &status["containerStatuses"][0];
    assert!(container["state"]["waiting"]["message"].as_str().unwrap().ends_with(why), "{container}");
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
}
