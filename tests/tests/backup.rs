//! Backups of a server that runs and of one that has ended, brought back by the commands that a user types.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Stdio,
    sync::atomic::{AtomicBool, Ordering},
};

use minisvc_tests::server::{Run, Server, unconfigured};

type Result = anyhow::Result<()>;

fn names(server: &Server) -> anyhow::Result<BTreeSet<String>> {
    let said = server.run(&["get", "namespaces", "-o", "name"])?;
    assert_eq!(said.code, 0, "{said:?}");
    Ok(said.out.lines().map(str::to_owned).collect())
}

/// `minisvc server VERB ...` for whoever owns the disk.
fn on_disk(home: &Path, args: &[&str]) -> anyhow::Result<Run> {
    Ok(Run::of(&unconfigured(home)?.arg("server").args(args).output()?))
}

#[test]
fn a_backup_taken_while_writers_run_is_one_moment_of_the_cluster() -> Result {
    let server = Server::start()?;
    let data = server.data_dir().display().to_string();
    let file = server.home().join("backup");
    for i in 0..8 {
        assert_eq!(server.run(&["create", "namespace", &format!("before-{i}")])?.code, 0);
    }
    let done = AtomicBool::new(false);
    let said = std::thread::scope(|scope| -> anyhow::Result<Run> {
        for writer in 0..2 {
            let (server, done) = (&server, &done);
            scope.spawn(move || {
                for i in 0.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let _ = server.run(&["create", "namespace", &format!("during-{writer}-{i}")]);
                }
            });
        }
        let said = on_disk(server.home(), &["backup", &file.display().to_string(), "--data-dir", &data]);
        done.store(true, Ordering::Relaxed);
        said
    })?;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("keep it as safe as the server itself"), "{said:?}");
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);

    let place = tempfile::tempdir()?;
    let to = place.path().join("data").display().to_string();
    let said = on_disk(server.home(), &["restore", &file.display().to_string(), "--data-dir", &to])?;
    assert_eq!(said.code, 0, "{said:?}");
    let (all, old_config) = (names(&server)?, fs::read_to_string(server.config())?);
    let restored = Server::start_on(place)?;
    let back = names(&restored)?;
    let before = |names: &BTreeSet<String>| names.iter().filter(|n| n.contains("before-")).count();
    assert_eq!((before(&all), before(&back)), (8, 8));
    assert!(back.is_subset(&all), "nothing that never was");

    // The administrator's old credentials are good for the restored server: it has the same CA.
    let port = |config: &str| {
        let line = config.lines().find(|l| l.trim().starts_with("server:")).unwrap_or("").to_owned();
        line.trim().trim_start_matches("server:").trim().to_owned()
    };
    let new_url = port(&fs::read_to_string(restored.config())?);
    let mixed = restored.home().join("mixed");
    fs::write(&mixed, old_config.replace(&port(&old_config), &new_url))?;
    let said = restored.run(&["--config", &mixed.display().to_string(), "get", "namespaces"])?;
    assert_eq!(said.code, 0, "{said:?}");

    // The server's own disk, once it has been killed, says the same as the server did.
    let home = server.kill()?;
    let (data, file) = (home.path().join("data"), home.path().join("later"));
    let (data, file) = (data.display().to_string(), file.display().to_string());
    let said = on_disk(home.path(), &["backup", &file, "--data-dir", &data])?;
    assert_eq!(said.code, 0, "{said:?}");
    let again = tempfile::tempdir()?;
    let to = again.path().join("data").display().to_string();
    assert_eq!(on_disk(home.path(), &["restore", &file, "--data-dir", &to])?.code, 0);
    assert_eq!(names(&Server::start_on(again)?)?, all);
    Ok(())
}

/// One line, exit code 1, and nothing half-made.
fn refused(said: &Run, says: &str) {
    assert_eq!((said.code, said.err.lines().count()), (1, 1), "{said:?}");
    assert!(said.err.contains(says), "{said:?}");
}

