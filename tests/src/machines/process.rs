//! A process on a machine, and what it says.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ExitStatus},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// No test waits longer for a line, or for an end.
const PATIENCE: Duration = Duration::from_mins(1);

/// A test that failed while it looked at the log leaves it as it is.
fn held(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What `minisvc` begins its last line with when it ends with code 1.
fn is_error(line: &str) -> bool {
    line.starts_with("error: ") || line.starts_with("Error from server")
}

/// Killed when dropped. A test that fails keeps it until its world has kept the evidence, for which the server is asked, too: the room
/// ends it then.
pub struct Process {
    command: String,
    child: Child,
    log: Arc<(Mutex<Log>, Condvar)>,
}

#[derive(Default)]
struct Log {
    lines: Vec<String>,
    ended: bool,
}

impl Process {
    /// Reads what it says, and writes it to a file among `logs`.
    pub(super) fn new(mut child: Child, command: &str, logs: &Path) -> anyhow::Result<Self> {
        let stderr = child.stderr.take().context("no stderr")?;
        let verb = command.split_whitespace().nth(1).unwrap_or("process");
        let mut file = File::create(logs.join(format!("{verb}-{}.log", child.id())))?;
        let log = Arc::new((Mutex::new(Log::default()), Condvar::new()));
        let shared = log.clone();
        std::thread::spawn(move || {
            let (log, news) = &*shared;
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // A log that cannot be kept is no reason to stop reading.
                let _ = writeln!(file, "{line}");
                held(log).lines.push(line);
                news.notify_all();
            }
            held(log).ended = true;
            news.notify_all();
        });
        Ok(Process { command: command.to_owned(), child, log })
    }

    /// All that it said so far.
    pub fn said(&self) -> Vec<String> {
        held(&self.log.0).lines.clone()
    }

    /// Its lines with this text so far.
    pub fn lines_with(&self, text: &str) -> Vec<String> {
        self.said().into_iter().filter(|l| l.contains(text)).collect()
    }

    /// Returns its first line with this text, once it is there; fails the test if it ends without.
    #[track_caller]
    pub fn until(&self, text: &str) -> String {
        let end = Instant::now() + PATIENCE;
        let (log, news) = &*self.log;
        let mut log = held(log);
        loop {
            if let Some(line) = log.lines.iter().find(|l| l.contains(text)) {
                return line.clone();
            }
            let left = end.saturating_duration_since(Instant::now());
            assert!(
                !log.ended && !left.is_zero(),
                "`{}` never said {text:?}: {:#?}",
                self.command,
                log.lines
            );
            log = news.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for its end.
    #[track_caller]
    pub fn ended(&mut self) -> ExitStatus {
        let end = Instant::now() + PATIENCE;
        let (log, news) = &*self.log;
        let mut log = held(log);
        while !log.ended {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "`{}` does not end: {:#?}", self.command, log.lines);
            log = news.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(log);
        self.child.wait().unwrap()
    }

    /// Waits for its end with code 1, and returns the one line that says why.
    #[track_caller]
    pub fn refused(mut self) -> String {
        let status = self.ended();
        let said = self.said();
        assert_eq!(status.code(), Some(1), "`{}`: {said:#?}", self.command);
        let errors: Vec<&String> = said.iter().filter(|l| is_error(l)).collect();
        let [error] = errors[..] else { panic!("`{}`: one line with error: {said:#?}", self.command) };
        assert_eq!(said.last(), Some(error), "the error comes last: {said:#?}");
        error.clone()
    }

    /// Asks it to end, and waits.
    #[track_caller]
    pub fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended();
        assert!(status.success(), "`{}` ended with {status}: {:#?}", self.command, self.said());
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        // One that has ended needs no end.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
