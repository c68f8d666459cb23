use super::*;
use crate::runtime::Exit;

const NOW: i64 = 1_000_000;
const GRACE: i64 = 30_000;

fn exit(code: i32, ago: i64) -> Exit {
    Exit {
        code,
        signal: None,
        not_started: None,
        message: None,
        oom_killed: false,
        started_at: NOW - ago - 50,
        finished_at: NOW - ago,
    }
}

fn one(attempt: u32, exit: Option<Exit>) -> ContainerState {
    ContainerState { attempt, started_at: 0, exit, previous: None }
}

fn state(exit: Option<Exit>) -> BTreeMap<String, ContainerState> {
    BTreeMap::from([("c".to_owned(), one(3, exit))])
}

/// All facts, to be borrowed.
#[derive(Clone, Debug)]
struct Case {
    members: Vec<Member>,
    restart: RestartPolicy,
    stop: Option<Stop>,
    withdrawal: Option<Withdrawal>,
    sandbox: Sandbox,
    containers: BTreeMap<String, ContainerState>,
    earlier: BTreeSet<String>,
    health: BTreeMap<String, Health>,
    failures: BTreeMap<String, u32>,
    not_before: BTreeMap<String, i64>,
    retry_at: Option<i64>,
    now: i64,
}

impl Case {
    /// With these containers, as `init:a sidecar:b main:c`.
    fn new(members: &str) -> Self {
        let kind = |word: &str| match word {
            "init" => Kind::Init,
            "sidecar" => Kind::Sidecar,
            _ => Kind::Main,
        };
        let members = members.split(' ').filter_map(|m| m.split_once(':'));
        Case {
            members: members
                .map(|(k, name)| Member { name: name.into(), kind: kind(k), hook: false })
                .collect(),
            restart: RestartPolicy::Always,
            stop: None,
            withdrawal: Some(Withdrawal::Over { took: 0 }),
            sandbox: Sandbox::Alive,
            containers: BTreeMap::new(),
            earlier: BTreeSet::new(),
            health: BTreeMap::new(),
            failures: BTreeMap::new(),
            not_before: BTreeMap::new(),
            retry_at: None,
            now: NOW,
        }
    }

    /// Runs and is started.
    fn started(mut self, name: &str) -> Self {
        self.containers.insert(name.into(), one(0, None));
        self.health.entry(name.into()).or_default().started = true;
        self
    }

    /// Runs, but its startup probe or hook is not done.
    fn running(mut self, name: &str) -> Self {
        self.containers.insert(name.into(), one(0, None));
        self
    }

    fn hooked(mut self, name: &str) -> Self {
        self.members.iter_mut().filter(|m| m.name == name).for_each(|m| m.hook = true);
        self
    }

    fn hook_runs(mut self, name: &str) -> Self {
        self.health.entry(name.into()).or_default().starting = true;
        self.hooked(name)
    }

    fn ended(mut self, name: &str, exit: Exit) -> Self {
        self.containers.insert(name.into(), one(0, Some(exit)));
        self
    }

    fn ending(mut self, name: &str, since: i64, hook: Hook, terminated: Option<i64>) -> Self {
        let ending = Ending { since, grace: GRACE, hook, terminated, killed: false };
        self.health.entry(name.into()).or_default().ending = Some(ending);
        self
    }

    fn plan(&self) -> Plan {
        decide(&Facts {
            members: &self.members,
            restart: self.restart,
            over: false,
            stop: self.stop,
            withdrawal: self.withdrawal,
            grace: GRACE,
            sandbox: self.sandbox,
            containers: &self.containers,
            earlier: &self.earlier,
            health: &self.health,
            failures: &self.failures,
            not_before: &self.not_before,
            retry_at: self.retry_at,
            now: self.now,
        })
    }

    /// The plan as one line: `start a 0, terminate b; wake +5`.
    fn line(&self) -> String {
        let plan = self.plan();
        let words = plan.actions.iter().map(|a| match a {
            Action::Start { container, attempt } => format!("start {container} {attempt}"),
            Action::Stop { container, .. } => format!("stop {container}"),
            Action::Terminate { container } => format!("term {container}"),
            Action::Kill { container } => format!("kill {container}"),
            other => format!("{other:?}").to_lowercase(),
        });
        let wake = plan.wake.map(|at| format!("; wake {:+}", at - self.now)).unwrap_or_default();
        words.collect::<Vec<_>>().join(", ") + &wake
    }
}

fn stop(grace: i64, delete_object: bool) -> Stop {
    Stop { grace, delete_object }
}

