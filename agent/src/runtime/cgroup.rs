//! Limits of containers, by cgroups of either version: `minisvc/POD/CONTAINER` below the agent's own.
//! [Documentation/admin-guide/cgroup-v1/memory.rst, cgroup-v2.rst; pkg/kubelet/cm/helpers_linux.go]

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// A cgroup: with version 1 a directory for each controller, with version 2 one for both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cgroup {
    /// Version 2.
    unified: bool,
    /// Has the files of the memory controller.
    memory: PathBuf,
    /// Has the files of the cpu controller.
    cpu: PathBuf,
}

/// What a container asks for and may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Bytes that it may use.
    pub memory_limit: Option<i64>,
    /// Thousandths of a core that it may use.
    pub cpu_limit: Option<i64>,
    /// Thousandths of a core that it asks for: its weight where cores are short.
    pub cpu_request: Option<i64>,
}

/// With version 2, the agent's own cgroup, beside those of the pods.
const AGENT: &str = "agent";
/// Length of the period that a cpu limit counts in, in microseconds.
const PERIOD: i64 = 100_000;
/// The least that the kernel takes for a period, in microseconds.
const LEAST_QUOTA: i64 = 1_000;

/// Not every kernel counts swap, or kills a cgroup as a whole.
const OPTIONAL: [&str; 3] = ["memory.memsw.limit_in_bytes", "memory.swap.max", "memory.oom.group"];

