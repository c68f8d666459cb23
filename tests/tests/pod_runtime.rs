//! The real runtime, with real processes in real namespaces. An ordinary user runs these tests in a user namespace.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails here")]
#![cfg(target_os = "linux")]

#[path = "pod_runtime/volumes.rs"]
mod volumes;

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{Read, Write},
    os::fd::OwnedFd,
    path::Path,
};

use minisvc_agent::runtime::{
    Cgroup, ContainerSpec, ExecSpec, LocalRuntime, PodRuntime, PodState, Resources, RuntimeConfig,
    contract::{self, setup, spec, until},
};
use minisvc_tests::{binary::minisvc, rooted::as_root};

fn runtime(home: &Path) -> LocalRuntime {
    let config = RuntimeConfig { run_dir: home.join("run"), binary: minisvc().unwrap() };
    LocalRuntime::new(config).unwrap()
}

/// A shell as the pod's only container.
fn shell(script: &str) -> ContainerSpec {
    spec("c", 0, &["sh", "-c", script])
}

async fn exited(runtime: &LocalRuntime, uid: &str) -> PodState {
    let mut states = runtime.watch(uid).unwrap();
    until(&mut states, |s| s.containers.get("c").is_some_and(|c| c.exit.is_some())).await
}

/// The log without times.
fn log(home: &Path, uid: &str, attempt: u32) -> Vec<String> {
    let path = home.join("log").join(uid).join(format!("c/{attempt}.log"));
    let text = fs::read_to_string(&path).unwrap();
    text.lines().map(|l| l.split_once(' ').unwrap().1.to_owned()).collect()
}

/// What a script writes to standard output in a new pod.
async fn output(runtime: &LocalRuntime, home: &Path, uid: &str, container: ContainerSpec) -> String {
    runtime.create(&setup(uid, home)).await.unwrap();
    runtime.start(uid, &container).await.unwrap();
    let state = exited(runtime, uid).await;
    let lines = log(home, uid, 0);
    let text: Vec<_> = lines.iter().map(|l| l.strip_prefix("stdout F ").unwrap_or(l).to_owned()).collect();
    assert_eq!(state.containers["c"].exit.as_ref().unwrap().code, 0, "{text:#?}");
    runtime.end(uid).await.unwrap();
    text.join("\n")
}

/// The processes whose command line holds a word, by /proc.
fn processes(word: &str) -> BTreeSet<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(word) && pid.cast_unsigned() != std::process::id()
    })
    .collect()
}

#[test]
fn the_real_runtime_keeps_the_contract() {
    as_root("the_real_runtime_keeps_the_contract", async |home| {
        contract::all(&runtime(&home), &home).await;
        assert_eq!(processes(home.to_str().unwrap()), BTreeSet::new(), "nothing is left");
    });
}

#[test]
fn a_pod_has_namespaces_of_its_own() {
    as_root("a_pod_has_namespaces_of_its_own", async |home| {
        let runtime = runtime(&home);
        let kinds = ["net", "mnt", "pid", "uts", "ipc"];
        let script = kinds.map(|k| format!("readlink /proc/self/ns/{k}")).join("; ");
        let inside = output(&runtime, &home, "ns", shell(&script)).await;
        let inside: Vec<_> = inside.lines().collect();
        assert_eq!(inside.len(), kinds.len());
        for (kind, inside) in kinds.iter().zip(inside) {
            let outside = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
            assert!(inside.starts_with(&format!("{kind}:[")), "{inside}");
            assert_ne!(inside, outside.to_str().unwrap());
        }
    });
}