#[test]
fn a_pod_comes_to_life_and_is_kept_alive() {
    use RestartPolicy::{Always, Never, OnFailure};
    let none = BTreeMap::new();
    let start = |attempt| Plan::act(Action::Start { container: "c".into(), attempt });
    let idle = Plan::default();
    let cases = [
        (Always, Sandbox::Absent, none.clone(), 0, Plan::act(Action::Create)),
        (Always, Sandbox::Unconnected, state(None), 0, Plan::act(Action::Create)),
        (Always, Sandbox::Alive, none, 0, start(0)),
        (Always, Sandbox::Alive, state(None), 0, idle.clone()),
        (Always, Sandbox::Alive, state(Some(exit(0, 400))), 1, Plan::wait(Some(NOW + 600))),
        (Always, Sandbox::Alive, state(Some(exit(0, 1000))), 1, start(4)),
        (Always, Sandbox::Alive, state(Some(exit(1, 1000))), 3, Plan::wait(Some(NOW + 3000))),
        // The machine ended it.
        (Always, Sandbox::Alive, state(Some(exit(137, 0))), 0, start(4)),
        // The clock was set back an hour.
        (Always, Sandbox::Alive, state(Some(exit(1, -3_600_000))), 1, Plan::wait(Some(NOW + 1000))),
        (OnFailure, Sandbox::Alive, state(Some(exit(1, 1000))), 1, start(4)),
        (OnFailure, Sandbox::Alive, state(Some(exit(0, 1000))), 1, Plan::act(Action::End)),
        (Never, Sandbox::Alive, state(Some(exit(1, 1000))), 1, Plan::act(Action::End)),
        (Never, Sandbox::Ended, state(Some(exit(1, 1000))), 1, Plan::act(Action::Release)),
        (Never, Sandbox::Absent, state(Some(exit(1, 1000))), 1, idle),
        // The shim was killed: its remains go, then everything begins anew.
        (Always, Sandbox::Ended, state(Some(exit(137, 0))), 1, Plan::act(Action::Release)),
        (Always, Sandbox::Absent, state(Some(exit(137, 0))), 1, Plan::act(Action::Create)),
    ];
    for (restart, sandbox, containers, failures, want) in cases {
        let failures = BTreeMap::from([("c".to_owned(), failures)]);
        let case = Case { restart, sandbox, containers, failures, ..Case::new("main:c") };
        assert_eq!(case.plan(), want, "{case:?}");
    }
}

#[test]
fn a_pod_ends_in_order() {
    let running = || Case::new("main:c").started("c");
    let ended = || Case::new("main:c").ended("c", exit(0, 0));
    let told = |ago| running().ending("c", NOW - ago, Hook::None, Some(NOW - ago));
    let cases = [
        (running(), stop(30, true), Sandbox::Alive, "stop c"),
        (running().ending("c", NOW, Hook::None, None), stop(30, true), Sandbox::Alive, "term c"),
        (told(10), stop(30, true), Sandbox::Alive, "; wake +20"),
        (told(30), stop(30, true), Sandbox::Alive, "end"),
        (told(10), stop(i64::MAX, true), Sandbox::Alive, "; wake +29990"),
        // A second delete made the grace shorter.
        (told(10), stop(5, true), Sandbox::Alive, "end"),
        (told(10), stop(0, true), Sandbox::Alive, "end"),
        (running(), stop(0, true), Sandbox::Alive, "end"),
        (ended(), stop(30, true), Sandbox::Unconnected, "end"),
        (ended(), stop(30, true), Sandbox::Ended, "release"),
        (ended(), stop(30, true), Sandbox::Absent, "deleteobject"),
        (ended(), stop(30, false), Sandbox::Absent, "done"),
        // Of a pod that vanished while no agent ran, nobody knows the containers' names.
        (Case { members: Vec::new(), ..running() }, stop(30, false), Sandbox::Unconnected, "stop c"),
    ];
    for (case, stop, sandbox, want) in cases {
        let case = Case { stop: Some(stop), sandbox, ..case };
        assert_eq!(case.line(), want, "{case:?}");
    }
}

#[test]
fn a_pod_leaves_rotation_before_it_ends() {
    let case = |withdrawal, grace, object| Case {
        withdrawal,
        stop: Some(stop(grace, object)),
        ..Case::new("main:c").started("c")
    };
    let over = |took| Some(Withdrawal::Over { took });
    for (case, want) in [
        (case(None, GRACE, true), "withdraw"),
        (case(Some(Withdrawal::Waits), GRACE, true), ""),
        // What it took is part of the grace period.
        (case(over(5000), GRACE, true), "stop c"),
        (case(over(5000), GRACE, true).ending("c", NOW, Hook::None, Some(NOW)), "; wake +25000"),
        // Nobody can be waited for, or nobody wants to.
        (case(None, GRACE, false), "stop c"),
        (case(None, 0, true), "end"),
        (case(Some(Withdrawal::Waits), 0, true), "end"),
        (case(None, GRACE, true).ended("c", exit(0, 0)), "end"),
    ] {
        assert_eq!(case.line(), want, "{case:?}");
    }
}

