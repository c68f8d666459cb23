//! A server of its own on the loopback, for tests that need no nodes.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::binary::minisvc;

/// A server that runs until this is dropped, and a home directory in which nothing is configured.
#[derive(Debug)]
pub struct Server {
    /// `None` once it is given away.
    home: Option<TempDir>,
    child: Child,
    config: PathBuf,
}

impl Server {
    /// Starts a server on a free port, with an empty store.
    pub fn start() -> anyhow::Result<Server> {
        Self::start_on(tempfile::tempdir()?)
    }

    /// Starts a server on what is in `data` of a directory.
    pub fn start_on(home: TempDir) -> anyhow::Result<Server> {
        let data = home.path().join("data");
        let mut child = Command::new(minisvc()?)
            .args(["server", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let mut log = BufReader::new(child.stderr.take().context("no stderr")?).lines();
        let mut said = String::new();
        let url = loop {
            let Some(line) = log.next().transpose()? else { bail!("the server ended: {said}") };
            if let Some((_, rest)) = line.split_once("the API is at ") {
                break rest.split(',').next().unwrap_or_default().to_owned();
            }
            said = line;
        };
        // What it says later must not fill the pipe.
        std::thread::spawn(move || log.for_each(drop));
        let config = home.path().join("admin.kubeconfig");
        let printed = Command::new(minisvc()?)
            .args(["server", "credentials", "--admin", "--server", &url, "--data-dir"])
            .arg(&data)
            .output()?;
        std::fs::write(&config, printed.stdout)?;
        Ok(Server { home: Some(home), child, config })
    }

    /// `minisvc` with this server's configuration.
    pub fn command(&self, args: &[&str]) -> anyhow::Result<Command> {
        let mut command = unconfigured(self.home())?;
        command.env("MINISVC_CONFIG", &self.config).args(args);
        Ok(command)
    }

    /// Runs it to its end.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Run> {
        Ok(Run::of(&self.command(args)?.output()?))
    }

    /// A directory for files.
    pub fn home(&self) -> &Path {
        self.home.as_ref().map_or(Path::new("/nonexistent"), TempDir::path)
    }

    /// The server's data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.home().join("data")
    }

    /// Ends the server as `kill -9` does, and keeps its directory.
    pub fn kill(mut self) -> anyhow::Result<TempDir> {
        self.child.kill()?;
        self.child.wait()?;
        self.home.take().context("the directory is gone")
    }

    /// The configuration of an administrator.
    pub fn config(&self) -> &Path {
        &self.config
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `minisvc` for a user with this home directory and no configuration.
pub fn unconfigured(home: &Path) -> anyhow::Result<Command> {
    let mut command = Command::new(minisvc()?);
    for name in ["MINISVC_CONFIG", "KUBECONFIG", "XDG_CONFIG_HOME"] {
        command.env_remove(name);
    }
    command.env("HOME", home).stdin(Stdio::null());
    Ok(command)
}

/// What a command printed, and its exit code.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    /// Exit code; -1 for an end by a signal.
    pub code: i32,
    /// stdout.
    pub out: String,
    /// stderr.
    pub err: String,
}

impl Run {
    /// From what the system gives.
    pub fn of(output: &Output) -> Run {
        Run {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}
