//! What goes on: one line that changes on a terminal, a line for each change elsewhere.

use std::io::{self, IsTerminal, Write};

use super::PrintError;

/// The width of a terminal that does not say it.
const WIDTH: usize = 80;

/// See the module. What is shown is on stdout.
#[derive(Debug)]
pub struct Progress {
    /// Columns, on a terminal.
    width: Option<usize>,
    last: String,
}

impl Progress {
    /// For where stdout leads.
    pub fn new() -> Self {
        let size = || rustix::termios::tcgetwinsize(io::stdout()).ok().map(|s| usize::from(s.ws_col));
        let width = io::stdout().is_terminal().then(|| size().filter(|w| *w > 0).unwrap_or(WIDTH));
        Progress { width, last: String::new() }
    }

    /// Whether the line changes in place.
    pub fn is_live(&self) -> bool {
        self.width.is_some()
    }

    /// Shows how it stands now.
    pub fn show(&mut self, text: &str) -> Result<(), PrintError> {
        let out = self.step(text);
        super::bytes(out.as_bytes())
    }

    /// Shows how it ended, on a line that stays.
    pub fn end(mut self, text: &str) -> Result<(), PrintError> {
        let out = self.last_step(text);
        super::bytes(out.as_bytes())
    }

    fn step(&mut self, text: &str) -> String {
        if text == self.last {
            return String::new();
        }
        text.clone_into(&mut self.last);
        match self.width {
            // One that reached the edge would go on to the next line, and stay.
            Some(width) => format!("\r{}\x1b[K", text.chars().take(width - 1).collect::<String>()),
            None => format!("{text}\n"),
        }
    }

    fn last_step(&mut self, text: &str) -> String {
        self.last.clear();
        match self.width {
            Some(_) => format!("\r{text}\x1b[K\n"),
            None => format!("{text}\n"),
        }
    }
}

/// An error's line does not stand behind what was shown.
impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_live() && !self.last.is_empty() {
            let _ = writeln!(io::stdout());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_one_line_and_others_one_for_each_change() {
        let said = |width| {
            let mut progress = Progress { width, last: String::new() };
            let steps = ["1 of 2", "1 of 2", "2 of 2, and more"].map(|t| progress.step(t));
            (steps.concat(), progress.last_step("done"))
        };
        assert_eq!(said(None), ("1 of 2\n2 of 2, and more\n".into(), "done\n".into()));
        assert_eq!(said(Some(8)), ("\r1 of 2\x1b[K\r2 of 2,\x1b[K".into(), "\rdone\x1b[K\n".into()));
    }
}