#[test]
fn what_cannot_be_done_is_one_line() -> Result {
    let server = Server::start()?;
    let home = server.home();
    let path = |name: &str| home.join(name).display().to_string();
    let data = path("data");
    refused(&on_disk(home, &["backup", &path("b"), "--data-dir", &path("none")])?, "holds no store");
    refused(&on_disk(home, &["backup", &path("no/dir/b"), "--data-dir", &data])?, "cannot write");
    refused(&on_disk(home, &["backup", home.to_str().unwrap_or(""), "--data-dir", &data])?, "is a directory");
    fs::write(home.join("rubbish"), "rubbish\n")?;
    refused(
        &on_disk(home, &["restore", &path("rubbish"), "--data-dir", &path("new")])?,
        "no backup of minisvc",
    );
    refused(&on_disk(home, &["restore", &path("absent"), "--data-dir", &path("new")])?, "No such file");
    assert!(!home.join("new").exists());
    assert_eq!(on_disk(home, &["backup", &path("b"), "--data-dir", &data])?.code, 0);
    refused(&on_disk(home, &["restore", &path("b"), "--data-dir", &data])?, "--force");
    refused(
        &on_disk(home, &["restore", &path("b"), "--data-dir", &data, "--force"])?,
        "in use by another minisvc server",
    );
    refused(&on_disk(home, &["salvage", "--data-dir", &data])?, "in use by another minisvc server");
    let whole = fs::read(home.join("b"))?;
    fs::write(home.join("cut"), &whole[..whole.len() / 2])?;
    refused(&on_disk(home, &["restore", &path("cut"), "--data-dir", &path("new")])?, "cut short");
    assert!(!home.join("new").exists());
    Ok(())
}

#[test]
fn a_damaged_store_is_one_line_at_the_start_and_salvage_is_the_way_out() -> Result {
    let server = Server::start()?;
    for i in 0..6 {
        assert_eq!(server.run(&["create", "namespace", &format!("kept-{i}")])?.code, 0);
    }
    let home = server.kill()?;
    let data = home.path().join("data").display().to_string();
    let db = home.path().join("data/store/db");
    let mut bytes = fs::read(&db)?;
    let written = bytes.iter().rposition(|b| *b != 0).unwrap_or_default();
    bytes[written / 2..written / 2 + 100].fill(0);
    fs::write(&db, &bytes)?;
    let args = ["--listen", "127.0.0.1:0", "--data-dir", &data];
    refused(&on_disk(home.path(), &args)?, "`minisvc server salvage` brings out what is sound");
    let said = on_disk(home.path(), &["salvage", "--data-dir", &data])?;
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("brought out:") && said.out.contains("damaged-1"), "{said:?}");
    let server = Server::start_on(home)?;
    assert!(names(&server)?.contains("namespace/default"));
    Ok(())
}

#[test]
fn a_backup_or_restore_that_is_killed_leaves_nothing_that_passes_for_one() -> Result {
    let server = Server::start()?;
    let home = server.home();
    let path = |name: &str| home.join(name).display().to_string();
    assert_eq!(on_disk(home, &["backup", &path("whole"), "--data-dir", &path("data")])?.code, 0);
    // Killed at whatever moment they have reached.
    for round in 0..6 {
        let (file, to) = (path(&format!("b{round}")), path(&format!("d{round}")));
        for args in
            [["backup", &file, "--data-dir", &path("data")], ["restore", &path("whole"), "--data-dir", &to]]
        {
            let mut child = unconfigured(home)?.arg("server").args(args).stdout(Stdio::null()).spawn()?;
            for _ in 0..round * 50_000 {
                std::hint::spin_loop();
            }
            child.kill()?;
            child.wait()?;
        }
        if Path::new(&file).exists() {
            let said = on_disk(home, &["restore", &file, "--data-dir", &path(&format!("r{round}"))])?;
            assert_eq!(said.code, 0, "a file under its name is whole: {said:?}");
        }
        let data = Path::new(&to);
        if data.join("store").exists() && !data.join(".changing").exists() {
            let said = on_disk(home, &["backup", &path("check"), "--data-dir", &to])?;
            assert_eq!(said.code, 0, "a store that counts is whole: {said:?}");
        }
        // Whatever was reached, the next try ends well, or the first had.
        let said = on_disk(home, &["restore", &path("whole"), "--data-dir", &to])?;
        assert!(said.code == 0 || said.err.contains("--force"), "{said:?}");
    }
    Ok(())
}
