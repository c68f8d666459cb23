//! Volumes, as real processes see them.

use minisvc_agent::runtime::{HostPathType, Mount, Volume, VolumeSource};

use super::*;

fn volume(name: &str, source: VolumeSource) -> Volume {
    Volume { name: name.into(), source }
}

fn host(name: &str, path: &Path, kind: HostPathType) -> Volume {
    volume(name, VolumeSource::Host { path: path.to_path_buf(), kind })
}

fn mount(volume: &str, path: &str, sub_path: &str, read_only: bool) -> Mount {
    Mount { volume: volume.into(), path: path.into(), sub_path: sub_path.into(), read_only }
}

/// The first start of a shell with volumes, and what follows it.
fn seeing(name: &str, attempt: u32, mounts: &[Mount], script: &str) -> ContainerSpec {
    ContainerSpec { mounts: mounts.to_vec(), ..spec(name, attempt, &["sh", "-c", script]) }
}

/// Runs a container to its end: its exit code, its output in lines, and why it never ran.
async fn run(
    runtime: &LocalRuntime,
    home: &Path,
    uid: &str,
    container: ContainerSpec,
) -> (i32, Vec<String>, String) {
    runtime.start(uid, &container).await.unwrap();
    let mut states = runtime.watch(uid).unwrap();
    let (name, attempt) = (container.name.as_str(), container.attempt);
    let ended =
        |s: &PodState| s.containers.get(name).is_some_and(|c| c.attempt == attempt && c.exit.is_some());
    let exit = until(&mut states, ended).await.containers[name].exit.clone().unwrap();
    let text = fs::read_to_string(home.join("log").join(uid).join(format!("{name}/{attempt}.log"))).unwrap();
    let lines = text.lines().filter_map(|l| Some(l.splitn(4, ' ').nth(3)?.to_owned())).collect();
    (exit.code, lines, exit.not_started.unwrap_or_default())
}

#[test]
fn an_empty_dir_is_shared_outlives_containers_and_namespaces_and_goes_with_the_pod() {
    as_root(
        "volumes::an_empty_dir_is_shared_outlives_containers_and_namespaces_and_goes_with_the_pod",
        async |home| {
            let runtime = runtime(&home);
            let mut made = setup("empty", &home);
            made.volumes = vec![volume("data", VolumeSource::Empty)];
            runtime.create(&made).await.unwrap();
            let whole = [mount("data", "/tmp/data", "", false)];
            let script = "ls -A /tmp/data; stat -c %a /tmp/data; echo one > /tmp/data/a";
            let (code, lines, why) = run(&runtime, &home, "empty", seeing("c", 0, &whole, script)).await;
            assert_eq!((code, lines), (0, vec!["777".to_owned()]), "{why}");
            // Another container sees a part of it, elsewhere, and cannot write.
            let part = [mount("data", "/tmp/whole", "", true), mount("data", "/tmp/part", "sub/dir", false)];
            let script = "cat /tmp/whole/a; echo two > /tmp/part/b; echo no > /tmp/whole/a || cat /tmp/whole/sub/dir/b; ls -A /tmp/data";
            let (code, lines, why) = run(&runtime, &home, "empty", seeing("d", 0, &part, script)).await;
            let files: Vec<_> = lines.iter().filter(|l| !l.contains("/tmp/whole/a")).collect();
            assert_eq!(
                (code, files.len()),
                (0, 2),
                "nothing is where the other one sees it: {lines:?} {why}"
            );
            let (_, lines, _) =
                run(&runtime, &home, "empty", seeing("c", 1, &whole, "cat /tmp/data/a /tmp/data/sub/dir/b"))
                    .await;
            assert_eq!(lines, ["one", "two"]);

            // Namespaces that are lost are made anew around the same files.
            runtime.end("empty").await.unwrap();
            runtime.create(&made).await.unwrap();
            let (_, lines, _) =
                run(&runtime, &home, "empty", seeing("c", 2, &whole, "cat /tmp/data/a")).await;
            assert_eq!(lines, ["one"]);
            runtime.end("empty").await.unwrap();
            runtime.remove("empty").await.unwrap();
            assert!(!made.volume_dir.exists());
        },
    );
}

#[test]
fn a_volume_in_memory_holds_what_it_may_and_no_more() {
    as_root("volumes::a_volume_in_memory_holds_what_it_may_and_no_more", async |home| {
        let runtime = runtime(&home);
        let mut made = setup("memory", &home);
        made.volumes = vec![volume("m", VolumeSource::Memory { limit: Some(1 << 20) })];
        runtime.create(&made).await.unwrap();
        let mounts = [mount("m", "/dev/shm/m", "", false)];
        let script = "stat -f -c %T /dev/shm/m; head -c 1000000 /dev/zero > /dev/shm/m/fits && echo fits; \
                      head -c 2000000 /dev/zero > /dev/shm/m/more || echo full";
        let (_, lines, why) = run(&runtime, &home, "memory", seeing("c", 0, &mounts, script)).await;
        let told: Vec<_> = lines.iter().filter(|l| ["tmpfs", "fits", "full"].contains(&l.as_str())).collect();
        assert_eq!(told, ["tmpfs", "fits", "full"], "{lines:?} {why}");
        let (_, lines, _) =
            run(&runtime, &home, "memory", seeing("c", 1, &mounts, "ls /dev/shm/m/fits")).await;
        assert_eq!(lines, ["/dev/shm/m/fits"], "it outlives the container");
        runtime.end("memory").await.unwrap();
        runtime.remove("memory").await.unwrap();
        assert!(!made.volume_dir.exists());
    });
}

