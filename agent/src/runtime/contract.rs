//! What every runtime must do. The fake's tests and those of the real one, in namespaces, run all of it.

use std::path::Path;

use tokio::sync::watch;

use super::{ContainerSpec, ExecSpec, PodRuntime, PodSetup, PodState, Resources};

/// A pod for tests; `uid` names it, files go below `home`.
pub fn setup(uid: &str, home: &Path) -> PodSetup {
    PodSetup {
        uid: uid.to_owned(),
        namespace: "default".into(),
        name: format!("pod-{uid}"),
        hostname: format!("pod-{uid}"),
        ip: std::net::Ipv4Addr::new(10, 244, 0, 2),
        hosts: "127.0.0.1 localhost\n".into(),
        resolv_conf: "nameserver 10.96.0.10\n".into(),
        log_dir: home.join("log").join(uid),
        log_limit: 1 << 20,
        keep: Vec::new(),
        shared_bin: false,
        volumes: Vec::new(),
        volume_dir: home.join("volumes").join(uid),
        cgroup: None,
        grace_seconds: 30,
    }
}

/// A container for tests, with a small environment.
pub fn spec(name: &str, attempt: u32, argv: &[&str]) -> ContainerSpec {
    ContainerSpec {
        name: name.to_owned(),
        attempt,
        argv: argv.iter().map(|a| (*a).to_owned()).collect(),
        env: vec![("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into())],
        cwd: "/".into(),
        user: None,
        mounts: Vec::new(),
        termination_path: None,
        termination_from_log: false,
        resources: Resources::default(),
    }
}

/// The first state that the test is for, however it is reached.
#[allow(clippy::expect_used, reason = "a contract suite is test code")]
pub async fn until(states: &mut watch::Receiver<PodState>, test: impl FnMut(&PodState) -> bool) -> PodState {
    states.wait_for(test).await.expect("the pod is followed").clone()
}

fn ended(state: &PodState, container: &str) -> bool {
    state.containers.get(container).is_some_and(|c| c.exit.is_some())
}

/// Runs the whole contract; panics where the runtime breaks it.
#[allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a contract suite is test code")]
pub async fn all<R: PodRuntime>(runtime: &R, home: &Path) {
    let uid = "contract";
    assert!(runtime.watch(uid).is_err(), "a pod that was never made is not known");
    assert!(runtime.start(uid, &spec("c", 0, &["sleep", "1000"])).await.is_err());
    runtime.create(&setup(uid, home)).await.unwrap();
    runtime.create(&setup(uid, home)).await.unwrap();
    let mut states = runtime.watch(uid).unwrap();
    assert_eq!(*states.borrow(), PodState { alive: true, ..PodState::default() });
    runtime.netns(uid).await.unwrap();

    // A program that is not there.
    runtime.start(uid, &spec("c", 0, &["no-such-program"])).await.unwrap();
    let state = until(&mut states, |s| ended(s, "c")).await;
    let exit = state.containers["c"].exit.clone().unwrap();
    assert_eq!(exit.not_started.as_deref(), Some("exec: \"no-such-program\": not found in PATH"));
    assert_eq!(exit.code, 128);

    // One that is; the end before it is remembered.
    runtime.start(uid, &spec("c", 1, &["sleep", "1000"])).await.unwrap();
    let state = until(&mut states, |s| s.containers.get("c").is_some_and(|c| c.attempt == 1)).await;
    assert!(state.containers["c"].is_running());
    assert_eq!(state.containers["c"].previous, Some(exit));
    assert!(runtime.start(uid, &spec("c", 2, &["sleep", "1000"])).await.is_err(), "it runs already");

    // Exec: what is not there, and where nothing runs.
    let devnull = || std::array::from_fn(|_| std::fs::File::open("/dev/null").unwrap().into());
    let exec = |container: &str, program: &str| ExecSpec {
        container: container.into(),
        argv: vec![program.into()],
        tty: false,
    };
    let refused = runtime.exec(uid, exec("c", "no-such-program"), devnull()).await.unwrap_err();
    assert_eq!(refused.to_string(), "exec: \"no-such-program\": not found in PATH");
    assert!(runtime.exec(uid, exec("other", "true"), devnull()).await.is_err());
    let session = runtime.exec(uid, exec("c", "true"), devnull()).await.unwrap();
    assert_eq!(session.exit.await.unwrap().code, 0);

    // A signal is told apart from a code.
    runtime.signal(uid, "c", 15).await.unwrap();
    let state = until(&mut states, |s| ended(s, "c")).await;
    let exit = state.containers["c"].exit.clone().unwrap();
    assert_eq!((exit.code, exit.signal), (143, Some(15)));
    runtime.signal(uid, "c", 15).await.unwrap();

    // The end of the pod is the end of all.
    runtime.start(uid, &spec("c", 2, &["sleep", "1000"])).await.unwrap();
    runtime.end(uid).await.unwrap();
    let state = until(&mut states, |s| !s.alive).await;
    assert_eq!(state.containers["c"].exit.as_ref().unwrap().signal, Some(9));
    assert!(runtime.start(uid, &spec("c", 3, &["true"])).await.is_err());
    let adopted = runtime.adopt().await;
    assert_eq!(adopted.iter().map(|s| s.uid.as_str()).collect::<Vec<_>>(), [uid], "known until removed");
    runtime.remove(uid).await.unwrap();
    assert!(runtime.adopt().await.is_empty());
    assert!(runtime.watch(uid).is_err());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::FakeRuntime;

    #[tokio::test]
    async fn the_fake_keeps_the_contract() {
        let fake = FakeRuntime::default();
        fake.missing("no-such-program");
        all(&fake, Path::new("/nowhere")).await;
    }
}