#[test]
fn a_pod_sees_its_own_files_names_and_processes() {
    as_root("a_pod_sees_its_own_files_names_and_processes", async |home| {
        let runtime = runtime(&home);
        let before = ["/etc/hosts", "/etc/resolv.conf"].map(|f| fs::read(f).unwrap_or_default());
        let outside = home.join("outside");
        fs::write(&outside, "").unwrap();
        let script = format!(
            "hostname; cat /etc/hosts /etc/resolv.conf; echo x > /tmp/mine; ls /tmp/mine; \
             test -e {} || echo hidden; ls /proc | grep -c '^[0-9]'; cat /proc/1/comm; pwd; ls -A /dev/shm",
            outside.display()
        );
        let text = output(&runtime, &home, "own", shell(&script)).await;
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[..4],
            ["pod-own", "127.0.0.1 localhost", "nameserver 10.96.0.10", "/tmp/mine"],
            "{text}"
        );
        let rest = &lines[4..];
        // The test's home is below /tmp unless TMPDIR says otherwise.
        let rest = rest.strip_prefix(&["hidden"]).unwrap_or(rest);
        let count: usize = rest[0].parse().unwrap();
        assert!((3..=5).contains(&count), "shim, shell and the pipeline only: {text}");
        assert_eq!(rest[2..], ["/"], "{text}");
        assert!(!Path::new("/tmp/mine").exists());
        assert_eq!(before, ["/etc/hosts", "/etc/resolv.conf"].map(|f| fs::read(f).unwrap_or_default()));
    });
}

#[test]
fn a_container_inherits_nothing() {
    as_root("a_container_inherits_nothing", async |home| {
        let runtime = runtime(&home);
        let mut container = shell(
            "env | sort; ls -l /proc/self/fd | wc -l; grep -c . /proc/self/status >/dev/null; grep NoNewPrivs /proc/self/status; grep SigBlk /proc/self/status",
        );
        container.env.push(("OWN".into(), "one two".into()));
        let text = output(&runtime, &home, "env", container).await;
        let mut lines: Vec<_> = text.lines().collect();
        // The shell sets PWD itself, and some set more.
        lines.retain(|l| !["PWD=", "SHLVL=", "_=", "OLDPWD="].iter().any(|p| l.starts_with(p)));
        assert_eq!(
            lines,
            [
                "OWN=one two",
                "PATH=/usr/local/bin:/usr/bin:/bin",
                // "total", the three standard files and the open directory.
                "5",
                "NoNewPrivs:\t1",
                "SigBlk:\t0000000000000000"
            ]
        );
    });
}

#[test]
fn the_log_holds_what_was_written_also_without_a_last_newline() {
    as_root("the_log_holds_what_was_written_also_without_a_last_newline", async |home| {
        let runtime = runtime(&home);
        runtime.create(&setup("log", &home)).await.unwrap();
        runtime.start("log", &shell("echo one; echo two >&2; printf three; exit 7")).await.unwrap();
        let state = exited(&runtime, "log").await;
        let exit = state.containers["c"].exit.clone().unwrap();
        assert_eq!((exit.code, exit.signal), (7, None));
        let mut lines = log(&home, "log", 0);
        lines.sort();
        assert_eq!(lines, ["stderr F two", "stdout F one", "stdout P three"]);
        // The next start has a log of its own.
        let mut again = shell("kill -KILL $$");
        again.attempt = 1;
        runtime.start("log", &again).await.unwrap();
        let mut states = runtime.watch("log").unwrap();
        let state =
            until(&mut states, |s| s.containers["c"].attempt == 1 && s.containers["c"].exit.is_some()).await;
        let exit = state.containers["c"].exit.clone().unwrap();
        assert_eq!((exit.code, exit.signal), (137, Some(9)));
        assert_eq!(state.containers["c"].previous.as_ref().unwrap().code, 7);
        assert!(log(&home, "log", 1).is_empty());
        runtime.end("log").await.unwrap();
    });
}