#[test]
fn files_of_the_node_are_seen_where_they_are_mounted_and_stay() {
    as_root("volumes::files_of_the_node_are_seen_where_they_are_mounted_and_stay", async |home| {
        let runtime = runtime(&home);
        // Below /tmp, where a pod has something else.
        let outside = home.join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("a"), "a\n").unwrap();
        let mut made = setup("host", &home);
        made.volumes = vec![
            host("dir", &outside, HostPathType::Directory),
            host("new", &outside.join("new/deep"), HostPathType::DirectoryOrCreate),
            host("file", &outside.join("a"), HostPathType::File),
            host("made", &outside.join("made"), HostPathType::FileOrCreate),
        ];
        runtime.create(&made).await.unwrap();
        let mounts = [
            mount("dir", "/tmp/dir", "", false),
            mount("new", "/tmp/new", "", false),
            mount("file", "/tmp/file", "", true),
            mount("made", "/tmp/dir/inside", "", false),
        ];
        let script = "cat /tmp/dir/a /tmp/file; echo b > /tmp/dir/b; echo c > /tmp/new/c; echo d > /tmp/dir/inside; \
                      echo no > /tmp/file || echo closed; sleep 1000";
        runtime.start("host", &seeing("c", 0, &mounts, script)).await.unwrap();
        let state = runtime.watch("host").unwrap().borrow().containers["c"].clone();
        assert!(state.is_running(), "{state:?}");
        wait_for_text(&home.join("log/host/c/0.log"), "closed").await;
        // What is run beside the container sees what it sees.
        let (mut read, stdout) = std::io::pipe().unwrap();
        let null = || File::open("/dev/null").unwrap().into();
        let exec =
            ExecSpec { container: "c".into(), argv: vec!["cat".into(), "/tmp/dir/b".into()], tty: false };
        let session = runtime.exec("host", exec, [null(), stdout.into(), null()]).await.unwrap();
        assert_eq!(session.exit.await.unwrap().code, 0);
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "b\n");
        runtime.end("host").await.unwrap();
        runtime.remove("host").await.unwrap();
        assert!(!made.volume_dir.exists());
        for (file, holds) in [("a", "a\n"), ("b", "b\n"), ("new/deep/c", "c\n"), ("made", "d\n")] {
            assert_eq!(fs::read_to_string(outside.join(file)).unwrap(), holds, "{file}");
        }
    });
}

#[test]
fn what_cannot_be_mounted_is_said() {
    as_root("volumes::what_cannot_be_mounted_is_said", async |home| {
        let runtime = runtime(&home);
        let file = home.join("file");
        fs::write(&file, "").unwrap();
        for (kind, path, said) in [
            (HostPathType::Directory, &file, "is no directory"),
            (HostPathType::File, &home, "is no file"),
            (HostPathType::Any, &home.join("missing"), "No such file"),
            (HostPathType::FileOrCreate, &home.join("missing/file"), "No such file"),
        ] {
            let mut made = setup("bad", &home);
            made.volumes = vec![host("v", path, kind)];
            let error = runtime.create(&made).await.unwrap_err().to_string();
            assert!(error.contains("volume \"v\"") && error.contains(said), "{error}");
        }
        let mut made = setup("bad", &home);
        made.volumes = vec![volume("v", VolumeSource::Empty)];
        runtime.create(&made).await.unwrap();
        let link = [mount("v", "/tmp/v", "", false)];
        run(&runtime, &home, "bad", seeing("c", 0, &link, "ln -s /etc /tmp/v/out; touch /tmp/v/file")).await;
        for (attempt, path, sub_path, said) in [
            (1, "/no/such/place", "", "does not exist on this node"),
            (2, "/etc/hosts", "", "the volume is a directory, and a file is there"),
            (3, "/tmp/x", "out", "cross-device"),
            (4, "/tmp/x", "file/deeper", "Not a directory"),
        ] {
            let mounts = [mount("v", path, sub_path, false)];
            let (code, _, why) = run(&runtime, &home, "bad", seeing("c", attempt, &mounts, "true")).await;
            assert!(code == 128 && why.to_lowercase().contains(&said.to_lowercase()), "{path}: {code} {why}");
        }
        runtime.end("bad").await.unwrap();
        runtime.remove("bad").await.unwrap();
        assert!(!Path::new("/no").exists());
    });
}