impl Cgroup {
    /// Where pods' cgroups go on this machine.
    ///
    /// # Errors
    /// Why there can be none, for the user.
    pub fn detect() -> Result<Self, String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("{path}: {e}"));
        let base = find(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?)?.child("minisvc");
        // Another user's agent may have left the outer one: only a cgroup that can be made in it says that it is ours.
        let probe = base.child(&format!("probe-{}", std::process::id()));
        let made = base.move_agent().and_then(|()| base.make()).and_then(|()| {
            probe.dirs().try_for_each(|dir| fs::create_dir_all(dir).map_err(|e| (dir.to_path_buf(), e)))
        });
        let _ = probe.remove();
        made.map_err(|(path, e)| {
            format!(
                "no cgroup can be made at {}: {e}; run the agent as root, or delegate it one",
                path.display()
            )
        })?;
        Ok(base)
    }

    /// One below.
    pub fn child(&self, name: &str) -> Self {
        Cgroup { unified: self.unified, memory: self.memory.join(name), cpu: self.cpu.join(name) }
    }

    fn dirs(&self) -> impl Iterator<Item = &Path> {
        [self.memory.as_path(), &self.cpu].into_iter().take(if self.unified { 1 } else { 2 })
    }

    /// Makes room: with version 2 a cgroup that hands controllers down has no processes, so the agent goes into one of its own.
    fn move_agent(&self) -> Result<(), (PathBuf, io::Error)> {
        if self.unified {
            let dir = self.memory.join(AGENT);
            fs::create_dir_all(&dir).map_err(|e| (dir.clone(), e))?;
            let procs = dir.join("cgroup.procs");
            put(&procs, "0").map_err(|e| (procs, e))?;
        }
        Ok(())
    }

    /// Makes it. Version 2 hands the controllers down, which it only does where no process is in the cgroup itself.
    fn make(&self) -> Result<(), (PathBuf, io::Error)> {
        for dir in self.dirs() {
            fs::create_dir_all(dir).map_err(|e| (dir.to_path_buf(), e))?;
        }
        if self.unified {
            for dir in [self.memory.parent(), Some(&self.memory)].into_iter().flatten() {
                let file = dir.join("cgroup.subtree_control");
                put(&file, "+cpu +memory").map_err(|e| (file, e))?;
            }
        }
        Ok(())
    }

    /// Makes the cgroup of a container, with its limits, and opens what a process writes `0` to in order to join it.
    ///
    /// # Errors
    /// The file that does not take its value, for the user.
    pub fn open(&self, container: &str, resources: &Resources) -> Result<Vec<File>, String> {
        let said = |(path, e): (PathBuf, io::Error)| format!("cgroup: {}: {e}", path.display());
        self.make().map_err(said)?;
        let own = self.child(container);
        for dir in own.dirs() {
            fs::create_dir_all(dir).map_err(|e| said((dir.to_path_buf(), e)))?;
        }
        for (file, value) in own.values(resources) {
            if !OPTIONAL.iter().any(|o| file.ends_with(o)) || file.exists() {
                put(&file, &value).map_err(|e| said((file, e)))?;
            }
        }
        let join = |dir: &Path| {
            let file = dir.join("cgroup.procs");
            OpenOptions::new().write(true).open(&file).map_err(|e| said((file, e)))
        };
        own.dirs().map(join).collect()
    }

    /// What stands in which file.
    fn values(&self, resources: &Resources) -> Vec<(PathBuf, String)> {
        let (memory, cpu) = (|f: &str| self.memory.join(f), |f: &str| self.cpu.join(f));
        let quota = |milli: i64| milli.saturating_mul(PERIOD / 1000).max(LEAST_QUOTA);
        let shares = |milli: i64| (milli.saturating_mul(1024) / 1000).clamp(2, 262_144);
        let mut out = Vec::new();
        match (resources.memory_limit, self.unified) {
            // Half a container is of no use: the kernel kills it as a whole.
            (Some(bytes), true) => out.extend([
                (memory("memory.max"), bytes.to_string()),
                (memory("memory.swap.max"), "0".into()),
                (memory("memory.oom.group"), "1".into()),
            ]),
            (Some(bytes), false) => out.extend([
                (memory("memory.limit_in_bytes"), bytes.to_string()),
                (memory("memory.memsw.limit_in_bytes"), bytes.to_string()),
            ]),
            (None, _) => {}
        }
        match (resources.cpu_limit.map(quota), self.unified) {
            (Some(quota), true) => out.push((cpu("cpu.max"), format!("{quota} {PERIOD}"))),
            (Some(quota), false) => out.extend([
                (cpu("cpu.cfs_period_us"), PERIOD.to_string()),
                (cpu("cpu.cfs_quota_us"), quota.to_string()),
            ]),
            (None, _) => {}
        }
        match (resources.cpu_request.map(shares), self.unified) {
            // From 2..=262144 to 1..=10000.
            (Some(shares), true) => {
                out.push((cpu("cpu.weight"), (1 + (shares - 2) * 9999 / 262_142).to_string()));
            }
            (Some(shares), false) => out.push((cpu("cpu.shares"), shares.to_string())),
            (None, _) => {}
        }
        out
    }

    /// How many processes of a container the kernel has killed for want of memory; 0 where it has no cgroup.
    pub fn oom_kills(&self, container: &str) -> u64 {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.memory.join(container).join(file)).unwrap_or_default();
        let count =
            text.lines().find_map(|l| l.strip_prefix("oom_kill ")).and_then(|n| n.trim().parse().ok());
        count.unwrap_or(0)
    }

    /// Whether there is one.
    pub fn exists(&self) -> bool {
        self.dirs().any(Path::exists)
    }

    /// Removes it with all below. Nothing may run in it any more.
    ///
    /// # Errors
    /// Something does, or the files are not ours.
    pub fn remove(&self) -> io::Result<()> {
        for dir in self.dirs() {
            let below = fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
            for dir in below.filter(|p| p.is_dir()).chain([dir.to_path_buf()]) {
                match fs::remove_dir(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The kernel makes these files; elsewhere one would be a mistake.
fn put(file: &Path, value: &str) -> io::Result<()> {
    fs::write(file, value)
}

/// This process's own cgroup, from /proc/self/mountinfo and /proc/self/cgroup. Version 1 where it has the controllers: a
/// controller belongs to one version at a time.
fn find(mounts: &str, own: &str) -> Result<Cgroup, String> {
    let dir = |kind: &str, controller: &str| -> Option<PathBuf> {
        let line = mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut right = right.split(' ');
            let fits = right.next()? == kind
                && (controller.is_empty() || right.nth(1)?.split(',').any(|o| o == controller));
            fits.then_some(left)
        })?;
        let (root, place) = (line.split(' ').nth(3)?, line.split(' ').nth(4)?);
        let path = own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers.split(',').any(|c| c == controller).then_some(path)
        })?;
        Some(Path::new(place).join(Path::new(path).strip_prefix(root).ok()?))
    };
    if let (Some(memory), Some(cpu)) = (dir("cgroup", "memory"), dir("cgroup", "cpu")) {
        return Ok(Cgroup { unified: false, memory, cpu });
    }
    let own = dir("cgroup2", "").ok_or("no cgroups with the controllers memory and cpu are mounted here")?;
    let has = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
    if !["cpu", "memory"].iter().all(|c| has.split_whitespace().any(|h| h == *c)) {
        return Err(format!("{} has not the controllers memory and cpu: delegate them", own.display()));
    }
    // Where an agent before, or this one, went.
    let own =
        own.ancestors().nth(2).filter(|_| own.ends_with(Path::new("minisvc").join(AGENT))).unwrap_or(&own);
    Ok(Cgroup { unified: true, memory: own.to_path_buf(), cpu: own.to_path_buf() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_cgroup_is_found_in_both_versions() {
        let v1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                  32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                  33 31 0:30 /docker/x /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
                  34 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = find(v1, "8:cpu,cpuacct:/a/b\n4:memory:/docker/x/y\n0::/\n").unwrap();
        assert_eq!(found.cpu, Path::new("/sys/fs/cgroup/cpu,cpuacct/a/b"));
        assert_eq!(found.memory, Path::new("/sys/fs/cgroup/memory/y"));
        assert!(!found.unified);

        let home = tempfile::tempdir().unwrap();
        let own = home.path().join("system.slice/minisvc.service");
        fs::create_dir_all(&own).unwrap();
        let v2 = format!("30 23 0:26 / {} rw,nosuid - cgroup2 cgroup2 rw\n", home.path().display());
        let find = || find(&v2, "0::/system.slice/minisvc.service\n");
        assert!(find().unwrap_err().contains("delegate them"));
        fs::write(own.join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        let found = find().unwrap();
        assert_eq!(found, Cgroup { unified: true, memory: own.clone(), cpu: own.clone() });

        // The agent makes room, and is found in the same place again.
        let base = found.child("minisvc");
        base.move_agent().unwrap();
        let moved = own.join("minisvc/agent");
        assert_eq!(fs::read_to_string(moved.join("cgroup.procs")).unwrap(), "0");
        fs::write(moved.join("cgroup.controllers"), "cpu memory\n").unwrap();
        assert_eq!(super::find(&v2, "0::/system.slice/minisvc.service/minisvc/agent\n").unwrap(), found);

        // A container gets its limits in a cgroup that its pod hands the controllers.
        let pod = base.child("uid");
        fs::create_dir_all(pod.memory.join("c")).unwrap();
        fs::write(pod.memory.join("c/cgroup.procs"), "").unwrap();
        let limits = Resources { memory_limit: Some(1 << 20), ..Resources::default() };
        assert_eq!(pod.open("c", &limits).unwrap().len(), 1);
        for (file, value) in [
            ("cgroup.subtree_control", "+cpu +memory"),
            ("uid/cgroup.subtree_control", "+cpu +memory"),
            ("uid/c/memory.max", "1048576"),
        ] {
            assert_eq!(fs::read_to_string(base.memory.join(file)).unwrap(), value, "{file}");
        }
        assert!(super::find("", "").unwrap_err().contains("no cgroups"));
    }

    #[test]
    fn limits_are_written_as_each_version_has_them() {
        let resources =
            Resources { memory_limit: Some(64 << 20), cpu_limit: Some(250), cpu_request: Some(100) };
        let values = |unified| {
            let one = Cgroup { unified, memory: "/m".into(), cpu: "/c".into() };
            let all = one.values(&resources).into_iter();
            all.map(|(file, value)| format!("{} {value}", file.display())).collect::<Vec<_>>()
        };
        assert_eq!(
            values(false),
            [
                "/m/memory.limit_in_bytes 67108864",
                "/m/memory.memsw.limit_in_bytes 67108864",
                "/c/cpu.cfs_period_us 100000",
                "/c/cpu.cfs_quota_us 25000",
                "/c/cpu.shares 102",
            ]
        );
        assert_eq!(
            values(true),
            [
                "/m/memory.max 67108864",
                "/m/memory.swap.max 0",
                "/m/memory.oom.group 1",
                "/c/cpu.max 25000 100000",
                "/c/cpu.weight 4",
            ]
        );
    }

    #[test]
    fn kills_for_want_of_memory_are_counted_in_both_versions() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("c");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("memory.events"), "low 0\noom 3\noom_kill 2\noom_group_kill 0\n").unwrap();
        fs::write(dir.join("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n").unwrap();
        let of = |unified| Cgroup { unified, memory: home.path().into(), cpu: home.path().into() };
        assert_eq!((of(true).oom_kills("c"), of(false).oom_kills("c"), of(true).oom_kills("d")), (2, 1, 0));
    }
}