#[test]
fn a_stubborn_process_and_its_children_are_killed() {
    as_root("a_stubborn_process_and_its_children_are_killed", async |home| {
        let runtime = runtime(&home);
        runtime.create(&setup("stubborn", &home)).await.unwrap();
        let mark = format!("{}", 100_000 + std::process::id());
        // A child that left the session, and a main process that does not listen.
        let script =
            format!("trap 'echo no' TERM; setsid sleep {mark} & echo up; while :; do sleep {mark}; done");
        runtime.start("stubborn", &shell(&script)).await.unwrap();
        let path = home.join("log/stubborn/c/0.log");
        wait_for_text(&path, "up").await;
        runtime.signal("stubborn", "c", 15).await.unwrap();
        // dash runs the trap when its child ends; the process is alive whether it has or not.
        assert!(runtime.watch("stubborn").unwrap().borrow().any_running());
        assert!(!processes(&mark).is_empty());
        runtime.end("stubborn").await.unwrap();
        assert_eq!(processes(&mark), BTreeSet::new());
        let state = runtime.watch("stubborn").unwrap().borrow().clone();
        assert_eq!(state.containers["c"].exit.as_ref().unwrap().signal, Some(9));
    });
}

#[test]
fn what_a_main_process_leaves_behind_ends_with_it() {
    as_root("what_a_main_process_leaves_behind_ends_with_it", async |home| {
        let runtime = runtime(&home);
        runtime.create(&setup("behind", &home)).await.unwrap();
        let mark = format!("{}", 200_000 + std::process::id());
        runtime.start("behind", &shell(&format!("setsid sleep {mark} & exit 0"))).await.unwrap();
        exited(&runtime, "behind").await;
        runtime.end("behind").await.unwrap();
        assert_eq!(processes(&mark), BTreeSet::new());
    });
}

/// Returns when a log holds a text; the writer is followed by inotify, as `logs -f` does it.
async fn wait_for_text(path: &Path, text: &str) {
    use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
    let (path, text) = (path.to_path_buf(), text.to_owned());
    tokio::task::spawn_blocking(move || {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC).unwrap();
        inotify.add_watch(&path, AddWatchFlags::IN_MODIFY).unwrap();
        while !fs::read_to_string(&path).unwrap().contains(&text) {
            inotify.read_events().unwrap();
        }
    })
    .await
    .unwrap();
}

