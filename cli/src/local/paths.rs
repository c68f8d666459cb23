//! Where a cluster's files lie: by the file system's hierarchy for root, by XDG for everybody else.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};

/// The directories of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Survives `down`.
    pub data: PathBuf,
    /// Of one run: sockets, credentials, the state file.
    pub run: PathBuf,
    /// Logs of server, agents and relay.
    pub log: PathBuf,
}

impl Paths {
    /// The paths of a cluster for this user and environment.
    pub fn of(name: &str, data_dir: Option<&Path>) -> anyhow::Result<Paths> {
        let uid = nix::unistd::geteuid();
        let env = |key: &str| std::env::var_os(key).filter(|v| !v.is_empty()).map(PathBuf::from);
        let mut paths = resolve(name, uid.is_root(), uid.as_raw(), env)?;
        if let Some(dir) = data_dir {
            paths.data = std::path::absolute(dir).with_context(|| format!("--data-dir {}", dir.display()))?;
        }
        Ok(paths)
    }

    /// Makes the directories, readable for nobody else.
    pub fn create(&self) -> anyhow::Result<()> {
        for dir in [&self.data, &self.run, &self.log] {
            create_private(dir).with_context(|| format!("cannot make the directory {}", dir.display()))?;
            let owner = std::fs::metadata(dir).with_context(|| dir.display().to_string())?.uid();
            if owner != nix::unistd::geteuid().as_raw() {
                bail!("{} belongs to user {owner}: remove it, or choose another --name", dir.display());
            }
        }
        Ok(())
    }

    /// Removes what [`Paths::create`] made, if nothing has come to lie there since but the lock.
    pub fn remove_empty(&self) {
        if std::fs::read_dir(&self.run).is_ok_and(|entries| entries.count() <= 1) {
            let _ = std::fs::remove_file(self.lock());
        }
        for dir in [&self.data, &self.run, &self.log] {
            // One that holds something stays.
            let _ = std::fs::remove_dir(dir);
        }
    }

    /// Removes everything, and says whether there was data. What else lies in a data directory that the user chose stays.
    pub fn purge(&self) -> anyhow::Result<bool> {
        let mut data = Vec::new();
        for entry in std::fs::read_dir(&self.data).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if name == "server" || name.to_string_lossy().starts_with("node-") {
                data.push(entry.path());
            }
        }
        for dir in data.iter().chain([&self.log, &self.run]) {
            match std::fs::remove_dir_all(dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("cannot remove {}", dir.display()));
                }
                _ => {}
            }
        }
        // It says something of the data alone.
        let _ = std::fs::remove_file(self.dual_stack());
        let _ = std::fs::remove_dir(&self.data);
        Ok(!data.is_empty())
    }

    /// The file whose lock says that the cluster runs.
    pub fn lock(&self) -> PathBuf {
        self.run.join("lock")
    }

    /// The file that says which process keeps the cluster.
    pub fn state(&self) -> PathBuf {
        self.run.join("state.json")
    }

    /// The resolv.conf of the room's machines. It is there once their LAN is.
    pub fn resolv_conf(&self) -> PathBuf {
        self.run.join("resolv.conf")
    }

    /// Is there if the cluster has IPv6 beside IPv4.
    pub fn dual_stack(&self) -> PathBuf {
        self.data.join("dual-stack")
    }

    /// The administrator's kubeconfig, as the server printed it.
    pub fn admin_config(&self) -> PathBuf {
        self.run.join("admin.kubeconfig")
    }
}

/// Where the files go, from nothing but the arguments.
fn resolve(name: &str, root: bool, uid: u32, env: impl Fn(&str) -> Option<PathBuf>) -> anyhow::Result<Paths> {
    let home = |xdg: &str, below: &str| {
        env(xdg).filter(|p| p.is_absolute()).or_else(|| env("HOME").map(|h| h.join(below)))
    };
    let place = |system: &str, dir: Option<PathBuf>, xdg: &str| match dir {
        Some(dir) => Ok(dir.join("minisvc").join(name)),
        None if root => Ok(Path::new(system).join("minisvc").join(name)),
        None => bail!("neither ${xdg} nor $HOME is set: set one of them, so that files have a place"),
    };
    if root {
        return Ok(Paths {
            data: place("/var/lib", env("XDG_DATA_HOME"), "XDG_DATA_HOME")?,
            run: place("/run", env("XDG_RUNTIME_DIR"), "XDG_RUNTIME_DIR")?,
            log: place("/var/log", env("XDG_STATE_HOME"), "XDG_STATE_HOME")?,
        });
    }
    Ok(Paths {
        data: place("", home("XDG_DATA_HOME", ".local/share"), "XDG_DATA_HOME")?,
        run: match env("XDG_RUNTIME_DIR") {
            Some(dir) => dir.join("minisvc").join(name),
            None => PathBuf::from(format!("/tmp/minisvc-{uid}")).join(name),
        },
        log: place("", home("XDG_STATE_HOME", ".local/state"), "XDG_STATE_HOME")?,
    })
}

/// Makes a directory and its parents with mode 0700.
pub fn create_private(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &[(&str, &str)], root: bool) -> anyhow::Result<Paths> {
        resolve("c", root, 1000, |k| vars.iter().find(|(n, _)| *n == k).map(|(_, v)| v.into()))
    }

    #[test]
    fn a_purge_leaves_what_is_not_ours() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let paths = Paths { data: at("data"), run: at("run"), log: at("log") };
        assert!(!paths.purge().unwrap());
        paths.create().unwrap();
        std::fs::create_dir(at("data/server")).unwrap();
        std::fs::create_dir(at("data/node-1")).unwrap();
        std::fs::write(at("data/letter"), "dear").unwrap();
        std::fs::write(paths.dual_stack(), "").unwrap();
        assert!(paths.purge().unwrap());
        assert!(!at("data/server").exists() && !at("data/node-1").exists() && !at("run").exists());
        assert!(at("data/letter").exists());
        std::fs::remove_file(at("data/letter")).unwrap();
        assert!(!paths.purge().unwrap() && !at("data").exists());
    }

    #[test]
    fn root_follows_the_hierarchy_and_users_follow_xdg() {
        let root = with(&[("HOME", "/root")], true).unwrap();
        assert_eq!((root.data, root.run), ("/var/lib/minisvc/c".into(), "/run/minisvc/c".into()));
        let user = with(&[("HOME", "/home/u"), ("XDG_STATE_HOME", "/s")], false).unwrap();
        assert_eq!(user.data, Path::new("/home/u/.local/share/minisvc/c"));
        assert_eq!(user.run, Path::new("/tmp/minisvc-1000/c"));
        assert_eq!(user.log, Path::new("/s/minisvc/c"));
        assert!(with(&[], false).unwrap_err().to_string().contains("$HOME"));
    }
}
