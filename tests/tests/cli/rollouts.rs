//! `minisvc rollout`, where no pod ever gets ready.

use std::fs;

use minisvc_tests::server::{Run, Server};

use super::done;

#[test]
fn rollouts_are_followed_and_steered_as_with_kubectl() {
    let server = Server::start().unwrap();
    let run = |line: &str| server.run(&line.split(' ').collect::<Vec<_>>()).unwrap();
    run("create deployment web --replicas 2 -- true");
    let wait = |goal: &str| {
        let line = format!("wait deployment/web --for=jsonpath={goal} --timeout=30s");
        assert_eq!(run(&line), done("deployment.apps/web condition met\n"), "{goal}");
    };
    let failed = |out: &str, err: &str| Run { code: 1, out: out.into(), err: format!("error: {err}\n") };
    wait("{.status.updatedReplicas}=2");
    let stands =
        "Waiting for deployment \"web\" rollout to finish: 0 of 2 updated replicas are available...\n";
    assert_eq!(run("rollout status deployment web --watch=false"), done(stands));
    assert_eq!(
        run("rollout status deployment/web --timeout=300ms"),
        failed(stands, "timed out waiting for the condition")
    );
    assert_eq!(
        run("rollout status deploy/web --revision=7"),
        failed("", "desired revision (7) is different from the running revision (1)")
    );
    let first = "deployment.apps/web\nREVISION   CHANGE-CAUSE\n1          <none>\n\n";
    assert_eq!(run("rollout history deployment/web"), done(first));
    assert_eq!(
        run("rollout undo deployment/web"),
        failed("", "no rollout history found for deployment \"web\"")
    );

    assert_eq!(run("rollout pause deployment/web"), done("deployment.apps/web paused\n"));
    assert_eq!(run("rollout pause deployment/web"), failed("", "deployments.apps \"web\" is already paused"));
    assert_eq!(
        run("rollout restart deployment/web"),
        failed("", "can't restart paused deployment (run rollout resume first)")
    );
    assert_eq!(run("rollout resume deployment/web"), done("deployment.apps/web resumed\n"));
    assert_eq!(run("rollout resume deployment/web"), failed("", "deployments.apps \"web\" is not paused"));

    assert_eq!(run("rollout restart deployment web"), done("deployment.apps/web restarted\n"));
    wait("{.status.observedGeneration}=4");
    // No more than the limits allow, as long as none is ready.
    wait("{.status.updatedReplicas}=1");
    let second = "deployment.apps/web\nREVISION   CHANGE-CAUSE\n1          <none>\n2          <none>\n\n";
    assert_eq!(run("rollout history deployment/web"), done(second));
    let page = run("rollout history deployment/web --revision=2").out;
    assert!(page.starts_with("deployment.apps/web with revision #2\nPod Template:\n  Labels:"), "{page}");
    assert!(page.contains("kubectl.kubernetes.io/restartedAt: 20"), "{page}");
    assert_eq!(
        run("rollout history deployment/web --revision=3"),
        failed("", "unable to find the specified revision")
    );

    assert_eq!(
        run("rollout undo deployment/web --to-revision=2"),
        done("deployment.apps/web skipped rollback (current template already matches revision 2)\n")
    );
    assert_eq!(
        run("rollout undo deployment/web --to-revision=9"),
        failed("", "unable to find specified revision 9 in history")
    );
    assert_eq!(run("rollout undo deployment/web"), done("deployment.apps/web rolled back\n"));
    wait("{.status.observedGeneration}=5");
    wait("{.status.updatedReplicas}=2");
    assert!(run("rollout history deployment/web").out.contains("\n2          <none>\n3          <none>\n"));

    run("scale deployment/web --replicas=0");
    let ended = run("rollout status deployment/web --timeout=30s");
    assert_eq!(
        (ended.code, ended.out.lines().last()),
        (0, Some("deployment \"web\" successfully rolled out"))
    );
    for (line, says) in [
        ("rollout status pod/x", "error: pods have no rollouts; deployments do\n"),
        ("rollout status deployment", "error: which of the deployments? Give names\n"),
        (
            "rollout status deployment a b",
            "error: rollout status is only supported on individual resources\n",
        ),
        ("rollout status deployment x", "Error from server (NotFound): deployments.apps \"x\" not found\n"),
        ("rollout undo deployment x", "Error from server (NotFound): deployments.apps \"x\" not found\n"),
    ] {
        assert_eq!(run(line), Run { code: 1, out: String::new(), err: says.into() }, "{line}");
    }
}

#[test]
fn a_rollout_that_is_late_is_an_error() {
    let server = Server::start().unwrap();
    let file = server.home().join("late.yaml");
    fs::write(
        &file,
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: late}\nspec:\n  progressDeadlineSeconds: 1\n  \
         selector: {matchLabels: {app: late}}\n  template:\n    metadata: {labels: {app: late}}\n    spec: \
         {containers: [{name: c, command: [\"true\"]}]}\n",
    )
    .unwrap();
    server.run(&["create", "-f", file.to_str().unwrap()]).unwrap();
    let late = server.run(&["rollout", "status", "deployment/late", "--timeout=1m"]).unwrap();
    assert_eq!(
        (late.code, late.err.as_str()),
        (1, "error: deployment \"late\" exceeded its progress deadline\n")
    );
    assert!(late.out.ends_with("0 of 1 updated replicas are available...\n"), "{late:?}");
}