#[test]
fn an_agent_that_comes_back_finds_pods_and_what_happened() {
    as_root("an_agent_that_comes_back_finds_pods_and_what_happened", async |home| {
        let first = runtime(&home);
        let fifo = home.join("run/go");
        let wait = ContainerSpec {
            argv: ["sh", "-c", &format!("echo before; read x < {}; echo after; exit 3", fifo.display())]
                .map(str::to_owned)
                .to_vec(),
            ..shell("")
        };
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for uid in ["ends", "stays", "dies"] {
            first.create(&setup(uid, &home)).await.unwrap();
        }
        first.start("ends", &wait).await.unwrap();
        for uid in ["stays", "dies"] {
            first.start(uid, &shell("exec sleep 1000")).await.unwrap();
        }
        let dies = processes(home.join("run/pods/dies").to_str().unwrap());
        assert_eq!(dies.len(), 1);
        drop(first);
        // While nobody looks: one container ends, one shim is killed.
        File::options().write(true).open(&fifo).unwrap().write_all(b"go\n").unwrap();
        wait_for_text(&home.join("log/ends/c/0.log"), "after").await;
        for pid in dies {
            let pid = nix::unistd::Pid::from_raw(pid);
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        // A pod that was half made.
        fs::create_dir(home.join("run/pods/half")).unwrap();

        let second = runtime(&home);
        let mut found: Vec<_> = second.adopt().await.into_iter().map(|s| s.uid).collect();
        found.sort();
        assert_eq!(found, ["dies", "ends", "stays"]);
        assert!(!home.join("run/pods/half").exists());
        let state = exited(&second, "ends").await;
        assert_eq!(state.containers["c"].exit.as_ref().unwrap().code, 3);
        assert_eq!(log(&home, "ends", 0), ["stdout F before", "stdout F after"]);
        assert!(second.watch("stays").unwrap().borrow().containers["c"].is_running());
        let mut states = second.watch("dies").unwrap();
        let state = until(&mut states, |s| !s.alive).await;
        assert_eq!(state.containers["c"].exit.as_ref().unwrap().signal, Some(9));
        for uid in ["ends", "stays", "dies"] {
            second.end(uid).await.unwrap();
            second.remove(uid).await.unwrap();
        }
        assert_eq!(processes(home.to_str().unwrap()), BTreeSet::new());
    });
}

#[test]
fn exec_has_streams_an_exit_code_and_ends_with_its_caller() {
    as_root("exec_has_streams_an_exit_code_and_ends_with_its_caller", async |home| {
        let runtime = runtime(&home);
        runtime.create(&setup("exec", &home)).await.unwrap();
        runtime.start("exec", &shell("exec sleep 1000")).await.unwrap();
        let exec = |argv: &[&str]| ExecSpec {
            container: "c".into(),
            argv: argv.iter().map(|a| (*a).to_owned()).collect(),
            tty: false,
        };
        let pipe = || std::io::pipe().unwrap();
        let ((stdin, mut write), (mut read, stdout), (mut errors, stderr)) = (pipe(), pipe(), pipe());
        let stdio: [OwnedFd; 3] = [stdin.into(), stdout.into(), stderr.into()];
        let script = "hostname; cat; echo bad >&2; exit 5";
        let session = runtime.exec("exec", exec(&["sh", "-c", script]), stdio).await.unwrap();
        write.write_all(b"through").unwrap();
        drop(write);
        let exit = session.exit.await.unwrap();
        assert_eq!(exit.code, 5);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "pod-exec\nthrough");
        text.clear();
        errors.read_to_string(&mut text).unwrap();
        assert_eq!(text, "bad\n");

        // A caller that goes away takes the program with it, and what the program started.
        let ((stdin, _write), (mut read, stdout)) = (pipe(), pipe());
        let stdio = [stdin.into(), stdout.into(), File::open("/dev/null").unwrap().into()];
        let session =
            runtime.exec("exec", exec(&["sh", "-c", "sleep 1000 & echo up; wait"]), stdio).await.unwrap();
        let mut byte = [0; 3];
        read.read_exact(&mut byte).unwrap();
        drop(session);
        // The end of the file says that nobody holds the other end any more.
        let mut rest = Vec::new();
        read.read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        assert!(runtime.watch("exec").unwrap().borrow().any_running());
        runtime.end("exec").await.unwrap();
    });
}

/// A shell that may use 32 MiB, and a little of a core.
fn limited(script: &str) -> ContainerSpec {
    let resources = Resources { memory_limit: Some(32 << 20), cpu_limit: Some(500), cpu_request: Some(100) };
    ContainerSpec { resources, ..shell(script) }
}

#[test]
fn a_container_that_takes_too_much_memory_is_killed_and_it_is_said() {
    as_root("a_container_that_takes_too_much_memory_is_killed_and_it_is_said", async |home| {
        let runtime = runtime(&home);
        // A pod's cgroup is named by its uid, on the whole machine.
        let uid = format!("oom-{}", std::process::id());
        // The shell holds the whole of it in memory.
        let hungry = limited("x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo ${#x}");
        runtime.create(&setup(&uid, &home)).await.unwrap();
        runtime.start(&uid, &hungry).await.unwrap();
        let exit = exited(&runtime, &uid).await.containers["c"].exit.clone().unwrap();
        match runtime.limits() {
            Ok(()) => {
                println!("this machine has the controllers: the limit holds");
                assert!(exit.oom_killed && exit.code == 137, "{exit:?}");
            }
            Err(why) => {
                println!("no limit can be had here: {why}");
                assert!(!exit.oom_killed && exit.code == 0 && !why.is_empty(), "{exit:?}");
            }
        }
        // The next start is judged by itself, and a kill by hand is no lack of memory.
        let again = ContainerSpec { attempt: 1, ..limited("kill -KILL $$") };
        runtime.start(&uid, &again).await.unwrap();
        let mut states = runtime.watch(&uid).unwrap();
        let state = until(&mut states, |s| s.containers["c"].attempt == 1 && !s.any_running()).await;
        let exit = state.containers["c"].exit.clone().unwrap();
        assert_eq!((exit.signal, exit.oom_killed), (Some(9), false));
        runtime.end(&uid).await.unwrap();
        runtime.remove(&uid).await.unwrap();
    });
}