#[test]
fn a_hook_has_the_grace_period_and_sigterm_a_last_word() {
    let case = |hook, since: i64, terminated: Option<i64>| Case {
        stop: Some(stop(GRACE, true)),
        ..Case::new("main:c").started("c").ending("c", NOW - since, hook, terminated.map(|t| NOW - t))
    };
    for (case, want) in [
        (case(Hook::Runs, 100, None), "; wake +29900"),
        (case(Hook::Over, 100, None), "term c"),
        (case(Hook::Over, 100, Some(50)), "; wake +29900"),
        // It runs on at the end of the time.
        (case(Hook::Runs, 30_000, None), "term c"),
        (case(Hook::Runs, 30_000, Some(0)), "; wake +2000"),
        (case(Hook::Over, 32_000, Some(2000)), "end"),
    ] {
        assert_eq!(case.line(), want, "{case:?}");
    }
}

const ALL: &str = "init:i sidecar:s init:j sidecar:t main:c main:d";

#[test]
fn init_containers_run_one_after_the_other_and_sidecars_stay() {
    let i = || Case::new(ALL).ended("i", exit(0, 0));
    let done = || i().started("s").ended("j", exit(0, 0)).started("t");
    for (case, want) in [
        (Case::new(ALL), "start i 0"),
        (Case::new(ALL).running("i"), ""),
        // One that fails is tried again after a while, with any policy but Never.
        (Case::new(ALL).ended("i", exit(1, 400)), "; wake +600"),
        (Case::new(ALL).ended("i", exit(1, 1000)), "start i 1"),
        (Case { restart: RestartPolicy::OnFailure, ..Case::new(ALL).ended("i", exit(1, 1000)) }, "start i 1"),
        (Case { restart: RestartPolicy::Never, ..Case::new(ALL).ended("i", exit(1, 1000)) }, "end"),
        (i(), "start s 0"),
        (i().running("s"), ""),
        (i().started("s"), "start j 0"),
        // A sidecar that ended is started again while the next one runs; nothing new is started before it is.
        (i().ended("s", exit(0, 1000)).running("j"), "start s 1"),
        (i().running("s").ended("j", exit(0, 0)), ""),
        (i().started("s").ended("j", exit(0, 0)), "start t 0"),
        (done(), "start c 0, start d 0"),
        (done().started("c").started("d"), ""),
        // Sidecars that come later are looked after, and not started.
        (i().ended("s", exit(0, 1000)).started("t"), "start s 1"),
        // A postStart hook that runs holds up the containers after it.
        (done().hooked("c"), "start c 0"),
        (done().running("c").hook_runs("c"), ""),
        (done().running("c").hooked("c"), "start d 0"),
        (done().running("c").hook_runs("c").ended("d", exit(1, 1000)), ""),
        (done().hook_runs("c").running("d"), "start c 0"),
        // After that a sidecar's end holds nobody up.
        (done().ended("s", exit(0, 400)).started("c"), "start d 0; wake +600"),
        (
            Case { restart: RestartPolicy::Never, ..done().ended("t", exit(0, 1000)).started("c") },
            "start t 1, start d 0",
        ),
    ] {
        assert_eq!(case.line(), want, "{case:?}");
    }
}

#[test]
fn init_containers_run_again_in_new_namespaces() {
    let all = || {
        let mut case = Case::new("init:i sidecar:s main:c").ended("i", exit(0, 5)).ended("s", exit(137, 5));
        case.failures = ["i", "s", "c"].map(|n| (n.to_owned(), 0)).into();
        case.ended("c", exit(137, 5))
    };
    let earlier = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>();
    let lost = Case { sandbox: Sandbox::Absent, ..all() };
    assert_eq!(lost.line(), "create");
    let anew = Case { earlier: earlier(&["i", "s", "c"]), ..all() };
    assert_eq!(anew.line(), "start i 1");
    let mut case = Case { earlier: earlier(&["s", "c"]), ..all() };
    assert_eq!(case.line(), "start s 1");
    case = Case { earlier: earlier(&["c"]), ..case }.started("s");
    assert_eq!(case.line(), "start c 1");
    // What a container with restartPolicy Never did stays done.
    let over = Case { restart: RestartPolicy::Never, ..anew };
    assert_eq!(over.line(), "end");
}

