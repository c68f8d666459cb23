//! The processes of a cluster, as /proc shows them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context;

/// A server or an agent.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its directory in /proc.
    directory: PathBuf,
    /// Its command line.
    args: Vec<String>,
}

/// The processes that run `minisvc COMMAND` for the cluster whose files are under `home`, in the order of their command lines.
pub fn of(home: &Path, command: &str) -> anyhow::Result<Vec<Process>> {
    let home = home.to_str().context("a path that is no text")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let directory = entry?.path();
        // Other processes come and go meanwhile.
        let Ok(line) = fs::read(directory.join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line);
        let args: Vec<String> = line.split_terminator('\0').map(str::to_owned).collect();
        if args.get(1).is_some_and(|c| c == command) && args.iter().any(|a| a.contains(home)) {
            found.push(Process { directory, args });
        }
    }
    found.sort_by(|a, b| a.args.cmp(&b.args));
    Ok(found)
}

impl Process {
    /// The network namespace that it stands in.
    pub fn network(&self) -> PathBuf {
        self.directory.join("ns/net")
    }

    /// Resident memory in millions of bytes.
    pub fn resident(&self) -> anyhow::Result<f64> {
        self.kilobytes("status", "VmRSS:")
    }

    /// The same with pages that are shared, such as the program's own text, counted by their part.
    pub fn proportional(&self) -> anyhow::Result<f64> {
        self.kilobytes("smaps_rollup", "Pss:")
    }

    fn kilobytes(&self, file: &str, field: &str) -> anyhow::Result<f64> {
        let path = self.directory.join(file);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let line = text.lines().find_map(|l| l.strip_prefix(field));
        let number =
            line.and_then(|l| l.trim().strip_suffix(" kB")).and_then(|n| n.trim().parse::<f64>().ok());
        Ok(number.with_context(|| format!("{}: no {field}", path.display()))? * 1024.0 / 1e6)
    }
}