#[test]
fn a_shim_that_does_not_end_is_killed_and_nothing_of_it_is_left() {
    as_root("a_shim_that_does_not_end_is_killed_and_nothing_of_it_is_left", async |home| {
        let runtime = runtime(&home);
        let uid = format!("stopped-{}", std::process::id());
        runtime.create(&setup(&uid, &home)).await.unwrap();
        let mark = format!("{}", 300_000 + std::process::id());
        runtime.start(&uid, &limited(&format!("sleep {mark} & sleep {mark}"))).await.unwrap();
        let dir = home.join("run/pods").join(&uid);
        for pid in processes(dir.to_str().unwrap()) {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGSTOP)
                .unwrap();
        }
        runtime.end(&uid).await.unwrap();
        assert_eq!(processes(&mark), BTreeSet::new());
        // Its cgroup can be removed only when nothing runs in it any more.
        runtime.remove(&uid).await.unwrap();
        assert!(!dir.exists());
    });
}

#[test]
fn no_cgroup_outlives_its_pod_whoever_removes_it() {
    as_root("no_cgroup_outlives_its_pod_whoever_removes_it", async |home| {
        let first = runtime(&home);
        if let Err(why) = first.limits() {
            return println!("no limit can be had here: {why}");
        }
        let uid = format!("left-{}", std::process::id());
        let cgroup = Cgroup::detect().unwrap().child(&uid);
        first.create(&setup(&uid, &home)).await.unwrap();
        first.start(&uid, &limited("sleep 1000 & sleep 1000")).await.unwrap();
        assert!(cgroup.exists());
        // An agent that is gone removes nothing; the next one finds the pod and what belongs to it.
        drop(first);
        let second = runtime(&home);
        let adopted = second.adopt().await;
        assert_eq!(adopted.iter().map(|s| &s.uid).collect::<Vec<_>>(), [&uid]);
        assert!(second.watch(&uid).unwrap().borrow().any_running());
        second.end(&uid).await.unwrap();
        second.remove(&uid).await.unwrap();
        assert!(!cgroup.exists());
    });
}

#[test]
fn a_container_says_why_it_ended_in_a_file_or_by_its_log() {
    as_root("a_container_says_why_it_ended_in_a_file_or_by_its_log", async |home| {
        let runtime = runtime(&home);
        runtime.create(&setup("word", &home)).await.unwrap();
        let place = "/tmp/last/word";
        for (attempt, script, from_log, message) in [
            (0, "printf because > /tmp/last/word; echo logged; exit 1", true, Some("because")),
            (1, "cat /tmp/last/word; echo logged; exit 1", true, Some("logged\n")),
            (2, "echo logged; exit 1", false, None),
            (3, "echo logged; exit 0", true, None),
            (4, "printf done > /tmp/last/word", false, Some("done")),
        ] {
            let container = ContainerSpec {
                attempt,
                termination_path: Some(place.into()),
                termination_from_log: from_log,
                ..shell(script)
            };
            runtime.start("word", &container).await.unwrap();
            let mut states = runtime.watch("word").unwrap();
            let ended =
                |s: &PodState| s.containers["c"].attempt == attempt && s.containers["c"].exit.is_some();
            let exit = until(&mut states, ended).await.containers["c"].exit.clone().unwrap();
            assert_eq!(exit.message.as_deref(), message, "{script}: {exit:?}");
        }
        runtime.end("word").await.unwrap();
    });
}