#[test]
fn sidecars_end_last_and_in_reverse_order() {
    let pod = || Case::new(ALL).ended("i", exit(0, 0)).ended("j", exit(0, 0)).started("s").started("t");
    let deleted = |case: Case| Case { stop: Some(stop(GRACE, true)), ..case };
    let told = |case: Case, name: &str| case.ending(name, NOW - 100, Hook::None, Some(NOW - 100));
    let waits = |case: Case, name: &str| case.ending(name, NOW - 100, Hook::None, None);
    let begun = || deleted(waits(waits(pod().started("c").started("d"), "s"), "t"));
    for (case, want) in [
        // All hooks run at once.
        (deleted(pod().started("c").started("d")), "stop c, stop d, stop s, stop t"),
        (waits(waits(begun(), "c"), "d"), "term c, term d; wake +29900"),
        (told(told(begun(), "c"), "d"), "; wake +29900"),
        (told(begun().ended("c", exit(0, 0)), "d"), "; wake +29900"),
        (begun().ended("c", exit(0, 0)).ended("d", exit(0, 0)), "term t; wake +29900"),
        (told(begun().ended("c", exit(0, 0)).ended("d", exit(0, 0)), "t"), "; wake +29900"),
        (begun().ended("c", exit(0, 0)).ended("d", exit(0, 0)).ended("t", exit(0, 0)), "term s"),
        // The grace period is over: who had no SIGTERM yet gets it, who had it is killed.
        (Case { now: NOW + 29_900, ..told(told(begun(), "c"), "d") }, "term s, term t, kill c, kill d"),
        // So too when the main containers are over by themselves; sidecars are not started again then.
        (
            Case { restart: RestartPolicy::Never, ..pod().ended("c", exit(0, 0)).ended("d", exit(1, 0)) },
            "stop s, stop t",
        ),
        (
            Case {
                restart: RestartPolicy::OnFailure,
                ..pod().ended("c", exit(0, 0)).ended("d", exit(0, 0)).ended("t", exit(1, 9000))
            },
            "stop s",
        ),
        (Case { restart: RestartPolicy::OnFailure, ..pod().ended("c", exit(0, 0)).started("d") }, ""),
        // A deletion while the pod initializes.
        (deleted(Case::new(ALL).ended("i", exit(0, 0)).started("s").running("j")), "stop j, stop s"),
    ] {
        assert_eq!(case.line(), want, "{case:?}");
    }
}

#[test]
fn what_is_not_well_ends_and_is_started_again() {
    let case = |restart| {
        let mut case = Case { restart, ..Case::new("main:c main:d").started("c").started("d") };
        case.health.get_mut("c").unwrap().condemned = Some(GRACE);
        case
    };
    use RestartPolicy::{Always, Never, OnFailure};
    for (case, want) in [
        (case(Always), "stop c"),
        (case(Always).ending("c", NOW, Hook::Runs, None), "; wake +30000"),
        (case(Always).ending("c", NOW, Hook::Over, None), "term c"),
        (case(Always).ending("c", NOW - 29_000, Hook::None, Some(NOW - 29_000)), "; wake +1000"),
        (case(Always).ending("c", NOW - 30_000, Hook::None, Some(NOW - 30_000)), "kill c"),
        // It ended well, but not because it was done.
        (case(OnFailure).ended("c", exit(0, 1000)), "start c 1"),
        (case(Never).ended("c", exit(0, 1000)), ""),
    ] {
        assert_eq!(case.line(), want, "{case:?}");
    }
    let mut killed = case(Always).ending("c", NOW - 30_000, Hook::None, Some(NOW - 30_000));
    killed.health.get_mut("c").unwrap().ending.as_mut().unwrap().killed = true;
    assert_eq!(killed.line(), "", "once is enough");
}

#[test]
fn the_wait_doubles_to_a_limit_and_begins_anew_after_a_good_run() {
    assert_eq!([0, 1, 2, 3, 9, 10, 99].map(backoff), [0, 1000, 2000, 4000, 256_000, 300_000, 300_000]);
    let container = &state(None)["c"];
    assert_eq!(count_failure(Some(4), container, &exit(1, 0)), 5);
    assert_eq!(count_failure(None, container, &exit(1, 0)), 4);
    assert_eq!(count_failure(Some(0), container, &exit(1, 0)), 1);
    let long = Exit { started_at: NOW - restart::GOOD_RUN, finished_at: NOW, ..exit(1, 0) };
    assert_eq!(count_failure(Some(4), container, &long), 1);
}

#[test]
fn after_a_failure_nothing_happens_too_soon() {
    let pod = Case { sandbox: Sandbox::Absent, retry_at: Some(NOW + 5), ..Case::new("main:c main:d") };
    assert_eq!(pod.line(), "; wake +5");
    assert_eq!(Case { now: NOW + 5, ..pod }.line(), "create");
    // One container's trouble is not that of another.
    let mut one = Case::new("main:c main:d");
    one.not_before.insert("c".into(), NOW + 7);
    assert_eq!(one.line(), "start d 0; wake +7");
}
